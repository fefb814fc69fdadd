"""A loaded program: numpy in, numpy out, on any IREE device."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from quantune.errors import RunFailed, UsageError, first_line
from quantune.runtime.devices import open_device

PARAMETER_SCOPE = "model"
_DTYPES = {
    "f16": "float16", "f32": "float32", "f64": "float64", "i1": "bool",
    "i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64",
}  # fmt: skip
_TENSOR = re.compile(r"tensor<((?:\d+x)*)([a-z]+\d+)>")


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a program's input or output."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.dtype.name}[{','.join(map(str, self.shape))}]"


class Program:
    """A .vmfb on a device, callable on numpy arrays.

    vmfb: a file (mapped, not read) or its bytes. device: driver or URI. threads: for local-task. parameters: the named
    numbers of a program whose constants are outside, as ``quantune-outline-parameters`` leaves it, or an .npz of them.
    Raises RunFailed for a program IREE refuses, EnvironmentFailure without the device, UsageError for a missing file.
    """

    def __init__(
        self,
        vmfb: Path | str | bytes,
        *,
        device: str = "local-sync",
        threads: int = 1,
        parameters: Mapping[str, np.ndarray] | Path | str | None = None,
        function: str = "main",
    ) -> None:
        import iree.runtime as rt

        self._where = "program" if isinstance(vmfb, bytes) else str(vmfb)
        self._device = open_device(device, threads=threads)
        config = rt.Config(device=self._device)
        instance = config.vm_instance
        try:
            module = (
                rt.VmModule.copy_buffer(instance, vmfb)
                if isinstance(vmfb, bytes)
                else rt.VmModule.mmap(instance, str(vmfb))
            )
            modules = [module]
            if parameters is not None:
                self._parameters = _index(parameters)  # its buffers are borrowed: they must live as long as the program
                provider = self._parameters.create_provider(PARAMETER_SCOPE)
                modules.insert(0, rt.create_io_parameters_module(instance, provider))
            self._context = rt.SystemContext(config=config)
            self._context.add_vm_modules(modules)
        except FileNotFoundError as error:
            raise UsageError(f"{self._where}: no such file") from error
        except (RuntimeError, ValueError, OSError, IndexError) as error:
            raise RunFailed(f"{self._where}: {_load_reason(error, device)}") from error
        if function not in module.function_names:
            raise RunFailed(f"{self._where}: the program has no function '{function}'")
        self._function = self._context.modules[module.name][function]
        declaration = self._function.vm_function.reflection.get("iree.abi.declaration", "")
        inputs, _, outputs = declaration.partition("->")
        self.inputs = _tensor_types(inputs)
        self.outputs = _tensor_types(outputs)

    def __call__(self, *arrays: np.ndarray) -> Any:
        """Run the program once; returns its result, or a tuple of several. UsageError when an input does not fit."""
        self._check(arrays)
        results = self._invoke(*(np.ascontiguousarray(array) for array in arrays))
        hosts = tuple(self._to_host(result) for result in (results if isinstance(results, tuple) else (results,)))
        return hosts[0] if len(hosts) == 1 else hosts

    def caller(self, *arrays: np.ndarray) -> Callable[[], object]:
        """A function that runs the program on inputs already on the device: what is to be timed."""
        import iree.runtime as rt

        self._check(arrays)
        arguments: Any = rt.VmVariantList(len(arrays))
        held = [rt.asdevicearray(self._device, np.ascontiguousarray(array)) for array in arrays]
        for array in held:
            arguments.push_ref(array._buffer_view)
        context, function = self._context.vm_context, self._function.vm_function

        def call() -> object:
            results = rt.VmVariantList(len(self.outputs))
            context.invoke(function, arguments, results)
            return results, held

        return call

    def device_statistics(self) -> dict[str, int]:
        """The allocator's counters (device_bytes_peak, …); weights mapped from the file are not counted."""
        return dict(self._device.allocator.statistics)

    def _check(self, arrays: tuple[np.ndarray, ...]) -> None:
        if len(arrays) != len(self.inputs):
            raise UsageError(f"{self._where}: expected {len(self.inputs)} inputs, got {len(arrays)}")
        for number, (array, expected) in enumerate(zip(arrays, self.inputs, strict=True)):
            if not isinstance(array, np.ndarray):
                found = type(array).__name__
                raise UsageError(f"{self._where}: input {number}: expected {expected} as a numpy array, got {found}")
            if array.shape != expected.shape or array.dtype != expected.dtype:
                got = TensorType(array.shape, array.dtype)
                raise UsageError(f"{self._where}: input {number}: expected {expected}, got {got}")

    def _invoke(self, *arrays: np.ndarray) -> Any:
        try:
            return self._function(*arrays)
        except (RuntimeError, ValueError, IndexError) as error:
            raise RunFailed(f"{self._where}: {first_line(error)}") from error

    def _to_host(self, array: Any) -> np.ndarray:
        """A copy of a result.

        A result that cannot be mapped goes through a staging buffer: IREE's own way imports numpy's memory, whose
        alignment Vulkan refuses. A mapped one is copied too, since the next call may reuse the memory.
        """
        import iree.runtime as rt

        if array.is_host_accessible or array._is_mappable():
            return np.array(array.to_host())
        view = array._buffer_view
        source = view.get_buffer()
        staging = self._device.allocator.allocate_buffer(
            memory_type=int(rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE),
            allowed_usage=int(rt.BufferUsage.TRANSFER_TARGET | rt.BufferUsage.MAPPING_SCOPED),
            allocation_size=source.byte_length(),
        )
        semaphore = self._device.create_semaphore(0)
        before, after = rt.HalFence.create_at(semaphore, 0), rt.HalFence.create_at(semaphore, 1)
        self._device.queue_copy(source, staging, wait_semaphores=before, signal_semaphores=after)
        after.wait()
        return np.array(staging.map().asarray(view.shape, rt.HalElementType.map_to_dtype(view.element_type)))


def read_parameters(path: Path | str) -> dict[str, np.ndarray]:
    """Read named arrays from an .npz file; raises UsageError when it is none."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except Exception as error:  # numpy, zipfile and zlib fail in their own ways, and all of them mean the same
        raise UsageError(f"{path}: not an .npz file of parameters: {error}") from error


def _index(parameters: Mapping[str, np.ndarray] | Path | str) -> Any:
    import iree.runtime as rt

    index = rt.ParameterIndex()
    named = read_parameters(parameters) if isinstance(parameters, (Path, str)) else parameters
    for name, array in named.items():
        index.add_buffer(name, np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return index


def _tensor_types(declaration: str) -> tuple[TensorType, ...]:
    found = _TENSOR.findall(declaration)
    if unknown := {kind for _, kind in found} - set(_DTYPES):
        raise RunFailed(f"the program takes or gives {unknown.pop()} tensors, which numpy has not")
    return tuple(TensorType(tuple(map(int, dims.split("x")[:-1])), np.dtype(_DTYPES[kind])) for dims, kind in found)


def _load_reason(error: Exception, device: str) -> str:
    text = str(error)
    if "'io_parameters' not registered" in text or "no provider registered" in text:
        return "the program needs its parameters, and none were given"
    if isinstance(error, IndexError) or ("NOT_FOUND" in text and "parameter" in text):
        return f"a parameter is missing or has another size: {first_line(error)}"
    if "INCOMPATIBLE" in text:
        return f"the program was compiled for another device than {device}"
    if "FlatBuffer" in text or "empty file" in text:
        return "not a compiled program, or a damaged one; expected a .vmfb that this version of IREE made"
    return f"IREE cannot load it: {first_line(error)}"
