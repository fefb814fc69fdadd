// RUN: quantune-opt %s --split-input-file --pass-pipeline=quantune-pack-weights | FileCheck %s

// Two layers of three bits share an initializer, one of four bits has its own. The integers -3, 0, 3, 1, -2, 2 are
// stored as 0, 3, 6, 4, 1, 5: bit 0 of them is 0, 1, 0, 0, 1, 1 (the byte 50), bit 1 is 0, 1, 1, 0, 0, 0 (6), bit 2 is
// 0, 0, 1, 1, 0, 1 (44). What fills a layer's room is 0, stored as 3 = 0b011: bits 0 and 1 are set there.
// CHECK-LABEL: module {
// CHECK-NEXT: "util.global"() {sym_name = "packed.a.weight", sym_visibility = "private", type = tensor<2x3xi8>}
// CHECK-NEXT: "util.global"() {sym_name = "packed.c.weight", sym_visibility = "private", type = tensor<6xi8>}
// CHECK-NEXT: "util.initializer"() ({
// CHECK-NEXT: %[[BITS:.*]] = arith.constant dense<"0xF2{{(FF)+}}F2{{(FF)+}}C6{{(FF)+}}C6{{(FF)+}}2C{{(00)+}}2C{{(00)+}}"> : tensor<3x128xi8>
// CHECK-NEXT: %[[KEPT:.*]] = "util.optimization_barrier"(%[[BITS]]) : (tensor<3x128xi8>) -> tensor<3x128xi8>
// CHECK-NEXT: %[[PLANES:.*]] = tensor.expand_shape %[[KEPT]] {{\[\[}}0], [1, 2]] output_shape [3, 1, 128]
// CHECK: linalg.generic {{.*}} ins(%[[PLANES]], %[[PLANES]], %[[PLANES]] : tensor<3x1x128xi8>, tensor<3x1x128xi8>, tensor<3x1x128xi8>)
// CHECK: linalg.index 2
// CHECK-COUNT-3: arith.shrui
// CHECK: arith.constant -3 : i32
// CHECK: %[[FLAT:.*]] = tensor.collapse_shape %{{.*}} {{\[\[}}0, 1, 2]] : tensor<1x128x8xi8> into tensor<1024xi8>
// CHECK-NEXT: %[[A:.*]] = tensor.extract_slice %[[FLAT]][0] [6] [1]
// CHECK-NEXT: %[[SHAPED:.*]] = tensor.expand_shape %[[A]] {{\[\[}}0, 1]] output_shape [2, 3]
// CHECK-NEXT: "util.global.store"(%[[SHAPED]]) {global = @packed.a.weight}
// CHECK-NEXT: %[[C:.*]] = tensor.extract_slice %[[FLAT]][512] [6] [1]
// CHECK-NEXT: "util.global.store"(%[[C]]) {global = @packed.c.weight}
// CHECK-NEXT: "util.return"() : () -> ()
// CHECK: "util.global"() {sym_name = "packed.b.weight"
// CHECK: tensor<4x64xi8>
// CHECK-NOT: tensor.extract %
// CHECK: func.func @main
// CHECK-NEXT: %[[WA:.*]] = "util.global.load"() {global = @packed.a.weight, is_immutable} : () -> tensor<2x3xi8>
// CHECK-NEXT: %[[WB:.*]] = "util.global.load"() {global = @packed.b.weight, is_immutable} : () -> tensor<9xi8>
// CHECK-NEXT: %[[WC:.*]] = "util.global.load"() {global = @packed.c.weight, is_immutable} : () -> tensor<6xi8>
// CHECK-NEXT: return %[[WA]], %[[WB]], %[[WC]]
func.func @main() -> (tensor<2x3xi8>, tensor<9xi8>, tensor<6xi8>) {
  %a = arith.constant {quantune.parameter = "a.weight"} dense<[[-3, 0, 3], [1, -2, 2]]> : tensor<2x3xi8>
  %b = arith.constant {quantune.parameter = "b.weight"} dense<[7, 6, 5, 4, 3, 2, 1, 0, -1]> : tensor<9xi8>
  %c = arith.constant {quantune.parameter = "c.weight"} dense<[-3, 0, 3, 1, -2, 2]> : tensor<6xi8>
  return %a, %b, %c : tensor<2x3xi8>, tensor<9xi8>, tensor<6xi8>
}

// -----
// Integers of a table: a power-of-two format's eight need three bits where their range would take six. They are numbered
// 0 to 7: bit 0 is 170, bit 1 is 204, bit 2 is 240. A layer of the same bits has a row of its own, a second block of 512
// integers the number of its row again; what fills the room is integer 0 of the row.
// CHECK-LABEL: module {
// CHECK: "util.initializer"() ({
// CHECK-NEXT: %[[TABLE:.*]] = arith.constant dense<{{\[\[}}-16, -8, -4, -1, 1, 4, 8, 16], [-9, -7, -5, -3, 1, 2, 0, 0]]> : tensor<2x8xi8>
// CHECK-NEXT: %[[ROWS:.*]] = arith.constant dense<[0, 1]> : tensor<2xi8>
// CHECK-NEXT: arith.constant dense<"0xAA{{(00)+}}2A{{(00)+}}CC{{(00)+}}0C{{(00)+}}F0{{(00)+}}30{{(00)+}}"> : tensor<3x128xi8>
// CHECK: tensor.expand_shape {{.*}} output_shape [3, 2, 64]
// CHECK: linalg.generic {{.*}}, %[[ROWS]] : tensor<3x2x64xi8>, tensor<3x2x64xi8>, tensor<3x2x64xi8>, tensor<2xi8>)
// CHECK: tensor.extract %[[TABLE]][%{{.*}}, %{{.*}}] : tensor<2x8xi8>
// CHECK: into tensor<1024xi8>
// CHECK: tensor.extract_slice %{{.*}}[0] [8] [1]
// CHECK: global = @packed.a.weight
// CHECK: tensor.extract_slice %{{.*}}[512] [6] [1]
// CHECK: global = @packed.b.weight
// CHECK: func.func @tables
func.func @tables() -> (tensor<8xi8>, tensor<6xi8>) {
  %a = arith.constant {quantune.parameter = "a.weight"} dense<[-16, -8, -4, -1, 1, 4, 8, 16]> : tensor<8xi8>
  %b = arith.constant {quantune.parameter = "b.weight"} dense<[-9, -7, -5, -3, 1, 2]> : tensor<6xi8>
  return %a, %b : tensor<8xi8>, tensor<6xi8>
}

// -----
// Eight bits, other roles and types, and constants without a tag stay as they are.
// CHECK-LABEL: module {
// CHECK-NOT: util.
// CHECK: func.func @rest
// CHECK-COUNT-4: arith.constant
// CHECK-NOT: util.
func.func @rest() -> (tensor<144xi8>, tensor<2xi8>, tensor<2xi32>, tensor<2xi8>) {
  %a = arith.constant {quantune.parameter = "a.weight"} dense<[-72, -71, -70, -69, -68, -67, -66, -65, -64, -63, -62, -61, -60, -59, -58, -57, -56, -55, -54, -53, -52, -51, -50, -49, -48, -47, -46, -45, -44, -43, -42, -41, -40, -39, -38, -37, -36, -35, -34, -33, -32, -31, -30, -29, -28, -27, -26, -25, -24, -23, -22, -21, -20, -19, -18, -17, -16, -15, -14, -13, -12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 60, 61, 62, 63, 64, 65, 66, 67, 68, 69, 70, 71]> : tensor<144xi8>
  %b = arith.constant {quantune.parameter = "a.padding"} dense<1> : tensor<2xi8>
  %c = arith.constant {quantune.parameter = "b.weight"} dense<1> : tensor<2xi32>
  %d = arith.constant dense<1> : tensor<2xi8>
  return %a, %b, %c, %d : tensor<144xi8>, tensor<2xi8>, tensor<2xi32>, tensor<2xi8>
}
