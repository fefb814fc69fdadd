// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/annotate.json}' | FileCheck %s

#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#id2 = affine_map<(d0, d1) -> (d0, d1)>
#row = affine_map<(d0, d1) -> (d1)>

// The input's annotation stands beside the attributes that the argument had.
// CHECK-LABEL: func.func @main
//  CHECK-SAME: {quantune.output = !quant.uniform<u8:f32, 5.000000e-01:3>, test.kept}
func.func @main(%x: tensor<1x2x4x4xf32> {test.kept}) -> tensor<1x2xf32> {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<1x4x4x4xf32>
  %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>

  // A convolution carries its weight's type, one scale for each output channel; its own result is not quantized.
  //       CHECK: linalg.conv_2d_nchw_fchw
  //   CHECK-NOT: quantune.output
  //  CHECK-SAME: quantune.layer = "conv", quantune.weight = !quant.uniform<i8<-127:127>:f32:0, {5.000000e-01,2.500000e-01,1.250000e-01,1.000000e+00}>
  %w0 = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv"} ins(%x, %w0 : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
    outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>

  // The clamp makes the quantized tensor.
  //       CHECK: linalg.generic
  //  CHECK-SAME: quantune.layer = "relu", quantune.output = !quant.uniform<i8:f32, 2.500000e-01>
  %1 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%0 : tensor<1x4x4x4xf32>) outs(%e : tensor<1x4x4x4xf32>) attrs = {quantune.layer = "relu"} {
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ugt, %a, %zero : f32
    %s = arith.select %c, %a, %zero : f32
    linalg.yield %s : f32
  } -> tensor<1x4x4x4xf32>

  //       CHECK: linalg.depthwise_conv_2d_nchw_chw
  //  CHECK-SAME: quantune.layer = "depthwise", quantune.weight = !quant.uniform<i8<-127:127>:f32:0,
  %w1 = arith.constant dense<1.0> : tensor<4x1x1xf32>
  %2 = linalg.depthwise_conv_2d_nchw_chw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "depthwise"} ins(%1, %w1 : tensor<1x4x4x4xf32>, tensor<4x1x1xf32>)
    outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>

  // A grouped convolution makes its tensor with the reshape behind it.
  //       CHECK: linalg.conv_2d_ngchw_gfchw
  //   CHECK-NOT: quantune.output
  //  CHECK-SAME: quantune.layer = "grouped", quantune.weight = !quant.uniform<i8<-127:127>:f32:0,
  //       CHECK: tensor.collapse_shape
  //  CHECK-SAME: quantune.output = !quant.uniform<i8<-8:7>:f32, 1.250000e-01:-4>
  %w2 = arith.constant dense<1.0> : tensor<2x2x2x1x1xf32>
  %3 = tensor.expand_shape %2 [[0], [1, 2], [3], [4]] output_shape [1, 2, 2, 4, 4]
    : tensor<1x4x4x4xf32> into tensor<1x2x2x4x4xf32>
  %start5 = tensor.expand_shape %start [[0], [1, 2], [3], [4]] output_shape [1, 2, 2, 4, 4]
    : tensor<1x4x4x4xf32> into tensor<1x2x2x4x4xf32>
  %4 = linalg.conv_2d_ngchw_gfchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "grouped"} ins(%3, %w2 : tensor<1x2x2x4x4xf32>, tensor<2x2x2x1x1xf32>)
    outs(%start5 : tensor<1x2x2x4x4xf32>) -> tensor<1x2x2x4x4xf32>
  %5 = tensor.collapse_shape %4 [[0], [1, 2], [3], [4]] : tensor<1x2x2x4x4xf32> into tensor<1x4x4x4xf32>

  // A matrix product holds its weight as [in, out]: its channels are dimension 1.
  //       CHECK: linalg.matmul
  //  CHECK-SAME: quantune.layer = "classifier", quantune.weight = !quant.uniform<i8<-127:127>:f32:1, {5.000000e-01,2.500000e-01}>
  %6 = tensor.collapse_shape %5 [[0], [1, 2, 3]] : tensor<1x4x4x4xf32> into tensor<1x64xf32>
  %w3 = arith.constant dense<1.0> : tensor<64x2xf32>
  %e2 = tensor.empty() : tensor<1x2xf32>
  %start2 = linalg.fill ins(%zero : f32) outs(%e2 : tensor<1x2xf32>) -> tensor<1x2xf32>
  %7 = linalg.matmul {quantune.layer = "classifier"} ins(%6, %w3 : tensor<1x64xf32>, tensor<64x2xf32>)
    outs(%start2 : tensor<1x2xf32>) -> tensor<1x2xf32>
  return %7 : tensor<1x2xf32>
}
