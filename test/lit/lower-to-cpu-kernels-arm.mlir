// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=i8mm} | FileCheck %s --check-prefixes=CHECK,I8MM
// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=dotprod} | FileCheck %s --check-prefixes=CHECK,DOTPROD

// The depthwise kernel narrows four vectors of sums to bytes by moving lanes: no instruction of x86 is left.
// CHECK: func.func @[[DEPTHWISE:quantune_depthwise_[0-9]+]](
// I8MM: llvm.call_intrinsic "llvm.aarch64.neon.usdot.v4i32.v16i8"
// DOTPROD: arith.xori {{.*}} : vector<16xi8>
// DOTPROD: llvm.call_intrinsic "llvm.aarch64.neon.sdot.v4i32.v16i8"
// CHECK: vector.shuffle {{.*}} : vector<8xi32>, vector<8xi32>
// CHECK-NEXT: arith.trunci {{.*}} : vector<16xi32> to vector<16xi8>
// CHECK-NEXT: vector.store
// CHECK-NOT: llvm.x86

// What u8 adds to the sums, 128 times the 9 weights of 1, is taken off the bias where the instruction takes u8; with
// sign bits flipped in the kernel nothing is left to take off.
// CHECK-LABEL: func.func @main
// I8MM-DAG: arith.constant {quantune.parameter = "d.bias"} dense<-1145> : tensor<16xi32>
// DOTPROD-DAG: arith.constant {quantune.parameter = "d.bias"} dense<7> : tensor<16xi32>
// CHECK: "flow.dispatch"
// CHECK-SAME: entry_points = [@[[DEPTHWISE]]::@[[DEPTHWISE]]]
// CHECK-SAME: quantune.macs = 2304 : i64
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#ch = affine_map<(n, h, w, c) -> (c)>
#s = affine_map<(n, h, w, c) -> ()>
func.func @main(%x: tensor<1x6x6x16xi8>) -> tensor<1x4x4x16xi8> {
  %w = arith.constant {quantune.parameter = "d.weight"} dense<1> : tensor<3x3x16xi8>
  %bias = arith.constant {quantune.parameter = "d.bias"} dense<7> : tensor<16xi32>
  %m = arith.constant {quantune.parameter = "d.multiplier"} dense<0.5> : tensor<16xf32>
  %z = arith.constant {quantune.parameter = "d.zero_point"} dense<22.0> : tensor<f32>
  %lo = arith.constant {quantune.parameter = "d.min"} dense<0.0> : tensor<f32>
  %hi = arith.constant {quantune.parameter = "d.max"} dense<127.0> : tensor<f32>
  %c0 = arith.constant 0 : i32
  %e = tensor.empty() : tensor<1x4x4x16xi32>
  %f = linalg.fill ins(%c0 : i32) outs(%e : tensor<1x4x4x16xi32>) -> tensor<1x4x4x16xi32>
  %a = linalg.depthwise_conv_2d_nhwc_hwc {quantune.layer = "d", strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>} ins(%x, %w : tensor<1x6x6x16xi8>, tensor<3x3x16xi8>) outs(%f : tensor<1x4x4x16xi32>) -> tensor<1x4x4x16xi32>
  %o = tensor.empty() : tensor<1x4x4x16xi8>
  %q = linalg.generic {indexing_maps = [#id, #ch, #ch, #s, #s, #s, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%a, %bias, %m, %z, %lo, %hi : tensor<1x4x4x16xi32>, tensor<16xi32>, tensor<16xf32>, tensor<f32>, tensor<f32>, tensor<f32>) outs(%o : tensor<1x4x4x16xi8>) {
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
  } -> tensor<1x4x4x16xi8>
  return %q : tensor<1x4x4x16xi8>
}
