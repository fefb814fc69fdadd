// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} | FileCheck %s

// The transpose writes the zeros that the depthwise layer's padding asks for; that layer sums nine products a channel.
// CHECK-DAG: func.func @[[TRANSPOSE:quantune_transpose_[0-9]+]](
// CHECK-DAG: func.func @[[DEPTHWISE:quantune_float_depthwise_[0-9]+]](
// CHECK-DAG: func.func @[[POOL:quantune_max_pool_[0-9]+]](
// CHECK-DAG: func.func @[[JOIN:quantune_concat_[0-9]+]](
// CHECK-DAG: func.func @[[MEAN:quantune_sum_pool_[0-9]+]](

// CHECK-LABEL: func.func @main
//  CHECK-SAME: (%[[X:.*]]: tensor<1x4x6x8xf32>)
// CHECK: %[[IMAGE:.*]] = "flow.dispatch"(%[[X]]) {entry_points = [@[[TRANSPOSE]]::@[[TRANSPOSE]]]
// CHECK-SAME: (tensor<1x4x6x8xf32>) -> tensor<1x8x10x4xf32>
// CHECK: %[[A:.*]] = "flow.dispatch"(%[[IMAGE]], {{.*}}entry_points = [@[[DEPTHWISE]]::@[[DEPTHWISE]]]
// CHECK-SAME: quantune.layer = "d", quantune.macs = 1728 : i64
// CHECK: %[[B:.*]] = "flow.dispatch"(%[[A]]) {entry_points = [@[[POOL]]::@[[POOL]]]
// CHECK: %[[C:.*]] = "flow.dispatch"(%[[A]], %[[B]]) {entry_points = [@[[JOIN]]::@[[JOIN]]]
// CHECK: %[[D:.*]] = "flow.dispatch"(%[[C]]) {entry_points = [@[[MEAN]]::@[[MEAN]]]
// CHECK-SAME: (tensor<1x6x8x8xf32>) -> tensor<1x1x1x8xf32>
// CHECK-NOT: linalg.
// CHECK-NOT: tensor.pad
// CHECK: return
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#spatial = affine_map<(n, h, w, c) -> (n, 0, 0, c)>
func.func @main(%x: tensor<1x4x6x8xf32>) -> tensor<1x1x1x8xf32> {
  %zero = arith.constant 0.0 : f32
  %lowest = arith.constant 0xFF800000 : f32
  %count = arith.constant 48.0 : f32
  %weight = arith.constant dense<1.0> : tensor<3x3x4xf32>
  %e0 = tensor.empty() : tensor<1x6x8x4xf32>
  %t = linalg.transpose ins(%x : tensor<1x4x6x8xf32>) outs(%e0 : tensor<1x6x8x4xf32>) permutation = [0, 2, 3, 1]
  %p = tensor.pad %t low[0, 1, 1, 0] high[0, 1, 1, 0] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %zero : f32
  } : tensor<1x6x8x4xf32> to tensor<1x8x10x4xf32>
  %f = linalg.fill ins(%zero : f32) outs(%e0 : tensor<1x6x8x4xf32>) -> tensor<1x6x8x4xf32>
  %a = linalg.depthwise_conv_2d_nhwc_hwc {quantune.layer = "d", strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>} ins(%p, %weight : tensor<1x8x10x4xf32>, tensor<3x3x4xf32>) outs(%f : tensor<1x6x8x4xf32>) -> tensor<1x6x8x4xf32>
  %q = tensor.pad %a low[0, 1, 1, 0] high[0, 1, 1, 0] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %lowest : f32
  } : tensor<1x6x8x4xf32> to tensor<1x8x10x4xf32>
  %window = tensor.empty() : tensor<3x3xf32>
  %least = linalg.fill ins(%lowest : f32) outs(%e0 : tensor<1x6x8x4xf32>) -> tensor<1x6x8x4xf32>
  %b = linalg.pooling_nhwc_max {strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>} ins(%q, %window : tensor<1x8x10x4xf32>, tensor<3x3xf32>) outs(%least : tensor<1x6x8x4xf32>) -> tensor<1x6x8x4xf32>
  %c = tensor.concat dim(3) %a, %b : (tensor<1x6x8x4xf32>, tensor<1x6x8x4xf32>) -> tensor<1x6x8x8xf32>
  %e1 = tensor.empty() : tensor<1x1x1x8xf32>
  %g = linalg.fill ins(%zero : f32) outs(%e1 : tensor<1x1x1x8xf32>) -> tensor<1x1x1x8xf32>
  %sum = linalg.generic {indexing_maps = [#id, #spatial], iterator_types = ["parallel", "reduction", "reduction", "parallel"]} ins(%c : tensor<1x6x8x8xf32>) outs(%g : tensor<1x1x1x8xf32>) {
  ^bb0(%u: f32, %v: f32):
    %s = arith.addf %u, %v : f32
    linalg.yield %s : f32
  } -> tensor<1x1x1x8xf32>
  %mean = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%sum : tensor<1x1x1x8xf32>) outs(%e1 : tensor<1x1x1x8xf32>) {
  ^bb0(%u: f32, %v: f32):
    %d = arith.divf %u, %count : f32
    linalg.yield %d : f32
  } -> tensor<1x1x1x8xf32>
  return %mean : tensor<1x1x1x8xf32>
}
