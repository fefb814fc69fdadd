"""The network as plain data."""

from __future__ import annotations

import numpy as np

from mlir_passes.network import Network, Node

X = Node("input", "", "input", (), (1, 3, 8, 8))


def _conv(name: str, source: str, outputs: int = 4, groups: int = 1) -> Node:
    weight = np.zeros((outputs, 3 // groups, 3, 3), np.float32)
    return Node(
        name, name, "conv", (source,), (1, outputs, 6, 6), weight, np.zeros(outputs, np.float32), groups, (3, 3)
    )


def _clamp(name: str, source: str, channels: int = 4) -> Node:
    return Node(name, name, "clamp", (source,), (1, channels, 6, 6), lo=0.0)


def test_macs_count_multiplications_of_layers_only() -> None:
    assert _conv("a", "input").macs == 4 * 6 * 6 * 3 * 3 * 3
    assert _conv("a", "input", outputs=3, groups=3).macs == 3 * 6 * 6 * 3 * 3
    matmul = Node("m", "m", "matmul", ("v",), (2, 5), np.zeros((5, 7), np.float32), np.zeros(5, np.float32))
    assert matmul.macs == 2 * 5 * 7
    assert X.macs == 0
    assert _clamp("r", "a").macs == 0


def test_consumers_name_each_reader_once() -> None:
    total = Node("s", "s", "add", ("a", "a"), (1, 4, 6, 6))
    network = Network((X, _conv("a", "input"), total), ("s",))
    assert [node.name for node in network.consumers["a"]] == ["s"]
    assert network.consumers["s"] == ()
    assert network.by_name["s"] is total
    assert [node.name for node in network.inputs] == ["input"]
    assert [node.name for node in network.layers] == ["a"]


def test_a_clamp_is_fused_only_when_it_alone_reads_its_producer() -> None:
    conv, clamp = _conv("a", "input"), _clamp("r", "a")
    assert Network((X, conv, clamp), ("r",)).fused_clamp(conv) is clamp
    assert Network((X, conv, clamp), ("r", "a")).fused_clamp(conv) is None  # the raw result is returned too
    other = Node("t", "t", "reshape", ("a",), (1, 144))
    assert Network((X, conv, clamp, other), ("r", "t")).fused_clamp(conv) is None
    assert Network((X, conv, other), ("t",)).fused_clamp(conv) is None
    assert Network((X, conv), ("a",)).fused_clamp(conv) is None


def test_only_what_requantizes_takes_a_clamp_over() -> None:
    for kind, fuses in (("add", True), ("avgpool", True), ("maxpool", False), ("concat", False), ("float", False)):
        node = Node("p", "p", kind, ("input", "input"), (1, 3, 8, 8))
        clamp = Node("r", "r", "clamp", ("p",), (1, 3, 8, 8), lo=0.0)
        assert (Network((X, node, clamp), ("r",)).fused_clamp(node) is clamp) == fuses
