"""Networks as MLIR text that nothing can be searched for: refused at once, in one line."""

from __future__ import annotations

import pytest

from quantune.errors import QuantuneError
from quantune.frontend.imported import read_model

IMAGES, SCORES = "tensor<1x3x4x4xf32>", "tensor<1x2xf32>"
LAYER = """
  %zero = arith.constant dense<0.0> : tensor<1x2x1x1xf32>
  %w = arith.constant dense<{weight}> : tensor<2x3x4x4xf32>
  %0 = linalg.conv_2d_nchw_fchw ins(%x, %w : {images}, tensor<2x3x4x4xf32>) outs(%zero : tensor<1x2x1x1xf32>)
    -> tensor<1x2x1x1xf32>
  %1 = tensor.collapse_shape %0 [[0], [1, 2, 3]] : tensor<1x2x1x1xf32> into {scores}
"""


def net(
    *, name: str = "@main", arguments: str = f"%x: {IMAGES}", results: str = SCORES, weight: str = "0.5",
    end: str = f"return %1 : {SCORES}",
) -> str:  # fmt: skip
    body = LAYER.format(weight=weight, images=IMAGES, scores=SCORES)
    return f"func.func {name}({arguments}) -> ({results}) {{{body}  {end}\n}}"


def plain(kind: str, flat: str) -> str:
    """A network without a layer, for images of any type."""
    return (
        f"func.func @main(%x: {kind}) -> {flat} {{\n"
        f"  %0 = tensor.collapse_shape %x [[0], [1, 2, 3]] : {kind} into {flat}\n  return %0 : {flat}\n}}"
    )


def test_a_network_that_can_be_searched() -> None:
    read_model(net().encode(), "net").check_searchable()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (net(name="@forward"), "model 'net': its function is @forward; expected a public func.func @main"),
        (net(name="private @main"), "model 'net': its function is private @main; expected a public"),
        (plain("tensor<1x3x4x4xi8>", "tensor<1x48xi8>"), "model 'net': argument 0 is tensor<1x3x4x4xi8>; expected f32"),
        (plain("tensor<1x3x4x4xf16>", "tensor<1x48xf16>"), "argument 0 is tensor<1x3x4x4xf16>; expected f32 images"),
        (plain("tensor<0x3x4x4xf32>", "tensor<0x48xf32>"), "argument 0 is tensor<0x3x4x4xf32>; expected f32 images"),
        (plain("tensor<?x3x4x4xf32>", "tensor<?x48xf32>"), "expected a tensor of static shape (export with fixed"),
        (plain(IMAGES, "tensor<1x48xf32>"), "model 'net' has no convolution or matrix product with constant weights"),
        (
            net(arguments=f"%x: {IMAGES}, %y: {IMAGES}"),
            "has inputs (1, 3, 4, 4), (1, 3, 4, 4); expected one",
        ),
        (net(results="", end="return"), "model 'net' gives nothing; expected one output with a row for each image"),
        (
            net(results=f"{SCORES}, {SCORES}", end=f"return %1, %1 : {SCORES}, {SCORES}"),
            "gives (1, 2), (1, 2); exp",
        ),
        (net(weight="0x7FC00000"), "96 of 96 numbers of its weight are NaN or infinite"),
        (net(weight="7.1e+36"), "layer 'conv': the weights of a channel add up to 3.4e+38, beyond float32"),
        ("", "expected one func.func with a body, found 0"),
    ],
)
def test_networks_that_cannot_be_searched_are_one_line(text: str, line: str) -> None:
    with pytest.raises(QuantuneError) as caught:
        read_model(text.encode(), "net").check_searchable()
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
