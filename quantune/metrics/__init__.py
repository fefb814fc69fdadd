"""What an artifact's answers are worth: the table of metrics, and a user's own function in place of one."""

from __future__ import annotations

from quantune.errors import UsageError
from quantune.metrics.base import Metric
from quantune.metrics.classification import TopK
from quantune.metrics.dense import MeanIoU, MeanSquaredError, PeakSignalToNoise
from quantune.metrics.distances import Cosine, Divergence, SignalToNoise
from quantune.metrics.own import OwnMetric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        TopK(1),
        TopK(5),
        MeanIoU(),
        MeanSquaredError(),
        PeakSignalToNoise(),
        Divergence(),
        SignalToNoise(),
        Cosine(),
    )
}
"""The metrics by name."""

DEFAULT = "top-1"


def parse(text: str) -> Metric:
    """The metric of a name in ``METRICS``, or of ``PACKAGE.MODULE:FUNCTION``. Raises UsageError for anything else."""
    if text in METRICS:
        return METRICS[text]
    if ":" in text:
        return OwnMetric(text)
    raise UsageError(f"metric '{text}': expected {', '.join(METRICS)} or PACKAGE.MODULE:FUNCTION")


__all__ = ["DEFAULT", "METRICS", "Metric", "parse"]
