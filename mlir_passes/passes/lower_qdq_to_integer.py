"""quantune-lower-qdq-to-integer: operations between dequantize and quantize -> integer arithmetic.

before -> after (x, y with scales s_x, s_y and zero points z_x, z_y; W with scales s_w, one per tensor or per channel):

    q_y(clamp(conv(pad(dq(x)), dq(q(W))) + b))
    ->
    acc = conv(pad(x, z_x), W_i8) : i32                            exact;  B = roundeven(b / (s_x·s_w)) − z_x·ΣW
    y   = clamp(roundeven(f32(acc + B) · m) + z_y, lo, hi)         m = s_x·s_w/s_y
    y   = clamp(roundeven((acc + B) / 2^k) + z_y, lo, hi)          where `quantune.requantize` is "shift"

    conv(dq(x), dq(q(W))) + b   ->  f32(acc + B) · (s_x·s_w)       a result that nobody quantizes
    q_y(dq(a) + dq(b))          ->  ((a−z_a)·m_a + (b−z_b)·m_b + 2^(k−1) >> k) + z_y
    q_y(dq(a) − dq(b))          ->  the same with −m_b             broadcast as the operation is; products too
    q_y(dq(a) · dq(b))          ->  roundeven(f32((a−z_a)·(b−z_b)) · s_a·s_b/s_y) + z_y
    q_y(dq(x)·f + b)            ->  roundeven(f32(x·n + B) · m) + z_y            f, b, n, B and m for each channel
    q_y(Σ_k w_k·dq(x)[p_k])     ->  roundeven(f32(Σ_k W_k·(x[p_k]−z_x)) · m) + z_y          bilinear resizing
    q_y(sum(dq(x)) / n)         ->  roundeven(f32(Σx − n·z_x) · s_x/(s_y·n)) + z_y
    q(f(dq(x)))                 ->  f(x)                           f selects or moves: max, concat, views, gather, clamp
    q_y(concat(dq(a), …))       ->  concat(roundeven(f32(a−z_a) · s_a/s_y) + z_y, …)       an input of another scale
    q_y(f(dq(x)))               ->  T[x]                           any other function of one value: 256 results

Activations are stored as signed i8 (see quant_types); numbers are tagged constants, so that one program serves many
configurations. Leaves alone: what is computed in f32; the casts around it remain for ``quantune-lower-quant``.
Requires: no folding pass since ``quantune-insert-qdq``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir

from mlir_passes.base import Missed, Pass, PassFailure
from mlir_passes.ir.build import REQUANTIZE, defining_op, erase_dead, note_missed
from mlir_passes.ir.quant_types import QuantSpec
from mlir_passes.network import INPUT, Node
from mlir_passes.ops import room_of
from mlir_passes.ops.emit import Emitter, limits
from mlir_passes.ops.reader import Reading, Site, main_function, read_network


@dataclass(frozen=True)
class LowerQdqToInteger(Pass):
    """Computes in i8 and i32 what stands between quant.dcast and quant.qcast."""

    name: ClassVar[str] = "quantune-lower-qdq-to-integer"

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure when the network cannot be read or a tensor is quantized twice with different types."""
        lowering = _Lowering(read_network(module))
        lowering.run()
        note_missed(module, lowering.missed)
        function = main_function(module)
        erase_dead(function)
        for op in function.regions[0].blocks[0].operations:
            if REQUANTIZE in op.operation.attributes:
                del op.operation.attributes[REQUANTIZE]


class _Lowering:
    def __init__(self, reading: Reading) -> None:
        self.sites = reading.sites
        self.network = reading.network
        self.specs: dict[str, QuantSpec] = {}
        self.stored: dict[str, ir.Value] = {}
        self.missed: dict[str, str] = {}

    def run(self) -> None:
        for name, site in self.sites.items():
            if site.qcasts:
                types = {str(ir.RankedTensorType(cast.results[0].type).element_type) for cast in site.qcasts}
                if len(types) > 1:
                    raise PassFailure(
                        site.qcasts[1],
                        f"quantizes '{name}' a second time with another type: {', '.join(sorted(types))}",
                    )
                self.specs[name] = _activation_spec(site.qcasts[0])
        for name, site in list(self.sites.items()):
            if site.qcasts:
                self._quantized(name, site)
            elif site.node.traits.ends_in_f32:
                self._real(site)

    def _quantized(self, name: str, site: Site) -> None:
        """Compute the quantized tensor ``name`` in integers where that is possible, and hand it to its readers."""
        anchor = defining_op(site.result) or site.qcasts[0]
        with ir.InsertionPoint(anchor):
            value = self._integer(site)
        if isinstance(value, Missed):
            self._miss(site, value)
            cast = site.qcasts[0]
            with ir.InsertionPoint.after(cast), cast.location:
                self.stored[name] = _storage_view(cast.result)
            return
        self.stored[name] = value
        for cast in site.qcasts:
            with ir.InsertionPoint(cast), cast.location:
                cast.result.replace_all_uses_with(
                    ir.Operation.create("quant.scast", [cast.result.type], [value]).result
                )

    def _integer(self, site: Site) -> ir.Value | Missed:
        node, clamp = site.node, None
        if node.traits.clamps:
            producer = self.sites[node.inputs[0]]
            if self.network.fused_clamp(producer.node) is node:
                missed = self._reads_f32(producer)
                if missed is None:
                    site, clamp = producer, node
                else:
                    self._miss(producer, missed)
        if (missed := self._reads_f32(site)) is not None:
            return missed
        assert site.op is not None
        with site.op.location:  # the layer's own, also where its clamp comes along: it tells the compiled layers apart
            return self._emit(site, node, clamp)

    def _emit(self, site: Site, node: Node, clamp: Node | None) -> ir.Value | Missed:
        spec, inputs = self.specs[node.name], [self.specs[name] for name in site.node.inputs]
        traits = site.node.traits
        if traits.hands_on and not traits.requantizes and any(other != spec for other in inputs):
            return Missed("its inputs are not quantized as its result is")
        return room_of(site.node.kind).integer(self._emitter(site), inputs, spec, limits(spec, clamp or node))

    def _real(self, site: Site) -> None:
        """A layer or an average whose result stays f32: accumulate in integers, scale once."""
        reader = self.network.fused_clamp(site.node)
        if reader is not None and self.sites[reader.name].qcasts:
            return  # they are emitted together
        if (missed := self._reads_f32(site)) is not None:
            self._miss(site, missed)
            return
        last = defining_op(site.result)
        assert last is not None
        assert site.op is not None
        with ir.InsertionPoint(last), site.op.location:
            inputs = [self.specs[name] for name in site.node.inputs]
            site.result.replace_all_uses_with(room_of(site.node.kind).real(self._emitter(site), inputs))

    def _emitter(self, site: Site) -> Emitter:
        node = site.node
        shared = [self.network.shares(node, name) for name in node.inputs]
        return Emitter(node.name, site, [self.stored[name] for name in node.inputs], shared)

    def _reads_f32(self, site: Site) -> Missed | None:
        """Why an operation cannot read integers; None where it does."""
        node = site.node
        if not node.traits.integers:
            return Missed(f"{node.detail or node.kind} has no integer form")
        if node.traits.weighted and site.weight_type is None:
            return Missed("its weights are not quantized")
        for name, source in zip(node.inputs, site.sources, strict=True):
            op = defining_op(source)
            if op is None or op.name != "quant.dcast" or name not in self.stored:
                return Missed(f"it reads '{name}', which is not quantized")
        return None

    def _miss(self, site: Site, missed: Missed) -> None:
        if site.node.kind != INPUT:
            self.missed[site.node.layer or site.node.name] = f"in f32: {missed.reason}"


def _activation_spec(cast: ir.Operation) -> QuantSpec:
    """How an activation is stored. Raises PassFailure unless it is quantized with one scale for the tensor."""
    try:
        spec = QuantSpec.from_type(cast.results[0].type).stored
    except ValueError as error:
        raise PassFailure(cast, f"has unusable quantization parameters: {error}") from error
    if spec.axis is not None:
        raise PassFailure(cast, f"quantizes an activation with {len(spec.scales)} scales; expected one for the tensor")
    return spec


def _storage_view(quantized: ir.Value) -> ir.Value:
    shape = ir.RankedTensorType(quantized.type).shape
    storage = ir.RankedTensorType.get(shape, ir.IntegerType.get_signless(8))
    return ir.Operation.create("quant.scast", [storage], [quantized]).result
