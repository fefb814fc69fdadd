// RUN: not quantune-opt %s --split-input-file --pass-pipeline='quantune-set-constants' 2>&1 | FileCheck %s

// CHECK: error: 'builtin.module' op has no constants to set: quantune.constants is missing (pass quantune-set-constants)
module {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'builtin.module' op has no constants to set: quantune.constants is 3 : i64
module attributes {quantune.constants = 3} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'builtin.module' op has no layer named 'nobody', which is to get constants
module attributes {quantune.constants = {nobody = {}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'builtin.module' op has no constants to set: 'input' is of kind input
module attributes {quantune.constants = {input = {}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'linalg.conv_2d_nchw_fchw' op has no usable constants: 1 : i64; expected weight and bias
module attributes {quantune.constants = {conv = 1}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'linalg.conv_2d_nchw_fchw' op cannot have 'scale' set; expected weight or bias
module attributes {quantune.constants = {conv = {scale = dense<1.0> : tensor<4xf32>}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'linalg.conv_2d_nchw_fchw' op has a bias of f32[4]; cannot be set to float32[3]
module attributes {quantune.constants = {conv = {bias = dense<1.0> : tensor<3xf32>}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'linalg.conv_2d_nchw_fchw' op has a weight of f32[4, 2, 1, 1]; cannot be set to int8[4, 2, 1, 1]
module attributes {quantune.constants = {conv = {weight = dense<1> : tensor<4x2x1x1xi8>}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'linalg.conv_2d_nchw_fchw' op has a bias of f32[4]; cannot be set to float64[0]
module attributes {quantune.constants = {conv = {bias = "none"}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}

// -----

// CHECK: error: 'linalg.conv_2d_nchw_fchw' op cannot have a bias with 1 numbers not finite
module attributes {quantune.constants = {conv = {bias = dense<[1.0, 0x7F800000, 2.0, 3.0]> : tensor<4xf32>}}} {
  func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
    %zero = arith.constant 0.0 : f32
    %e = tensor.empty() : tensor<1x4x4x4xf32>
    %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
    %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
      quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
      outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
    return %0 : tensor<1x4x4x4xf32>
  }
}
