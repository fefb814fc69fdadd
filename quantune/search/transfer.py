"""Finished studies of other models: what they say of a configuration, and the file that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from quantune.errors import UsageError
from quantune.quantization.space import completed
from quantune.search.features import Params, Space

FORMAT = "quantune-transfer-2"
SHIPPED = "studies.json"
MERITS = ("screened_db", "predicted_db")
"""Features that say before any trial how good a configuration is, the best first: what a search takes for its prior."""
RESOLUTION = 0.001
"""Drops of accuracy below this (a tenth of a point) are counted, larger ones are compared by their ratio."""


@dataclass(frozen=True)
class PastStudy:
    """The measured rows of one model.

    rows: parameters and the accuracy reached, a fraction. reference: the accuracy of its f32 artifact. feature_names,
    features: the numbers known of each row before it was measured, in the order of rows; empty where none were kept.
    fingerprint: of the model with its weights. provenance: how the rows were measured, in words.
    """

    model: str
    rows: tuple[tuple[Params, float], ...]
    reference: float
    feature_names: tuple[str, ...] = ()
    features: tuple[tuple[float, ...], ...] = ()
    fingerprint: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (self.reference, *(v for _, v in self.rows)):
            if not 0.0 <= value <= 1.0:  # also false for NaN
                raise ValueError(f"accuracy {value}: expected a fraction between 0 and 1")
        widths = {len(row) for row in self.features}
        if self.features and (len(self.features) != len(self.rows) or widths != {len(self.feature_names)}):
            raise ValueError(f"features of {self.model}: expected {len(self.feature_names)} numbers for each row")

    @property
    def merits(self) -> tuple[float, ...]:
        """The best of the features `MERITS` of each row; empty where none was kept."""
        name = next((name for name in MERITS if name in self.feature_names), None)
        return () if name is None else tuple(row[self.feature_names.index(name)] for row in self.features)

    def with_features(self, names: Sequence[str]) -> PastStudy:
        """The study with these features alone, in this order; with none where it lacks one."""
        if not set(names) <= set(self.feature_names):
            return replace(self, feature_names=(), features=())
        columns = [self.feature_names.index(name) for name in names]
        kept = tuple(tuple(row[i] for i in columns) for row in self.features)
        return replace(self, feature_names=tuple(names), features=kept)


def score(value: np.ndarray, reference: float) -> np.ndarray:
    """Accuracies (fractions) on a scale that models share: about minus the logarithm of the drop against f32.

    A network that collapses is arbitrarily bad, and what matters is the order among the good ones.
    """
    return -np.arcsinh((reference - np.asarray(value, dtype=np.float64)) / (2 * RESOLUTION))


def usable(
    studies: Iterable[PastStudy], *, model: str, fingerprint: str = "", feature_names: Sequence[str] = ()
) -> tuple[PastStudy, ...]:
    """The studies of other models, with the features of the search alone.

    A study of the same model (by name or fingerprint) is left out: it may be of other images or another compiler, and
    it would make a search look better than it is for anybody else's model.
    """
    kept = [s for s in studies if s.model != model and not (fingerprint and s.fingerprint == fingerprint)]
    return tuple(study.with_features(feature_names) for study in kept)


def rows_in(study: PastStudy, space: Space) -> dict[int, Params]:
    """The rows that are points of the space: index -> parameters.

    A row of a smaller space is a point of a larger one, whose further parameters have their defaults in it.
    """
    whole = ((i, completed(params, space)) for i, (params, _) in enumerate(study.rows))
    return {i: params for i, params in whole if params is not None and _fits(params, space)}


def shipped() -> tuple[PastStudy, ...]:
    """The studies that come with the package."""
    with resources.as_file(resources.files("quantune.search") / "data" / SHIPPED) as path:
        return load_studies(path)


def save_studies(path: Path, studies: Sequence[PastStudy]) -> None:
    """Write past studies as JSON, a row a line; features keep four decimals."""
    blocks = []
    for study in studies:
        head = {
            "model": study.model,
            "fingerprint": study.fingerprint,
            "provenance": dict(study.provenance),
            "reference": study.reference,
            "feature_names": list(study.feature_names),
        }
        features = study.features or ((),) * len(study.rows)
        rows = [
            json.dumps({"params": dict(params), "value": value, "features": [round(f, 4) for f in extra]})
            for (params, value), extra in zip(study.rows, features, strict=True)
        ]
        blocks.append(json.dumps(head)[:-1] + ', "rows": [\n' + ",\n".join(rows) + "\n]}")
    text = f'{{"format": "{FORMAT}", "studies": [\n' + ",\n".join(blocks) + "\n]}\n"
    path.write_text(text, encoding="utf-8")


def load_studies(path: Path) -> tuple[PastStudy, ...]:
    """Read what `save_studies` wrote. Raises UsageError that names the file for anything else."""
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise ValueError(f"format is not {FORMAT}")
        return tuple(_study(s) for s in value["studies"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a file of past studies ({type(error).__name__}: {error})") from error


def _study(value: Mapping[str, Any]) -> PastStudy:
    features = tuple(tuple(float(f) for f in r["features"]) for r in value["rows"])
    return PastStudy(
        model=str(value["model"]),
        rows=tuple((dict(r["params"]), float(r["value"])) for r in value["rows"]),
        reference=float(value["reference"]),
        feature_names=tuple(map(str, value["feature_names"])),
        features=features if value["feature_names"] else (),
        fingerprint=str(value["fingerprint"]),
        provenance={str(k): str(v) for k, v in value["provenance"].items()},
    )


def _fits(params: Params, space: Space) -> bool:
    try:
        return all(dist._contains(dist.to_internal_repr(params[name])) for name, dist in space.items())
    except (KeyError, ValueError, TypeError):
        return False
