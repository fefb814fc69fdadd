"""Functions of one value as plain data: what SiLU, GELU or hard-swish compute of each element, in steps.

The steps are the MLIR operations that a network is made of, so that no function has to be known by name. Numpy alone
computes them, in f64: on the 256 values of a quantized tensor for a table, or on a whole tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

VALUE, NUMBER, COMPARE = "value", "number", "arith.cmpf"
_erf = np.frompyfunc(math.erf, 1, 1)


def _power(x: NDArray, exponent: NDArray) -> NDArray:
    return np.power(x, np.asarray(exponent, np.float64))


#: What each step computes of its operands.
COMPUTED: dict[str, Callable[..., NDArray]] = {
    "arith.addf": np.add,
    "arith.subf": np.subtract,
    "arith.mulf": np.multiply,
    "arith.divf": np.divide,
    "arith.negf": np.negative,
    "arith.maximumf": np.maximum,
    "arith.minimumf": np.minimum,
    "arith.maxnumf": np.fmax,
    "arith.minnumf": np.fmin,
    "arith.select": np.where,
    "arith.extf": np.asarray,
    "arith.truncf": lambda x: np.asarray(x, np.float32).astype(np.float64),
    "arith.sitofp": np.asarray,
    "arith.andi": np.logical_and,
    "arith.ori": np.logical_or,
    "arith.xori": np.logical_xor,
    "math.absf": np.abs,
    "math.ceil": np.ceil,
    "math.cos": np.cos,
    "math.erf": lambda x: np.asarray(_erf(x), np.float64),
    "math.exp": np.exp,
    "math.exp2": np.exp2,
    "math.expm1": np.expm1,
    "math.floor": np.floor,
    "math.fpowi": _power,
    "math.log": np.log,
    "math.log1p": np.log1p,
    "math.powf": _power,
    "math.roundeven": np.rint,
    "math.rsqrt": lambda x: 1 / np.sqrt(x),
    "math.sin": np.sin,
    "math.sqrt": np.sqrt,
    "math.tanh": np.tanh,
}
#: By the predicate of a compare: (what holds of ordered numbers, what holds where one is NaN).
_RELATIONS: dict[int, tuple[Callable[..., NDArray], bool]] = {
    1: (np.equal, False), 2: (np.greater, False), 3: (np.greater_equal, False), 4: (np.less, False),
    5: (np.less_equal, False), 6: (np.not_equal, False), 8: (np.equal, True), 9: (np.greater, True),
    10: (np.greater_equal, True), 11: (np.less, True), 12: (np.less_equal, True), 13: (np.not_equal, True),
}  # fmt: skip
PREDICATES = frozenset(_RELATIONS)


@dataclass(frozen=True)
class Step:
    """One operation on the results of earlier steps, given by their places.

    name: VALUE, NUMBER, COMPARE or one of COMPUTED. number: of NUMBER, several where
    each channel has one, and the predicate of COMPARE.
    """

    name: str
    operands: tuple[int, ...] = ()
    number: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        if self.name not in (VALUE, NUMBER, COMPARE) and self.name not in COMPUTED:
            raise ValueError(f"step '{self.name}': expected {VALUE}, {NUMBER}, {COMPARE} or one of COMPUTED")
        if self.name == COMPARE and self.number not in PREDICATES:
            raise ValueError(f"predicate {self.number} of a compare: expected one of {sorted(PREDICATES)}")


@dataclass(frozen=True)
class Function:
    """A function of one value. The first step is the value, the last one the result."""

    steps: tuple[Step, ...]

    @property
    def by_channel(self) -> bool:
        """Whether numbers differ between channels, dimension 1 of what the function is computed of."""
        return any(isinstance(step.number, tuple) for step in self.steps)

    def __call__(self, values: ArrayLike) -> NDArray[np.float32]:
        """The function of each element: computed in f64, rounded once to f32."""
        with np.errstate(all="ignore"):
            return np.asarray(self._computed(np.asarray(values, np.float64)), np.float32)

    def of(self, inner: Function) -> Function:
        """This function of the result of ``inner``."""
        steps = Steps()
        return Function(steps.end(steps.append(self, steps.append(inner, 0))))

    def _computed(self, values: NDArray[np.float64]) -> NDArray:
        results: list[NDArray] = []
        for step in self.steps:
            operands = [results[place] for place in step.operands]
            results.append(values if step.name == VALUE else _compute(step, operands, values.ndim))
        return np.broadcast_to(results[-1], values.shape)


class Steps:
    """A function in the making."""

    def __init__(self) -> None:
        self._steps = [Step(VALUE)]

    def add(self, name: str, operands: tuple[int, ...] = (), number: float | tuple[float, ...] = 0.0) -> int:
        """Add a step; its place."""
        self._steps.append(Step(name, operands, number))
        return len(self._steps) - 1

    def append(self, function: Function, value: int) -> int:
        """Add the steps of ``function`` of the result at ``value``; the place of its result."""
        places = [value]
        for step in function.steps[1:]:
            places.append(self.add(step.name, tuple(places[place] for place in step.operands), step.number))
        return places[-1]

    def end(self, place: int) -> tuple[Step, ...]:
        """The steps so far, with the result at ``place`` last."""
        return tuple(self._steps[: place + 1])


IDENTITY = Function((Step(VALUE),))


def clamp(lo: float, hi: float) -> Function:
    """The clamp between two bounds, of which one may be infinite."""
    steps = Steps()
    place = steps.add("arith.maxnumf", (0, steps.add(NUMBER, number=lo))) if math.isfinite(lo) else 0
    place = steps.add("arith.minnumf", (place, steps.add(NUMBER, number=hi))) if math.isfinite(hi) else place
    return Function(steps.end(place))


def channel_affine(factor: NDArray, shift: NDArray) -> Function:
    """A factor and a shift for each channel."""
    steps = Steps()
    scaled = steps.add("arith.mulf", (0, steps.add(NUMBER, number=tuple(factor.tolist()))))
    return Function(steps.end(steps.add("arith.addf", (scaled, steps.add(NUMBER, number=tuple(shift.tolist()))))))


def _compute(step: Step, operands: list[NDArray], rank: int) -> NDArray:
    if step.name == NUMBER:
        number = np.asarray(step.number)
        return number if number.ndim == 0 else number.reshape(-1, *[1] * (rank - 2))
    if step.name == COMPARE:
        assert isinstance(step.number, float | int)
        relation, unordered = _RELATIONS[int(step.number)]
        missing = np.isnan(operands[0]) | np.isnan(operands[1])
        return np.where(missing, unordered, relation(*operands))
    return COMPUTED[step.name](*operands)
