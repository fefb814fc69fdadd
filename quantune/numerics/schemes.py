"""How a range becomes a scale and a zero point: one object for each scheme, in one table that everything asks.

Configurations, the search space, plans, the ranking of trials and the documents take their schemes from ``SCHEMES``. A
new one is a subclass of ``Scheme`` (or an instance with other fields) and a call of ``register``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mlir_passes.vocabulary import Vocabulary
from quantune.numerics.affine import BIAS_LIMIT, LARGEST_SCALE, SMALLEST_SCALE, QuantParams

_ZERO = np.array(0, np.int32)


@dataclass(frozen=True)
class Weights:
    """How weights are quantized: s, zero point 0, q in [-(2**(bits-1) - 1), 2**(bits-1) - 1].

    power2: whether scales are rounded up to powers of two.
    """

    power2: bool = False

    def params(self, w: NDArray[np.floating], granularity: str, bits: int = 8, axis: int = 0) -> QuantParams:
        """The parameters of a weight; an all-zero tensor or channel gets the scale 1.0.

        granularity: "tensor", or "channel" for one scale per index of ``axis``. Raises ValueError for a weight that is
        empty or not finite.
        """
        _check_bits(bits)
        if granularity not in ("tensor", "channel"):
            raise ValueError(f"unknown granularity '{granularity}'")
        if w.size == 0:
            raise ValueError(f"weight of shape {w.shape}: expected at least one element")
        magnitude = np.abs(w.astype(np.float64))
        if not np.isfinite(magnitude).all():
            count = np.count_nonzero(~np.isfinite(magnitude))
            raise ValueError(f"weight of shape {w.shape}: {count} elements are not finite")
        largest = (1 << (bits - 1)) - 1
        if granularity == "tensor":
            return QuantParams(
                scale_near(float(magnitude.max()) / largest, power2=self.power2), _ZERO, -largest, largest
            )
        channels = np.moveaxis(magnitude, axis, 0).reshape(w.shape[axis], -1).max(axis=1)
        scale = np.array([scale_near(float(top) / largest, power2=self.power2) for top in channels], np.float32)
        return QuantParams(scale, np.zeros(len(scale), np.int32), -largest, largest, axis % w.ndim)

    def fit_to_bias(self, p: QuantParams, bias: NDArray[np.floating], s_x: float) -> QuantParams:
        """Parameters whose scales are raised where |bias| / (s_x * s_w) would exceed ``BIAS_LIMIT``.

        A channel of nearly vanishing weights (common after folding batch norm) has a scale so small that its bias does
        not fit into i32; the coarser weights move a sum of K products by at most K * 2**-23 of the bias.
        """
        if p.axis is None:
            needed = float(np.abs(bias).max(initial=0.0)) / (BIAS_LIMIT * float(np.float32(s_x)))
        else:
            needed = np.abs(bias.astype(np.float64)) / (BIAS_LIMIT * float(np.float32(s_x)))
        if np.all(p.scale >= needed):
            return p
        raised = np.maximum(p.scale, np.nextafter(np.float32(needed), np.float32(np.inf)))
        if self.power2:
            raised = np.ldexp(np.float32(1), np.frexp(raised)[1] - (np.frexp(raised)[0] == 0.5))
        return replace(p, scale=raised.astype(np.float32))


@dataclass(frozen=True)
class Scheme:
    """The symmetric scheme, and what the others change: s, zero point 0, max(|lo|, |hi|) on the largest q.

    name: in configurations. on_activations, on_weights: what it does with both, for documents. simplicity: of two
    measurements that are equal the smaller wins. power2: scales are rounded up to powers of two, and layers requantize
    by shifts. searched: whether studies try it.
    """

    name: str
    on_activations: str
    on_weights: str = "the same"
    simplicity: int = 100
    power2: bool = False
    searched: bool = True

    @property
    def weights(self) -> Weights:
        """How weights are quantized; schemes whose answers are equal share them."""
        return Weights(self.power2)

    @property
    def both_ends(self) -> bool:
        """Whether each end of a range costs steps of its own, so that cutting one of them helps."""
        return False

    def suited(self, *, one_sided: bool) -> Scheme:
        """The scheme that suits a range best which this one would quantize; ranges are clipped and shared for that."""
        return self

    def storage(self, lo: float, bits: int) -> tuple[int, int]:
        """qmin and qmax of a range that begins at ``lo``."""
        largest = (1 << (bits - 1)) - 1
        return -largest - 1, largest

    def step(self, lo: float, hi: float, bits: int) -> float:
        """The exact scale of [lo, hi], which contains 0."""
        return max(-lo, hi) / self.storage(lo, bits)[1]

    def zero_point(self, lo: float, scale: float, bits: int) -> int:
        """The integer of 0.0 for a range that begins at ``lo``, which is not above 0."""
        return 0

    def scale(self, lo: float, hi: float, bits: int = 8) -> NDArray[np.float32]:
        """The scale alone of ``params``, with the same errors: clipping tries hundreds of ranges a tensor."""
        if not (math.isfinite(lo) and math.isfinite(hi)):
            raise ValueError(f"range [{lo}, {hi}]: expected finite numbers")
        if lo > hi:
            raise ValueError(f"range [{lo}, {hi}]: the lower end is above the upper end")
        _check_bits(bits)
        return scale_near(self.step(min(float(lo), 0.0), max(float(hi), 0.0), bits), power2=self.power2)

    def params(self, lo: float, hi: float, bits: int = 8) -> QuantParams:
        """The parameters of an activation seen in [lo, hi], per tensor; 0.0 is always exact.

        Raises ValueError for a range that is not finite or not ordered.
        """
        scale, lo = self.scale(lo, hi, bits), min(float(lo), 0.0)
        return QuantParams(scale, np.array(self.zero_point(lo, float(scale), bits), np.int32), *self.storage(lo, bits))


class _Asymmetric(Scheme):
    """u, [lo, hi] in 2**bits - 1 steps."""

    @property
    def both_ends(self) -> bool:
        return True

    def storage(self, lo: float, bits: int) -> tuple[int, int]:
        return 0, (1 << bits) - 1

    def step(self, lo: float, hi: float, bits: int) -> float:
        return (hi - lo) / self.storage(lo, bits)[1]

    def zero_point(self, lo: float, scale: float, bits: int) -> int:
        return min(max(round(-lo / scale), 0), self.storage(lo, bits)[1])


class _SymmetricUint8(Scheme):
    """u with zero point 0 where lo >= 0, else symmetric."""

    def suited(self, *, one_sided: bool) -> Scheme:
        return SCHEMES["asymmetric" if one_sided else "symmetric"]

    def storage(self, lo: float, bits: int) -> tuple[int, int]:
        return (0, (1 << bits) - 1) if lo >= 0 else super().storage(lo, bits)


SCHEMES: Vocabulary[Scheme] = Vocabulary("scheme")
"""By the name in configurations."""

register = SCHEMES.register


def is_degenerate(lo: float, hi: float) -> bool:
    """Whether a range, widened to include 0, has zero width; its scale is then 1.0."""
    return min(lo, 0.0) == max(hi, 0.0)


def scale_near(value: float, *, power2: bool = False) -> NDArray[np.float32]:
    """A usable scale next to ``value``: f32, normal, 1.0 for an empty range, the power of two not below it if asked."""
    if value == 0:
        return np.array(1, np.float32)
    if power2:
        mantissa, exponent = math.frexp(value)
        exponent = min(max(exponent - (mantissa == 0.5), -126), 119)
        return np.array(math.ldexp(1.0, exponent), np.float32)
    return np.array(min(max(value, SMALLEST_SCALE), LARGEST_SCALE), np.float32)


def _check_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits}: expected 2 to 8")


register(_Asymmetric(
    "asymmetric", "u8, range in 255 steps, zero point anywhere", "s8 in [−127, 127], zero point 0", simplicity=3
))  # fmt: skip
register(Scheme("symmetric", "s8, zero point 0", simplicity=1))
register(_SymmetricUint8(
    "symmetric_uint8", "u8 with zero point 0 where nothing is negative, else symmetric", simplicity=2
))  # fmt: skip
register(Scheme(
    "symmetric_power2", "symmetric, scale rounded up to a power of two", "scale rounded up to a power of two",
    simplicity=0, power2=True,
))  # fmt: skip
