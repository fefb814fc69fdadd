"""What one layer's bits do to the quantized network's output.

The idea is the first phase of AIMET's automatic mixed precision, which scores a layer with all others in f32
(quantune.allocation.amp): here they have the widest choice, as they will in the artifact. N. Pandey, M. Nagel,
M. van Baalen, Y. Huang, C. Patel, T. Blankevoort, "A practical mixed precision algorithm for post-training
quantization", 2023 (arXiv 2302.05397). The baseline gives every layer the widest choice; for each (layer, choice) only
that layer is changed, and with y the f32 network's output and y' the quantized one's,

    SQNR = 10 log10(sum y**2 / sum (y - y')**2)       on 128 unlabelled images

The outputs are those of the compiled integer network, not of a simulation. A score is a ratio of powers, because
independent noises add up, so that a sum of scores predicts the noise of an allocation (AIMET walks a list sorted by
SQNR, and measures as it goes):

    against="f32"        max(r(flip) - r(baseline), 0)     r = 10**(-SQNR / 10)
    against="baseline"   sum (y'(baseline) - y'(flip))**2 / sum y**2

Both estimate the noise that the change adds. Where the baseline's own noise is large the first is lost in it, and so
is the order of the choices; the second is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantune.allocation.base import Scores, Subject
from quantune.quantization.bits import BitWidths, LayerBits


@dataclass(frozen=True)
class Sqnr:
    """The SQNR score; every choice of every layer costs a run over the images. against: f32 or baseline.

    images: AIMET's default is 128; allocations by 16 are as accurate (see test/benchmark/allocation.py).
    """

    images: int = 16
    against: str = "baseline"

    def __post_init__(self) -> None:
        if self.against not in ("f32", "baseline"):
            raise ValueError(f"against is '{self.against}'; expected f32 or baseline")

    def __call__(self, subject: Subject) -> Scores:
        """Score every choice of every layer by flipping it alone."""
        widest = max(subject.choices)
        names = [node.name for node in subject.network.layers]
        # All layers of one choice together: what a choice needs can be made while another one runs.
        flips = [(name, choice) for choice in subject.choices if choice != widest for name in names]
        widths = [BitWidths(widest), *(BitWidths(widest, ((name, choice),)) for name, choice in flips)]
        outputs = subject.logits(widths, self.images)
        exact = next(outputs)
        baseline = next(outputs)
        signal = max(_power(exact), np.finfo(np.float64).tiny)
        noise = _power(exact - baseline)
        scores: dict[str, dict[LayerBits, float]] = {name: {widest: 0.0} for name in names}
        for (name, choice), output in zip(flips, outputs, strict=True):
            added = _power(output - baseline) if self.against == "baseline" else _power(output - exact) - noise
            scores[name][choice] = max(added, 0.0) / signal
        return scores


def _power(values: NDArray[np.float32]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
