// RUN: quantune-opt %s --pass-pipeline=quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant | FileCheck %s

// Four bits are a range of the same i8: the weight in [-7, 7], the activations u4 held as [-128, -113].
!x = !quant.uniform<u8<0:15>:f32, 0.5:3>
!w = !quant.uniform<i8<-7:7>:f32, 0.25>
!y = !quant.uniform<u8<0:15>:f32, 0.3:1>
// CHECK-LABEL: func.func @main
//       CHECK: arith.constant {quantune.parameter = "{{.*}}quantize.low"} dense<-1.280000e+02>
//       CHECK: arith.constant {quantune.parameter = "{{.*}}quantize.high"} dense<-1.130000e+02>
//       CHECK: arith.constant {quantune.parameter = "conv.weight"} dense<{{\[\[\[\[}}7]]], {{\[\[\[}}-7]]], {{\[\[\[}}2]]]]> : tensor<3x1x1x1xi8>
//       CHECK: arith.constant {quantune.parameter = "conv.min"} dense<-1.280000e+02> : tensor<f32>
//       CHECK: arith.constant {quantune.parameter = "conv.max"} dense<-1.130000e+02> : tensor<f32>
func.func @main(%x: tensor<1x1x2x2xf32> {quantune.output = !x}) -> tensor<1x3x2x2xf32> {
  %w = arith.constant dense<[[[[9.0]]], [[[-1.75]]], [[[0.6]]]]> : tensor<3x1x1x1xf32>
  %b = arith.constant dense<0.0> : tensor<3xf32>
  %e = tensor.empty() : tensor<1x3x2x2xf32>
  %start = linalg.broadcast ins(%b : tensor<3xf32>) outs(%e : tensor<1x3x2x2xf32>) dimensions = [0, 2, 3]
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv", quantune.output = !y, quantune.weight = !w}
    ins(%x, %w : tensor<1x1x2x2xf32>, tensor<3x1x1x1xf32>) outs(%start : tensor<1x3x2x2xf32>) -> tensor<1x3x2x2xf32>
  return %0 : tensor<1x3x2x2xf32>
}
