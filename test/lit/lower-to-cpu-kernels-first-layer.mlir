// RUN: quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} | FileCheck %s

// Three channels lie in memory without gaps: the 21 bytes of a row of the window are read as six groups of four.
// CHECK-LABEL: func.func @main
//  CHECK-SAME: (%[[X:.*]]: tensor<1x3x4x6xf32>)
// One column more than the border: the last window is read three bytes beyond its end.
// CHECK: %[[IMAGE:.*]] = "flow.dispatch"(%[[X]]
// CHECK-SAME: -> tensor<1x6x13x3xi8>
// Three rows of six groups, four bytes for each of 16 lanes.
// CHECK: %[[W:.*]] = arith.constant {quantune.parameter = "a.weight"} {{.*}} : tensor<1152xi8>
// CHECK: "flow.dispatch"(%[[IMAGE]], %[[W]]
// CHECK-SAME: quantune.layer = "a", quantune.macs = 6048 : i64
#id = affine_map<(n, h, w, c) -> (n, h, w, c)>
#ch = affine_map<(n, h, w, c) -> (c)>
#s = affine_map<(n, h, w, c) -> ()>
func.func @main(%image: tensor<1x3x4x6xf32>) -> tensor<1x4x6x4xi8> {
  %scale = arith.constant {quantune.parameter = "input.scale"} dense<0.5> : tensor<f32>
  %iz = arith.constant {quantune.parameter = "input.zero_point"} dense<5.0> : tensor<f32>
  %ilo = arith.constant {quantune.parameter = "input.min"} dense<-128.0> : tensor<f32>
  %ihi = arith.constant {quantune.parameter = "input.max"} dense<127.0> : tensor<f32>
  %planes = tensor.empty() : tensor<1x3x4x6xi8>
  %stored = linalg.generic {indexing_maps = [#id, #s, #s, #s, #s, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%image, %scale, %iz, %ilo, %ihi : tensor<1x3x4x6xf32>, tensor<f32>, tensor<f32>, tensor<f32>, tensor<f32>) outs(%planes : tensor<1x3x4x6xi8>) {
  ^bb0(%v: f32, %step: f32, %zz: f32, %l: f32, %h: f32, %old: i8):
    %0 = arith.divf %v, %step : f32
    %1 = math.roundeven %0 : f32
    %2 = arith.addf %1, %zz : f32
    %3 = arith.maxnumf %2, %l : f32
    %4 = arith.minnumf %3, %h : f32
    %5 = arith.fptosi %4 : f32 to i8
    linalg.yield %5 : i8
  } -> tensor<1x3x4x6xi8>
  %turned = tensor.empty() : tensor<1x4x6x3xi8>
  %x = linalg.transpose ins(%stored : tensor<1x3x4x6xi8>) outs(%turned : tensor<1x4x6x3xi8>) permutation = [0, 2, 3, 1]
  %w = arith.constant {quantune.parameter = "a.weight"} dense<1> : tensor<3x7x3x4xi8>
  %bias = arith.constant {quantune.parameter = "a.bias"} dense<7> : tensor<4xi32>
  %m = arith.constant {quantune.parameter = "a.multiplier"} dense<0.5> : tensor<4xf32>
  %z = arith.constant {quantune.parameter = "a.zero_point"} dense<22.0> : tensor<f32>
  %lo = arith.constant {quantune.parameter = "a.min"} dense<0.0> : tensor<f32>
  %hi = arith.constant {quantune.parameter = "a.max"} dense<127.0> : tensor<f32>
  %padding = arith.constant {quantune.parameter = "a.padding"} dense<5> : tensor<i8>
  %value = tensor.extract %padding[] : tensor<i8>
  %p = tensor.pad %x low[0, 1, 3, 0] high[0, 1, 3, 0] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %value : i8
  } : tensor<1x4x6x3xi8> to tensor<1x6x12x3xi8>
  %c0 = arith.constant 0 : i32
  %e = tensor.empty() : tensor<1x4x6x4xi32>
  %f = linalg.fill ins(%c0 : i32) outs(%e : tensor<1x4x6x4xi32>) -> tensor<1x4x6x4xi32>
  %a = linalg.conv_2d_nhwc_hwcf {quantune.layer = "a", strides = dense<1> : tensor<2xi64>, dilations = dense<1> : tensor<2xi64>} ins(%p, %w : tensor<1x6x12x3xi8>, tensor<3x7x3x4xi8>) outs(%f : tensor<1x4x6x4xi32>) -> tensor<1x4x6x4xi32>
  %o = tensor.empty() : tensor<1x4x6x4xi8>
  %q = linalg.generic {indexing_maps = [#id, #ch, #ch, #s, #s, #s, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]} ins(%a, %bias, %m, %z, %lo, %hi : tensor<1x4x6x4xi32>, tensor<4xi32>, tensor<4xf32>, tensor<f32>, tensor<f32>, tensor<f32>) outs(%o : tensor<1x4x6x4xi8>) {
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
  } -> tensor<1x4x6x4xi8>
  return %q : tensor<1x4x6x4xi8>
}
