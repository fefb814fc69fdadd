// RUN: quantune-opt %s --pass-pipeline='quantune-summarize{strides=3,1}' | FileCheck %s
// RUN: quantune-opt %s --pass-pipeline='quantune-summarize{strides=5}' | FileCheck %s --check-prefix=LAST

// The sample is taken where the tensor is stored: no transpose and no slice in the summary, but for the extremes' window.
//       CHECK: func.func @summary(%[[X:.*]]: tensor<2x4x4x2xf32>, %[[FIRST:.*]]: tensor<1xi64>) -> tensor<2x11xf32>
//   CHECK-NOT: linalg.transpose
//       CHECK: %[[INSIDE:.*]] = tensor.extract_slice %[[X]][0, 1, 0, 0] [2, 2, 3, 2] [1, 1, 1, 1]
//       CHECK: linalg.generic
//       CHECK:   tensor.extract %[[FIRST]]
//       CHECK:   tensor.extract %[[X]][
//       CHECK: linalg.generic {{.*}}iterator_types = ["parallel", "reduction", "reduction", "reduction"]
//  CHECK-SAME:   ins(%[[INSIDE]] : tensor<2x2x3x2xf32>)
//       CHECK:   arith.minimumf
//       CHECK:   arith.maximumf
//       CHECK: %[[ALL:.*]] = linalg.generic
//       CHECK: %[[S:.*]] = tensor.concat dim(1) {{.*}} : (tensor<2x4xf32>, tensor<2x1xf32>, tensor<2x1xf32>, tensor<2x5xf32>)
//       CHECK: return %[[S]] : tensor<2x11xf32>
//       CHECK: func.func @main(%{{.*}}: tensor<2x4x4x2xf32> {test.lost}) -> (tensor<2x2x2x3xf32>, tensor<2x5xf32>)
//       CHECK:   linalg.transpose

// Only the last results have strides: the second one alone.
//       LAST: func.func @summary({{.*}}) -> tensor<2x3xf32>
//   LAST-NOT:   tensor.extract_slice
//       LAST: func.func @main
func.func @main(%x: tensor<2x4x4x2xf32> {test.lost}) -> (tensor<2x2x2x3xf32>, tensor<2x5xf32>) {
  %inside = tensor.extract_slice %x[0, 1, 0, 0] [2, 2, 3, 2] [1, 1, 1, 1] : tensor<2x4x4x2xf32> to tensor<2x2x3x2xf32>
  %empty = tensor.empty() : tensor<2x2x2x3xf32>
  %first = linalg.transpose ins(%inside : tensor<2x2x3x2xf32>) outs(%empty : tensor<2x2x2x3xf32>) permutation = [0, 3, 1, 2]
  %zero = arith.constant 0.0 : f32
  %start = tensor.empty() : tensor<2x5xf32>
  %second = linalg.fill ins(%zero : f32) outs(%start : tensor<2x5xf32>) -> tensor<2x5xf32>
  return %first, %second : tensor<2x2x2x3xf32>, tensor<2x5xf32>
}
