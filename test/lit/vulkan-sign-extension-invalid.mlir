// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-vulkan-sign-extension 2>&1 | FileCheck %s

// CHECK: vulkan-sign-extension-invalid.mlir:5:8: error: 'linalg.matmul' op sign-extends inside a named operation; run linalg-generalize-named-ops before
func.func @named(%a: tensor<2x3xi8>, %b: tensor<3x4xi8>, %acc: tensor<2x4xi32>) -> tensor<2x4xi32> {
  %0 = linalg.matmul ins(%a, %b : tensor<2x3xi8>, tensor<3x4xi8>) outs(%acc : tensor<2x4xi32>) -> tensor<2x4xi32>
  return %0 : tensor<2x4xi32>
}

// -----
// CHECK: vulkan-sign-extension-invalid.mlir:12:8: error: 'arith.extsi' op extends a whole tensor<4xi32>; expected a scalar in a linalg body
func.func @tensor(%a: tensor<4xi8>) -> tensor<4xi32> {
  %0 = arith.extsi %a : tensor<4xi8> to tensor<4xi32>
  return %0 : tensor<4xi32>
}
