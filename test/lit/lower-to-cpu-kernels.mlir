// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} | FileCheck %s
// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avxvnni} | FileCheck %s --check-prefix=NARROW

// The kernel stands in the module; u8 times s8, four products a lane, requantized in registers.
// CHECK: "stream.executable"() ({
// CHECK: func.func @[[KERNEL:quantune_conv_[0-9]+]](
// CHECK: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.512"
// CHECK: llvm.call_intrinsic "llvm.lrint.v16i32.v16f32"
// CHECK: vector.store
// NARROW: llvm.call_intrinsic "llvm.x86.avx512.vpdpbusd.256"

// CHECK-LABEL: func.func @main
//  CHECK-SAME: (%[[X:.*]]: tensor<1x4x4x8xi8>)
// The input is no kernel's: it becomes u8 with the border of the padding, here 5 + 128, and 16 bytes a pixel.
// CHECK-DAG: arith.constant {quantune.parameter = "a.border"} dense<-123> : tensor<i8>
// CHECK: tensor.pad
// CHECK: : tensor<1x4x4x8xi8> to tensor<1x6x6x16xi8>
// CHECK-DAG: arith.constant {quantune.parameter = "a.weight"} {{.*}} : tensor<1152xi8>
// 128 times the sum of 72 ones is taken off the bias; channels that do not exist have bias 0.
// CHECK-DAG: arith.constant {quantune.parameter = "a.bias"} {{.*}} : tensor<16xi32>
// CHECK-DAG: arith.constant {quantune.parameter = "a.range"} dense<[-2.200000e+01, 1.050000e+02, 1.500000e+02, 0.000000e+00]> : tensor<4xf32>
// CHECK: %[[Y:.*]] = "flow.dispatch"(
// CHECK-SAME: entry_points = [@[[KERNEL]]::@[[KERNEL]]]
// CHECK-SAME: quantune.layer = "a", quantune.macs = 4608 : i64
// CHECK-SAME: -> tensor<1x4x4x16xi8>
// CHECK: tensor.extract_slice %[[Y]]
// CHECK: arith.xori
// CHECK-NOT: linalg.conv_2d_nhwc_hwcf
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
    %0 = arith.addi %acc, %b : i32
    %1 = arith.sitofp %0 : i32 to f32
    %2 = arith.mulf %1, %mm : f32
    %3 = math.roundeven %2 : f32
    %4 = arith.addf %3, %zz : f32
    %5 = arith.maximumf %4, %l : f32
    %6 = arith.minimumf %5, %h : f32
    %7 = arith.fptosi %6 : f32 to i8
    linalg.yield %7 : i8
  } -> tensor<1x4x4x4xi8>
  return %q : tensor<1x4x4x4xi8>
}
