// RUN: quantune-opt %s --split-input-file --pass-pipeline=quantune-to-nhwc | FileCheck %s

#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#channel = affine_map<(d0, d1, d2, d3) -> (d1)>

// One transpose at the entry and one at the end, none inside. The weight is transposed here and keeps its tag; the loops of
// the elementwise operation are permuted with the maps.
// CHECK-DAG: #[[$ID:.*]] = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
// CHECK-DAG: #[[$LAST:.*]] = affine_map<(d0, d1, d2, d3) -> (d3)>
// CHECK-LABEL: func.func @conv
//  CHECK-SAME: (%[[X:.*]]: tensor<1x2x4x5xi8>)
//       CHECK: %[[XT:.*]] = linalg.transpose ins(%[[X]] : tensor<1x2x4x5xi8>) outs(%{{.*}} : tensor<1x4x5x2xi8>) permutation = [0, 2, 3, 1]
//       CHECK: %[[PAD:.*]] = tensor.pad %[[XT]] low[0, 1, 2, 0] high[0, 3, 4, 0]
//       CHECK: tensor.yield %{{.*}} : i8
//       CHECK: tensor<1x4x5x2xi8> to tensor<1x8x11x2xi8>
//       CHECK: %[[W:.*]] = arith.constant {quantune.parameter = "conv.weight"} dense<{{\[\[\[\[}}1, 3], [2, 4]]]]> : tensor<1x1x2x2xi8>
//       CHECK: linalg.fill {{.*}} outs(%{{.*}} : tensor<1x4x11x2xi32>)
//       CHECK: %[[ACC:.*]] = linalg.conv_2d_nhwc_hwcf {dilations = dense<1> : {{.*}}, quantune.layer = "conv", strides = dense<[2, 1]> : {{.*}}} ins(%[[PAD]], %[[W]]
//   CHECK-NOT: linalg.transpose
//       CHECK: %[[Y:.*]] = linalg.generic {indexing_maps = [#[[$ID]], #[[$LAST]], #[[$ID]]]
//  CHECK-SAME: ins(%[[ACC]], %{{.*}} : tensor<1x4x11x2xi32>, tensor<2xi32>)
//  CHECK-SAME: quantune.layer = "conv"
//       CHECK: %[[F:.*]] = linalg.transpose ins(%[[Y]] : tensor<1x4x11x2xi32>) {{.*}} permutation = [0, 3, 1, 2]
//  CHECK-NEXT: return %[[F]]
func.func @conv(%x: tensor<1x2x4x5xi8>) -> tensor<1x2x4x11xi32> {
  %z = arith.constant 7 : i8
  %zero = arith.constant 0 : i32
  %0 = tensor.pad %x low[0, 0, 1, 2] high[0, 0, 3, 4] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %z : i8
  } : tensor<1x2x4x5xi8> to tensor<1x2x8x11xi8>
  %w = arith.constant {quantune.parameter = "conv.weight"} dense<[[[[1]], [[2]]], [[[3]], [[4]]]]> : tensor<2x2x1x1xi8>
  %b = arith.constant {quantune.parameter = "conv.bias"} dense<[5, 6]> : tensor<2xi32>
  %e = tensor.empty() : tensor<1x2x4x11xi32>
  %start = linalg.fill ins(%zero : i32) outs(%e : tensor<1x2x4x11xi32>) -> tensor<1x2x4x11xi32>
  %1 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<[2, 1]> : vector<2xi64>,
    quantune.layer = "conv"} ins(%0, %w : tensor<1x2x8x11xi8>, tensor<2x2x1x1xi8>)
    outs(%start : tensor<1x2x4x11xi32>) -> tensor<1x2x4x11xi32>
  %2 = linalg.generic {indexing_maps = [#id, #channel, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%1, %b : tensor<1x2x4x11xi32>, tensor<2xi32>) outs(%e : tensor<1x2x4x11xi32>) attrs = {quantune.layer = "conv"} {
  ^bb0(%p: i32, %q: i32, %out: i32):
    %s = arith.addi %p, %q : i32
    linalg.yield %s : i32
  } -> tensor<1x2x4x11xi32>
  return %2 : tensor<1x2x4x11xi32>
}

// -----
// Depthwise and grouped convolutions; groups stay in front of their channels.
// CHECK-LABEL: func.func @groups
//       CHECK: arith.constant {quantune.parameter = "d.weight"} dense<{{\[\[\[}}1, 3, 5, 7]], {{\[\[}}2, 4, 6, 8]]]> : tensor<2x1x4xi8>
//       CHECK: linalg.depthwise_conv_2d_nhwc_hwc {{.*}} : tensor<1x4x3x4xi8>, tensor<2x1x4xi8>) outs(%{{.*}} : tensor<1x3x3x4xi32>)
//       CHECK: tensor.expand_shape %{{.*}} {{\[}}[0], [1], [2], [3, 4]] output_shape [1, 4, 3, 2, 2] : tensor<1x4x3x4xi8> into tensor<1x4x3x2x2xi8>
//       CHECK: linalg.conv_2d_nhwgc_gfhwc {{.*}} : tensor<1x4x3x2x2xi8>, tensor<2x3x1x1x2xi8>) outs(%{{.*}} : tensor<1x4x3x2x3xi32>)
//       CHECK: tensor.collapse_shape %{{.*}} {{\[}}[0], [1], [2], [3, 4]] : tensor<1x4x3x2x3xi32> into tensor<1x4x3x6xi32>
func.func @groups(%x: tensor<1x4x4x3xi8>) -> (tensor<1x4x3x3xi32>, tensor<1x6x4x3xi32>) {
  %zero = arith.constant 0 : i32
  %w = arith.constant {quantune.parameter = "d.weight"} dense<[[[1], [2]], [[3], [4]], [[5], [6]], [[7], [8]]]> : tensor<4x2x1xi8>
  %e = tensor.empty() : tensor<1x4x3x3xi32>
  %start = linalg.fill ins(%zero : i32) outs(%e : tensor<1x4x3x3xi32>) -> tensor<1x4x3x3xi32>
  %0 = linalg.depthwise_conv_2d_nchw_chw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%x, %w : tensor<1x4x4x3xi8>, tensor<4x2x1xi8>) outs(%start : tensor<1x4x3x3xi32>) -> tensor<1x4x3x3xi32>
  %1 = tensor.expand_shape %x [[0], [1, 2], [3], [4]] output_shape [1, 2, 2, 4, 3]
    : tensor<1x4x4x3xi8> into tensor<1x2x2x4x3xi8>
  %v = arith.constant {quantune.parameter = "g.weight"} dense<1> : tensor<2x3x2x1x1xi8>
  %f = tensor.empty() : tensor<1x2x3x4x3xi32>
  %begin = linalg.fill ins(%zero : i32) outs(%f : tensor<1x2x3x4x3xi32>) -> tensor<1x2x3x4x3xi32>
  %2 = linalg.conv_2d_ngchw_gfchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%1, %v : tensor<1x2x2x4x3xi8>, tensor<2x3x2x1x1xi8>) outs(%begin : tensor<1x2x3x4x3xi32>) -> tensor<1x2x3x4x3xi32>
  %3 = tensor.collapse_shape %2 [[0], [1, 2], [3], [4]] : tensor<1x2x3x4x3xi32> into tensor<1x6x4x3xi32>
  return %0, %3 : tensor<1x4x3x3xi32>, tensor<1x6x4x3xi32>
}

// -----
// A pool, a channel shuffle, a slice and a concatenation stay in the layout; flattening 1x1 images needs none.
#in = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#out = affine_map<(d0, d1, d2, d3) -> (d0, d1, 0, 0)>
// CHECK-DAG: #[[$OUT:.*]] = affine_map<(d0, d1, d2, d3) -> (d0, 0, 0, d3)>
// CHECK-LABEL: func.func @moves
//       CHECK: %[[P:.*]] = linalg.pooling_nhwc_max
//       CHECK: %[[V:.*]] = tensor.expand_shape %[[P]] {{\[}}[0], [1], [2], [3, 4]] output_shape [1, 3, 3, 2, 2]
//       CHECK: linalg.transpose ins(%[[V]] : tensor<1x3x3x2x2xi8>) {{.*}} permutation = [0, 1, 2, 4, 3]
//       CHECK: %[[S:.*]] = tensor.collapse_shape {{.*}} {{\[}}[0], [1], [2], [3, 4]] : tensor<1x3x3x2x2xi8> into tensor<1x3x3x4xi8>
//       CHECK: %[[H:.*]] = tensor.extract_slice %[[S]][0, 0, 0, 2] [1, 3, 3, 2] [1, 1, 1, 1]
//       CHECK: %[[C:.*]] = tensor.concat dim(3) %[[H]], %[[P]] : (tensor<1x3x3x2xi8>, tensor<1x3x3x4xi8>) -> tensor<1x3x3x6xi8>
//       CHECK: %[[SUM:.*]] = linalg.generic {indexing_maps = [#{{.*}}, #[[$OUT]]], iterator_types = ["parallel", "reduction", "reduction", "parallel"]} ins(%[[C]] : {{.*}}) outs(%{{.*}} : tensor<1x1x1x6xi32>)
//   CHECK-NOT: linalg.transpose
//       CHECK: tensor.collapse_shape {{.*}} {{\[}}[0], [1, 2, 3]] : tensor<1x1x1x6xi32> into tensor<1x6xi32>
func.func @moves(%x: tensor<1x4x4x4xi8>) -> tensor<1x6xi32> {
  %lowest = arith.constant -128 : i8
  %zero = arith.constant 0 : i32
  %window = tensor.empty() : tensor<2x2xi8>
  %e = tensor.empty() : tensor<1x4x3x3xi8>
  %start = linalg.fill ins(%lowest : i8) outs(%e : tensor<1x4x3x3xi8>) -> tensor<1x4x3x3xi8>
  %0 = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%x, %window : tensor<1x4x4x4xi8>, tensor<2x2xi8>) outs(%start : tensor<1x4x3x3xi8>) -> tensor<1x4x3x3xi8>
  %1 = tensor.expand_shape %0 [[0], [1, 2], [3], [4]] output_shape [1, 2, 2, 3, 3]
    : tensor<1x4x3x3xi8> into tensor<1x2x2x3x3xi8>
  %f = tensor.empty() : tensor<1x2x2x3x3xi8>
  %2 = linalg.transpose ins(%1 : tensor<1x2x2x3x3xi8>) outs(%f : tensor<1x2x2x3x3xi8>) permutation = [0, 2, 1, 3, 4]
  %3 = tensor.collapse_shape %2 [[0], [1, 2], [3], [4]] : tensor<1x2x2x3x3xi8> into tensor<1x4x3x3xi8>
  %4 = tensor.extract_slice %3[0, 2, 0, 0] [1, 2, 3, 3] [1, 1, 1, 1] : tensor<1x4x3x3xi8> to tensor<1x2x3x3xi8>
  %5 = tensor.concat dim(1) %4, %0 : (tensor<1x2x3x3xi8>, tensor<1x4x3x3xi8>) -> tensor<1x6x3x3xi8>
  %g = tensor.empty() : tensor<1x6x1x1xi32>
  %begin = linalg.fill ins(%zero : i32) outs(%g : tensor<1x6x1x1xi32>) -> tensor<1x6x1x1xi32>
  %6 = linalg.generic {indexing_maps = [#in, #out], iterator_types = ["parallel", "parallel", "reduction", "reduction"]}
    ins(%5 : tensor<1x6x3x3xi8>) outs(%begin : tensor<1x6x1x1xi32>) {
  ^bb0(%p: i8, %out: i32):
    %v = arith.extsi %p : i8 to i32
    %s = arith.addi %v, %out : i32
    linalg.yield %s : i32
  } -> tensor<1x6x1x1xi32>
  %7 = tensor.collapse_shape %6 [[0], [1, 2, 3]] : tensor<1x6x1x1xi32> into tensor<1x6xi32>
  return %7 : tensor<1x6xi32>
}

// -----
// The f32 bias is broadcast along the channels in the new place; a flatten of an image needs the old order.
// CHECK-LABEL: func.func @bias
//       CHECK: linalg.broadcast ins(%{{.*}} : tensor<2xf32>) outs(%{{.*}} : tensor<1x3x3x2xf32>) dimensions = [0, 1, 2]
//       CHECK: %[[Y:.*]] = linalg.conv_2d_nhwc_hwcf
//       CHECK: %[[F:.*]] = linalg.transpose ins(%[[Y]] : tensor<1x3x3x2xf32>) {{.*}} permutation = [0, 3, 1, 2]
//  CHECK-NEXT: tensor.collapse_shape %[[F]] {{\[}}[0], [1, 2, 3]] : tensor<1x2x3x3xf32> into tensor<1x18xf32>
func.func @bias(%x: tensor<1x1x3x3xf32>) -> tensor<1x18xf32> {
  %w = arith.constant dense<1.0> : tensor<2x1x1x1xf32>
  %b = arith.constant dense<[1.0, 2.0]> : tensor<2xf32>
  %e = tensor.empty() : tensor<1x2x3x3xf32>
  %start = linalg.broadcast ins(%b : tensor<2xf32>) outs(%e : tensor<1x2x3x3xf32>) dimensions = [0, 2, 3]
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%x, %w : tensor<1x1x3x3xf32>, tensor<2x1x1x1xf32>) outs(%start : tensor<1x2x3x3xf32>) -> tensor<1x2x3x3xf32>
  %1 = tensor.collapse_shape %0 [[0], [1, 2, 3]] : tensor<1x2x3x3xf32> into tensor<1x18xf32>
  return %1 : tensor<1x18xf32>
}

// -----
// Loop indices are renumbered; a gather inside a loop goes on reading its tensor as it was.
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
// CHECK-LABEL: func.func @indices
//       CHECK: %[[P:.*]] = linalg.pooling_nhwc_max
//       CHECK: %[[F:.*]] = linalg.transpose ins(%[[P]] {{.*}} permutation = [0, 3, 1, 2]
//       CHECK: linalg.generic
//   CHECK-DAG: %[[C:.*]] = linalg.index 3
//   CHECK-DAG: %[[H:.*]] = linalg.index 1
//   CHECK-DAG: %[[W:.*]] = linalg.index 2
//       CHECK: tensor.extract %[[F]][%{{.*}}, %[[C]], %[[W]], %[[H]]]
func.func @indices(%x: tensor<1x2x4x4xi8>) -> tensor<1x2x3x3xi8> {
  %lowest = arith.constant -128 : i8
  %z = arith.constant 0 : index
  %window = tensor.empty() : tensor<2x2xi8>
  %e = tensor.empty() : tensor<1x2x3x3xi8>
  %start = linalg.fill ins(%lowest : i8) outs(%e : tensor<1x2x3x3xi8>) -> tensor<1x2x3x3xi8>
  %0 = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%x, %window : tensor<1x2x4x4xi8>, tensor<2x2xi8>) outs(%start : tensor<1x2x3x3xi8>) -> tensor<1x2x3x3xi8>
  %1 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%0 : tensor<1x2x3x3xi8>) outs(%e : tensor<1x2x3x3xi8>) {
  ^bb0(%p: i8, %out: i8):
    %c = linalg.index 1 : index
    %h = linalg.index 2 : index
    %w = linalg.index 3 : index
    %v = tensor.extract %0[%z, %c, %w, %h] : tensor<1x2x3x3xi8>
    %s = arith.addi %v, %p : i8
    linalg.yield %s : i8
  } -> tensor<1x2x3x3xi8>
  return %1 : tensor<1x2x3x3xi8>
}

// -----
// Views that are no channel shuffle, and slices of five dimensions, read the old layout.
// CHECK-LABEL: func.func @five
//       CHECK: %[[P:.*]] = linalg.pooling_nhwc_max
//       CHECK: tensor.expand_shape
//       CHECK: %[[V:.*]] = linalg.transpose
//       CHECK: tensor.extract_slice %{{.*}}[0, 1, 0, 0, 0] [1, 1, 2, 3, 3] [1, 1, 1, 1, 1] : tensor<1x2x2x3x3xi8> to tensor<1x1x2x3x3xi8>
func.func @five(%x: tensor<1x4x4x4xi8>) -> tensor<1x1x2x3x3xi8> {
  %lowest = arith.constant -128 : i8
  %window = tensor.empty() : tensor<2x2xi8>
  %e = tensor.empty() : tensor<1x4x3x3xi8>
  %start = linalg.fill ins(%lowest : i8) outs(%e : tensor<1x4x3x3xi8>) -> tensor<1x4x3x3xi8>
  %0 = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%x, %window : tensor<1x4x4x4xi8>, tensor<2x2xi8>) outs(%start : tensor<1x4x3x3xi8>) -> tensor<1x4x3x3xi8>
  %1 = tensor.expand_shape %0 [[0], [1, 2], [3], [4]] output_shape [1, 2, 2, 3, 3]
    : tensor<1x4x3x3xi8> into tensor<1x2x2x3x3xi8>
  %2 = tensor.extract_slice %1[0, 1, 0, 0, 0] [1, 1, 2, 3, 3] [1, 1, 1, 1, 1]
    : tensor<1x2x2x3x3xi8> to tensor<1x1x2x3x3xi8>
  return %2 : tensor<1x1x2x3x3xi8>
}
