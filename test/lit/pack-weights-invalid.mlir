// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-pack-weights 2>&1 | FileCheck %s

// CHECK: pack-weights-invalid.mlir:6:8: error: 'arith.constant' op is parameter 'a.weight' with other numbers than the one before it
func.func @other_numbers() -> (tensor<4xi8>, tensor<4xi8>) {
  %0 = arith.constant {quantune.parameter = "a.weight"} dense<[-3, -1, 1, 3]> : tensor<4xi8>
  %1 = arith.constant {quantune.parameter = "a.weight"} dense<[-3, -1, 1, 1]> : tensor<4xi8>
  return %0, %1 : tensor<4xi8>, tensor<4xi8>
}

// -----
// CHECK: pack-weights-invalid.mlir:14:8: error: 'arith.constant' op is parameter 'a.weight' with other numbers than the one before it
func.func @other_shape() -> (tensor<4xi8>, tensor<2x2xi8>) {
  %0 = arith.constant {quantune.parameter = "a.weight"} dense<1> : tensor<4xi8>
  %1 = arith.constant {quantune.parameter = "a.weight"} dense<1> : tensor<2x2xi8>
  return %0, %1 : tensor<4xi8>, tensor<2x2xi8>
}
