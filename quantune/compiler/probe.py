"""What the programs of a target need of a processor, asked of the compiler before there is a program."""

from __future__ import annotations

from quantune.artifact.records import Processor
from quantune.cache import ArtifactCache
from quantune.compiler.inspect import required_processor
from quantune.compiler.iree import compile_module
from quantune.compiler.targets import Target

_SMALLEST = b"""
func.func @main(%x: tensor<16xf32>) -> tensor<16xf32> {
  %empty = tensor.empty() : tensor<16xf32>
  %sum = linalg.generic {indexing_maps = [affine_map<(i) -> (i)>, affine_map<(i) -> (i)>],
      iterator_types = ["parallel"]} ins(%x : tensor<16xf32>) outs(%empty : tensor<16xf32>) {
  ^bb0(%value: f32, %old: f32):
    %twice = arith.addf %value, %value : f32
    linalg.yield %twice : f32
  } -> tensor<16xf32>
  return %sum : tensor<16xf32>
}
"""


def needed_processor(target: Target, cache: ArtifactCache, *, host: bool = False) -> Processor | None:
    """Compile the smallest program for a cpu target and return what it needs; None for GPUs.

    None for this machine too, unless ``host`` asks for it: what is compiled here for here runs here.
    Raises UsageError for a processor that IREE does not know.
    """
    if not target.on_processor or (target.is_host and not host):
        return None
    return required_processor(compile_module(_SMALLEST, target, cache=cache, explain=True).dispatches)
