// RUN: quantune-opt %s --pass-pipeline='quantune-outline-parameters{scope=net}' | FileCheck %s

// Numbers are data: other numbers give the same text.
// RUN: quantune-opt %s --pass-pipeline=quantune-outline-parameters > %t.first
// RUN: sed 's/1\.5/2\.25/' %s | quantune-opt --pass-pipeline=quantune-outline-parameters > %t.second
// RUN: diff %t.first %t.second

// It must come before any pass that merges equal constants: here two parameters would become one.
// RUN: quantune-opt %s --pass-pipeline=canonicalize | FileCheck %s --check-prefix=MERGED
// MERGED-NOT: "conv.low"
// MERGED: "conv.scale"
// MERGED-NOT: "conv.low"

// CHECK: module {
// CHECK-NEXT: "util.global"() {initial_value = #flow.parameter.named<"net"::"conv.weight"> : tensor<2x2xi8>, sym_name = "net.conv.weight", sym_visibility = "private", type = tensor<2x2xi8>} : () -> ()
// CHECK-NEXT: "util.global"() {initial_value = #flow.parameter.named<"net"::"conv.scale"> : tensor<f32>
// CHECK-NEXT: "util.global"() {initial_value = #flow.parameter.named<"net"::"conv.low"> : tensor<f32>
// CHECK-NEXT: func.func @main(%{{.*}}: tensor<2x2xf32> {test.kept})
// CHECK-NEXT: %[[W:.*]] = "util.global.load"() {global = @net.conv.weight, is_immutable} : () -> tensor<2x2xi8>
// CHECK-NEXT: %[[S:.*]] = "util.global.load"() {global = @net.conv.scale, is_immutable} : () -> tensor<f32>
// CHECK-NEXT: %[[L:.*]] = "util.global.load"() {global = @net.conv.low, is_immutable} : () -> tensor<f32>
// CHECK-NEXT: %[[AGAIN:.*]] = "util.global.load"() {global = @net.conv.scale, is_immutable} : () -> tensor<f32>
// CHECK-NEXT: %[[KEPT:.*]] = arith.constant dense<7> : tensor<i32>
// CHECK-NEXT: tensor.empty() {test.kept}
// CHECK-NEXT: return %[[W]], %[[S]], %[[L]], %[[AGAIN]], %[[KEPT]]
func.func @main(%x: tensor<2x2xf32> {test.kept, quantune.output = !quant.uniform<i8:f32, 1.5>})
    -> (tensor<2x2xi8>, tensor<f32>, tensor<f32>, tensor<f32>, tensor<i32>) {
  %w = arith.constant {quantune.parameter = "conv.weight"} dense<[[1, 2], [3, 4]]> : tensor<2x2xi8>
  %s = arith.constant {quantune.parameter = "conv.scale"} dense<1.5> : tensor<f32>
  %l = arith.constant {quantune.parameter = "conv.low"} dense<1.5> : tensor<f32>
  %t = arith.constant {quantune.parameter = "conv.scale"} dense<1.5> : tensor<f32>
  %c = arith.constant dense<7> : tensor<i32>
  %e = tensor.empty() {test.kept, quantune.weight = !quant.uniform<i8:f32, 1.5>} : tensor<4xf32>
  return %w, %s, %l, %t, %c : tensor<2x2xi8>, tensor<f32>, tensor<f32>, tensor<f32>, tensor<i32>
}
