"""Scores follow the published formulas, and an allocation is the best there is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlir_passes.network import Network, Node
from quantune.allocation.amp import Alone, sqnr
from quantune.allocation.base import Allocation, Budget, Column, Problem, Scores
from quantune.allocation.orthogonality import Orthogonality, importance, orthogonality, outputs
from quantune.allocation.output_error import OutputNorm, bound, norms
from quantune.allocation.solve import optimal, weight_bytes
from quantune.allocation.sqnr import Sqnr
from quantune.allocation.table import PROPOSERS, SCORERS, parse_size, proposer, scorer
from quantune.errors import UsageError
from quantune.numerics import affine
from quantune.numerics.affine import QuantParams
from quantune.numerics.formats import FORMATS
from quantune.numerics.schemes import SCHEMES, Weights
from quantune.numerics.simulate import simulate
from quantune.quantization.bits import F32, BitWidths, LayerBits

W2, W4, W8 = LayerBits(2), LayerBits(4), LayerBits(8)
RNG = np.random.default_rng(0)


def _conv(name: str, source: str, inputs: int, outputs: int, kernel: int = 1, groups: int = 1, side: int = 6) -> Node:
    weight = RNG.standard_normal((outputs, inputs // groups, kernel, kernel)).astype(np.float32)
    edge = kernel // 2
    return Node(
        name, name, "conv", (source,), (1, outputs, side, side), weight, np.zeros(outputs, np.float32), groups,
        (kernel, kernel), pads=(edge, edge, edge, edge),
    )  # fmt: skip


NETWORK = Network(
    (
        Node("x", "", "input", (), (1, 3, 6, 6)),
        _conv("a", "x", 3, 8, kernel=3),
        _conv("b", "a", 8, 8, kernel=3, groups=8),
        _conv("c", "b", 8, 40),
        _conv("d", "c", 40, 4, groups=2),
    ),
    ("d",),
)


@dataclass
class Fake:
    """The network above, simulated: no compiler is needed to test what a scorer computes."""

    network: Network = NETWORK
    choices: Sequence[LayerBits] = (W2, W4, W8)
    images: np.ndarray = field(
        default_factory=lambda: np.random.default_rng(1).standard_normal((5, 3, 6, 6), np.float32)
    )

    def weights(self, bits: int, form: str = "") -> Mapping[str, QuantParams]:
        how = FORMATS[form or f"w{bits}"]
        return {n.name: how.params(n.weight, "channel", Weights()) for n in NETWORK.layers if n.weight is not None}

    def activations(self, bits: int) -> Mapping[str, QuantParams]:
        return {node.name: SCHEMES["asymmetric"].params(-9.0, 9.0, bits) for node in NETWORK.nodes}

    def observe(self, tensors: Sequence[str], images: int) -> Iterator[dict[str, np.ndarray]]:
        for image in self.images[:images]:
            found = simulate(NETWORK, {}, {}, image[None])
            yield {name: found[name] for name in tensors}

    def logits(self, widths: Sequence[BitWidths], images: int) -> Iterator[np.ndarray]:
        yield self._run(None, images)
        for bits in widths:
            yield self._run(bits, images)

    def alone(self, columns: Sequence[Column], images: int) -> Iterator[np.ndarray]:
        yield self._run(None, images)
        for column in columns:
            yield self._run(BitWidths(F32, (column,)), images)

    def _run(self, bits: BitWidths | None, images: int) -> np.ndarray:
        nodes = tuple(
            node
            if bits is None or node.weight is None or bits.of(node.name) == F32
            else _rounded(node, self.weights(bits.of(node.name).weights, bits.of(node.name).format))
            for node in NETWORK.nodes
        )
        network = Network(nodes, ("d",))
        return np.concatenate([simulate(network, {}, {}, image[None])["d"] for image in self.images[:images]])


def _rounded(node: Node, params: Mapping[str, QuantParams]) -> Node:
    assert node.weight is not None
    p = params[node.name]
    weight = affine.dequantize(affine.quantize(node.weight, p), p)
    return Node(
        node.name, node.layer, node.kind, node.inputs, node.shape, weight, node.bias, node.groups, node.kernel,
        pads=node.pads,
    )  # fmt: skip


def allocate(scores: Scores, budgets: Sequence[Budget], agree: Sequence[Sequence[str]] = ()) -> Allocation:
    return optimal(Problem(scores, budgets, agree))


# Scores


@pytest.mark.parametrize("node", NETWORK.layers, ids=lambda node: node.name)
def test_norms_are_those_of_the_layer_s_own_output(node: Node) -> None:
    assert node.weight is not None
    inputs = node.weight.shape[1] * node.groups
    x = RNG.standard_normal((1, inputs, 6, 6)).astype(np.float32)
    source = Node("x", "", "input", (), x.shape)
    fields = (node.bias, node.groups, node.kernel)
    several = [node.weight, 2 * node.weight, np.zeros_like(node.weight)]
    alone = [
        Node(node.name, "", "conv", ("x",), node.shape, weight, *fields, pads=node.pads)  # type: ignore[arg-type]
        for weight in several
    ]
    expected = [np.linalg.norm(simulate(Network((source, one), (one.name,)), {}, {}, x)[one.name]) for one in alone]
    np.testing.assert_allclose(norms(node, x, np.stack(several)), expected, rtol=1e-4, atol=1e-4)


def test_the_bound_is_mean_plus_sample_deviation_over_root_delta() -> None:
    assert bound([1.0, 3.0]) == pytest.approx(2 + math.sqrt(2) / math.sqrt(0.05))
    assert bound([4.0]) == 4.0


def test_output_error_is_that_of_the_weights_and_grows_as_bits_go() -> None:
    scores = OutputNorm(images=3)(Fake())
    assert set(scores) == {"a", "b", "c", "d"}
    for row in scores.values():
        assert row[W2] > row[W4] > row[W8] > 0


def test_output_error_counts_activations_only_where_they_may_differ() -> None:
    narrow, wide = LayerBits(4, 4), LayerBits(4, 8)
    scores = OutputNorm(images=1)(Fake(choices=(narrow, wide)))
    plain = OutputNorm(images=1)(Fake(choices=(wide,)))
    for name, row in scores.items():
        assert row[narrow] > row[wide] > plain[name][wide]


def test_orthogonality_is_linear_cka() -> None:
    x, y = RNG.standard_normal((2, 6, 9)).astype(np.float32)
    centre = np.eye(6) - 1 / 6
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = np.sum(k * m) / (np.linalg.norm(k) * np.linalg.norm(m))
    found = orthogonality([x, y, 3 * x, np.ones((6, 2), np.float32)])
    np.testing.assert_allclose(found[0, :3], [1, expected, 1], rtol=1e-4)
    np.testing.assert_allclose(found[3], [0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(found, found.T)


def test_importance_is_the_mean_of_theta_over_the_layers_from_here_on() -> None:
    orm = np.array([[1.0, 0.5, 0.2], [0.5, 1.0, 0.1], [0.2, 0.1, 1.0]])
    theta = np.exp(-2 * np.array([0.7, 0.6, 0.3]))
    expected = np.array([theta.mean(), theta[1:].mean(), theta[2]])
    found = importance(orm, beta=2)
    np.testing.assert_allclose(found / found[0], expected / expected[0])


def test_ompq_keeps_the_first_and_the_last_layer_at_eight_bits() -> None:
    scores = Orthogonality(images=4)(Fake())
    assert list(scores["a"]) == list(scores["d"]) == [W8]
    assert scores["b"][W8] < scores["b"][W4] < scores["b"][W2] < 0
    with pytest.raises(UsageError, match="2 or more calibration images, there is 1"):
        Orthogonality(images=1)(Fake(images=np.zeros((1, 3, 6, 6), np.float32)))


def test_ompq_has_two_forms() -> None:
    subject = Fake(choices=(W2, W4, LayerBits(6), W8))
    ptq, qat = Orthogonality(images=4, form="ptq")(subject), Orthogonality(images=4, form="qat")(subject)
    assert {name: set(row) for name, row in ptq.items()} == {name: {W2, W4} for name in "abcd"}
    assert [set(qat[name]) for name in "abcd"] == [{W8}, {W4, LayerBits(6), W8}, {W4, LayerBits(6), W8}, {W8}]
    with pytest.raises(ValueError, match="form is 'both'; expected one of ptq, qat"):
        Orthogonality(form="both")
    with pytest.raises(UsageError, match="ptq form takes 2 to 4 bits, and none of them may be chosen"):
        Orthogonality(images=4, form="ptq")(Fake(choices=(W8,)))


def test_ompq_compares_what_a_block_gives() -> None:
    """Behind the clamp; the block's last layer has the sum, the one on the way around its own."""

    def node(name: str, kind: str, *inputs: str, **fields: object) -> Node:
        return Node(name, name, kind, inputs, (1, 4, 2, 2), **fields)  # type: ignore[arg-type]

    network = Network(
        (
            node("x", "input"), node("stem", "conv", "x"), node("r", "clamp", "stem", lo=0.0),
            node("c1", "conv", "r"), node("r1", "clamp", "c1", lo=0.0), node("c2", "conv", "r1"),
            node("way", "conv", "r"), node("sum", "add", "c2", "way"), node("r2", "clamp", "sum", lo=0.0),
            node("c3", "conv", "r2"), node("sum2", "add", "c3", "r2"), node("head", "conv", "sum2"),
        ),
        ("head",),
    )  # fmt: skip
    assert outputs(network) == {
        "stem": "r", "c1": "r1", "c2": "r2", "way": "way", "c3": "sum2", "head": "head"
    }  # fmt: skip


@pytest.mark.parametrize("against", ["f32", "baseline"])
def test_sqnr_is_of_the_network_s_output_with_one_layer_changed(against: str) -> None:
    fake = Fake()
    scores = Sqnr(images=4, against=against)(fake)
    exact, base, flipped = fake.logits([BitWidths(W8), BitWidths(W8, (("c", W2),))], 4)
    reference = base if against == "baseline" else exact
    expected = np.square(flipped - reference).sum() - np.square(base - reference).sum()
    assert scores["c"][W2] == pytest.approx(float(expected / np.square(exact).sum()), rel=1e-4)
    assert scores["c"][W8] == 0
    assert scores["c"][W2] > scores["c"][W4]


def test_alone_is_the_inverse_of_aimet_s_ratio_with_everything_else_in_f32() -> None:
    fake = Fake()
    scores = Alone(images=4)(fake)
    exact, flipped = fake.alone([("c", W2)], 4)
    noise = float(np.square(exact - flipped, dtype=np.float64).mean())
    expected = (noise + 1e-4) / float(np.square(exact, dtype=np.float64).mean())
    assert scores["c"][W2] == pytest.approx(expected, rel=1e-5)
    assert scores["c"][W2] > scores["c"][W4] > scores["c"][W8] > 0


def test_the_ratio_is_averaged_over_batches_of_sixteen() -> None:
    exact = np.ones((20, 2), np.float32)
    output = exact.copy()
    output[:16] += 0.1
    small, large = 1 / (np.square(np.float32(0.1), dtype=np.float64) + 1e-4), 1e4
    assert sqnr(exact, output) == pytest.approx((16 * small + 4 * large) / 20, rel=1e-4)


def test_relative_errors_do_not_see_how_channels_are_scaled() -> None:
    """The plain form does: the same function, other scores."""

    def scored(factor: float, *, relative: bool) -> float:
        class Scaled(Fake):
            def observe(self, tensors: Sequence[str], images: int) -> Iterator[dict[str, np.ndarray]]:
                for found in super().observe(tensors, images):
                    yield {name: factor * tensor for name, tensor in found.items()}

        return OutputNorm(images=2, relative=relative)(Scaled())["c"][W2]

    assert scored(8.0, relative=True) == pytest.approx(scored(1.0, relative=True), rel=1e-4)
    assert scored(8.0, relative=False) == pytest.approx(8 * scored(1.0, relative=False), rel=1e-4)


def test_sqnr_knows_two_references() -> None:
    with pytest.raises(ValueError, match="expected f32 or baseline"):
        Sqnr(against="int8")


# Allocation

tables = st.integers(1, 4).flatmap(
    lambda layers: st.lists(
        st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 30)), min_size=3, max_size=3),
        min_size=layers, max_size=layers,
    )
)  # fmt: skip
CHOICES = (LayerBits(2), LayerBits(4, 4), LayerBits(8))


@settings(max_examples=60)
@given(tables, st.integers(0, 100), st.booleans())
def test_an_allocation_is_the_best_of_all(table: list[list[tuple[int, int]]], limit: int, together: bool) -> None:
    names = [f"l{i}" for i in range(len(table))]
    scores = {
        n: {c: float(s) for c, (s, _) in zip(CHOICES, row, strict=True)} for n, row in zip(names, table, strict=True)
    }
    costs = {
        n: {c: float(p) for c, (_, p) in zip(CHOICES, row, strict=True)} for n, row in zip(names, table, strict=True)
    }
    points = [
        dict(zip(names, point, strict=True))
        for point in itertools.product(CHOICES, repeat=len(names))
        if not together or len({c.activations for c in point}) == 1
    ]
    spent = [sum(costs[n][c] for n, c in point.items()) for point in points]
    inside = [point for point, cost in zip(points, spent, strict=True) if cost <= limit]
    agree = [names] if together else []
    if not inside:
        with pytest.raises(UsageError, match=f"the smallest possible is {min(spent):g} ms"):
            allocate(scores, [Budget(costs, limit, "latency", "ms")], agree)
        return
    found = allocate(scores, [Budget(costs, limit, "latency", "ms")], agree)
    best = min(sum(scores[n][c] for n, c in point.items()) for point in inside)
    assert found.score == pytest.approx(best)
    assert found.costs["latency"] <= limit
    chosen = {name: found.bits.of(name) for name in names}
    assert chosen in inside
    assert found.score == pytest.approx(sum(scores[n][c] for n, c in chosen.items()))


def test_budgets_that_exclude_each_other_are_told() -> None:
    scores = {"a": {W4: 0.0, W8: 1.0}}
    budgets = [
        Budget({"a": {W4: 1.0, W8: 9.0}}, 5.0, "size", "bytes"),
        Budget({"a": {W4: 9.0, W8: 1.0}}, 5.0, "latency", "ms"),
    ]
    with pytest.raises(UsageError, match="no allocation keeps all budgets at once: size 5 bytes, latency 5 ms"):
        allocate(scores, budgets)
    with pytest.raises(ValueError, match="no entry for layer 'a' with w8a8"):
        allocate(scores, [Budget({"a": {W4: 1.0}}, 5.0)])


def test_tiny_scores_are_told_apart() -> None:
    scores = {name: {W2: 3e-12 * i, W8: 0.0} for i, name in enumerate("abcdef", start=1)}
    costs = {name: {W2: 1.0, W8: 4.0} for name in scores}
    found: Allocation = allocate(scores, [Budget(costs, 15)])
    assert {name: found.bits.of(name) for name in scores} == {n: W2 if n in "abc" else W8 for n in scores}


def test_weights_are_counted_packed() -> None:
    sizes = weight_bytes(NETWORK, [LayerBits(3), W8])
    assert sizes["a"] == {LayerBits(3): 81, W8: 216}
    assert sizes["b"] == {LayerBits(3): 27, W8: 72}


# What users write


@pytest.mark.parametrize(
    ("text", "size"), [("1.2MB", 1_200_000), ("0.5x", 500), ("800kB", 800_000), ("1MiB", 1 << 20), ("77B", 77)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text, 1000) == size


@pytest.mark.parametrize("text", ["", "12", "x", "-1MB", "0MB", "1 MB", "1e6B", "nanx", "٣MB"])
def test_what_is_no_size_is_told(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected a size such as 1\.2MB"):
        parse_size(text, 1000)


def test_scorers_have_names() -> None:
    assert isinstance(scorer("orthogonality"), Orthogonality)
    with pytest.raises(UsageError, match=r"score 'snqr': expected one of .* \(did you mean sqnr\?\)"):
        scorer("snqr")
    with pytest.raises(UsageError, match=r"proposer 'optimum': expected one of .* \(did you mean optimal\?\)"):
        proposer("optimum")


@pytest.mark.parametrize("propose", PROPOSERS)
@pytest.mark.parametrize("score", SCORERS)
def test_every_proposer_takes_every_score(score: str, propose: str) -> None:
    fake = Fake(choices=(W2, W4, LayerBits(6), W8))
    sizes = weight_bytes(NETWORK, fake.choices)
    least = {"orthogonality": sizes["a"][W8] + sizes["d"][W8], "ompq-qat": sizes["a"][W8] + sizes["d"][W8]}
    found = scorer(score)(fake)
    problem = Problem(found, [Budget(sizes, 500)])
    assert set(problem.separable) == set("abcd")
    assert least.get(score, 0) < 500
    allocation = proposer(propose)(problem)
    assert allocation.costs["size"] <= 500
    assert allocation.costs["size"] == sum(sizes[name][allocation.bits.of(name)] for name in "abcd")
    with pytest.raises(UsageError, match="size budget of 1 bytes: the smallest possible is"):
        proposer(propose)(Problem(found, [Budget(sizes, 1)]))
