from __future__ import annotations

from pathlib import Path

import pytest

from quantune.artifact.records import LayerExecution, integer_share
from quantune.compiler import iree
from quantune.compiler.inspect import layer_executions, required_processor
from quantune.compiler.targets import Target
from quantune.errors import CompileFailed

ID = "affine_map<(a, b, c, d) -> (a, b, c, d)>"
PARALLEL = 'iterator_types = ["parallel", "parallel", "parallel", "parallel"]'
# Weights come as arguments: a constant of equal values would be folded into a scalar.
QUANTIZE = """
  ^bb0(%a: {source}, %o: i8):
    %0 = arith.{cast} %a : {source} to f32
    %1 = math.roundeven %0 : f32
    %2 = arith.fptosi %1 : f32 to i8
    linalg.yield %2 : i8
"""


def conv(result: str, image: str, weight: str, layer: str, kind: str = "i8xi8xi32") -> str:
    """Return a 3x3 convolution of 4 channels, 8x8 to 6x6, with a location."""
    a, b, c = kind.split("x")
    zero = "0" if c.startswith("i") else "0.0"
    return f"""
  %{result}z = arith.constant {zero} : {c}
  %{result}e = tensor.empty() : tensor<1x4x6x6x{c}>
  %{result}i = linalg.fill ins(%{result}z : {c}) outs(%{result}e : tensor<1x4x6x6x{c}>) -> tensor<1x4x6x6x{c}>
  %{result} = linalg.conv_2d_nchw_fchw ins(%{image}, %{weight} : tensor<1x4x8x8x{a}>, tensor<4x4x3x3x{b}>)
    outs(%{result}i : tensor<1x4x6x6x{c}>) -> tensor<1x4x6x6x{c}> loc("{layer}")
"""


def to_float(result: str, source: str, shape: str) -> str:
    return f"""
  %{result}e = tensor.empty() : tensor<{shape}xf32>
  %{result} = linalg.generic {{indexing_maps = [{ID}, {ID}], {PARALLEL}}}
    ins(%{source} : tensor<{shape}xi8>) outs(%{result}e : tensor<{shape}xf32>) {{
  ^bb0(%a: i8, %o: f32):
    %s = arith.constant 0.05 : f32
    %0 = arith.sitofp %a : i8 to f32
    %1 = arith.mulf %0, %s : f32
    linalg.yield %1 : f32
  }} -> tensor<{shape}xf32>
"""


def rows(
    tmp_path: Path, body: str, target: Target | None = None, flags: tuple[str, ...] = ()
) -> tuple[LayerExecution, ...]:
    """Compile a module and return what its layers run in."""
    options = {"flags": flags, "output_dir": tmp_path, "failure_dir": tmp_path}
    return layer_executions(iree.compile_module(body.encode(), target or Target("cpu"), **options).dispatches)


def one_conv(kind: str) -> str:
    a, b, c = kind.split("x")
    return (
        f"func.func @main(%x: tensor<1x4x8x8x{a}>, %w: tensor<4x4x3x3x{b}>) -> tensor<1x4x6x6x{c}> {{"
        + conv("y", "x", "w", "features.0.0", kind)
        + f"return %y : tensor<1x4x6x6x{c}> }}"
    )


CONV = one_conv("i8xi8xi32")


@pytest.mark.parametrize(
    "target", [Target("cpu"), Target("cpu", cpu="generic"), Target("vulkan"), Target("cuda")], ids=str
)
def test_integer_convolution(tmp_path: Path, target: Target) -> None:
    (row,) = rows(tmp_path, CONV, target)
    assert (row.layer, row.op, row.macs, row.precision) == ("features.0.0", "conv", 4 * 4 * 9 * 36, "i8")
    assert row.is_integer
    assert row.dispatch.startswith("main")


@pytest.mark.parametrize(("kind", "precision"), [("f32xf32xf32", "f32"), ("f16xf16xf16", "f16")])
def test_float_convolution(tmp_path: Path, kind: str, precision: str) -> None:
    (row,) = rows(tmp_path, one_conv(kind))
    assert (row.precision, row.is_integer, row.op) == (precision, False, "conv")


def test_qdq_left_in_float_is_reported_as_float(tmp_path: Path) -> None:
    body = (
        "func.func @main(%x: tensor<1x4x8x8xi8>, %w: tensor<4x4x3x3xi8>) -> tensor<1x4x6x6xf32> {"
        + to_float("xf", "x", "1x4x8x8")
        + to_float("wf", "w", "4x4x3x3")
        + conv("y", "xf", "wf", "features.0.0", "f32xf32xf32")
        + "return %y : tensor<1x4x6x6xf32> }"
    )
    (row,) = rows(tmp_path, body)
    assert (row.layer, row.precision, row.macs) == ("features.0.0", "f32", 4 * 4 * 9 * 36)
    assert integer_share([row]) == 0


def test_weights_alone_in_i8_are_float(tmp_path: Path) -> None:
    """A fused dequantization loads i8 and multiplies f32."""
    body = """
#x = affine_map<(m, n, k) -> (m, k)>
#w = affine_map<(m, n, k) -> (k, n)>
#y = affine_map<(m, n, k) -> (m, n)>
func.func @main(%x: tensor<8x16xf32>, %w: tensor<16x4xi8>) -> tensor<8x4xf32> {
  %z = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<8x4xf32>
  %i = linalg.fill ins(%z : f32) outs(%e : tensor<8x4xf32>) -> tensor<8x4xf32>
  %y = linalg.generic {indexing_maps = [#x, #w, #y], iterator_types = ["parallel", "parallel", "reduction"]}
    ins(%x, %w : tensor<8x16xf32>, tensor<16x4xi8>) outs(%i : tensor<8x4xf32>) {
  ^bb0(%a: f32, %b: i8, %o: f32):
    %0 = arith.sitofp %b : i8 to f32
    %1 = arith.mulf %a, %0 : f32
    %2 = arith.addf %o, %1 : f32
    linalg.yield %2 : f32
  } -> tensor<8x4xf32> loc("head")
  return %y : tensor<8x4xf32>
}"""
    (row,) = rows(tmp_path, body)
    assert (row.layer, row.op, row.precision, row.macs) == ("head", "matmul", "f32", 8 * 16 * 4)


@pytest.mark.parametrize(
    ("extend", "precision"),
    [
        ("%0 = arith.extsi %a : i8 to i32", "i8"),
        ("%0 = arith.extui %a : i8 to i32", "i8"),
        (
            "%u = arith.extui %a : i8 to i32\n%k = arith.constant 128 : i32\n"
            "%t = arith.xori %u, %k : i32\n%0 = arith.subi %t, %k : i32",
            "i8",
        ),
    ],
    ids=["signed", "unsigned", "sign by xor"],
)
def test_how_a_factor_is_widened_does_not_matter(tmp_path: Path, extend: str, precision: str) -> None:
    body = f"""
#x = affine_map<(m, n, k) -> (m, k)>
#w = affine_map<(m, n, k) -> (k, n)>
#y = affine_map<(m, n, k) -> (m, n)>
func.func @main(%x: tensor<8x16xi8>, %w: tensor<16x4xi8>) -> tensor<8x4xi32> {{
  %z = arith.constant 0 : i32
  %e = tensor.empty() : tensor<8x4xi32>
  %i = linalg.fill ins(%z : i32) outs(%e : tensor<8x4xi32>) -> tensor<8x4xi32>
  %y = linalg.generic {{indexing_maps = [#x, #w, #y], iterator_types = ["parallel", "parallel", "reduction"]}}
    ins(%x, %w : tensor<8x16xi8>, tensor<16x4xi8>) outs(%i : tensor<8x4xi32>) {{
  ^bb0(%a: i8, %b: i8, %o: i32):
    {extend}
    %1 = arith.extsi %b : i8 to i32
    %2 = arith.muli %0, %1 : i32
    %3 = arith.addi %o, %2 : i32
    linalg.yield %3 : i32
  }} -> tensor<8x4xi32>
  return %y : tensor<8x4xi32>
}}"""
    (row,) = rows(tmp_path, body)
    assert (row.precision, row.macs) == (precision, 8 * 16 * 4)


def test_zero_points_inside_a_quantized_matmul(tmp_path: Path) -> None:
    body = """
func.func @main(%x: tensor<8x16xi8>, %w: tensor<16x4xi8>) -> tensor<8x4xi32> {
  %z = arith.constant 0 : i32
  %zx = arith.constant 3 : i32
  %e = tensor.empty() : tensor<8x4xi32>
  %i = linalg.fill ins(%z : i32) outs(%e : tensor<8x4xi32>) -> tensor<8x4xi32>
  %y = linalg.quantized_matmul ins(%x, %w, %zx, %z : tensor<8x16xi8>, tensor<16x4xi8>, i32, i32)
    outs(%i : tensor<8x4xi32>) -> tensor<8x4xi32> loc("fc")
  return %y : tensor<8x4xi32>
}"""
    found = rows(tmp_path, body)
    assert [(row.precision, row.macs) for row in found if row.op == "matmul" and row.macs == 8 * 16 * 4] == [
        ("i8", 512)
    ]
    assert integer_share(found) == 1


MIXED = (
    "func.func @main(%x: tensor<1x4x8x8xi8>, %w: tensor<4x4x3x3xi8>, %d: tensor<4x3x3xi8>, %f: tensor<64x10xf32>)"
    " -> tensor<1x10xf32> {"
    + conv("y", "x", "w", "a.conv")
    + f"""
  %qe = tensor.empty() : tensor<1x4x6x6xi8>
  %q = linalg.generic {{indexing_maps = [{ID}, {ID}], {PARALLEL}}}
    ins(%y : tensor<1x4x6x6xi32>) outs(%qe : tensor<1x4x6x6xi8>) {{{QUANTIZE.format(source="i32", cast="sitofp")}
  }} -> tensor<1x4x6x6xi8> loc("a.conv")
  %ze = tensor.empty() : tensor<1x4x4x4xi32>
  %zero = arith.constant 0 : i32
  %zi = linalg.fill ins(%zero : i32) outs(%ze : tensor<1x4x4x4xi32>) -> tensor<1x4x4x4xi32>
  %dw = linalg.depthwise_conv_2d_nchw_chw ins(%q, %d : tensor<1x4x6x6xi8>, tensor<4x3x3xi8>)
    outs(%zi : tensor<1x4x4x4xi32>) -> tensor<1x4x4x4xi32> loc("b.dw")
  %ve = tensor.empty() : tensor<1x4x4x4xf32>
  %v = linalg.generic {{indexing_maps = [{ID}, {ID}], {PARALLEL}}}
    ins(%dw : tensor<1x4x4x4xi32>) outs(%ve : tensor<1x4x4x4xf32>) {{
  ^bb0(%a: i32, %o: f32):
    %0 = arith.sitofp %a : i32 to f32
    linalg.yield %0 : f32
  }} -> tensor<1x4x4x4xf32>
  %flat = tensor.collapse_shape %v [[0], [1, 2, 3]] : tensor<1x4x4x4xf32> into tensor<1x64xf32>
  %me = tensor.empty() : tensor<1x10xf32>
  %mz = arith.constant 0.0 : f32
  %mi = linalg.fill ins(%mz : f32) outs(%me : tensor<1x10xf32>) -> tensor<1x10xf32>
  %m = linalg.matmul ins(%flat, %f : tensor<1x64xf32>, tensor<64x10xf32>) outs(%mi : tensor<1x10xf32>)
    -> tensor<1x10xf32> loc("c.head")
  return %m : tensor<1x10xf32>
}}"""
)


@pytest.mark.parametrize("flags", [(), ("--iree-opt-data-tiling",)], ids=["plain", "data tiling"])
def test_mixed_network(tmp_path: Path, flags: tuple[str, ...]) -> None:
    found = rows(tmp_path, MIXED, flags=flags)
    assert [(row.layer, row.op, row.macs, row.precision) for row in found] == [
        ("a.conv", "conv", 5184, "i8"),
        ("b.dw", "depthwise", 4 * 9 * 16, "i8"),
        ("c.head", "matmul", 640, "f32"),
    ]
    assert integer_share(found) == pytest.approx((5184 + 576) / (5184 + 576 + 640))


def test_equal_layers_share_code_but_not_their_names(tmp_path: Path) -> None:
    body = (
        "func.func @main(%x: tensor<1x4x8x8xi8>, %v: tensor<1x4x8x8xi8>, %w: tensor<4x4x3x3xi8>)"
        " -> (tensor<1x4x6x6xi32>, tensor<1x4x6x6xi32>) {"
        + conv("y", "x", "w", "first")
        + conv("z", "v", "w", "second")
        + "return %y, %z : tensor<1x4x6x6xi32>, tensor<1x4x6x6xi32> }"
    )
    found = rows(tmp_path, body)
    assert sorted(row.layer for row in found) == ["first", "second"]
    assert len({row.dispatch for row in found}) == 1


def test_names_can_be_restricted(tmp_path: Path) -> None:
    compiled = iree.compile_module(CONV.encode(), Target("cpu"), output_dir=tmp_path)
    for layers, found in ((("other",), ""), (("other", "features.0.0"), "features.0.0")):
        assert [row.layer for row in layer_executions(compiled.dispatches, layers=layers)] == [found]


def test_pools_are_no_layers(tmp_path: Path) -> None:
    body = """
func.func @main(%x: tensor<1x4x8x8xf32>) -> (tensor<1x4x7x7xf32>, tensor<1x4x7x7xf32>) {
  %z = arith.constant 0.0 : f32
  %k = tensor.empty() : tensor<2x2xf32>
  %e = tensor.empty() : tensor<1x4x7x7xf32>
  %i = linalg.fill ins(%z : f32) outs(%e : tensor<1x4x7x7xf32>) -> tensor<1x4x7x7xf32>
  %m = linalg.pooling_nchw_max ins(%x, %k : tensor<1x4x8x8xf32>, tensor<2x2xf32>)
    outs(%i : tensor<1x4x7x7xf32>) -> tensor<1x4x7x7xf32>
  %s = linalg.pooling_nchw_sum ins(%x, %k : tensor<1x4x8x8xf32>, tensor<2x2xf32>)
    outs(%i : tensor<1x4x7x7xf32>) -> tensor<1x4x7x7xf32>
  return %m, %s : tensor<1x4x7x7xf32>, tensor<1x4x7x7xf32>
}"""
    assert rows(tmp_path, body) == ()
    assert integer_share(()) == 0


def test_required_processor(tmp_path: Path) -> None:
    compiled = iree.compile_module(CONV.encode(), Target("cpu", cpu="x86-64-v3"), output_dir=tmp_path)
    needed = required_processor(compiled.dispatches)
    assert needed is not None
    assert needed.name == "x86-64-v3"
    assert "avx2" in needed.features
    assert "avx512f" not in needed.features
    vulkan = iree.compile_module(CONV.encode(), Target("vulkan"), output_dir=tmp_path)
    assert required_processor(vulkan.dispatches) is None


def test_unreadable_text() -> None:
    with pytest.raises(CompileFailed, match="cannot be read"):
        layer_executions("not mlir")


def test_row_is_a_value() -> None:
    row = LayerExecution("a", "conv", 1, "i8", "d")
    assert row == LayerExecution("a", "conv", 1, "i8", "d")
    assert not LayerExecution("a", "conv", 1, "f32", "d").is_integer


KERNEL = """
stream.executable private @k {
  stream.executable.export public @k_f workgroups() -> (index, index, index) {
    %c = arith.constant 1 : index
    stream.return %c, %c, %c : index, index, index
  }
  builtin.module {
    func.func @k_f(%b0: !stream.binding, %b1: !stream.binding, %b2: !stream.binding)
      attributes {translation_info = #iree_codegen.translation_info<pipeline = #iree_cpu.pipeline<Default>>} {
      %c0 = arith.constant 0 : index
      %x = stream.binding.subspan %b0[%c0] : !stream.binding -> memref<64xTYPE>
      %w = stream.binding.subspan %b1[%c0] : !stream.binding -> memref<64xTYPE>
      %y = stream.binding.subspan %b2[%c0] : !stream.binding -> memref<64xf32>
      %xv = vector.load %x[%c0] : memref<64xTYPE>, vector<64xTYPE>
      %wv = vector.load %w[%c0] : memref<64xTYPE>, vector<64xTYPE>
      %f = arith.constant dense<0.5> : vector<64xf32>
      BODY
      vector.store %r, %y[%c0] : memref<64xf32>, vector<64xf32>
      return
    }
  }
}
func.func @main(%x: tensor<64xTYPE>, %w: tensor<64xTYPE>) -> tensor<64xf32> {
  %y = flow.dispatch @k::@k_f(%x, %w) ATTRIBUTES : (tensor<64xTYPE>, tensor<64xTYPE>) -> tensor<64xf32> loc("stem")
  return %y : tensor<64xf32>
}
"""
MAXIMUM_BODY = "%r = arith.maximumf %xv, %wv : vector<64xf32>"
FLOAT_BODY = "%r = vector.fma %xv, %wv, %f : vector<64xf32>"
INTEGER_BODY = """
      %a = arith.constant dense<0> : vector<16xi32>
      %d = llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"(%a, %xv, %wv)
        : (vector<16xi32>, vector<64xi8>, vector<64xi8>) -> vector<16xi32>
      %i = vector.bitcast %d : vector<16xi32> to vector<64xi8>
      %g = arith.sitofp %i : vector<64xi8> to vector<64xf32>
      %r = vector.fma %g, %f, %f : vector<64xf32>
"""
ARM_BODY = """
      %a = arith.constant dense<0> : vector<4xi32>
      %x16, %x48 = vector.deinterleave %xv : vector<64xi8> -> vector<32xi8>
      %p, %q = vector.deinterleave %x16 : vector<32xi8> -> vector<16xi8>
      %d = llvm.call_intrinsic "llvm.aarch64.neon.usdot.v4i32.v16i8"(%a, %p, %q)
        : (vector<4xi32>, vector<16xi8>, vector<16xi8>) -> vector<4xi32>
      %g = arith.sitofp %d : vector<4xi32> to vector<4xf32>
      %s = vector.extract %g[0] : f32 from vector<4xf32>
      %r = vector.broadcast %s : f32 to vector<64xf32>
"""


@pytest.mark.parametrize(
    ("element", "body", "precision"),
    [
        ("i8", INTEGER_BODY, "i8"),
        ("f32", FLOAT_BODY, "f32"),
        ("i8", ARM_BODY, "i8"),
        # It says that it multiplies: that nobody knows what must not make it vanish.
        ("f32", MAXIMUM_BODY, "unknown"),
    ],
    ids=["integer", "float", "integer on Arm", "not recognized"],
)
def test_kernels(tmp_path: Path, element: str, body: str, precision: str) -> None:
    text = KERNEL.replace("BODY", body).replace("TYPE", element).replace("ATTRIBUTES", "{quantune.macs = 77 : i64}")
    # Another processor than this one: only the compilation is looked at.
    found = rows(tmp_path, text, Target("cpu", cpu="neoverse-v1" if body == ARM_BODY else "znver4"))
    assert [(row.layer, row.op, row.macs, row.precision) for row in found] == [("stem", "kernel", 77, precision)]
    assert integer_share(found) == (1.0 if precision == "i8" else 0.0)


def test_kernel_that_multiplies_nothing(tmp_path: Path) -> None:
    text = KERNEL.replace("BODY", MAXIMUM_BODY).replace("TYPE", "f32").replace("ATTRIBUTES", "")
    assert rows(tmp_path, text, Target("cpu", cpu="znver4")) == ()


def test_kernel_without_its_count_is_not_passed_over(tmp_path: Path) -> None:
    text = KERNEL.replace("BODY", FLOAT_BODY).replace("TYPE", "f32").replace("ATTRIBUTES", "")
    with pytest.raises(CompileFailed, match=r"kernel 'k_f' has no attribute quantune\.macs"):
        rows(tmp_path, text)
