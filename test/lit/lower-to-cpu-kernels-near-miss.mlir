// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} | FileCheck %s

// The operations of a layer's end in their order, but wired otherwise: it computes something else and gets no kernel.

// CHECK: module attributes {quantune.missed = {a = "no kernel computes linalg.conv_2d_nhwc_hwcf"}}
// CHECK-NOT: flow.dispatch
// CHECK: linalg.conv_2d_nhwc_hwcf
// CHECK-NOT: flow.dispatch
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#ch = affine_map<(n, h, w, c) -> (c)>
#s = affine_map<(n, h, w, c) -> ()>
func.func @main(%x: tensor<1x4x4x8xi8>) -> tensor<1x4x4x4xi8> {
  %w = arith.constant {quantune.parameter = "a.weight"} dense<1> : tensor<3x3x8x4xi8>
  %bias = arith.constant {quantune.parameter = "a.bias"} dense<7> : tensor<4xi32>
  %m = arith.constant {quantune.parameter = "a.multiplier"} dense<0.5> : tensor<4xf32>
  %z = arith.constant {quantune.parameter = "a.zero_point"} dense<22.0> : tensor<f32>
  %lo = arith.constant {quantune.parameter = "a.min"} dense<0.0> : tensor<f32>
  %hi = arith.constant {quantune.parameter = "a.max"} dense<127.0> : tensor<f32>
  %padding = arith.constant {quantune.parameter = "a.padding"} dense<5> : tensor<i8>
  %value = tensor.extract %padding[] : tensor<i8>
  %p = tensor.pad %x low[0, 1, 1, 0] high[0, 1, 1, 0] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %value : i8
  } : tensor<1x4x4x8xi8> to tensor<1x6x6x8xi8>
  %c0 = arith.constant 0 : i32
  %e = tensor.empty() : tensor<1x4x4x4xi32>
  %f = linalg.fill ins(%c0 : i32) outs(%e : tensor<1x4x4x4xi32>) -> tensor<1x4x4x4xi32>
  %a = linalg.conv_2d_nhwc_hwcf {quantune.layer = "a", strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>} ins(%p, %w : tensor<1x6x6x8xi8>, tensor<3x3x8x4xi8>) outs(%f : tensor<1x4x4x4xi32>) -> tensor<1x4x4x4xi32>
  %o = tensor.empty() : tensor<1x4x4x4xi8>
  %q = linalg.generic {indexing_maps = [#id, #ch, #ch, #s, #s, #s, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%a, %bias, %m, %z, %lo, %hi : tensor<1x4x4x4xi32>, tensor<4xi32>, tensor<4xf32>, tensor<f32>, tensor<f32>, tensor<f32>) outs(%o : tensor<1x4x4x4xi8>) {
  ^bb0(%acc: i32, %b: i32, %mm: f32, %zz: f32, %l: f32, %h: f32, %old: i8):
    %0 = arith.addi %acc, %acc : i32
    %1 = arith.sitofp %0 : i32 to f32
    %2 = arith.mulf %1, %zz : f32
    %3 = math.roundeven %2 : f32
    %4 = arith.addf %3, %mm : f32
    %5 = arith.maximumf %4, %h : f32
    %6 = arith.minimumf %5, %l : f32
    %7 = arith.fptosi %6 : f32 to i8
    linalg.yield %7 : i8
  } -> tensor<1x4x4x4xi8>
  return %q : tensor<1x4x4x4xi8>
}
