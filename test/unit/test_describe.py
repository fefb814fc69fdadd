"""The per-layer table of a report: what ran in what, and how well weights are kept."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlir_passes.network import Network, Node
from quantune.numerics.affine import QuantParams
from quantune.quantization.bits import BitWidths
from quantune.quantization.config import QuantConfig
from quantune.quantization.constants import Constant
from quantune.quantization.plan import QuantizationPlan
from quantune.tuning.describe import layer_table


def params(scale: float, largest: int = 127) -> QuantParams:
    return QuantParams(np.float32(scale), np.int32(0), -largest, largest)  # type: ignore[arg-type]


def layer(name: str, source: str, weight: list, **options: Any) -> Node:
    array = np.array(weight, np.float32)
    kind = "matmul" if array.ndim == 2 else "conv"
    shape = (1, len(array)) if kind == "matmul" else (1, len(array), 2, 3)
    return Node(name, f"net.{name}", kind, (source,), shape, weight=array, bias=np.zeros(len(array)), **options)


NODES = (
    Node("x", "", "input", (), (1, 2, 2, 3)),
    layer("c", "x", [[[[0.25]], [[1.0]]], [[[0.5]], [[0.0]]]]),
    layer("d", "c", [[[[1.0]]], [[[1.0]]]], groups=2),
    Node("s", "net.s", "float", ("d",), (1, 2, 2, 3), detail="math.erf"),
    layer("m", "s", [[1.0, 3.0]]),
)


def table(
    plan: QuantizationPlan | None, reasons: dict[str, str] | None = None, bits: str = "w8", **ran: str
) -> dict[str, dict[str, Any]]:
    rows = [SimpleNamespace(layer=f"net.{name}", precision=precision) for name, precision in ran.items()]
    config = QuantConfig(bits=BitWidths.parse(bits))
    provenance = None if reasons is None else SimpleNamespace(reasons=reasons)
    artifact = SimpleNamespace(layers=rows, provenance=provenance, config=config)
    made = layer_table(Network(NODES, ("m",)), artifact, plan)  # type: ignore[arg-type]
    return {row.pop("name"): row for row in made}


def test_bits_work_and_noise_of_each_layer() -> None:
    activations = {"x": params(0.1), "c": params(0.1, 7)}
    rows = table(QuantizationPlan(activations, {"c": params(0.5), "d": params(0.5, 63)}), c="i8", d="i8", m="f32")
    assert list(rows) == ["c", "d", "s", "m"]
    # By steps of 0.5 nothing of 0.25, 1, 0.5 and 0 is lost but the 0.25.
    noise = 10 * np.log10((0.0625 + 1 + 0.25) / 0.0625)
    assert rows["c"].pop("sqnr_db") == pytest.approx(noise, abs=0.005)
    assert rows["c"] == {"kind": "conv", "executed": "i8", "macs": 2 * 6 * 2, "weight_bits": 8, "activation_bits": 8}
    assert rows["d"].pop("sqnr_db") == pytest.approx(10 * np.log10(2 / 1e-30), abs=0.005)
    assert rows["d"] == {"kind": "depthwise", "executed": "i8", "macs": 2 * 6, "weight_bits": 7, "activation_bits": 4}
    assert rows["s"] == {"kind": "math.erf", "executed": "f32", "macs": 0, "why": "no integer form of this operation"}
    why = "the first and the last layer stay f32 (mixed)"
    assert rows["m"] == {"kind": "matmul", "executed": "f32", "macs": 2, "why": why}


def test_refined_weights_are_compared_with_the_own_ones() -> None:
    """What a layer computes with counts, and not what rounding would have made of its weight."""
    refined = np.array([[[[0.5]], [[1.0]]], [[[0.5]], [[-0.5]]]], np.float32)
    plan = QuantizationPlan({"x": params(0.1)}, {"c": params(0.5)}, constants={"c": Constant(weight=refined)})
    noise = 10 * np.log10((0.0625 + 1 + 0.25) / (0.0625 + 0.25))
    assert table(plan, c="i8")["c"]["sqnr_db"] == pytest.approx(noise, abs=0.005)
    bias = QuantizationPlan(plan.activations, plan.weights, constants={"c": Constant(bias=np.ones(2, np.float32))})
    unrefined = QuantizationPlan(plan.activations, plan.weights)
    assert table(bias, c="i8")["c"]["sqnr_db"] == table(unrefined, c="i8")["c"]["sqnr_db"] > noise


def test_what_is_not_quantized_and_what_the_compiler_made_of_it() -> None:
    rows = table(None, c="f32", d="f16")
    assert list(rows) == ["c", "d", "m"]
    assert rows["c"] == {"kind": "conv", "executed": "f32", "macs": 24, "why": "nothing is quantized"}
    assert rows["d"]["why"] == "nothing is quantized"
    assert rows["m"] == {"kind": "matmul", "executed": "unknown", "macs": 2}
    plan = QuantizationPlan({"x": params(0.1)}, {"c": params(0.5)})
    assert table(plan, c="f32")["c"]["why"] == "quantized, but the compiler runs it in float"


def test_a_layer_that_was_asked_to_stay_in_f32_says_so() -> None:
    plan = QuantizationPlan({"x": params(0.1)}, {"c": params(0.5)})
    rows = table(plan, bits="w8/f32:d", c="i8", d="f32", m="f32")
    assert rows["d"]["why"] == "the configuration leaves it in f32 (bits=f32)"
    assert rows["m"]["why"] == "the first and the last layer stay f32 (mixed)"
    assert "weight_bits" not in rows["d"]


def test_reasons_are_told_for_layers_and_for_what_is_no_layer() -> None:
    plan = QuantizationPlan({"x": params(0.1)}, {"c": params(0.5)})
    no_kernel = {"net.c": "no kernel: its groups are odd"}
    assert table(plan, no_kernel, c="i8")["c"]["why"] == "no kernel: its groups are odd"
    assert table(plan, no_kernel, c="f32")["c"]["why"] == "no kernel: its groups are odd"
    assert table(None, no_kernel, c="f32")["c"]["why"] == "nothing is quantized; no kernel: its groups are odd"
    assert "why" not in table(plan, {}, c="i8")["c"]
    pool = Node("p", "net.p", "maxpool", ("x",), (1, 2, 2, 3))
    made = layer_table(
        Network((NODES[0], pool), ("p",)),
        SimpleNamespace(layers=[], config=None, provenance=SimpleNamespace(reasons={"net.p": "no kernel: odd"})),  # type: ignore[arg-type]
        plan,
    )
    assert made == [{"name": "p", "kind": "maxpool", "executed": "i8", "macs": 0, "why": "no kernel: odd"}]
