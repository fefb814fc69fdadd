// RUN: quantune-opt %s --split-input-file --pass-pipeline=quantune-insert-qdq | FileCheck %s

!act = !quant.uniform<u8:f32, 0.5:3>
!out = !quant.uniform<i8:f32, 0.25>
!weight = !quant.uniform<i8<-127:127>:f32:0, {0.5, 0.25}>

// Every reader gets the dequantized value, the function's result too. The annotations are spent; other attributes stay.
// CHECK-LABEL: func.func @conv
//  CHECK-SAME: (%[[X:.*]]: tensor<1x1x2x2xf32> {test.kept})
//       CHECK: %[[XQ:.*]] = quant.qcast %[[X]] : tensor<1x1x2x2xf32> to tensor<1x1x2x2x!quant.uniform<u8:f32, 5.000000e-01:3>>
//  CHECK-NEXT: %[[XD:.*]] = quant.dcast %[[XQ]]
//       CHECK: %[[W:.*]] = arith.constant
//       CHECK: %[[WQ:.*]] = quant.qcast %[[W]] : tensor<2x1x1x1xf32> to tensor<2x1x1x1x!quant.uniform<i8<-127:127>:f32:0, {5.000000e-01,2.500000e-01}>>
//  CHECK-NEXT: %[[WD:.*]] = quant.dcast %[[WQ]]
//  CHECK-NEXT: %[[Y:.*]] = linalg.conv_2d_nchw_fchw {dilations = {{[^{]*}}, quantune.layer = "conv", strides = {{[^{]*}}}
//  CHECK-SAME: ins(%[[XD]], %[[WD]]
//  CHECK-NEXT: %[[YQ:.*]] = quant.qcast %[[Y]]
//  CHECK-NEXT: %[[YD:.*]] = quant.dcast %[[YQ]]
//  CHECK-NEXT: return %[[YD]], %[[YD]], %[[XD]]
func.func @conv(%x: tensor<1x1x2x2xf32> {quantune.output = !act, test.kept})
    -> (tensor<1x2x2x2xf32>, tensor<1x2x2x2xf32>, tensor<1x1x2x2xf32>) {
  %w = arith.constant dense<1.0> : tensor<2x1x1x1xf32>
  %start = arith.constant dense<0.0> : tensor<1x2x2x2xf32>
  %y = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv", quantune.output = !out, quantune.weight = !weight}
    ins(%x, %w : tensor<1x1x2x2xf32>, tensor<2x1x1x1xf32>) outs(%start : tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32>
  return %y, %y, %x : tensor<1x2x2x2xf32>, tensor<1x2x2x2xf32>, tensor<1x1x2x2xf32>
}

// -----
// The scales of a grouped weight span groups and channels: it is quantized as [g * f, c, h, w].
!weight = !quant.uniform<i8<-127:127>:f32:0, {0.5, 0.25, 0.125, 1.0}>
// CHECK-LABEL: func.func @grouped
//       CHECK: %[[FLAT:.*]] = tensor.collapse_shape %{{.*}} {{\[}}[0, 1], [2], [3], [4]] : tensor<2x2x1x1x1xf32> into tensor<4x1x1x1xf32>
//  CHECK-NEXT: %[[Q:.*]] = quant.qcast %[[FLAT]]
//  CHECK-NEXT: %[[D:.*]] = quant.dcast %[[Q]]
//  CHECK-NEXT: %[[W:.*]] = tensor.expand_shape %[[D]] {{\[}}[0, 1], [2], [3], [4]] output_shape [2, 2, 1, 1, 1]
//  CHECK-NEXT: linalg.conv_2d_ngchw_gfchw
//  CHECK-SAME: ins(%{{.*}}, %[[W]]
func.func @grouped(%x: tensor<1x2x1x2x2xf32>) -> tensor<1x2x2x2x2xf32> {
  %w = arith.constant dense<1.0> : tensor<2x2x1x1x1xf32>
  %start = arith.constant dense<0.0> : tensor<1x2x2x2x2xf32>
  %y = linalg.conv_2d_ngchw_gfchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.weight = !weight} ins(%x, %w : tensor<1x2x1x2x2xf32>, tensor<2x2x1x1x1xf32>)
    outs(%start : tensor<1x2x2x2x2xf32>) -> tensor<1x2x2x2x2xf32>
  return %y : tensor<1x2x2x2x2xf32>
}

// -----
// The first of several results is meant; a gather inside a loop reads the dequantized value too.
!act = !quant.uniform<u8:f32, 0.5:3>
#id = affine_map<(d0) -> (d0)>
// CHECK-LABEL: func.func @regions
//       CHECK: %[[R:.*]]:2 = linalg.generic
//       CHECK: %[[Q:.*]] = quant.qcast %[[R]]#0
//  CHECK-NEXT: %[[D:.*]] = quant.dcast %[[Q]]
//       CHECK: tensor.extract %[[D]]
//       CHECK: return %{{.*}}, %[[R]]#1
func.func @regions(%x: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xi64>) {
  %e = tensor.empty() : tensor<4xf32>
  %i = tensor.empty() : tensor<4xi64>
  %r:2 = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = ["parallel"]} ins(%x : tensor<4xf32>)
    outs(%e, %i : tensor<4xf32>, tensor<4xi64>) attrs = {quantune.output = !act} {
  ^bb0(%a: f32, %b: f32, %c: i64):
    linalg.yield %a, %c : f32, i64
  } -> (tensor<4xf32>, tensor<4xi64>)
  %y = linalg.generic {indexing_maps = [#id], iterator_types = ["parallel"]} outs(%e : tensor<4xf32>) {
  ^bb0(%b: f32):
    %j = linalg.index 0 : index
    %v = tensor.extract %r#0[%j] : tensor<4xf32>
    linalg.yield %v : f32
  } -> tensor<4xf32>
  return %y, %r#1 : tensor<4xf32>, tensor<4xi64>
}

// -----
// CHECK-LABEL: func.func @nothing
//   CHECK-NOT: quant
func.func @nothing(%x: tensor<4xf32>) -> tensor<4xf32> {
  return %x : tensor<4xf32>
}
