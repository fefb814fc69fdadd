// RUN: not quantune-opt %s --pass-pipeline='quantune-summarize{strides=1,1}' 2>&1 | FileCheck %s
// CHECK: error: 'func.func' op has results tensor<4xf32>; expected 2 or more f32[n, …] of one n (pass quantune-summarize)

// RUN: not quantune-opt %s --pass-pipeline='quantune-summarize{strides=1}' 2>&1 | FileCheck %s --check-prefix=RANK
// RANK: error: 'func.func' op has results tensor<4xf32>; expected 1 or more f32[n, …] of one n

// RUN: not quantune-opt %s --pass-pipeline='quantune-summarize{strides=3,0}' 2>&1 | FileCheck %s --check-prefix=OPTION
// OPTION: quantune-opt: error: --pass-pipeline: pass 'quantune-summarize': strides (3, 0): expected one or more, each at least 1

// RUN: echo 'func.func @f() { return } func.func @g() { return }' | not quantune-opt - --pass-pipeline='quantune-summarize{strides=1}' 2>&1 | FileCheck %s --check-prefix=TWO
// TWO: error: 'builtin.module' op is no network: expected one func.func with a body, found 2
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  return %x : tensor<4xf32>
}
