"""Where the time of quantune's artifact goes, and how near each dispatch comes to the processor's peak."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from .machine import Peak
from .models import Stable


def per_layer(name: str, precision: str, peak: Peak | None) -> list[dict[str, Any]]:
    """Dispatches of quantune's artifact on one thread, slowest first: layers, ms, share of the time, MMAC, GMAC/s.

    of_peak: GMAC/s divided by the peak's; None without one.
    """
    from quantune.runtime.benchmark import dispatch_times

    with tempfile.TemporaryDirectory(prefix="quantune-peers-") as temporary:
        artifact = Stable(name, Path(temporary)).artifact(precision)
        times = dispatch_times(artifact.save(Path(temporary) / "model.vmfb"), min_seconds=2.0)
    total = sum(times.values())
    rows = []
    for dispatch, ms in sorted(times.items(), key=lambda item: -item[1]):
        layers = [layer for layer in artifact.layers if layer.dispatch == dispatch]
        macs = sum(layer.macs for layer in layers)
        names = ", ".join(layer.layer or layer.op for layer in layers) or dispatch
        speed = macs / ms / 1e6
        rows.append(
            {"dispatch": dispatch, "layers": names, "ms": ms, "share": ms / total, "mmac": macs / 1e6,
             "gmac_per_s": speed, "of_peak": speed / peak.gmac_per_s if peak else None}
        )  # fmt: skip
    return rows
