"""Compile and run a module's @main with IREE on the CPU, for tests that compare with numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import iree.compiler
import iree.runtime
import numpy as np

_FLAGS = [
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host",
]


def compile_for_cpu(text: str) -> bytes:
    vmfb = iree.compiler.compile_str(text, extra_args=_FLAGS)
    assert vmfb is not None
    return vmfb


def load_on_cpu(vmfb: bytes, parameters: Mapping[str, np.ndarray] | None = None) -> Callable[..., list[np.ndarray]]:
    """The artifact's @main with these numbers for the parameters of scope "model"."""
    config = iree.runtime.Config("local-sync")
    modules = [iree.runtime.VmModule.copy_buffer(config.vm_instance, vmfb)]
    if parameters is not None:
        index = iree.runtime.ParameterIndex()
        for name, array in parameters.items():
            index.add_buffer(name, np.frombuffer(array.tobytes(), np.uint8).copy().data)
        provider = index.create_provider(scope="model")
        modules.insert(0, iree.runtime.create_io_parameters_module(config.vm_instance, provider))
    context = iree.runtime.SystemContext(config=config)
    context.add_vm_modules(modules)

    def main(*inputs: np.ndarray) -> list[np.ndarray]:
        results = context.modules.module.main(*inputs)
        return [each.to_host() for each in (results if isinstance(results, tuple) else (results,))]

    return main
