"""Kernels for 64-bit Arm: their dot product instructions, and under qemu their numbers, bit for bit those of numpy."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from integer_layers import Case, expected, module, numbers
from torch_mlir import ir

from mlir_passes.cpu.isa import VARIANTS, Isa
from mlir_passes.cpu.kernels.conv import Conv
from mlir_passes.cpu.kernels.depthwise import Depthwise
from mlir_passes.cpu.kernels.epilogue import FloatForm, Form
from mlir_passes.cpu.tiles import choose_tile
from mlir_passes.kernels.text import NAME, Layout
from mlir_passes.kernels.windows import Window
from mlir_passes.pipeline import Pipeline
from quantune.compiler.iree import compile_module, find_compiler
from quantune.compiler.targets import Target

PROCESSORS = {"i8mm": "neoverse-v1", "dotprod": "neoverse-n1"}
INSTRUCTION = {"i8mm": "usdot", "dotprod": "sdot"}
QEMU, GCC = shutil.which("qemu-aarch64"), shutil.which("aarch64-linux-gnu-gcc")
_BACKENDS = subprocess.run([find_compiler(), "--iree-llvmcpu-list-targets"], capture_output=True, text=True).stdout
needs_backend = pytest.mark.skipif("aarch64" not in _BACKENDS, reason="this IREE compiles nothing for aarch64")


def _links() -> bool:
    """Whether programs for Arm can be made and run: a compiler may be there without its C library."""
    if not (QEMU and GCC):
        return False
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/program"
        text = "#include <stdio.h>\nint main(void) { return getchar() != EOF; }"
        made = subprocess.run([GCC, "-static", "-x", "c", "-", "-o", program], input=text.encode(), capture_output=True)
        return made.returncode == 0 and subprocess.run([QEMU, program], stdin=subprocess.DEVNULL).returncode == 0


needs_emulator = pytest.mark.skipif(
    not _links(),
    reason="no program for Arm can be made and run: apt install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross",
)
CASES = [
    Case("conv", 9, 11, 20, 40, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1),
    Case("conv", 6, 7, 64, 24, (1, 1), (1, 1), (1, 1), (0, 0, 0, 0), 2),
    Case("conv", 12, 9, 3, 17, (5, 3), (2, 1), (1, 2), (2, 1, 0, 2), 8),
    Case("depthwise", 9, 13, 40, 40, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 3),
    Case("depthwise", 8, 8, 18, 18, (5, 5), (2, 2), (1, 1), (2, 2, 2, 2), 4),
]


@needs_backend
@pytest.mark.parametrize("kind", ["conv", "depthwise"])
@pytest.mark.parametrize("variant", PROCESSORS)
def test_the_inner_loop_is_dot_products(variant: str, kind: str, tmp_path: Path) -> None:
    target = Target("cpu", cpu=PROCESSORS[variant])
    case = Case(kind, 9, 9, 32, 32, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), 1)
    parsed = ir.Module.parse(module(case, "multiplier", numbers(case, "multiplier"), None), context=ir.Context())
    counts = {}
    for name in ("generic", "kernels"):
        if name == "kernels":
            assert target.kernels() == variant
            Pipeline.parse(f"quantune-lower-to-cpu-kernels{{features={variant}}}").run(parsed)
        folder = tmp_path / name
        compile_module(str(parsed).encode(), target, output_dir=folder, dump_executables=folder)
        assembly = "\n".join(file.read_text() for file in folder.glob("*.s"))
        counts[name] = len(re.findall(rf"^\s+{INSTRUCTION[variant]}\s", assembly, re.MULTILINE))
    assert counts["kernels"] >= 12
    assert counts["generic"] == 0


@pytest.mark.slow
@needs_backend
@needs_emulator
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}{case.seed}")
@pytest.mark.parametrize("form", ["multiplier", "shift"])
@pytest.mark.parametrize("variant", PROCESSORS)
def test_emulated_kernel_equals_numpy(variant: str, form: str, case: Case, tmp_path: Path) -> None:
    isa, given = VARIANTS[variant], numbers(case, form)
    image = np.random.default_rng(case.seed).integers(-128, 128, (1, case.h, case.w, case.c)).astype(np.int8)
    (top, left, bottom, right), (oh, ow) = case.pads, case.out
    x = Layout(case.h, case.w, case.c, top, left, bottom, right)
    y, window = Layout(oh, ow, case.co, 1, 1, 1, 1), Window(case.kernel, case.strides, case.dilations, top, left)
    spec = _spec(case.kind, x, y, window, Form(form), isa)
    weight, zero, lo, hi = given["weight"], *(given[name] for name in ("zero_point", "min", "max"))
    offset = (128 - isa.zero) * weight.astype(np.int64).sum(axis=tuple(range(weight.ndim - 1)))
    limits = [lo - zero, hi - zero, zero + 128, 77] if form == "multiplier" else [lo + 128, hi + 128, zero + 128, 77]
    buffer = np.full(x.shape, int(given["padding"]) + 128, np.uint8)
    buffer[:, top : top + case.h, left : left + case.w, : case.c] = image.view(np.uint8) ^ 128
    operands = [
        buffer,
        spec.pack(weight),
        spec.pack_channels((given["bias"].astype(np.int64) - offset).astype(np.int32)),
        spec.pack_channels(given["multiplier"]),
        np.array(limits, given["multiplier"].dtype),
    ]
    made = _emulate(spec, operands, np.zeros(y.shape, np.uint8), variant, tmp_path)
    got = made[:, 1:-1, 1:-1, : case.co] ^ 128
    np.testing.assert_array_equal(got.view(np.int8), expected(case, form, given, None, image))
    assert (made[:, 0, :, : case.co] == 77).all()
    assert (made[:, :, -1, : case.co] == 77).all()


@needs_backend
@needs_emulator
def test_emulated_float_kernel_equals_numpy(tmp_path: Path) -> None:
    rng, isa = np.random.default_rng(1), VARIANTS["i8mm"]
    x, y = Layout(7, 9, 12, floating=True), Layout(7, 9, 21, floating=True)
    spec = _spec("conv", x, y, Window(), FloatForm((0.0, 6.0)), isa)
    image = rng.standard_normal(x.shape).astype(np.float32)
    weight, bias = rng.standard_normal((1, 1, 12, 21)).astype(np.float32), rng.standard_normal(21).astype(np.float32)
    operands = [image, spec.pack(weight), spec.pack_channels(bias)]
    made = _emulate(spec, operands, np.zeros(y.shape, np.float32), "i8mm", tmp_path)
    np.testing.assert_allclose(made, np.clip(image @ weight[0, 0] + bias, 0, 6), rtol=1e-4, atol=1e-5)


def _spec(kind: str, x: Layout, y: Layout, window: Window, form: Form | FloatForm, isa: Isa) -> Conv | Depthwise:
    if kind == "depthwise":
        assert isinstance(form, Form)
        return Depthwise(x, y, window, form, isa)
    group = 1 if isinstance(form, FloatForm) else 4
    return Conv(x, y, window, form, isa, choose_tile(x, y, window, isa, group=group))


def _emulate(
    spec: Conv | Depthwise, operands: list[np.ndarray], result: np.ndarray, variant: str, folder: Path
) -> np.ndarray:
    """What the kernel, linked into a program for Arm, makes of its operands; all workgroups one after the other."""
    text = spec.text().replace(NAME, "kernel")
    kinds = {"int8": "i8", "uint8": "i8", "int32": "i32", "float32": "f32"}
    types = [f"tensor<{each.size}x{kinds[each.dtype.name]}>" for each in (*operands, result)]
    arguments = ", ".join(f"%a{i}: {kind}" for i, kind in enumerate(types[:-1]))
    names = ", ".join(f"%a{i}" for i in range(len(operands)))
    attributes = (
        f"entry_points = [@kernel::@kernel], operandSegmentSizes = array<i32: 0, {len(operands)}, 0, 0>, "
        "tied_operands = [-1 : index]"
    )
    text += f"""
func.func @main({arguments}) -> {types[-1]} {{
  %y = "flow.dispatch"({names}) {{{attributes}}} : ({", ".join(types[:-1])}) -> {types[-1]}
  return %y : {types[-1]}
}}"""
    target = Target("cpu", cpu=PROCESSORS[variant])
    compile_module(text.encode(), target, output_dir=folder, dump_executables=folder)
    (kernel,) = folder.glob("*.o")
    program, driver = folder / "program", Path(__file__).with_name("arm_kernel.c")
    subprocess.run([str(GCC), "-static", "-O1", str(driver), str(kernel), "-o", str(program)], check=True)
    x, y = re.findall(r"%[xy] = arith.constant (\d+) : index", text)[:2]
    bindings = [*operands, result]
    head = np.array([x, y, len(bindings)], np.uint32).tobytes()
    head += np.array([each.nbytes for each in bindings], np.uint64).tobytes()
    data = head + b"".join(np.ascontiguousarray(each).tobytes() for each in bindings)
    ran = subprocess.run([str(QEMU), "-cpu", "max", str(program)], input=data, capture_output=True, check=True)
    return np.frombuffer(ran.stdout, result.dtype).reshape(result.shape)
