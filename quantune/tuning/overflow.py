"""Why an artifact's answers are not finite: which layer of the f32 network overflows, on which evaluation image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantune.data.splits import Split
from quantune.errors import QuantuneError, RunFailed, UsageError
from quantune.tuning.calibrating import Calibration


class NotFinite(RunFailed):
    """The answer for an image holds an infinity or a NaN. row: which of the images that were shown, from 0."""

    def __init__(self, row: int) -> None:
        super().__init__("the artifact's output is not finite")
        self.row = row


def finite(logits: NDArray[np.floating], first: int = 0) -> NDArray[np.floating]:
    """The answers themselves. Raises NotFinite; first: which image the first row is of."""
    rows = np.isfinite(logits).reshape(len(logits), -1).all(axis=1)
    if not rows.all():
        raise NotFinite(first + int(np.flatnonzero(~rows)[0]))
    return logits


def explained(model: Calibration, image: Split, *, is_float: bool) -> QuantuneError:
    """What to tell of an image (one of a set) whose answer is not finite.

    is_float: it is the f32 artifact's. Then the network itself is asked where it happens: every configuration is
    compared with it, so that a search cannot go on, and weights or images are what to mend (UsageError).
    """
    where = f"evaluation image {image.indices[0]} of {image.source.name}"
    if not is_float:
        return RunFailed(f"{where}: the artifact's output is not finite")
    network = model.network
    layers = {node.name: node.layer or node.name for node in network.layers}
    for seen in model.observe_on([*dict.fromkeys((*layers, *network.outputs))], image):
        for name, values in seen.items():
            if not np.isfinite(values).all():
                what = f"layer '{layers[name]}'" if name in layers else f"tensor '{name}'"
                return UsageError(
                    f"{where}: {what} of the f32 model is not finite; check the weights and the image's scaling"
                )
    return RunFailed(f"{where}: the artifact's output is not finite, and the network's is")
