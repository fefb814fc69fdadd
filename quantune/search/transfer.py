"""What finished studies of other models say about a configuration before this model has measured anything."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from quantune.errors import UsageError
from quantune.search.cost_model import CostModel
from quantune.search.features import Encoder, Params, Space, key_of

FORMAT = "quantune-transfer-1"


@dataclass(frozen=True)
class PastStudy:
    """The measured rows of one model: parameters and the value reached (larger is better)."""

    model: str
    rows: tuple[tuple[Params, float], ...]


class TransferPrior:
    """Merit of a configuration in [0, 1]: its mean percentile rank in the past studies (1 is the best of each).

    Ranks, not accuracies, because models differ in how far and how suddenly they fall. A configuration no past study
    measured gets the prediction of a cost model trained on the others. On the published ImageNet tables this plain mean
    needs fewer trials than boosted trees trained on the same rows.
    """

    def __init__(self, studies: Iterable[PastStudy], space: Space) -> None:
        self._space = dict(space)
        self._encode = Encoder(self._space)
        self._known: dict[tuple[float, ...], list[float]] = {}
        params: list[Params] = []
        merits: list[float] = []
        for study in studies:
            rows = [(p, v) for p, v in study.rows if _fits(p, self._space)]
            if not rows:
                continue
            ranks = rankdata([v for _, v in rows]) / len(rows)
            for (row, _), merit in zip(rows, ranks, strict=True):
                self._known.setdefault(key_of(row, self._space), []).append(float(merit))
                params.append(row)
                merits.append(float(merit))
        self._model = CostModel().fit(self._encode.configuration(params), np.asarray(merits)) if params else None

    def __call__(self, params: Params) -> float:
        """The merit; 0.5 when there is no past study."""
        seen = self._known.get(key_of(params, self._space))
        if seen:
            return float(np.mean(seen))
        if self._model is None:
            return 0.5
        return float(self._model.predict(self._encode.configuration([params]))[0][0])


def save_studies(path: Path, studies: Sequence[PastStudy]) -> None:
    """Write past studies as JSON."""
    rows = [{"model": s.model, "rows": [{"params": dict(p), "value": v} for p, v in s.rows]} for s in studies]
    path.write_text(json.dumps({"format": FORMAT, "studies": rows}, indent=1) + "\n", encoding="utf-8")


def load_studies(path: Path) -> tuple[PastStudy, ...]:
    """Read what `save_studies` wrote. Raises UsageError that names the file for anything else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        return tuple(
            PastStudy(str(s["model"]), tuple((dict(r["params"]), float(r["value"])) for r in s["rows"]))
            for s in value["studies"]
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path}: not a file of past studies ({error})") from error


def _fits(params: Params, space: Space) -> bool:
    try:
        return all(dist._contains(dist.to_internal_repr(params[name])) for name, dist in space.items())
    except (KeyError, ValueError):
        return False
