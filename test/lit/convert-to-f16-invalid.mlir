// RUN: not quantune-opt %s --pass-pipeline=quantune-convert-to-f16 2>&1 | FileCheck %s

// CHECK: convert-to-f16-invalid.mlir:6:8: error: 'linalg.matmul' op has the weight 70000, which f16 cannot hold (pass quantune-convert-to-f16)
func.func @large(%x: tensor<1x2xf32>, %acc: tensor<1x1xf32>) -> tensor<1x1xf32> {
  %w = arith.constant dense<[[1.0], [7.0e4]]> : tensor<2x1xf32>
  %0 = linalg.matmul ins(%x, %w : tensor<1x2xf32>, tensor<2x1xf32>) outs(%acc : tensor<1x1xf32>) -> tensor<1x1xf32>
  return %0 : tensor<1x1xf32>
}
