from collections.abc import Sequence
from typing import Any

from torch_mlir.ir import Type

class QuantizedType(Type):
    FLAG_SIGNED: int
    expressed_type: Type
    flags: int
    is_signed: bool
    storage_type: Type
    storage_type_integral_width: int
    storage_type_max: int
    storage_type_min: int

class UniformQuantizedType(QuantizedType):
    scale: float
    zero_point: int
    @staticmethod
    def get(
        flags: int,
        storage_type: Type,
        expressed_type: Type,
        scale: float,
        zero_point: int,
        storage_type_min: int,
        storage_type_max: int,
    ) -> UniformQuantizedType: ...

class UniformQuantizedPerAxisType(QuantizedType):
    scales: list[float]
    zero_points: list[int]
    quantized_dimension: int
    @staticmethod
    def get(
        flags: int,
        storage_type: Type,
        expressed_type: Type,
        scales: Sequence[float],
        zero_points: Sequence[int],
        quantized_dimension: int,
        storage_type_min: int,
        storage_type_max: int,
    ) -> UniformQuantizedPerAxisType: ...

def __getattr__(name: str) -> Any: ...
