// RUN: quantune-opt %s --split-input-file --pass-pipeline=quantune-pack-weights | FileCheck %s

// Two layers of three bits share an initializer, one of four bits has its own. The integers -3, 0, 3, 1 are stored as
// 0, 3, 6, 4: bit 0 of them is 0, 1, 0, 0 (the byte 2), bit 1 is 0, 1, 1, 0 (6), bit 2 is 0, 0, 1, 1 (12).
// What fills a layer's room is 0, stored as 3 = 0b011: bits 0 and 1 are set there. The second layer's -2 is stored as 1.
// CHECK-LABEL: module {
// CHECK-NEXT: "util.global"() {sym_name = "packed.a.weight", sym_visibility = "private", type = tensor<2x2xi8>}
// CHECK-NEXT: "util.global"() {sym_name = "packed.c.weight", sym_visibility = "private", type = tensor<1xi8>}
// CHECK-NEXT: "util.initializer"() ({
// CHECK-NEXT: %[[BITS:.*]] = arith.constant dense<"0xF2{{(FF)+}}F6{{(FF)+}}FE{{(FF)+}}0C{{(00)+}}"> : tensor<3x128xi8>
// CHECK-NEXT: %[[KEPT:.*]] = "util.optimization_barrier"(%[[BITS]]) : (tensor<3x128xi8>) -> tensor<3x128xi8>
// CHECK: linalg.generic {{.*}} ins(%[[KEPT]], %[[KEPT]], %[[KEPT]] : tensor<3x128xi8>, tensor<3x128xi8>, tensor<3x128xi8>)
// CHECK: linalg.index 1
// CHECK: arith.constant -3 : i32
// CHECK-COUNT-3: arith.shrui
// CHECK: %[[FLAT:.*]] = tensor.collapse_shape %{{.*}} {{\[\[}}0, 1]] : tensor<128x8xi8> into tensor<1024xi8>
// CHECK-NEXT: %[[A:.*]] = tensor.extract_slice %[[FLAT]][0] [4] [1]
// CHECK-NEXT: %[[SHAPED:.*]] = tensor.expand_shape %[[A]] {{\[\[}}0, 1]] output_shape [2, 2]
// CHECK-NEXT: "util.global.store"(%[[SHAPED]]) {global = @packed.a.weight}
// CHECK-NEXT: %[[C:.*]] = tensor.extract_slice %[[FLAT]][512] [1] [1]
// CHECK-NEXT: "util.global.store"(%[[C]]) {global = @packed.c.weight}
// CHECK-NEXT: "util.return"() : () -> ()
// CHECK: "util.global"() {sym_name = "packed.b.weight"
// CHECK: tensor<4x64xi8>
// CHECK: func.func @main
// CHECK-NEXT: %[[WA:.*]] = "util.global.load"() {global = @packed.a.weight, is_immutable} : () -> tensor<2x2xi8>
// CHECK-NEXT: %[[WB:.*]] = "util.global.load"() {global = @packed.b.weight, is_immutable} : () -> tensor<1xi8>
// CHECK-NEXT: %[[WC:.*]] = "util.global.load"() {global = @packed.c.weight, is_immutable} : () -> tensor<1xi8>
// CHECK-NEXT: return %[[WA]], %[[WB]], %[[WC]]
func.func @main() -> (tensor<2x2xi8>, tensor<1xi8>, tensor<1xi8>) {
  %a = arith.constant {quantune.parameter = "a.weight"} dense<[[-3, 0], [3, 1]]> : tensor<2x2xi8>
  %b = arith.constant {quantune.parameter = "b.weight"} dense<7> : tensor<1xi8>
  %c = arith.constant {quantune.parameter = "c.weight"} dense<-2> : tensor<1xi8>
  return %a, %b, %c : tensor<2x2xi8>, tensor<1xi8>, tensor<1xi8>
}

// -----
// Eight bits, other roles and types, and constants without a tag stay as they are.
// CHECK-LABEL: module {
// CHECK-NOT: util.
// CHECK: func.func @rest
// CHECK-COUNT-4: arith.constant
// CHECK-NOT: util.
func.func @rest() -> (tensor<2xi8>, tensor<2xi8>, tensor<2xi32>, tensor<2xi8>) {
  %a = arith.constant {quantune.parameter = "a.weight"} dense<[64, 1]> : tensor<2xi8>
  %b = arith.constant {quantune.parameter = "a.padding"} dense<1> : tensor<2xi8>
  %c = arith.constant {quantune.parameter = "b.weight"} dense<1> : tensor<2xi32>
  %d = arith.constant dense<1> : tensor<2xi8>
  return %a, %b, %c, %d : tensor<2xi8>, tensor<2xi8>, tensor<2xi32>, tensor<2xi8>
}
