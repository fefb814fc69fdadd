// RUN: quantune-opt %s --pass-pipeline=linalg-generalize-named-ops,quantune-vulkan-sign-extension | FileCheck %s
// RUN: quantune-opt %s --pass-pipeline=linalg-generalize-named-ops,quantune-vulkan-sign-extension | FileCheck %s --check-prefix=GONE

// GONE-NOT: arith.extsi {{.*}} : i8
// GONE-NOT: arith.extsi {{.*}} : i16

// CHECK-LABEL: func.func @matmul
//       CHECK: linalg.generic {{.*}} attrs =  {quantune.layer = "fc"}
//  CHECK-NEXT: ^bb0(%[[A:.*]]: i8, %[[B:.*]]: i8, %{{.*}}: i32):
//  CHECK-NEXT: %[[K:.*]] = arith.constant 128 : i32
//  CHECK-NEXT: %[[U:.*]] = arith.extui %[[A]] : i8 to i32
//  CHECK-NEXT: %[[X:.*]] = arith.xori %[[U]], %[[K]] : i32
//  CHECK-NEXT: %[[LEFT:.*]] = arith.subi %[[X]], %[[K]] : i32
//       CHECK: arith.extui %[[B]] : i8 to i32
//       CHECK: %[[RIGHT:.*]] = arith.subi
//       CHECK: arith.muli %[[LEFT]], %[[RIGHT]] : i32
func.func @matmul(%a: tensor<2x3xi8>, %b: tensor<3x4xi8>, %acc: tensor<2x4xi32>) -> tensor<2x4xi32> {
  %0 = linalg.matmul {quantune.layer = "fc"} ins(%a, %b : tensor<2x3xi8>, tensor<3x4xi8>) outs(%acc : tensor<2x4xi32>) -> tensor<2x4xi32>
  return %0 : tensor<2x4xi32>
}

// CHECK-LABEL: func.func @widths
//       CHECK: %[[K16:.*]] = arith.constant 32768 : i64
//  CHECK-NEXT: arith.extui %{{.*}} : i16 to i64
//       CHECK: arith.extsi %{{.*}} : i32 to i64
//       CHECK: arith.extui %{{.*}} : i8 to i64
//       CHECK: arith.sitofp
func.func @widths(%a: i16, %b: i32, %c: i8) -> (i64, i64, i64, f32) {
  %0 = arith.extsi %a : i16 to i64
  %1 = arith.extsi %b : i32 to i64
  %2 = arith.extsi %c : i8 to i64
  %3 = arith.sitofp %c : i8 to f32
  return %0, %1, %2, %3 : i64, i64, i64, f32
}
