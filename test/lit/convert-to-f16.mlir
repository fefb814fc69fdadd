// RUN: quantune-opt %s --pass-pipeline=quantune-convert-to-f16 | FileCheck %s

// The padding is done in f16, the weight becomes an f16 constant, the sum stays f32.
// CHECK-LABEL: func.func @conv
//  CHECK-SAME: (%[[X:.*]]: tensor<1x2x4x4xf32>, %[[B:.*]]: tensor<1x3x4x4xf32>)
//       CHECK: %[[X16:.*]] = linalg.generic {{.*}} ins(%[[X]] : tensor<1x2x4x4xf32>)
//       CHECK: arith.truncf %{{.*}} : f32 to f16
//       CHECK: %[[Z:.*]] = arith.constant 0.000000e+00 : f16
//       CHECK: %[[P:.*]] = tensor.pad %[[X16]]
//       CHECK: tensor.yield %[[Z]] : f16
//       CHECK: %[[W:.*]] = arith.constant {quantune.parameter = "conv.weight"} dense<9.997550e-02> : tensor<3x2x3x3xf16>
//       CHECK: linalg.conv_2d_nchw_fchw {dilations = dense<1> : tensor<2xi64>, quantune.layer = "conv", strides = dense<1> : tensor<2xi64>} ins(%[[P]], %[[W]] : tensor<1x2x6x6xf16>, tensor<3x2x3x3xf16>) outs(%[[B]] : tensor<1x3x4x4xf32>)
func.func @conv(%x: tensor<1x2x4x4xf32>, %bias: tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32> {
  %z = arith.constant 0.0 : f32
  %p = tensor.pad %x low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%a: index, %b: index, %c: index, %d: index):
    tensor.yield %z : f32
  } : tensor<1x2x4x4xf32> to tensor<1x2x6x6xf32>
  %w = arith.constant dense<0.1> : tensor<3x2x3x3xf32>
  %0 = linalg.conv_2d_nchw_fchw {quantune.layer = "conv", dilations = dense<1> : tensor<2xi64>, strides = dense<1> : tensor<2xi64>} ins(%p, %w : tensor<1x2x6x6xf32>, tensor<3x2x3x3xf32>) outs(%bias : tensor<1x3x4x4xf32>) -> tensor<1x3x4x4xf32>
  return %0 : tensor<1x3x4x4xf32>
}

// A depthwise weight is a reshaped constant.
// CHECK-LABEL: func.func @depthwise
//   CHECK-NOT: tensor.collapse_shape
//       CHECK: arith.constant {quantune.parameter = "dw.weight"} dense<{{\[}}{{\[}}[5.000000e-01]], {{\[}}[2.500000e-01]]]> : tensor<2x1x1xf16>
//       CHECK: linalg.depthwise_conv_2d_nchw_chw {{.*}} : tensor<1x2x4x4xf16>, tensor<2x1x1xf16>) outs(%{{.*}} : tensor<1x2x4x4xf32>)
func.func @depthwise(%x: tensor<1x2x4x4xf32>, %acc: tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32> {
  %w = arith.constant dense<[[[[0.5]]], [[[0.25]]]]> : tensor<2x1x1x1xf32>
  %c = tensor.collapse_shape %w [[0, 1], [2], [3]] : tensor<2x1x1x1xf32> into tensor<2x1x1xf32>
  %0 = linalg.depthwise_conv_2d_nchw_chw {quantune.layer = "dw", dilations = dense<1> : tensor<2xi64>, strides = dense<1> : tensor<2xi64>} ins(%x, %c : tensor<1x2x4x4xf32>, tensor<2x1x1xf32>) outs(%acc : tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  return %0 : tensor<1x2x4x4xf32>
}

// An operand of two products is truncated once; a transposed weight is transposed here.
// CHECK-LABEL: func.func @matmul
//   CHECK-NOT: linalg.transpose
//       CHECK: arith.truncf
//   CHECK-NOT: arith.truncf
//       CHECK: arith.constant {quantune.parameter = "fc.weight"} dense<{{\[}}[1.000000e+00, 3.000000e+00], [2.000000e+00, 4.000000e+00]]> : tensor<2x2xf16>
//       CHECK: linalg.matmul {quantune.layer = "fc"} ins({{.*}} : tensor<1x2xf16>, tensor<2x2xf16>) outs({{.*}} : tensor<1x2xf32>)
//       CHECK: linalg.matmul ins({{.*}} : tensor<1x2xf16>, tensor<2x2xf16>) outs({{.*}} : tensor<1x2xf32>)
func.func @matmul(%x: tensor<1x2xf32>, %acc: tensor<1x2xf32>) -> (tensor<1x2xf32>, tensor<1x2xf32>) {
  %w = arith.constant dense<[[1.0, 2.0], [3.0, 4.0]]> : tensor<2x2xf32>
  %e = tensor.empty() : tensor<2x2xf32>
  %t = linalg.transpose ins(%w : tensor<2x2xf32>) outs(%e : tensor<2x2xf32>) permutation = [1, 0]
  %0 = linalg.matmul {quantune.layer = "fc"} ins(%x, %t : tensor<1x2xf32>, tensor<2x2xf32>) outs(%acc : tensor<1x2xf32>) -> tensor<1x2xf32>
  %1 = linalg.matmul ins(%x, %w : tensor<1x2xf32>, tensor<2x2xf32>) outs(%acc : tensor<1x2xf32>) -> tensor<1x2xf32>
  return %0, %1 : tensor<1x2xf32>, tensor<1x2xf32>
}

// CHECK-LABEL: func.func @integer
//       CHECK: linalg.matmul ins(%{{.*}}, %{{.*}} : tensor<1x2xi8>, tensor<2x2xi8>)
func.func @integer(%x: tensor<1x2xi8>, %w: tensor<2x2xi8>, %acc: tensor<1x2xi32>) -> tensor<1x2xi32> {
  %0 = linalg.matmul ins(%x, %w : tensor<1x2xi8>, tensor<2x2xi8>) outs(%acc : tensor<1x2xi32>) -> tensor<1x2xi32>
  return %0 : tensor<1x2xi32>
}
