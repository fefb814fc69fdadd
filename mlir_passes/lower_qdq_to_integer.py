"""quantune-lower-qdq-to-integer: operations between dequantize and quantize -> integer arithmetic.

before -> after (x, y with scales s_x, s_y and zero points z_x, z_y; W with scales s_w, one per tensor or per channel):

    q_y(clamp(conv(pad(dq(x)), dq(q(W))) + b))
    ->
    acc = conv(pad(x, z_x), W_i8) : i32                            exact;  B = roundeven(b / (s_x·s_w)) − z_x·ΣW
    y   = clamp(roundeven(f32(acc + B) · m) + z_y, lo, hi)         m = s_x·s_w/s_y
    y   = clamp(roundeven((acc + B) / 2^k) + z_y, lo, hi)          when every scale is a power of two

    conv(dq(x), dq(q(W))) + b   ->  f32(acc + B) · (s_x·s_w)       a result that nobody quantizes
    q_y(dq(a) + dq(b))          ->  ((a−z_a)·m_a + (b−z_b)·m_b + 2^(k−1) >> k) + z_y
    q_y(sum(dq(x)) / n)         ->  roundeven(f32(Σx − n·z_x) · s_x/(s_y·n)) + z_y
    q(f(dq(x)))                 ->  f(x)                           f selects or moves: max-pool, concat, views, clamp

Activations are stored as signed i8 (see quant_types); numbers are tagged constants, so that one program serves many
configurations. Leaves alone: what is computed in f32; the casts around it remain for ``quantune-lower-quant``.
Requires: no folding pass since ``quantune-insert-qdq``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch_mlir import ir

from mlir_passes.base import Pass, PassFailure
from mlir_passes.build import defining_op, erase_dead
from mlir_passes.integer_ops import Emitter
from mlir_passes.network import LAYERS, Node
from mlir_passes.quant_types import QuantSpec
from mlir_passes.read_network import NetworkError, Reading, Site, main_function, read_network


@dataclass(frozen=True)
class LowerQdqToInteger(Pass):
    """Computes in i8 and i32 what stands between quant.dcast and quant.qcast."""

    name: ClassVar[str] = "quantune-lower-qdq-to-integer"

    def run(self, module: ir.Operation) -> None:
        """Raises PassFailure when the network cannot be read or a tensor is quantized twice with different types."""
        try:
            reading = read_network(module)
        except NetworkError as error:
            raise PassFailure(module, f"cannot be lowered to integers: {error}") from error
        _Lowering(reading).run()
        erase_dead(main_function(module))


class _Lowering:
    def __init__(self, reading: Reading) -> None:
        self.sites = reading.sites
        self.network = reading.network
        self.specs: dict[str, QuantSpec] = {}
        self.stored: dict[str, ir.Value] = {}

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
            elif site.node.kind in LAYERS or site.node.kind == "avgpool":
                self._real(site)

    def _quantized(self, name: str, site: Site) -> None:
        """Compute the quantized tensor ``name`` in integers where that is possible, and hand it to its readers."""
        anchor = defining_op(site.result) or site.qcasts[0]
        with ir.InsertionPoint(anchor):
            value = self._integer(site)
        if value is None:
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

    def _integer(self, site: Site) -> ir.Value | None:
        node, clamp = site.node, None
        if node.kind == "clamp":
            producer = self.sites[node.inputs[0]]
            if self.network.fused_clamp(producer.node) is node and self._reads_integers(producer):
                site, clamp = producer, node
        if not self._reads_integers(site):
            return None
        assert site.op is not None
        with site.op.location:  # the layer's own, also where its clamp comes along: it tells the compiled layers apart
            return self._emit(site, node, clamp)

    def _emit(self, site: Site, node: Node, clamp: Node | None) -> ir.Value | None:
        spec = self.specs[node.name]
        emit = Emitter(site.node.name, site, [self.stored[i] for i in site.node.inputs])
        bounds = emit.bounds(spec, clamp or node)
        inputs = [self.specs[i] for i in site.node.inputs]
        if site.node.kind in LAYERS:
            return emit.layer(inputs[0], _weight_spec(site), spec, bounds)
        if site.node.kind == "add":
            return emit.add(inputs, spec, bounds)
        if site.node.kind == "avgpool":
            return emit.average(inputs[0], spec, bounds)
        if any(other != spec for other in inputs):
            return None
        return emit.moved(bounds)

    def _real(self, site: Site) -> None:
        """A layer or an average whose result stays f32: accumulate in integers, scale once."""
        reader = self.network.fused_clamp(site.node)
        if not self._reads_integers(site) or (reader is not None and self.sites[reader.name].qcasts):
            return
        last = defining_op(site.result)
        assert last is not None
        assert site.op is not None
        with ir.InsertionPoint(last), site.op.location:
            emit = Emitter(site.node.name, site, [self.stored[i] for i in site.node.inputs])
            weight = _weight_spec(site) if site.node.kind in LAYERS else None
            site.result.replace_all_uses_with(emit.real(self.specs[site.node.inputs[0]], weight))

    def _reads_integers(self, site: Site) -> bool:
        if site.node.kind in ("input", "float") or (site.node.kind in LAYERS and site.weight_type is None):
            return False
        sources = [defining_op(source) for source in site.sources]
        return all(op is not None and op.name == "quant.dcast" for op in sources) and all(
            name in self.stored for name in site.node.inputs
        )


def _activation_spec(cast: ir.Operation) -> QuantSpec:
    """How an activation is stored. Raises PassFailure unless it is quantized with one scale for the tensor."""
    try:
        spec = QuantSpec.from_type(cast.results[0].type).stored
    except ValueError as error:
        raise PassFailure(cast, f"has unusable quantization parameters: {error}") from error
    if spec.axis is not None:
        raise PassFailure(cast, f"quantizes an activation with {len(spec.scales)} scales; expected one for the tensor")
    return spec


def _weight_spec(site: Site) -> QuantSpec:
    """How a layer's weight is quantized. Raises PassFailure unless it is symmetric, per tensor or output channel."""
    op, weight = site.op, site.node.weight
    assert op is not None
    assert weight is not None
    try:
        spec = QuantSpec.from_type(site.weight_type)
    except ValueError as error:
        raise PassFailure(op, f"has unusable quantization parameters for its weight: {error}") from error
    if any(spec.stored.zero_points):
        raise PassFailure(op, f"has a weight with zero points {spec.stored.zero_points}; expected 0, signed")
    channels = 1 if site.node.kind == "matmul" else 0
    if spec.axis not in (None, channels) or len(spec.scales) not in (1, weight.shape[0]):
        raise PassFailure(
            op, f"has a weight with {len(spec.scales)} scales along dimension {spec.axis}; expected 1 or one per output"
        )
    return spec


def _storage_view(quantized: ir.Value) -> ir.Value:
    shape = ir.RankedTensorType(quantized.type).shape
    storage = ir.RankedTensorType.get(shape, ir.IntegerType.get_signless(8))
    return ir.Operation.create("quant.scast", [storage], [quantized]).result
