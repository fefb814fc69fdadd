// The driver on a module in text: every stage can be printed, and wrong requests end with one line.
//
// RUN: quantune-compile %s --emit=linalg --quiet | FileCheck %s --check-prefix=LINALG
// RUN: env PYTHONPATH=%S/Inputs quantune-compile %s --emit=qdq --calib tiny_images:make --quiet | FileCheck %s --check-prefix=QDQ
// RUN: env PYTHONPATH=%S/Inputs quantune-compile %s --emit=integer --calib tiny_images:make --quiet | FileCheck %s --check-prefix=INTEGER
//
// RUN: not quantune-compile %s --emit=qdq --quiet 2>&1 | FileCheck %s --check-prefix=CALIB
// RUN: not quantune-compile %s --emit=qdq --config precision=f32 --quiet 2>&1 | FileCheck %s --check-prefix=FLOAT
// RUN: not quantune-compile %s --quiet 2>&1 | FileCheck %s --check-prefix=SEARCH
// RUN: not quantune-compile %s --config scheme=asymetric --quiet 2>&1 | FileCheck %s --check-prefix=TYPO
// RUN: not quantune-compile nowhere.mlir --emit=linalg --quiet 2>&1 | FileCheck %s --check-prefix=MISSING

// LINALG: linalg.conv_2d_nchw_fchw {{.*}}quantune.layer = "stem"
// LINALG-NOT: quant.

// QDQ: quant.qcast %arg0 : tensor<1x3x8x8xf32> to tensor<1x3x8x8x!quant.uniform<u8:f32,
// QDQ: quant.qcast %{{.*}} : tensor<4x3x3x3xf32> to tensor<4x3x3x3x!quant.uniform<i8<-127:127>:f32:0, {
// QDQ: linalg.conv_2d_nchw_fchw

// INTEGER-NOT: quant.
// INTEGER: arith.constant {quantune.parameter = "stem.weight"} {{.*}}tensor<4x3x3x3xi8>
// INTEGER: linalg.conv_2d_nchw_fchw {{.*}}ins(%{{.*}} : tensor<1x3x8x8xi8>, tensor<4x3x3x3xi8>) outs(%{{.*}} : tensor<1x4x6x6xi32>)
// INTEGER: arith.mulf


// CALIB: quantune-compile: error: --calib is missing: a quantized configuration needs calibration images
// FLOAT: quantune-compile: error: --emit=qdq with precision=f32: nothing is quantized; use --emit=linalg
// SEARCH: quantune-compile: error: --calib is missing: a search needs --calib and --eval
// TYPO: quantune-compile: error: scheme=asymetric: expected one of {{.*}} (did you mean asymmetric?)
// MISSING: quantune-compile: error: model 'nowhere.mlir': No such file

func.func @main(%x: tensor<1x3x8x8xf32>) -> tensor<1x4x6x6xf32> {
  %zero = arith.constant dense<0.0> : tensor<1x4x6x6xf32>
  %w = arith.constant dense<0.25> : tensor<4x3x3x3xf32>
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>, quantune.layer = "stem"}
    ins(%x, %w : tensor<1x3x8x8xf32>, tensor<4x3x3x3xf32>) outs(%zero : tensor<1x4x6x6xf32>) -> tensor<1x4x6x6xf32>
  return %0 : tensor<1x4x6x6xf32>
}
