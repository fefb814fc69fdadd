"""What was asked for, as far as it can be written down: the references that an artifact was made from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from quantune.data.choice import names_one_set
from quantune.errors import UsageError
from quantune.quantization.config import QuantConfig
from quantune.search.progress import TuningEvent


@dataclass(frozen=True)
class Progress:
    """Where a long call may tell how far it is. Every hook may be left out."""

    on_stage: Callable[[str], None] = lambda text: None
    on_calibration: Callable[[int, int], None] = lambda done, total: None
    on_event: Callable[[TuningEvent], None] = lambda event: None
    on_training: Callable[[float, str], None] = lambda done, text: None
    on_screening: Callable[[int, int], None] = lambda done, total: None
    on_refining: Callable[[int, int], None] = lambda done, total: None


@dataclass(frozen=True)
class ModelOptions:
    """What a model reference leaves open: weights file, image shape (c, h, w), batch size, number of classes."""

    weights: Path | None = None
    shape: tuple[int, int, int] | None = None
    batch: int = 1
    classes: int | None = None

    def __post_init__(self) -> None:
        if self.weights is not None:
            object.__setattr__(self, "weights", Path(self.weights))
        for name, value in (("batch", self.batch), ("classes", self.classes)):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise UsageError(f"{name} {value!r}: expected a whole number, 1 or more")
        sides = () if self.shape is None else tuple(self.shape)
        if self.shape is not None and not (len(sides) == 3 and all(isinstance(n, int) and n > 0 for n in sides)):
            raise UsageError(f"image shape {self.shape}: expected (channels, height, width) such as (3, 224, 224)")


@dataclass(frozen=True)
class Origin:
    """The references behind an artifact; None where there was none.

    evaluation: only where it names the calibration images' own set, whose division it decides. objects: what was given
    as a Python object instead, of model and calib.
    """

    model: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    objects: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: object, calibration: object, evaluation: object, options: ModelOptions | None) -> Origin:
        """The references among what an entry point was given; what is no Unicode text counts as an object."""
        name = _text(str(model)) if isinstance(model, str | Path) else None
        calib, wanted = _text(calibration), _text(evaluation)
        objects = (("model", name is None), ("calib", calib is None and calibration is not None))
        divided = calib is not None and wanted is not None and names_one_set(calib, wanted)
        missing = tuple(what for what, is_object in objects if is_object)
        return cls(name, calib, wanted if divided else None, options or ModelOptions(), missing)

    def arguments(self) -> dict[str, str]:
        """Option of ``quantune-compile`` -> value, ``model`` for the model; what an artifact's record keeps."""
        options = self.options
        given = {
            "model": self.model,
            "calib": self.calibration,
            "eval": self.evaluation,
            "weights": options.weights,
            "image-shape": None if options.shape is None else ",".join(map(str, options.shape)),
            "batch": options.batch if options.batch > 1 else None,
            "classes": options.classes,
        }
        return {name: str(value) for name, value in given.items() if value is not None}

    @classmethod
    def from_arguments(cls, arguments: Mapping[str, str], where: str) -> Origin:
        """Read what ``arguments`` gave. Raises UsageError that opens with ``where``."""
        try:
            shape = tuple(int(side) for side in arguments.get("image-shape", "").split(",") if side)
            numbers = {name: int(arguments[name]) for name in ("batch", "classes") if name in arguments}
            weights = Path(arguments["weights"]) if "weights" in arguments else None
            options = ModelOptions(weights, shape or None, **numbers)  # type: ignore[arg-type]
        except (ValueError, UsageError) as error:
            raise UsageError(f"{where}: the record of its sources cannot be used ({error})") from error
        return cls(*(arguments.get(name) for name in ("model", "calib", "eval")), options)  # type: ignore[arg-type]

    def command(self, config: QuantConfig, target: str) -> tuple[str, ...]:
        """The command that makes a configuration's artifact again; empty where a Python object was given."""
        if self.objects or self.model is None:
            return ()
        given = {**self.arguments(), "target": target, "config": str(config), "o": "best.vmfb"}
        model = given.pop("model")
        options = (word for name, value in given.items() for word in (_option(name), value))
        return ("quantune-compile", model, *options)


def _option(name: str) -> str:
    return f"--{name}" if len(name) > 1 else f"-{name}"


def _text(value: object) -> str | None:
    """A reference that can be written down; a file name may hold bytes that are no Unicode."""
    try:
        return value if isinstance(value, str) and value.encode() is not None else None
    except UnicodeEncodeError:
        return None
