"""Quantization parameters of one tensor: a validated value, its MLIR type and its arithmetic in numpy.

    real = scale * (q - zero_point)        q = clamp(roundeven(real / scale) + zero_point, storage_min, storage_max)

with scale, quotient and clamp in f32. MLIR's own constructors check nothing (scale 0 or NaN and zero point 300 pass):
everything that makes or reads a quantized type goes through here.

Storage. Every quantized tensor is held as signed i8 once the quant types are gone. The integers of an unsigned type are
held shifted by -128 (`QuantSpec.stored`): the same steps on the same grid, so the shift is exact.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch_mlir import ir
from torch_mlir.dialects import quant

_UNSIGNED_TO_STORAGE = -128
_LARGEST_F32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class QuantSpec:
    """Scales, zero points and storage range of a tensor: one of each, or one a channel along dimension `axis`.

    Scales are rounded to f32 wherever they are computed with. The range holds 2 to 8 bits of `i8` or `u8` integers.
    """

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    storage_min: int = -128
    storage_max: int = 127
    signed: bool = True
    axis: int | None = None

    def __post_init__(self) -> None:
        low, high = (-128, 127) if self.signed else (0, 255)
        if not low <= self.storage_min < self.storage_max <= high or self.storage_max - self.storage_min < 2:
            raise ValueError(
                f"storage range [{self.storage_min}, {self.storage_max}] is not 2 to 8 bits inside [{low}, {high}]"
            )
        if len(self.scales) != len(self.zero_points) or not self.scales:
            raise ValueError(
                f"{len(self.scales)} scales for {len(self.zero_points)} zero points; expected as many, at least 1"
            )
        if self.axis is None and len(self.scales) > 1:
            raise ValueError(f"{len(self.scales)} scales without an axis; expected 1")
        if self.axis is not None and self.axis < 0:
            raise ValueError(f"axis is {self.axis}; expected 0 or more")
        for scale in self.scales:
            if not 0 < scale <= _LARGEST_F32 or np.float32(scale) == 0:
                raise ValueError(f"scale is {scale}; expected a positive number that f32 can hold")
        for zero_point in self.zero_points:
            if not self.storage_min <= zero_point <= self.storage_max:
                raise ValueError(
                    f"zero point is {zero_point}; expected it inside [{self.storage_min}, {self.storage_max}]"
                )

    @classmethod
    def per_tensor(
        cls, scale: float, zero_point: int = 0, *, storage_min: int = -128, storage_max: int = 127, signed: bool = True
    ) -> QuantSpec:
        """One scale and zero point for the whole tensor."""
        return cls((float(scale),), (int(zero_point),), storage_min, storage_max, signed)

    @classmethod
    def per_channel(
        cls,
        scales: Iterable[float],
        zero_points: Iterable[int] | None = None,
        *,
        axis: int,
    ) -> QuantSpec:
        """One scale and zero point (default 0) for each channel along `axis`, in s8 from -127."""
        scales = tuple(float(scale) for scale in scales)
        points = (0,) * len(scales) if zero_points is None else tuple(int(point) for point in zero_points)
        return cls(scales, points, -127, 127, signed=True, axis=axis)

    @classmethod
    def from_type(cls, quant_type: ir.Type | None) -> QuantSpec:
        """The parameters in a `!quant.uniform` type, or in a tensor's element type; raises ValueError for any other."""
        if isinstance(quant_type, ir.RankedTensorType):
            quant_type = quant_type.element_type
        if isinstance(quant_type, quant.UniformQuantizedType):
            scales, zero_points, axis = [quant_type.scale], [quant_type.zero_point], None
        elif isinstance(quant_type, quant.UniformQuantizedPerAxisType):
            scales, zero_points, axis = quant_type.scales, quant_type.zero_points, quant_type.quantized_dimension
        else:
            raise ValueError(f"{quant_type} is not a uniform quantized type, per tensor or per axis")
        if quant_type.storage_type_integral_width != 8:
            raise ValueError(f"{quant_type} is not stored in 8 bits; write fewer bits as a range: i8<-8:7>")
        low, high = quant_type.storage_type_min, quant_type.storage_type_max
        return cls(tuple(scales), tuple(zero_points), low, high, quant_type.is_signed, axis)

    def to_type(self, context: ir.Context | None = None) -> ir.Type:
        """The `!quant.uniform` type over f32, in `context` or the current one."""
        storage, expressed = ir.IntegerType.get_signless(8, context=context), ir.F32Type.get(context=context)
        flags = quant.QuantizedType.FLAG_SIGNED if self.signed else 0
        if self.axis is None:
            return quant.UniformQuantizedType.get(
                flags, storage, expressed, self.scales[0], self.zero_points[0], self.storage_min, self.storage_max
            )
        return quant.UniformQuantizedPerAxisType.get(
            flags, storage, expressed, list(self.scales), list(self.zero_points), self.axis,
            self.storage_min, self.storage_max,
        )  # fmt: skip

    @property
    def to_storage_offset(self) -> int:
        """What to add to a quantized integer to get the i8 that holds it: 0, or -128 for an unsigned type."""
        return 0 if self.signed else _UNSIGNED_TO_STORAGE

    @property
    def stored(self) -> QuantSpec:
        """The same quantization expressed over the i8 that holds it: signed, zero points and range shifted."""
        offset = self.to_storage_offset
        points = tuple(point + offset for point in self.zero_points)
        return QuantSpec(self.scales, points, self.storage_min + offset, self.storage_max + offset, True, self.axis)

    @property
    def scale_array(self) -> npt.NDArray[np.float32]:
        """Scales as f32: rank 0 per tensor, rank 1 per channel."""
        return np.asarray(self.scales[0] if self.axis is None else self.scales, np.float32)

    @property
    def zero_point_array(self) -> npt.NDArray[np.int32]:
        """Zero points as i32: rank 0 per tensor, rank 1 per channel."""
        return np.asarray(self.zero_points[0] if self.axis is None else self.zero_points, np.int32)

    def quantize(self, real: npt.ArrayLike) -> npt.NDArray[np.int8]:
        """The stored i8 integers of `real`: round half to even, saturate; NaN becomes the smallest integer."""
        spec, array = self.stored, np.asarray(real, np.float32)
        with np.errstate(over="ignore"):  # an overflow is an infinity, which saturates
            steps = np.rint(array / spec._along_axis(spec.scale_array, array.ndim))
        steps = steps + spec._along_axis(spec.zero_point_array.astype(np.float32), array.ndim)
        return np.fmin(np.fmax(steps, spec.storage_min), spec.storage_max).astype(np.int8)

    def dequantize(self, stored: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
        """The f32 values that the stored i8 integers stand for."""
        spec, array = self.stored, stored.astype(np.float32)
        steps = array - spec._along_axis(spec.zero_point_array.astype(np.float32), array.ndim)
        return steps * spec._along_axis(spec.scale_array, array.ndim)

    def _along_axis(self, values: npt.NDArray[np.float32], rank: int) -> npt.NDArray[np.float32]:
        if self.axis is None:
            return values
        return values.reshape([-1 if dim == self.axis else 1 for dim in range(rank)])


def is_quantized(any_type: ir.Type) -> bool:
    """Whether a quantized type occurs in `any_type`: as element type, or in a function's inputs or results."""
    # No other type prints `!quant.`, and a nested search through every container type would say the same.
    return "!quant." in str(any_type)
