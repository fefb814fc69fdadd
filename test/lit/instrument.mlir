// RUN: quantune-opt %s --pass-pipeline='quantune-instrument{tensors=input,conv}' | FileCheck %s
// RUN: quantune-opt %s --pass-pipeline='quantune-instrument{tensors=all}' | FileCheck %s --check-prefix=ALL

// CHECK-LABEL: func.func @main
//  CHECK-SAME: (%[[X:.*]]: tensor<1x2x2x2xf32>)
//  CHECK-SAME: -> (tensor<1x2x1x1xf32>, tensor<1x2x2x2xf32>, tensor<1x2x2x2xf32>)
//   CHECK-NOT: test.lost
//       CHECK: %[[CONV:.*]] = linalg.conv_2d_nchw_fchw
//       CHECK: %[[POOL:.*]] = linalg.pooling_nchw_max
//       CHECK: return %[[POOL]], %[[X]], %[[CONV]]

// ALL: return %[[POOL:.*]], %{{.*}}, %{{.*}}, %[[POOL]] : tensor<1x2x1x1xf32>, tensor<1x2x2x2xf32>, tensor<1x2x2x2xf32>, tensor<1x2x1x1xf32>
func.func @main(%x: tensor<1x2x2x2xf32>) -> (tensor<1x2x1x1xf32> {test.lost}) {
  %w = arith.constant dense<1.0> : tensor<2x2x1x1xf32>
  %start = arith.constant dense<0.0> : tensor<1x2x2x2xf32>
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv"} ins(%x, %w : tensor<1x2x2x2xf32>, tensor<2x2x1x1xf32>)
    outs(%start : tensor<1x2x2x2xf32>) -> tensor<1x2x2x2xf32>
  %lowest = arith.constant dense<0xFF800000> : tensor<1x2x1x1xf32>
  %window = tensor.empty() : tensor<2x2xf32>
  %1 = linalg.pooling_nchw_max {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>}
    ins(%0, %window : tensor<1x2x2x2xf32>, tensor<2x2xf32>) outs(%lowest : tensor<1x2x1x1xf32>) -> tensor<1x2x1x1xf32>
  return %1 : tensor<1x2x1x1xf32>
}
