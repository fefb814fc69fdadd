// MLIR's folders turn quant.dcast(quant.qcast(x)) into x. Hence only passes that do not fold (quantune's own, and cse) may
// run between quantune-insert-qdq and quantune-lower-quant: any other deletes the quantization and says nothing.

// RUN: quantune-opt %s --pass-pipeline=canonicalize | FileCheck %s --check-prefix=FOLDED
// The casts' own lowering in MLIR folds as well: it computes the integers, and returns its input.
// RUN: quantune-opt %s --pass-pipeline='func.func(lower-quant-ops)' | FileCheck %s --check-prefix=FOLDED
// RUN: quantune-opt %s --pass-pipeline=cse | FileCheck %s --check-prefix=KEPT
// RUN: quantune-opt %s --pass-pipeline=quantune-lower-quant,canonicalize | FileCheck %s --check-prefix=LOWERED

// FOLDED: func.func @pair(%[[X:.*]]: tensor<4xf32>)
// FOLDED: return %[[X]]

// KEPT: quant.qcast
// KEPT: quant.dcast

// LOWERED: math.roundeven
// LOWERED: arith.sitofp
func.func @pair(%x: tensor<4xf32>) -> tensor<4xf32> {
  %q = quant.qcast %x : tensor<4xf32> to tensor<4x!quant.uniform<i8:f32, 0.5>>
  %y = quant.dcast %q : tensor<4x!quant.uniform<i8:f32, 0.5>> to tensor<4xf32>
  return %y : tensor<4xf32>
}
