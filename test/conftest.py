"""How hypothesis draws: the same examples every time in `make test`, others with a printed seed in `make test-all`.

No profile has a deadline, and none minds slow draws: both would fail tests on a loaded machine.
"""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("same")
