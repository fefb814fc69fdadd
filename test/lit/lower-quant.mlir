// RUN: quantune-opt %s --pass-pipeline=quantune-lower-quant | FileCheck %s
// RUN: quantune-opt %s --pass-pipeline=quantune-lower-quant | FileCheck %s --check-prefix=GONE

// GONE-NOT: {{quant\.|quantune.output}}

!act = !quant.uniform<u8:f32, 0.5:3>
!narrow = !quant.uniform<i8<-7:7>:f32, 0.25>
!channels = !quant.uniform<i8<-127:127>:f32:0, {0.5, 0.25:1}>

// CHECK: #[[$SCALAR:.*]] = affine_map<(d0, d1) -> ()>
// CHECK: #[[$CHANNEL:.*]] = affine_map<(d0, d1) -> (d0)>

// An unsigned type is held shifted by -128: zero point 3 is -125.
// CHECK-LABEL: func.func @unsigned
//  CHECK-SAME: (%[[X:.*]]: tensor<2x2xf32> {test.kept})
//   CHECK-DAG: %[[SCALE:.*]] = arith.constant {quantune.parameter = "input.quantize.scale"} dense<5.000000e-01> : tensor<f32>
//   CHECK-DAG: %[[ZERO:.*]] = arith.constant {quantune.parameter = "input.quantize.zero_point"} dense<-1.250000e+02> : tensor<f32>
//   CHECK-DAG: %[[LOW:.*]] = arith.constant {quantune.parameter = "input.quantize.low"} dense<-1.280000e+02> : tensor<f32>
//   CHECK-DAG: %[[HIGH:.*]] = arith.constant {quantune.parameter = "input.quantize.high"} dense<1.270000e+02> : tensor<f32>
//       CHECK: linalg.generic
//  CHECK-SAME: ins(%[[X]], %[[SCALE]], %[[ZERO]], %[[LOW]], %[[HIGH]]
//  CHECK-SAME: quantune.layer = "input"
//  CHECK-NEXT: ^bb0(%[[E:.*]]: f32, %[[S:.*]]: f32, %[[Z:.*]]: f32, %[[L:.*]]: f32, %[[H:.*]]: f32, %{{.*}}: i8):
//  CHECK-NEXT: %[[DIV:.*]] = arith.divf %[[E]], %[[S]]
//  CHECK-NEXT: %[[ROUND:.*]] = math.roundeven %[[DIV]]
//  CHECK-NEXT: %[[SHIFT:.*]] = arith.addf %[[ROUND]], %[[Z]]
//  CHECK-NEXT: %[[MAX:.*]] = arith.maxnumf %[[SHIFT]], %[[L]]
//  CHECK-NEXT: %[[MIN:.*]] = arith.minnumf %[[MAX]], %[[H]]
//  CHECK-NEXT: arith.fptosi %[[MIN]] : f32 to i8
//       CHECK: tensor.collapse_shape %{{.*}} : tensor<2x2xi8> into tensor<4xi8>
//       CHECK: "input.dequantize.scale"
//       CHECK: arith.sitofp
//  CHECK-NEXT: arith.subf
//  CHECK-NEXT: arith.mulf
func.func @unsigned(%x: tensor<2x2xf32> {quantune.output = !act, test.kept}) -> tensor<4xf32> {
  %0 = quant.qcast %x {quantune.layer = "input"} : tensor<2x2xf32> to tensor<2x2x!act>
  %1 = tensor.collapse_shape %0 [[0, 1]] : tensor<2x2x!act> into tensor<4x!act>
  %2 = quant.dcast %1 {quantune.layer = "input"} : tensor<4x!act> to tensor<4xf32>
  return %2 : tensor<4xf32>
}

// The second cast of a layer gets its own names. Fewer bits are a narrower clamp.
// CHECK-LABEL: func.func @twice
//       CHECK: "input.quantize1.scale"
//       CHECK: "input.quantize1.low"} dense<-7.000000e+00>
//       CHECK: "input.quantize1.high"} dense<7.000000e+00>
func.func @twice(%x: tensor<4xf32>) -> tensor<4x!narrow> {
  %0 = quant.qcast %x {quantune.layer = "input"} : tensor<4xf32> to tensor<4x!narrow>
  return %0 : tensor<4x!narrow>
}

// CHECK-LABEL: func.func @per_channel
//       CHECK: %[[SCALE:.*]] = arith.constant {quantune.parameter = "cast.dequantize.scale"} dense<[5.000000e-01, 2.500000e-01]>
//       CHECK: %[[ZERO:.*]] = arith.constant {quantune.parameter = "cast.dequantize.zero_point"} dense<[0.000000e+00, 1.000000e+00]>
//       CHECK: indexing_maps = [#{{.*}}, #[[$CHANNEL]], #[[$CHANNEL]], #{{.*}}]
func.func @per_channel(%q: tensor<2x3x!channels>) -> tensor<2x3xf32> {
  %0 = quant.dcast %q : tensor<2x3x!channels> to tensor<2x3xf32>
  return %0 : tensor<2x3xf32>
}

// A constant is quantized here, and its f32 numbers go: 1 / 0.25 + 1 = 5, 300 / 0.5 saturates.
// CHECK-LABEL: func.func @weight
//  CHECK-NEXT: arith.constant {quantune.parameter = "conv.weight"} dense<{{\[}}[2, 4, 127], [5, 9, -127]]> : tensor<2x3xi8>
//  CHECK-NEXT: return
func.func @weight() -> tensor<2x3x!channels> {
  %w = arith.constant dense<[[1.0, 2.0, 300.0], [1.0, 2.0, -300.0]]> : tensor<2x3xf32>
  %0 = quant.qcast %w {quantune.layer = "conv"} : tensor<2x3xf32> to tensor<2x3x!channels>
  return %0 : tensor<2x3x!channels>
}

// CHECK-LABEL: func.func @storage(
//  CHECK-SAME: %[[A:.*]]: tensor<4xi8>, %[[B:.*]]: tensor<4xi8>) -> (tensor<4xi8>, tensor<4xi8>)
//  CHECK-NEXT: return %[[A]], %[[B]]
func.func @storage(%a: tensor<4x!act>, %b: tensor<4xi8>) -> (tensor<4xi8>, tensor<4x!act>) {
  %0 = quant.scast %a : tensor<4x!act> to tensor<4xi8>
  %1 = quant.scast %b : tensor<4xi8> to tensor<4x!act>
  return %0, %1 : tensor<4xi8>, tensor<4x!act>
}
