// Two images, and a grouped convolution: one kernel for both, no loop over images or groups outside of it.
//
// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} | FileCheck %s

// CHECK: func.func @[[KERNEL:quantune_conv_[0-9]+]](
// CHECK: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"
// CHECK-LABEL: func.func @main
// CHECK: tensor.pad
// CHECK: : tensor<2x4x4x32xi8> to tensor<2x6x6x32xi8>
// 3 x 3 taps of 16 channels for each of 32 results: only products of the same group.
// CHECK-DAG: arith.constant {quantune.parameter = "layer.weight"} {{.*}} : tensor<4608xi8>
// CHECK: "flow.dispatch"(
// CHECK-SAME: entry_points = [@[[KERNEL]]::@[[KERNEL]]]
// CHECK-SAME: quantune.macs = 147456 : i64
// CHECK-SAME: -> tensor<2x4x4x32xi8>
// CHECK-NOT: flow.dispatch
// CHECK-NOT: linalg.conv_2d_nhwgc_gfhwc
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#ch = affine_map<(n, h, w, c) -> (c)>
#s = affine_map<(n, h, w, c) -> ()>
func.func @main(%x: tensor<2x4x4x32xi8>) -> tensor<2x4x4x32xi8> {
  %weight = arith.constant {quantune.parameter = "layer.weight"} dense<1> : tensor<2x16x3x3x16xi8>
  %bias = arith.constant {quantune.parameter = "layer.bias"} dense<1> : tensor<32xi32>
  %multiplier = arith.constant {quantune.parameter = "layer.multiplier"} dense<0.5> : tensor<32xf32>
  %zero_point = arith.constant {quantune.parameter = "layer.zero_point"} dense<-4.500000e+01> : tensor<f32>
  %min = arith.constant {quantune.parameter = "layer.min"} dense<-8.600000e+01> : tensor<f32>
  %max = arith.constant {quantune.parameter = "layer.max"} dense<-6.000000e+01> : tensor<f32>
  %padding = arith.constant {quantune.parameter = "layer.padding"} dense<97> : tensor<i8>
  %pad = tensor.extract %padding[] : tensor<i8>
  %p = tensor.pad %x low[0, 1, 1, 0] high[0, 1, 1, 0] {
  ^bb0(%i0: index, %i1: index, %i2: index, %i3: index):
  tensor.yield %pad : i8
} : tensor<2x4x4x32xi8> to tensor<2x6x6x32xi8>
  %split = tensor.expand_shape %p [[0], [1], [2], [3, 4]] output_shape [2, 6, 6, 2, 16] : tensor<2x6x6x32xi8> into tensor<2x6x6x2x16xi8>
  %c0 = arith.constant 0 : i32
  %e = tensor.empty() : tensor<2x4x4x2x16xi32>
  %f = linalg.fill ins(%c0 : i32) outs(%e : tensor<2x4x4x2x16xi32>) -> tensor<2x4x4x2x16xi32>
  %parts = linalg.conv_2d_nhwgc_gfhwc {quantune.layer = "layer", strides = dense<[1, 1]> : tensor<2xi64>, dilations = dense<[1, 1]> : tensor<2xi64>}
    ins(%split, %weight : tensor<2x6x6x2x16xi8>, tensor<2x16x3x3x16xi8>) outs(%f : tensor<2x4x4x2x16xi32>) -> tensor<2x4x4x2x16xi32>
  %a = tensor.collapse_shape %parts [[0], [1], [2], [3, 4]] : tensor<2x4x4x2x16xi32> into tensor<2x4x4x32xi32>
  %o = tensor.empty() : tensor<2x4x4x32xi8>
  %out = linalg.generic {indexing_maps = [#id, #ch, #ch, #s, #s, #s,  #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%a, %bias, %multiplier, %zero_point, %min, %max : tensor<2x4x4x32xi32>, tensor<32xi32>, tensor<32xf32>, tensor<f32>, tensor<f32>, tensor<f32>)
    outs(%o : tensor<2x4x4x32xi8>) {
  ^bb0(%acc: i32, %b: i32, %m: f32, %z: f32, %lo: f32, %hi: f32, %old: i8):
  %t0 = arith.addi %acc, %b : i32
  %t1 = arith.sitofp %t0 : i32 to f32
  %t2 = arith.mulf %t1, %m : f32
  %t3 = math.roundeven %t2 : f32
  %t4 = arith.addf %t3, %z : f32
  %t5 = arith.maximumf %t4, %lo : f32
  %t6 = arith.minimumf %t5, %hi : f32
  %t7 = arith.fptosi %t6 : f32 to i8
  linalg.yield %t7 : i8
} -> tensor<2x4x4x32xi8>
return %out : tensor<2x4x4x32xi8>
}
