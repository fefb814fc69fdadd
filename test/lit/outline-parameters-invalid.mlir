// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-outline-parameters 2>&1 | FileCheck %s
// RUN: not quantune-opt %s --pass-pipeline='quantune-outline-parameters{scope=a/b}' 2>&1 | FileCheck %s --check-prefix=SCOPE

// SCOPE: quantune-opt: error: --pass-pipeline: pass 'quantune-outline-parameters': scope is 'a/b'; expected letters, digits, - and _

// CHECK: outline-parameters-invalid.mlir:9:8: error: 'arith.constant' op is parameter 'conv.scale' with other numbers than the one before it
func.func @two_scales() -> (tensor<f32>, tensor<f32>) {
  %0 = arith.constant {quantune.parameter = "conv.scale"} dense<1.5> : tensor<f32>
  %1 = arith.constant {quantune.parameter = "conv.scale"} dense<2.5> : tensor<f32>
  return %0, %1 : tensor<f32>, tensor<f32>
}

// -----
// CHECK: outline-parameters-invalid.mlir:16:8: error: 'arith.constant' op is parameter 'conv.scale' but no arith.constant with dense elements
func.func @no_tensor() -> f32 {
  %0 = arith.constant {quantune.parameter = "conv.scale"} 1.5 : f32
  return %0 : f32
}

// -----
// CHECK: outline-parameters-invalid.mlir:23:8: error: 'tensor.empty' op is parameter 'conv.scale' but no arith.constant with dense elements
func.func @no_constant() -> tensor<f32> {
  %0 = tensor.empty() {quantune.parameter = "conv.scale"} : tensor<f32>
  return %0 : tensor<f32>
}

// -----
// CHECK: outline-parameters-invalid.mlir:30:8: error: 'arith.constant' op has quantune.parameter = 3 : i64; expected a name
func.func @no_name() -> tensor<f32> {
  %0 = arith.constant {quantune.parameter = 3} dense<1.5> : tensor<f32>
  return %0 : tensor<f32>
}
