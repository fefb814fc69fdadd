// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-insert-qdq 2>&1 | FileCheck %s

// CHECK: insert-qdq-invalid.mlir:4:1: error: 'func.func' op has no usable quantized type: zero point is 300; expected it inside [-128, 127] (pass quantune-insert-qdq)
func.func @zero_point(%x: tensor<4xf32> {quantune.output = !quant.uniform<i8:f32, 0.5:300>}) {
  return
}

// -----
// CHECK: insert-qdq-invalid.mlir:10:1: error: 'func.func' op has no usable quantized type: i8 is not a uniform quantized type
func.func @type(%x: tensor<4xf32> {quantune.output = i8}) {
  return
}

// -----
// CHECK: insert-qdq-invalid.mlir:17:8: error: 'tensor.empty' op has elements of type i8; expected f32 to quantize
func.func @elements() -> tensor<4xi8> {
  %0 = tensor.empty() {quantune.output = !quant.uniform<i8:f32, 0.5>} : tensor<4xi8>
  return %0 : tensor<4xi8>
}

// -----
// CHECK: insert-qdq-invalid.mlir:24:8: error: quantized dimension size does not match number of scales
func.func @channels() -> tensor<4xf32> {
  %0 = tensor.empty() {quantune.output = !quant.uniform<i8:f32:0, {0.5, 0.25}>} : tensor<4xf32>
  return %0 : tensor<4xf32>
}

// -----
// CHECK: insert-qdq-invalid.mlir:31:3: error: 'func.return' op has no result to quantize
func.func @nothing() {
  "func.return"() {quantune.output = !quant.uniform<i8:f32, 0.5>} : () -> ()
}

// -----
// CHECK: error: 'builtin.module' op is no network: expected one func.func with a body, found 2
func.func @two() {
  return
}
func.func @functions() {
  return
}
