// RUN: not quantune-opt %s --pass-pipeline='quantune-instrument{tensors=input,nobody}' 2>&1 | FileCheck %s
// CHECK: error: 'builtin.module' op has no tensor named 'nobody' (pass quantune-instrument)

// RUN: not quantune-opt %s --pass-pipeline=quantune-instrument 2>&1 | FileCheck %s --check-prefix=OPTION
// OPTION: quantune-opt: error: --pass-pipeline: pass 'quantune-instrument' needs option 'tensors'

// RUN: echo 'func.func @f() { return } func.func @g() { return }' | not quantune-opt - --pass-pipeline='quantune-instrument{tensors=all}' 2>&1 | FileCheck %s --check-prefix=TWO
// TWO: error: 'builtin.module' op is no network: expected one func.func with a body, found 2
func.func @main(%x: tensor<1xf32>) -> tensor<1xf32> {
  return %x : tensor<1xf32>
}
