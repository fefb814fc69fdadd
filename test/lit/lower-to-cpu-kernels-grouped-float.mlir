// A grouped f32 convolution, its padding, bias and clamp: one kernel.
//
// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} | FileCheck %s

// CHECK: func.func @[[KERNEL:quantune_conv_[0-9]+]](
// CHECK: vector.fma
// CHECK: arith.cmpf ugt
// CHECK-LABEL: func.func @main
// CHECK: tensor.pad
// CHECK: : tensor<1x4x4x32xf32> to tensor<1x6x6x32xf32>
// 3 x 3 taps of 16 channels for each of 32 results: only products of the same group.
// CHECK: arith.constant {{.*}} : tensor<4608xf32>
// CHECK: "flow.dispatch"(
// CHECK-SAME: entry_points = [@[[KERNEL]]::@[[KERNEL]]]
// CHECK-SAME: quantune.layer = "layer", quantune.macs = 73728 : i64
// CHECK-SAME: -> tensor<1x4x4x32xf32>
// CHECK-NOT: linalg.
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
func.func @main(%x: tensor<1x4x4x32xf32>) -> tensor<1x4x4x32xf32> {
  %weight = arith.constant dense<1.0> : tensor<2x16x3x3x16xf32>
  %bias = arith.constant dense<0.5> : tensor<32xf32>
  %zero = arith.constant 0.0 : f32
  %p = tensor.pad %x low[0, 1, 1, 0] high[0, 1, 1, 0] {
  ^bb0(%i0: index, %i1: index, %i2: index, %i3: index):
    tensor.yield %zero : f32
  } : tensor<1x4x4x32xf32> to tensor<1x6x6x32xf32>
  %split = tensor.expand_shape %p [[0], [1], [2], [3, 4]] output_shape [1, 6, 6, 2, 16] : tensor<1x6x6x32xf32> into tensor<1x6x6x2x16xf32>
  %e = tensor.empty() : tensor<1x4x4x32xf32>
  %rows = linalg.broadcast ins(%bias : tensor<32xf32>) outs(%e : tensor<1x4x4x32xf32>) dimensions = [0, 1, 2]
  %init = tensor.expand_shape %rows [[0], [1], [2], [3, 4]] output_shape [1, 4, 4, 2, 16] : tensor<1x4x4x32xf32> into tensor<1x4x4x2x16xf32>
  %parts = linalg.conv_2d_nhwgc_gfhwc {quantune.layer = "layer", strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>}
    ins(%split, %weight : tensor<1x6x6x2x16xf32>, tensor<2x16x3x3x16xf32>) outs(%init : tensor<1x4x4x2x16xf32>) -> tensor<1x4x4x2x16xf32>
  %a = tensor.collapse_shape %parts [[0], [1], [2], [3, 4]] : tensor<1x4x4x2x16xf32> into tensor<1x4x4x32xf32>
  %out = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%a : tensor<1x4x4x32xf32>) outs(%e : tensor<1x4x4x32xf32>) {
  ^bb0(%v: f32, %old: f32):
    %holds = arith.cmpf ugt, %v, %zero : f32
    %kept = arith.select %holds, %v, %zero : f32
    linalg.yield %kept : f32
  } -> tensor<1x4x4x32xf32>
  return %out : tensor<1x4x4x32xf32>
}
