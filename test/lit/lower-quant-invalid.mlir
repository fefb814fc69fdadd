// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-lower-quant 2>&1 | FileCheck %s

// CHECK: lower-quant-invalid.mlir:5:8: error: 'quant.qcast' op casts !quant.uniform<i8:f32, 5.000000e-01>; expected a tensor with static shape (pass quantune-lower-quant)
func.func @scalar(%x: f32) {
  %0 = quant.qcast %x : f32 to !quant.uniform<i8:f32, 0.5>
  return
}

// -----
// CHECK: lower-quant-invalid.mlir:12:8: error: 'quant.qcast' op casts tensor<?x!quant.uniform<i8:f32, 5.000000e-01>>; expected a tensor with static shape
func.func @dynamic(%x: tensor<?xf32>) {
  %0 = quant.qcast %x : tensor<?xf32> to tensor<?x!quant.uniform<i8:f32, 0.5>>
  return
}

// -----
// CHECK: lower-quant-invalid.mlir:19:8: error: 'quant.dcast' op has unusable quantization parameters: !quant.uniform<i4:f32, 5.000000e-01> is not stored in 8 bits; write fewer bits as a range: i8<-8:7>
func.func @storage(%x: tensor<4x!quant.uniform<i4:f32, 0.5>>) {
  %0 = quant.dcast %x : tensor<4x!quant.uniform<i4:f32, 0.5>> to tensor<4xf32>
  return
}

// -----
// CHECK: lower-quant-invalid.mlir:26:8: error: 'quant.qcast' op has unusable quantization parameters: zero point is 300; expected it inside [-128, 127]
func.func @zero_point(%x: tensor<4xf32>) {
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!quant.uniform<i8:f32, 0.5:300>>
  return
}

// -----
// CHECK: lower-quant-invalid.mlir:33:8: error: 'quant.qcast' op has unusable quantization parameters: {{.*}} is not a uniform quantized type, per tensor or per axis
func.func @blocks(%x: tensor<2x4xf32>) {
  %0 = quant.qcast %x : tensor<2x4xf32> to tensor<2x4x!quant.uniform<i8:f32:{0:1, 1:2}, {{0.5, 0.5}, {0.5, 0.5}}>>
  return
}

// -----
// CHECK: lower-quant-invalid.mlir:39:1: error: 'func.func' op has the quantized type tensor<*x!quant.uniform<i8:f32, 5.000000e-01>>; expected a ranked tensor
func.func @unranked(%x: tensor<*x!quant.uniform<i8:f32, 0.5>>) {
  return
}
