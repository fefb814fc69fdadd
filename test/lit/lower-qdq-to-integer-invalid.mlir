// RUN: not quantune-opt %s --split-input-file --pass-pipeline=quantune-lower-qdq-to-integer 2>&1 | FileCheck %s

// CHECK: error: 'func.func' op is no network's: argument 0 has type tensor<?xf32>; expected a tensor of static shape
func.func @dynamic(%x: tensor<?xf32>) {
  return
}

// -----
// CHECK: lower-qdq-to-integer-invalid.mlir:13:8: error: 'quant.qcast' op quantizes 'input' a second time with another type: !quant.uniform<i8:f32, 2.500000e-01>, !quant.uniform<i8:f32, 5.000000e-01>
func.func @twice(%x: tensor<4xf32>) -> tensor<4xf32> {
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!quant.uniform<i8:f32, 0.5>>
  %1 = quant.dcast %0 : tensor<4x!quant.uniform<i8:f32, 0.5>> to tensor<4xf32>
  %2 = quant.qcast %x : tensor<4xf32> to tensor<4x!quant.uniform<i8:f32, 0.25>>
  return %1 : tensor<4xf32>
}

// -----
// CHECK: lower-qdq-to-integer-invalid.mlir:20:8: error: 'quant.qcast' op has unusable quantization parameters: zero point is 300
func.func @zero_point(%x: tensor<4xf32>) {
  %0 = quant.qcast %x : tensor<4xf32> to tensor<4x!quant.uniform<i8:f32, 0.5:300>>
  return
}

// -----
// CHECK: lower-qdq-to-integer-invalid.mlir:27:8: error: 'quant.qcast' op quantizes an activation with 2 scales; expected one for the tensor
func.func @channels(%x: tensor<2x4xf32>) {
  %0 = quant.qcast %x : tensor<2x4xf32> to tensor<2x4x!quant.uniform<i8:f32:0, {0.5, 0.25}>>
  return
}

// -----
!x = !quant.uniform<i8:f32, 0.5>
!w = !quant.uniform<u8:f32, 0.5:7>
// CHECK: lower-qdq-to-integer-invalid.mlir:42:8: error: 'linalg.matmul' op has a weight with zero points (-121,); expected 0, signed
func.func @unsigned(%x: tensor<1x2xf32>) -> tensor<1x3xf32> {
  %0 = quant.qcast %x : tensor<1x2xf32> to tensor<1x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x!x> to tensor<1x2xf32>
  %w = arith.constant dense<1.0> : tensor<2x3xf32>
  %2 = quant.qcast %w : tensor<2x3xf32> to tensor<2x3x!w>
  %3 = quant.dcast %2 : tensor<2x3x!w> to tensor<2x3xf32>
  %start = arith.constant dense<1.0> : tensor<1x3xf32>
  %4 = linalg.matmul ins(%1, %3 : tensor<1x2xf32>, tensor<2x3xf32>) outs(%start : tensor<1x3xf32>) -> tensor<1x3xf32>
  return %4 : tensor<1x3xf32>
}

// -----
!x = !quant.uniform<i8:f32, 0.5>
!w = !quant.uniform<i8:f32:0, {0.5, 0.25}>
// CHECK: lower-qdq-to-integer-invalid.mlir:57:8: error: 'linalg.matmul' op has a weight with 2 scales along dimension 0; expected 1 or one per output
func.func @rows(%x: tensor<1x2xf32>) -> tensor<1x3xf32> {
  %0 = quant.qcast %x : tensor<1x2xf32> to tensor<1x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x!x> to tensor<1x2xf32>
  %w = arith.constant dense<1.0> : tensor<2x3xf32>
  %2 = quant.qcast %w : tensor<2x3xf32> to tensor<2x3x!w>
  %3 = quant.dcast %2 : tensor<2x3x!w> to tensor<2x3xf32>
  %start = arith.constant dense<1.0> : tensor<1x3xf32>
  %4 = linalg.matmul ins(%1, %3 : tensor<1x2xf32>, tensor<2x3xf32>) outs(%start : tensor<1x3xf32>) -> tensor<1x3xf32>
  return %4 : tensor<1x3xf32>
}

// -----
!x = !quant.uniform<i8:f32, 0.5>
!w = !quant.uniform<i8<-127:127>:f32, 0.3>
// CHECK: lower-qdq-to-integer-invalid.mlir:72:8: error: 'linalg.matmul' op is to requantize by shifts, but its scales are no powers of two
func.func @shifts(%x: tensor<1x2xf32>) -> tensor<1x3xf32> {
  %0 = quant.qcast %x : tensor<1x2xf32> to tensor<1x2x!x>
  %1 = quant.dcast %0 : tensor<1x2x!x> to tensor<1x2xf32>
  %w = arith.constant dense<1.0> : tensor<2x3xf32>
  %2 = quant.qcast %w : tensor<2x3xf32> to tensor<2x3x!w>
  %3 = quant.dcast %2 : tensor<2x3x!w> to tensor<2x3xf32>
  %start = arith.constant dense<1.0> : tensor<1x3xf32>
  %4 = linalg.matmul {quantune.requantize = "shift"} ins(%1, %3 : tensor<1x2xf32>, tensor<2x3xf32>)
    outs(%start : tensor<1x3xf32>) -> tensor<1x3xf32>
  %5 = quant.qcast %4 : tensor<1x3xf32> to tensor<1x3x!x>
  %6 = quant.dcast %5 : tensor<1x3x!x> to tensor<1x3xf32>
  return %6 : tensor<1x3xf32>
}
