from __future__ import annotations

import quantune
from quantune.versions import _installed, versions


def test_versions_are_those_of_the_packages() -> None:
    import numpy
    import xgboost

    found = versions()
    assert found["quantune"] == quantune.__version__
    assert found["xgboost"] == xgboost.__version__  # whichever of its distributions is installed
    assert "not installed" not in found.values()
    assert _installed(("no-such-distribution", "numpy")) == numpy.__version__
    assert _installed(("no-such-distribution",)) == "not installed"
