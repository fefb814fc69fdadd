// RUN: quantune-opt %s --pass-pipeline='quantune-set-constants' | FileCheck %s

// A convolution's bias is where its accumulator starts, a matrix product's behind it; one without gets one.
// The biases that were added behind the convolution go into the one that is set.

#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#channel = affine_map<(d0, d1, d2, d3) -> (d1, 0, 0)>
// CHECK-NOT: quantune.constants
module attributes {quantune.constants = {
  conv = {bias = dense<[0.5, -0.5]> : tensor<2xf32>, weight = dense<3.0> : tensor<2x1x1x1xf32>},
  added = {bias = dense<[7.0, 8.0]> : tensor<2xf32>},
  fc = {bias = dense<[1.0, 2.0, 4.0]> : tensor<3xf32>,
        weight = dense<[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]> : tensor<3x2xf32>}}} {
  // CHECK-LABEL: func.func @main
  func.func @main(%x: tensor<1x1x1x1xf32>) -> tensor<1x3xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x2x1x1xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x2x1x1xf32>) -> tensor<1x2x1x1xf32>
    %w = arith.constant dense<1.0> : tensor<2x1x1x1xf32>
    // CHECK: %[[B:.*]] = arith.constant dense<[5.000000e-01, -5.000000e-01]> : tensor<2xf32>
    // CHECK: %[[START:.*]] = linalg.broadcast ins(%[[B]] : tensor<2xf32>)
    // CHECK: %[[W:.*]] = arith.constant dense<3.000000e+00> : tensor<2x1x1x1xf32>
    // CHECK: linalg.conv_2d_nchw_fchw {{.*}}quantune.layer = "conv"{{.*}} ins(%{{.*}}, %[[W]] {{.*}} outs(%[[START]]
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x1x1x1xf32>, tensor<2x1x1x1xf32>)
      outs(%start : tensor<1x2x1x1xf32>) -> tensor<1x2x1x1xf32>
    %v = arith.constant dense<1.0> : tensor<2x2x1x1xf32>
    %old = arith.constant dense<9.0> : tensor<2xf32>
    %from = linalg.broadcast ins(%old : tensor<2xf32>) outs(%e : tensor<1x2x1x1xf32>) dimensions = [0, 2, 3]
    %b = arith.constant dense<11.0> : tensor<2x1x1xf32>
    // CHECK: %[[FILL:.*]] = linalg.fill ins(%{{.*}} : f32)
    // CHECK: %[[CONV:.*]] = linalg.conv_2d_nchw_fchw {{.*}}quantune.layer = "added"{{.*}} outs(%[[FILL]]
    // CHECK: %[[NEW:.*]] = arith.constant dense<{{\[}}{{\[}}[7.000000e+00]], {{\[}}[8.000000e+00]]]> : tensor<2x1x1xf32>
    // CHECK: linalg.generic {{.*}} ins(%[[CONV]], %[[NEW]] :
    // CHECK-NOT: 9.000000e+00
    // CHECK-NOT: 1.100000e+01
    %1 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "added"} ins(%0, %v : tensor<1x2x1x1xf32>, tensor<2x2x1x1xf32>)
      outs(%from : tensor<1x2x1x1xf32>) -> tensor<1x2x1x1xf32>
    %2 = linalg.generic {indexing_maps = [#id, #channel, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
      ins(%1, %b : tensor<1x2x1x1xf32>, tensor<2x1x1xf32>) outs(%e : tensor<1x2x1x1xf32>) attrs = {quantune.layer = "added"} {
    ^bb0(%p: f32, %q: f32, %out: f32):
      %s = arith.addf %p, %q : f32
      linalg.yield %s : f32
    } -> tensor<1x2x1x1xf32>
    %flat = tensor.collapse_shape %2 [[0], [1, 2, 3]] : tensor<1x2x1x1xf32> into tensor<1x2xf32>
    %m = arith.constant dense<1.0> : tensor<2x3xf32>
    %f = tensor.empty() : tensor<1x3xf32>
    %none = linalg.fill ins(%zero : f32) outs(%f : tensor<1x3xf32>) -> tensor<1x3xf32>
    // CHECK: %[[M:.*]] = arith.constant dense<{{\[}}[1.000000e+00, 3.000000e+00, 5.000000e+00], [2.000000e+00, 4.000000e+00, 6.000000e+00]]>
    // CHECK: %[[PRODUCT:.*]] = linalg.matmul {{.*}} ins(%{{.*}}, %[[M]]
    // CHECK: %[[C:.*]] = arith.constant dense<[1.000000e+00, 2.000000e+00, 4.000000e+00]> : tensor<3xf32>
    // CHECK: %[[SUM:.*]] = linalg.generic {{.*}} ins(%[[PRODUCT]], %[[C]] :
    // CHECK: return %[[SUM]]
    %3 = linalg.matmul {quantune.layer = "fc"} ins(%flat, %m : tensor<1x2xf32>, tensor<2x3xf32>)
      outs(%none : tensor<1x3xf32>) -> tensor<1x3xf32>
    return %3 : tensor<1x3xf32>
  }
}
