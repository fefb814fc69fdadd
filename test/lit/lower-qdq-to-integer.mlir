// RUN: quantune-opt %s --split-input-file --pass-pipeline=quantune-lower-qdq-to-integer | FileCheck %s

// The padding pads with the zero point (3 is held as -125), which also goes into the bias:
//   B = b / (s_x s_w) - z_x sum(W) = 1 / 0.25 + 125 * 2 = 254 and 2 / 0.125 - 125 * 2 = -234.
// The clamp's lower bound is the zero point of y: that is the ReLU. m = s_x s_w / s_y.
!x = !quant.uniform<u8:f32, 0.5:3>
!w = !quant.uniform<i8<-127:127>:f32:0, {0.5, 0.25}>
!y = !quant.uniform<u8:f32, 0.3:10>
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
// CHECK-LABEL: func.func @conv
//       CHECK: %[[XQ:.*]] = quant.qcast
//  CHECK-NEXT: %[[X:.*]] = quant.scast %[[XQ]]
//   CHECK-NOT: quant.dcast
//       CHECK: %[[P:.*]] = arith.constant {quantune.parameter = "conv.padding"} dense<-125> : tensor<i8>
//  CHECK-NEXT: %[[ZX:.*]] = tensor.extract %[[P]][] : tensor<i8>
//  CHECK-NEXT: %[[PAD:.*]] = tensor.pad %[[X]] low[0, 0, 1, 2] high[0, 0, 0, 1]
//       CHECK: tensor.yield %[[ZX]] : i8
//  CHECK-NEXT: quantune.layer = "conv"
//       CHECK: %[[W:.*]] = arith.constant {quantune.parameter = "conv.weight"} dense<{{\[\[\[\[}}2]]], {{\[\[\[}}-2]]]]> : tensor<2x1x1x1xi8>
//       CHECK: %[[ACC:.*]] = linalg.conv_2d_nchw_fchw {{.*}}quantune.layer = "conv"{{.*}} ins(%[[PAD]], %[[W]] : tensor<1x1x3x5xi8>, tensor<2x1x1x1xi8>) outs(%{{.*}} : tensor<1x2x3x5xi32>)
//       CHECK: %[[B:.*]] = arith.constant {quantune.parameter = "conv.bias"} dense<[254, -234]> : tensor<2xi32>
//       CHECK: %[[Z:.*]] = arith.constant {quantune.parameter = "conv.zero_point"} dense<-1.180000e+02> : tensor<f32>
//       CHECK: %[[LO:.*]] = arith.constant {quantune.parameter = "conv.min"} dense<-1.180000e+02> : tensor<f32>
//       CHECK: %[[HI:.*]] = arith.constant {quantune.parameter = "conv.max"} dense<1.270000e+02> : tensor<f32>
//       CHECK: %[[M:.*]] = arith.constant {quantune.parameter = "conv.multiplier"} dense<[0.833333313, 0.416666657]> : tensor<2xf32>
//       CHECK: linalg.generic
//  CHECK-SAME: ins(%[[ACC]], %[[B]], %[[M]], %[[Z]], %[[LO]], %[[HI]]
//  CHECK-SAME: quantune.layer = "conv"
//       CHECK: %[[SUM:.*]] = arith.addi
//  CHECK-NEXT: %[[REAL:.*]] = arith.sitofp %[[SUM]] : i32 to f32
//  CHECK-NEXT: %[[SCALED:.*]] = arith.mulf %[[REAL]]
//  CHECK-NEXT: %[[ROUND:.*]] = math.roundeven %[[SCALED]]
//  CHECK-NEXT: %[[MOVED:.*]] = arith.addf %[[ROUND]]
//  CHECK-NEXT: %[[MAX:.*]] = arith.maximumf %[[MOVED]]
//  CHECK-NEXT: %[[MIN:.*]] = arith.minimumf %[[MAX]]
//  CHECK-NEXT: arith.fptosi %[[MIN]] : f32 to i8
//   CHECK-NOT: arith.cmpf
//       CHECK: return
func.func @conv(%x: tensor<1x1x2x2xf32>) -> tensor<1x2x3x5xf32> {
  %zero = arith.constant 0.0 : f32
  %0 = quant.qcast %x : tensor<1x1x2x2xf32> to tensor<1x1x2x2x!x>
  %1 = quant.dcast %0 : tensor<1x1x2x2x!x> to tensor<1x1x2x2xf32>
  %2 = tensor.pad %1 low[0, 0, 1, 2] high[0, 0, 0, 1] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %zero : f32
  } : tensor<1x1x2x2xf32> to tensor<1x1x3x5xf32>
  %w = arith.constant dense<[[[[1.0]]], [[[-0.5]]]]> : tensor<2x1x1x1xf32>
  %3 = quant.qcast %w : tensor<2x1x1x1xf32> to tensor<2x1x1x1x!w>
  %4 = quant.dcast %3 : tensor<2x1x1x1x!w> to tensor<2x1x1x1xf32>
  %b = arith.constant dense<[1.0, 2.0]> : tensor<2xf32>
  %e = tensor.empty() : tensor<1x2x3x5xf32>
  %start = linalg.broadcast ins(%b : tensor<2xf32>) outs(%e : tensor<1x2x3x5xf32>) dimensions = [0, 2, 3]
  %5 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv"} ins(%2, %4 : tensor<1x1x3x5xf32>, tensor<2x1x1x1xf32>)
    outs(%start : tensor<1x2x3x5xf32>) -> tensor<1x2x3x5xf32>
  %6 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%5 : tensor<1x2x3x5xf32>) outs(%e : tensor<1x2x3x5xf32>) {
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ugt, %a, %zero : f32
    %s = arith.select %c, %a, %zero : f32
    linalg.yield %s : f32
  } -> tensor<1x2x3x5xf32>
  %7 = quant.qcast %6 : tensor<1x2x3x5xf32> to tensor<1x2x3x5x!y>
  %8 = quant.dcast %7 : tensor<1x2x3x5x!y> to tensor<1x2x3x5xf32>
  return %8 : tensor<1x2x3x5xf32>
}

// -----
// Asked for shifts, with scales that are powers of two: by 1 - log2(0.5 * 0.5 / 2) = 3, and integers only. One scale for the weight.
!x = !quant.uniform<i8:f32, 0.5>
!w = !quant.uniform<i8<-127:127>:f32, 0.5>
!y = !quant.uniform<i8:f32, 2.0>
// CHECK-LABEL: func.func @shift
//       CHECK: %[[ACC:.*]] = linalg.matmul {quantune.layer = "fc"} ins(%{{.*}} : tensor<1x2xi8>, tensor<2x3xi8>)
//       CHECK: arith.constant {quantune.parameter = "fc.bias"} dense<4> : tensor<3xi32>
//       CHECK: arith.constant {quantune.parameter = "fc.zero_point"} dense<0> : tensor<i32>
//       CHECK: arith.constant {quantune.parameter = "fc.min"} dense<-128> : tensor<i32>
//       CHECK: arith.constant {quantune.parameter = "fc.max"} dense<127> : tensor<i32>
//       CHECK: arith.constant {quantune.parameter = "fc.shift"} dense<3> : tensor<3xi32>
//       CHECK: linalg.generic
//       CHECK: arith.addi
//   CHECK-NOT: {{f32|mulf|roundeven}}
//       CHECK: arith.trunci
//  CHECK-NEXT: linalg.yield
func.func @shift(%x: tensor<1x2xf32>) -> tensor<1x3xf32> {
  %0 = quant.qcast %x : tensor<1x2xf32> to tensor<1x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x!x> to tensor<1x2xf32>
  %w = arith.constant dense<1.0> : tensor<2x3xf32>
  %2 = quant.qcast %w : tensor<2x3xf32> to tensor<2x3x!w>
  %3 = quant.dcast %2 : tensor<2x3x!w> to tensor<2x3xf32>
  %start = arith.constant dense<1.0> : tensor<1x3xf32>
  %4 = linalg.matmul {quantune.layer = "fc", quantune.requantize = "shift"}
    ins(%1, %3 : tensor<1x2xf32>, tensor<2x3xf32>) outs(%start : tensor<1x3xf32>) -> tensor<1x3xf32>
  %5 = quant.qcast %4 : tensor<1x3xf32> to tensor<1x3x!y>
  %6 = quant.dcast %5 : tensor<1x3x!y> to tensor<1x3xf32>
  return %6 : tensor<1x3xf32>
}

// -----
// The same numbers, and nobody asked for shifts.
!x = !quant.uniform<i8:f32, 0.5>
!w = !quant.uniform<i8<-127:127>:f32, 0.5>
!y = !quant.uniform<i8:f32, 2.0>
// CHECK-LABEL: func.func @unasked
//   CHECK-NOT: fc.shift
//       CHECK: arith.constant {quantune.parameter = "fc.multiplier"} dense<1.250000e-01> : tensor<3xf32>
//   CHECK-NOT: quantune.requantize
func.func @unasked(%x: tensor<1x2xf32>) -> tensor<1x3xf32> {
  %0 = quant.qcast %x : tensor<1x2xf32> to tensor<1x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x!x> to tensor<1x2xf32>
  %w = arith.constant dense<1.0> : tensor<2x3xf32>
  %2 = quant.qcast %w : tensor<2x3xf32> to tensor<2x3x!w>
  %3 = quant.dcast %2 : tensor<2x3x!w> to tensor<2x3xf32>
  %start = arith.constant dense<1.0> : tensor<1x3xf32>
  %4 = linalg.matmul {quantune.layer = "fc"} ins(%1, %3 : tensor<1x2xf32>, tensor<2x3xf32>)
    outs(%start : tensor<1x3xf32>) -> tensor<1x3xf32>
  %5 = quant.qcast %4 : tensor<1x3xf32> to tensor<1x3x!y>
  %6 = quant.dcast %5 : tensor<1x3x!y> to tensor<1x3xf32>
  return %6 : tensor<1x3xf32>
}

// -----
// A result that nobody quantizes is scaled to f32 once; the bias behind the product is in the accumulator.
!x = !quant.uniform<u8:f32, 0.5:3>
!w = !quant.uniform<i8<-127:127>:f32:1, {0.5, 0.25}>
#id = affine_map<(d0, d1) -> (d0, d1)>
#row = affine_map<(d0, d1) -> (d1)>
// CHECK-LABEL: func.func @real
//   CHECK-NOT: quant.dcast
//       CHECK: arith.constant {quantune.parameter = "fc.weight"} dense<{{\[\[}}2, -8], [4, 16]]> : tensor<2x2xi8>
//       CHECK: linalg.matmul {{.*}} tensor<1x2xi8>, tensor<2x2xi8>) outs(%{{.*}} : tensor<1x2xi32>)
//       CHECK: arith.constant {quantune.parameter = "fc.bias"} dense<[754, 1016]> : tensor<2xi32>
//       CHECK: arith.constant {quantune.parameter = "fc.scale"} dense<[2.500000e-01, 1.250000e-01]> : tensor<2xf32>
//       CHECK: arith.addi
//  CHECK-NEXT: arith.sitofp
//  CHECK-NEXT: arith.mulf
//  CHECK-NEXT: linalg.yield
//   CHECK-NOT: arith.addf
//       CHECK: return
func.func @real(%x: tensor<1x2xf32>) -> tensor<1x2xf32> {
  %zero = arith.constant 0.0 : f32
  %0 = quant.qcast %x : tensor<1x2xf32> to tensor<1x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x!x> to tensor<1x2xf32>
  %w = arith.constant dense<[[1.0, -2.0], [2.0, 4.0]]> : tensor<2x2xf32>
  %2 = quant.qcast %w : tensor<2x2xf32> to tensor<2x2x!w>
  %3 = quant.dcast %2 : tensor<2x2x!w> to tensor<2x2xf32>
  %e = tensor.empty() : tensor<1x2xf32>
  %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x2xf32>) -> tensor<1x2xf32>
  %4 = linalg.matmul {quantune.layer = "fc"} ins(%1, %3 : tensor<1x2xf32>, tensor<2x2xf32>)
    outs(%start : tensor<1x2xf32>) -> tensor<1x2xf32>
  %b = arith.constant dense<[1.0, 2.0]> : tensor<2xf32>
  %5 = linalg.generic {indexing_maps = [#id, #row, #id], iterator_types = ["parallel", "parallel"]}
    ins(%4, %b : tensor<1x2xf32>, tensor<2xf32>) outs(%e : tensor<1x2xf32>) {
  ^bb0(%p: f32, %q: f32, %out: f32):
    %s = arith.addf %p, %q : f32
    linalg.yield %s : f32
  } -> tensor<1x2xf32>
  return %5 : tensor<1x2xf32>
}

// -----
!x = !quant.uniform<i8:f32, 0.5>
!w = !quant.uniform<i8<-127:127>:f32:0, {0.5, 0.25, 0.5, 0.25}>
!y = !quant.uniform<i8:f32, 0.3>
// A grouped convolution, then a depthwise one; the weight of the first is split into its groups again.
// CHECK-LABEL: func.func @groups
//       CHECK: arith.constant {quantune.parameter = "grouped.weight"} {{.*}} : tensor<2x2x1x1x1xi8>
//       CHECK: tensor.expand_shape {{.*}} : tensor<1x2x2x2xi8> into tensor<1x2x1x2x2xi8>
//       CHECK: linalg.conv_2d_ngchw_gfchw {{.*}} outs(%{{.*}} : tensor<1x2x2x2x2xi32>)
//       CHECK: tensor.collapse_shape {{.*}} : tensor<1x2x2x2x2xi32> into tensor<1x4x2x2xi32>
//       CHECK: arith.constant {quantune.parameter = "grouped.multiplier"} {{.*}} : tensor<4xf32>
//       CHECK: linalg.generic {{.*}}quantune.layer = "grouped"
//       CHECK: arith.constant {quantune.parameter = "depthwise.weight"} {{.*}} : tensor<4x1x1xi8>
//       CHECK: linalg.depthwise_conv_2d_nchw_chw {{.*}} : tensor<1x4x2x2xi8>, tensor<4x1x1xi8>) outs(%{{.*}} : tensor<1x4x2x2xi32>)
//       CHECK: arith.constant {quantune.parameter = "depthwise.scale"}
func.func @groups(%x: tensor<1x2x2x2xf32>) -> tensor<1x4x2x2xf32> {
  %0 = quant.qcast %x : tensor<1x2x2x2xf32> to tensor<1x2x2x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x2x2x!x> to tensor<1x2x2x2xf32>
  %2 = tensor.expand_shape %1 [[0], [1, 2], [3], [4]] output_shape [1, 2, 1, 2, 2]
    : tensor<1x2x2x2xf32> into tensor<1x2x1x2x2xf32>
  %w = arith.constant dense<1.0> : tensor<2x2x1x1x1xf32>
  %3 = tensor.collapse_shape %w [[0, 1], [2], [3], [4]] : tensor<2x2x1x1x1xf32> into tensor<4x1x1x1xf32>
  %4 = quant.qcast %3 : tensor<4x1x1x1xf32> to tensor<4x1x1x1x!w>
  %5 = quant.dcast %4 : tensor<4x1x1x1x!w> to tensor<4x1x1x1xf32>
  %6 = tensor.expand_shape %5 [[0, 1], [2], [3], [4]] output_shape [2, 2, 1, 1, 1]
    : tensor<4x1x1x1xf32> into tensor<2x2x1x1x1xf32>
  %start = arith.constant dense<0.0> : tensor<1x2x2x2x2xf32>
  %7 = linalg.conv_2d_ngchw_gfchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "grouped"} ins(%2, %6 : tensor<1x2x1x2x2xf32>, tensor<2x2x1x1x1xf32>)
    outs(%start : tensor<1x2x2x2x2xf32>) -> tensor<1x2x2x2x2xf32>
  %8 = tensor.collapse_shape %7 [[0], [1, 2], [3], [4]] : tensor<1x2x2x2x2xf32> into tensor<1x4x2x2xf32>
  %9 = quant.qcast %8 : tensor<1x4x2x2xf32> to tensor<1x4x2x2x!y>
  %10 = quant.dcast %9 : tensor<1x4x2x2x!y> to tensor<1x4x2x2xf32>
  %v = arith.constant dense<1.0> : tensor<4x1x1xf32>
  %11 = quant.qcast %v : tensor<4x1x1xf32> to tensor<4x1x1x!w>
  %12 = quant.dcast %11 : tensor<4x1x1x!w> to tensor<4x1x1xf32>
  %begin = arith.constant dense<0.0> : tensor<1x4x2x2xf32>
  %13 = linalg.depthwise_conv_2d_nchw_chw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "depthwise"} ins(%10, %12 : tensor<1x4x2x2xf32>, tensor<4x1x1xf32>)
    outs(%begin : tensor<1x4x2x2xf32>) -> tensor<1x4x2x2xf32>
  return %13 : tensor<1x4x2x2xf32>
}

// -----
// A residual addition in fixed point. s_a / s_y = 0.5, s_b / s_y = 0.25: m = 2^20, 2^19 with shift 21;
// offset = 2^20 - z_a m_a - z_b m_b = 2^20 + 125 * 2^20 - 4 * 2^19. The ReLU is in the lower bound.
!a = !quant.uniform<u8:f32, 0.5:3>
!b = !quant.uniform<i8:f32, 0.25:4>
!y = !quant.uniform<u8:f32, 1.0:28>
#id = affine_map<(d0) -> (d0)>
// CHECK-LABEL: func.func @add
//       CHECK: %[[A:.*]] = quant.scast
//       CHECK: %[[B:.*]] = quant.scast
//       CHECK: %[[MA:.*]] = arith.constant {quantune.parameter = "add.m_a"} dense<1048576> : tensor<i32>
//       CHECK: %[[MB:.*]] = arith.constant {quantune.parameter = "add.m_b"} dense<524288> : tensor<i32>
//       CHECK: %[[O:.*]] = arith.constant {quantune.parameter = "add.offset"} dense<130023424> : tensor<i32>
//       CHECK: %[[S:.*]] = arith.constant {quantune.parameter = "add.shift"} dense<21> : tensor<i32>
//       CHECK: %[[Z:.*]] = arith.constant {quantune.parameter = "add.zero_point"} dense<-100> : tensor<i32>
//       CHECK: %[[LO:.*]] = arith.constant {quantune.parameter = "add.min"} dense<-100> : tensor<i32>
//       CHECK: %[[HI:.*]] = arith.constant {quantune.parameter = "add.max"} dense<127> : tensor<i32>
//       CHECK: linalg.generic {{.*}} ins(%[[A]], %[[B]], %[[MA]], %[[MB]], %[[O]], %[[S]], %[[Z]], %[[LO]], %[[HI]]
//       CHECK: arith.extsi
//  CHECK-NEXT: arith.muli
//       CHECK: arith.extsi
//  CHECK-NEXT: arith.muli
//  CHECK-NEXT: arith.addi
//  CHECK-NEXT: arith.addi
//  CHECK-NEXT: arith.shrsi
//  CHECK-NEXT: arith.addi
//  CHECK-NEXT: arith.maxsi
//  CHECK-NEXT: arith.minsi
//  CHECK-NEXT: arith.trunci
//   CHECK-NOT: arith.cmpf
//       CHECK: return
func.func @add(%x: tensor<4xf32>, %z: tensor<4xf32>) -> tensor<4xf32> {
  %zero = arith.constant 0.0 : f32
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!a>
  %1 = quant.dcast %0 : tensor<4x!a> to tensor<4xf32>
  %2 = quant.qcast %z : tensor<4xf32> to tensor<4x!b>
  %3 = quant.dcast %2 : tensor<4x!b> to tensor<4xf32>
  %e = tensor.empty() : tensor<4xf32>
  %4 = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = ["parallel"]}
    ins(%1, %3 : tensor<4xf32>, tensor<4xf32>) outs(%e : tensor<4xf32>) attrs = {quantune.layer = "add"} {
  ^bb0(%p: f32, %q: f32, %out: f32):
    %s = arith.addf %p, %q : f32
    linalg.yield %s : f32
  } -> tensor<4xf32>
  %5 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
    ins(%4 : tensor<4xf32>) outs(%e : tensor<4xf32>) {
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ugt, %a, %zero : f32
    %s = arith.select %c, %a, %zero : f32
    linalg.yield %s : f32
  } -> tensor<4xf32>
  %6 = quant.qcast %5 : tensor<4xf32> to tensor<4x!y>
  %7 = quant.dcast %6 : tensor<4x!y> to tensor<4xf32>
  return %7 : tensor<4xf32>
}

// -----
// A max-pool pads with the smallest integer, as the f32 one does with -inf; an average pads with the zero point.
!x = !quant.uniform<u8:f32, 0.5:3>
!y = !quant.uniform<u8:f32, 0.4:3>
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
// CHECK-LABEL: func.func @pools
//       CHECK: %[[LOWEST:.*]] = arith.constant -128 : i8
//       CHECK: tensor.pad
//       CHECK: tensor.yield %[[LOWEST]] : i8
//       CHECK: %[[MAX:.*]] = linalg.pooling_nchw_max {{.*}} outs(%{{.*}} : tensor<1x2x2x2xi8>)
//       CHECK: arith.constant {quantune.parameter = "average.padding"} dense<-125> : tensor<i8>
//       CHECK: tensor.pad %[[MAX]]
//       CHECK: linalg.pooling_nchw_sum {{.*}} : tensor<1x2x4x4xi8>, tensor<3x3xi8>) outs(%{{.*}} : tensor<1x2x2x2xi32>)
//       CHECK: arith.constant {quantune.parameter = "average.bias"} dense<1125> : tensor<2xi32>
//       CHECK: arith.constant {quantune.parameter = "average.multiplier"} dense<0.138888881> : tensor<2xf32>
func.func @pools(%x: tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32> {
  %zero = arith.constant 0.0 : f32
  %nine = arith.constant 9.0 : f32
  %lowest = arith.constant 0xFF800000 : f32
  %0 = quant.qcast %x : tensor<1x2x2x2xf32> to tensor<1x2x2x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x2x2x!x> to tensor<1x2x2x2xf32>
  %2 = tensor.pad %1 low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %lowest : f32
  } : tensor<1x2x2x2xf32> to tensor<1x2x4x4xf32>
  %window = tensor.empty() : tensor<3x3xf32>
  %e = tensor.empty() : tensor<1x2x2x2xf32>
  %start = linalg.fill ins(%lowest : f32) outs(%e : tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32>
  %3 = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%2, %window : tensor<1x2x4x4xf32>, tensor<3x3xf32>) outs(%start : tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32>
  %4 = quant.qcast %3 : tensor<1x2x2x2xf32> to tensor<1x2x2x2x!x>
  %5 = quant.dcast %4 : tensor<1x2x2x2x!x> to tensor<1x2x2x2xf32>
  %6 = tensor.pad %5 low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %zero : f32
  } : tensor<1x2x2x2xf32> to tensor<1x2x4x4xf32>
  %begin = linalg.fill ins(%zero : f32) outs(%e : tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32>
  %7 = linalg.pooling_nchw_sum {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "average"} ins(%6, %window : tensor<1x2x4x4xf32>, tensor<3x3xf32>)
    outs(%begin : tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32>
  %8 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%7 : tensor<1x2x2x2xf32>) outs(%e : tensor<1x2x2x2xf32>) {
  ^bb0(%a: f32, %out: f32):
    %s = arith.divf %a, %nine : f32
    linalg.yield %s : f32
  } -> tensor<1x2x2x2xf32>
  %9 = quant.qcast %8 : tensor<1x2x2x2xf32> to tensor<1x2x2x2x!y>
  %10 = quant.dcast %9 : tensor<1x2x2x2x!y> to tensor<1x2x2x2xf32>
  return %10 : tensor<1x2x2x2xf32>
}

// -----
// The mean of the image, as the network's result: integers are summed, the sum is scaled by s_x / 4.
!x = !quant.uniform<u8:f32, 0.5:3>
#in = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#out = affine_map<(d0, d1, d2, d3) -> (d0, d1)>
#id = affine_map<(d0, d1) -> (d0, d1)>
// CHECK-LABEL: func.func @mean
//       CHECK: %[[SUM:.*]] = linalg.generic {{.*}}iterator_types = ["parallel", "parallel", "reduction", "reduction"]{{.*}} outs(%{{.*}} : tensor<1x2xi32>)
//       CHECK: arith.extsi
//       CHECK: arith.constant {quantune.parameter = "mean.bias"} dense<500> : tensor<2xi32>
//       CHECK: arith.constant {quantune.parameter = "mean.scale"} dense<1.250000e-01> : tensor<2xf32>
//       CHECK: arith.sitofp
//  CHECK-NEXT: arith.mulf
func.func @mean(%x: tensor<1x2x2x2xf32>) -> tensor<1x2xf32> {
  %zero = arith.constant 0.0 : f32
  %four = arith.constant 4.0 : f32
  %0 = quant.qcast %x : tensor<1x2x2x2xf32> to tensor<1x2x2x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x2x2x!x> to tensor<1x2x2x2xf32>
  %e = tensor.empty() : tensor<1x2xf32>
  %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x2xf32>) -> tensor<1x2xf32>
  %2 = linalg.generic {indexing_maps = [#in, #out], iterator_types = ["parallel", "parallel", "reduction", "reduction"]}
    ins(%1 : tensor<1x2x2x2xf32>) outs(%start : tensor<1x2xf32>) attrs = {quantune.layer = "mean"} {
  ^bb0(%a: f32, %out: f32):
    %s = arith.addf %a, %out : f32
    linalg.yield %s : f32
  } -> tensor<1x2xf32>
  %3 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel"]}
    ins(%2 : tensor<1x2xf32>) outs(%e : tensor<1x2xf32>) {
  ^bb0(%a: f32, %out: f32):
    %s = arith.divf %a, %four : f32
    linalg.yield %s : f32
  } -> tensor<1x2xf32>
  return %3 : tensor<1x2xf32>
}

// -----
// Channel shuffle, slices, concatenation and flatten move integers.
!x = !quant.uniform<u8:f32, 0.5:3>
// CHECK-LABEL: func.func @moves
//       CHECK: %[[X:.*]] = quant.scast
//       CHECK: %[[V:.*]] = tensor.expand_shape %[[X]] {{.*}} : tensor<1x4x2x2xi8> into tensor<1x2x2x2x2xi8>
//       CHECK: linalg.transpose ins(%[[V]] : tensor<1x2x2x2x2xi8>) {{.*}} permutation = [0, 2, 1, 3, 4]
//       CHECK: %[[S:.*]] = tensor.collapse_shape {{.*}} : tensor<1x2x2x2x2xi8> into tensor<1x4x2x2xi8>
//       CHECK: %[[A:.*]] = tensor.extract_slice %[[S]][0, 1, 0, 0] [1, 2, 2, 2] [1, 1, 1, 1] : tensor<1x4x2x2xi8> to tensor<1x2x2x2xi8>
//       CHECK: tensor.concat dim(1) %[[A]], %[[X]] : (tensor<1x2x2x2xi8>, tensor<1x4x2x2xi8>) -> tensor<1x6x2x2xi8>
//       CHECK: tensor.collapse_shape {{.*}} : tensor<1x6x2x2xi8> into tensor<1x24xi8>
func.func @moves(%x: tensor<1x4x2x2xf32>) -> tensor<1x24xf32> {
  %0 = quant.qcast %x : tensor<1x4x2x2xf32> to tensor<1x4x2x2x!x>
  %1 = quant.dcast %0 : tensor<1x4x2x2x!x> to tensor<1x4x2x2xf32>
  %2 = tensor.expand_shape %1 [[0], [1, 2], [3], [4]] output_shape [1, 2, 2, 2, 2]
    : tensor<1x4x2x2xf32> into tensor<1x2x2x2x2xf32>
  %3 = quant.qcast %2 : tensor<1x2x2x2x2xf32> to tensor<1x2x2x2x2x!x>
  %4 = quant.dcast %3 : tensor<1x2x2x2x2x!x> to tensor<1x2x2x2x2xf32>
  %e = tensor.empty() : tensor<1x2x2x2x2xf32>
  %5 = linalg.transpose ins(%4 : tensor<1x2x2x2x2xf32>) outs(%e : tensor<1x2x2x2x2xf32>) permutation = [0, 2, 1, 3, 4]
  %6 = quant.qcast %5 : tensor<1x2x2x2x2xf32> to tensor<1x2x2x2x2x!x>
  %7 = quant.dcast %6 : tensor<1x2x2x2x2x!x> to tensor<1x2x2x2x2xf32>
  %8 = tensor.collapse_shape %7 [[0], [1, 2], [3], [4]] : tensor<1x2x2x2x2xf32> into tensor<1x4x2x2xf32>
  %9 = quant.qcast %8 : tensor<1x4x2x2xf32> to tensor<1x4x2x2x!x>
  %10 = quant.dcast %9 : tensor<1x4x2x2x!x> to tensor<1x4x2x2xf32>
  %11 = tensor.extract_slice %10[0, 1, 0, 0] [1, 2, 2, 2] [1, 1, 1, 1] : tensor<1x4x2x2xf32> to tensor<1x2x2x2xf32>
  %12 = quant.qcast %11 : tensor<1x2x2x2xf32> to tensor<1x2x2x2x!x>
  %13 = quant.dcast %12 : tensor<1x2x2x2x!x> to tensor<1x2x2x2xf32>
  %14 = tensor.concat dim(1) %13, %1 : (tensor<1x2x2x2xf32>, tensor<1x4x2x2xf32>) -> tensor<1x6x2x2xf32>
  %15 = quant.qcast %14 : tensor<1x6x2x2xf32> to tensor<1x6x2x2x!x>
  %16 = quant.dcast %15 : tensor<1x6x2x2x!x> to tensor<1x6x2x2xf32>
  %17 = tensor.collapse_shape %16 [[0], [1, 2, 3]] : tensor<1x6x2x2xf32> into tensor<1x24xf32>
  %18 = quant.qcast %17 : tensor<1x24xf32> to tensor<1x24x!x>
  %19 = quant.dcast %18 : tensor<1x24x!x> to tensor<1x24xf32>
  return %19 : tensor<1x24xf32>
}

// -----
// A ReLU6 that stands alone: 0 is the zero point, 6 is 6 / 0.5 steps above it.
!x = !quant.uniform<u8:f32, 0.5:3>
#id = affine_map<(d0) -> (d0)>
// CHECK-LABEL: func.func @clamp
//       CHECK: arith.constant {quantune.parameter = "clamp.min"} dense<-125> : tensor<i8>
//       CHECK: arith.constant {quantune.parameter = "clamp.max"} dense<-113> : tensor<i8>
//       CHECK: arith.maxsi
//  CHECK-NEXT: arith.minsi
//  CHECK-NEXT: linalg.yield %{{.*}} : i8
func.func @clamp(%x: tensor<4xf32>) -> tensor<4xf32> {
  %zero = arith.constant 0.0 : f32
  %six = arith.constant 6.0 : f32
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!x>
  %1 = quant.dcast %0 : tensor<4x!x> to tensor<4xf32>
  %e = tensor.empty() : tensor<4xf32>
  %2 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
    ins(%1 : tensor<4xf32>) outs(%e : tensor<4xf32>) {
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ult, %a, %zero : f32
    %s = arith.select %c, %zero, %a : f32
    %d = arith.cmpf ugt, %s, %six : f32
    %t = arith.select %d, %six, %s : f32
    linalg.yield %t : f32
  } -> tensor<4xf32>
  %3 = quant.qcast %2 : tensor<4xf32> to tensor<4x!x>
  %4 = quant.dcast %3 : tensor<4x!x> to tensor<4xf32>
  return %4 : tensor<4xf32>
}

// -----
// What has no integer form is computed in f32 between its casts: a value cut to a whole number. A concatenation requantizes an operand of another scale.
!x = !quant.uniform<u8:f32, 0.5:3>
!y = !quant.uniform<u8:f32, 0.25:0>
#id = affine_map<(d0) -> (d0)>
// CHECK-LABEL: func.func @float
//       CHECK: %[[XQ:.*]] = quant.qcast
//       CHECK: %[[XD:.*]] = quant.dcast %[[XQ]]
//       CHECK: %[[S:.*]] = linalg.generic {{.*}} ins(%[[XD]]
//       CHECK: arith.fptosi
//       CHECK: %[[SQ:.*]] = quant.qcast %[[S]]
//       CHECK: %[[SI:.*]] = quant.scast %[[SQ]]
//       CHECK: arith.constant {quantune.parameter = "concat.zero0"} dense<-125> : tensor<i32>
//       CHECK: arith.constant {quantune.parameter = "concat.multiplier0"} dense<2.000000e+00> : tensor<f32>
//       CHECK: arith.constant {quantune.parameter = "concat.zero_point0"} dense<-1.280000e+02> : tensor<f32>
//       CHECK: %[[R:.*]] = linalg.generic
//       CHECK: arith.subi
//  CHECK-NEXT: arith.sitofp
//  CHECK-NEXT: arith.mulf
//  CHECK-NEXT: math.roundeven
//       CHECK: tensor.concat dim(0) %[[R]], %[[SI]] : (tensor<4xi8>, tensor<4xi8>) -> tensor<8xi8>
func.func @float(%x: tensor<4xf32>) -> tensor<8xf32> {
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!x>
  %1 = quant.dcast %0 : tensor<4x!x> to tensor<4xf32>
  %e = tensor.empty() : tensor<4xf32>
  %2 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
    ins(%1 : tensor<4xf32>) outs(%e : tensor<4xf32>) {
  ^bb0(%a: f32, %out: f32):
    %n = arith.fptosi %a : f32 to i32
    %r = arith.sitofp %n : i32 to f32
    linalg.yield %r : f32
  } -> tensor<4xf32>
  %3 = quant.qcast %2 : tensor<4xf32> to tensor<4x!y>
  %4 = quant.dcast %3 : tensor<4x!y> to tensor<4xf32>
  %5 = tensor.concat dim(0) %1, %4 : (tensor<4xf32>, tensor<4xf32>) -> tensor<8xf32>
  %6 = quant.qcast %5 : tensor<8xf32> to tensor<8x!y>
  %7 = quant.dcast %6 : tensor<8x!y> to tensor<8xf32>
  return %7 : tensor<8xf32>
}

// -----
// A factor and a shift of each channel: factors of 256 where the factor is what is largest, so that the shift is rounded to 1/256 of x's step.
!x = !quant.uniform<u8:f32, 0.5:3>
!y = !quant.uniform<u8:f32, 0.25:0>
#id = affine_map<(n, c, h, w) -> (n, c, h, w)>
#channel = affine_map<(n, c, h, w) -> (0, c, 0, 0)>
// CHECK-LABEL: func.func @channels
//       CHECK: arith.constant {quantune.parameter = "affine.factor"} dense<[256, -256]> : tensor<2xi32>
//       CHECK: arith.muli
//       CHECK: arith.constant {quantune.parameter = "affine.bias"} dense<[33536, -32000]> : tensor<2xi32>
//   CHECK-DAG: arith.constant {quantune.parameter = "affine.multiplier"} dense<[7.812500e-03, 1.562500e-02]> : tensor<2xf32>
//       CHECK: math.roundeven
func.func @channels(%x: tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32> {
  %f = arith.constant dense<[[[[1.0]], [[-2.0]]]]> : tensor<1x2x1x1xf32>
  %b = arith.constant dense<[[[[3.0]], [[0.0]]]]> : tensor<1x2x1x1xf32>
  %0 = quant.qcast %x : tensor<1x2x4x4xf32> to tensor<1x2x4x4x!x>
  %1 = quant.dcast %0 : tensor<1x2x4x4x!x> to tensor<1x2x4x4xf32>
  %e = tensor.empty() : tensor<1x2x4x4xf32>
  %2 = linalg.generic {indexing_maps = [#id, #channel, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%1, %f : tensor<1x2x4x4xf32>, tensor<1x2x1x1xf32>) outs(%e : tensor<1x2x4x4xf32>) {
  ^bb0(%v: f32, %n: f32, %out: f32):
    %p = arith.mulf %v, %n : f32
    linalg.yield %p : f32
  } -> tensor<1x2x4x4xf32>
  %3 = linalg.generic {indexing_maps = [#id, #channel, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%2, %b : tensor<1x2x4x4xf32>, tensor<1x2x1x1xf32>) outs(%e : tensor<1x2x4x4xf32>) {
  ^bb0(%v: f32, %n: f32, %out: f32):
    %s = arith.addf %v, %n : f32
    linalg.yield %s : f32
  } -> tensor<1x2x4x4xf32>
  %4 = quant.qcast %3 : tensor<1x2x4x4xf32> to tensor<1x2x4x4x!y>
  %5 = quant.dcast %4 : tensor<1x2x4x4x!y> to tensor<1x2x4x4xf32>
  return %5 : tensor<1x2x4x4xf32>
}

// -----
// A function of one value is a table of 256 results, a parameter: 0 is held as 0, and 0.5, its sigmoid, as 64 - 128 (0xC0).
!x = !quant.uniform<u8:f32, 0.5:128>
!y = !quant.uniform<u8:f32, 0.0078125>
#id = affine_map<(d0) -> (d0)>
// CHECK-LABEL: func.func @table
//       CHECK: %[[T:.*]] = arith.constant {quantune.parameter = "table.table"} dense<"0xC0FFFFFF{{.*}}"> : tensor<256xi32>
//       CHECK: linalg.generic {{.*}} ins(%{{.*}} : tensor<4xi8>) outs(%{{.*}} : tensor<4xi8>)
//  CHECK-NEXT: ^bb0(%[[V:.*]]: i8, %{{.*}}: i8):
//  CHECK-NEXT:   %[[W:.*]] = arith.extui %[[V]] : i8 to i32
//  CHECK-NEXT:   %[[I:.*]] = arith.index_castui %[[W]] : i32 to index
//  CHECK-NEXT:   %[[E:.*]] = tensor.extract %[[T]][%[[I]]] : tensor<256xi32>
//  CHECK-NEXT:   %[[N:.*]] = arith.trunci %[[E]] : i32 to i8
//  CHECK-NEXT:   linalg.yield %[[N]] : i8
//   CHECK-NOT: math.exp
func.func @table(%x: tensor<4xf32>) -> tensor<4xf32> {
  %one = arith.constant 1.0 : f32
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!x>
  %1 = quant.dcast %0 : tensor<4x!x> to tensor<4xf32>
  %e = tensor.empty() : tensor<4xf32>
  %2 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel"]}
    ins(%1 : tensor<4xf32>) outs(%e : tensor<4xf32>) {
  ^bb0(%a: f32, %out: f32):
    %n = arith.negf %a : f32
    %p = math.exp %n : f32
    %q = arith.addf %p, %one : f32
    %r = arith.divf %one, %q : f32
    linalg.yield %r : f32
  } -> tensor<4xf32>
  %3 = quant.qcast %2 : tensor<4xf32> to tensor<4x!y>
  %4 = quant.dcast %3 : tensor<4x!y> to tensor<4xf32>
  return %4 : tensor<4xf32>
}

// -----
// A product is exact in i32, and requantized by one multiplication with 0.5 * 0.25 / 0.125 = 1.
!a = !quant.uniform<i8:f32, 0.5:3>
!b = !quant.uniform<i8:f32, 0.25>
!y = !quant.uniform<i8:f32, 0.125:-7>
#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#ch = affine_map<(d0, d1, d2, d3) -> (d0, d1, 0, 0)>
// CHECK-LABEL: func.func @product
//   CHECK-DAG: {quantune.parameter = "product.zero_a"} dense<3> : tensor<i32>
//   CHECK-DAG: {quantune.parameter = "product.zero_b"} dense<0> : tensor<i32>
//       CHECK: linalg.generic {{.*}} ins({{.*}} : tensor<1x2x3x3xi8>, tensor<1x2x1x1xi8>, tensor<i32>, tensor<i32>)
//       CHECK: %[[A:.*]] = arith.subi
//       CHECK: %[[B:.*]] = arith.subi
//  CHECK-NEXT: arith.muli %[[A]], %[[B]] : i32
//   CHECK-DAG: {quantune.parameter = "product.multiplier"} dense<1.000000e+00> : tensor<2xf32>
//   CHECK-DAG: {quantune.parameter = "product.zero_point"} dense<-7.000000e+00> : tensor<f32>
//       CHECK: math.roundeven
//   CHECK-NOT: quant.dcast %{{.*}} : tensor<1x2x3x3x!quant.uniform<i8:f32, 5.000000e-01:3>>
func.func @product(%x: tensor<1x2x3x3xf32>, %w: tensor<1x2x1x1xf32>) -> tensor<1x2x3x3xf32> {
  %0 = quant.qcast %x : tensor<1x2x3x3xf32> to tensor<1x2x3x3x!a>
  %1 = quant.dcast %0 : tensor<1x2x3x3x!a> to tensor<1x2x3x3xf32>
  %2 = quant.qcast %w : tensor<1x2x1x1xf32> to tensor<1x2x1x1x!b>
  %3 = quant.dcast %2 : tensor<1x2x1x1x!b> to tensor<1x2x1x1xf32>
  %e = tensor.empty() : tensor<1x2x3x3xf32>
  %4 = linalg.generic {indexing_maps = [#ch, #id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%3, %1 : tensor<1x2x1x1xf32>, tensor<1x2x3x3xf32>) outs(%e : tensor<1x2x3x3xf32>) {
  ^bb0(%a: f32, %b: f32, %out: f32):
    %p = arith.mulf %a, %b : f32
    linalg.yield %p : f32
  } -> tensor<1x2x3x3xf32>
  %5 = quant.qcast %4 : tensor<1x2x3x3xf32> to tensor<1x2x3x3x!y>
  %6 = quant.dcast %5 : tensor<1x2x3x3x!y> to tensor<1x2x3x3xf32>
  return %6 : tensor<1x2x3x3xf32>
}
