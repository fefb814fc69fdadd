// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-insert-qdq,quantune-lower-qdq-to-integer 2>&1 | FileCheck %s

// One bit is no width, and a weight has no zero point, however few bits it has.

// CHECK: narrow-bits-invalid.mlir:9:8: error: 'linalg.abs' op has no usable quantized type: storage range [0, 1] is not 2 to 8 bits inside [0, 255]
!one = !quant.uniform<u8<0:1>:f32, 0.5>
func.func @main(%x: tensor<4xf32>) -> tensor<4xf32> {
  %e = tensor.empty() : tensor<4xf32>
  %0 = linalg.abs {quantune.output = !one} ins(%x : tensor<4xf32>) outs(%e : tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----
// CHECK: error: 'linalg.conv_2d_nchw_fchw' op has a weight with zero points (-125,); expected 0, signed
!x = !quant.uniform<u8<0:15>:f32, 0.5:3>
!w = !quant.uniform<u8<0:15>:f32, 0.5:3>
!y = !quant.uniform<u8<0:15>:f32, 0.5:3>
func.func @main(%x: tensor<1x1x2x2xf32> {quantune.output = !x}) -> tensor<1x1x2x2xf32> {
  %w = arith.constant dense<1.0> : tensor<1x1x1x1xf32>
  %b = arith.constant dense<0.0> : tensor<1xf32>
  %e = tensor.empty() : tensor<1x1x2x2xf32>
  %start = linalg.broadcast ins(%b : tensor<1xf32>) outs(%e : tensor<1x1x2x2xf32>) dimensions = [0, 2, 3]
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv", quantune.output = !y, quantune.weight = !w}
    ins(%x, %w : tensor<1x1x2x2xf32>, tensor<1x1x1x1xf32>) outs(%start : tensor<1x1x2x2xf32>) -> tensor<1x1x2x2xf32>
  return %0 : tensor<1x1x2x2xf32>
}
