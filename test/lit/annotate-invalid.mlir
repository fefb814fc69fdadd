// RUN: echo '{"activations": {}, "weights": {}, "requantize": "table"}' > %t.way && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.way}' 2>&1 | FileCheck %s --check-prefix=WAY
// WAY: error: 'builtin.module' op cannot be annotated: plan '{{.*}}way' is unreadable: 'table'

// RUN: not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.none}' 2>&1 | FileCheck %s --check-prefix=MISSING
// MISSING: error: 'builtin.module' op cannot be annotated: plan '{{.*}}none' is unreadable: [Errno 2] No such file or directory

// RUN: echo '[]' > %t.list && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.list}' 2>&1 | FileCheck %s --check-prefix=LIST
// LIST: error: 'builtin.module' op cannot be annotated: plan '{{.*}}list' is unreadable: list indices must be integers

// RUN: echo '{"activations": {"nobody": {}}, "weights": {}}' > %t.name && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.name}' 2>&1 | FileCheck %s --check-prefix=NAME
// NAME: error: 'builtin.module' op has no tensor named 'nobody', which the plan quantizes (pass quantune-annotate)

// RUN: echo '{"activations": {"input": {"scale": [0.0], "zero_point": [0], "min": 0, "max": 255}}, "weights": {}}' > %t.scale && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.scale}' 2>&1 | FileCheck %s --check-prefix=SCALE
// SCALE: error: 'builtin.module' op has no usable quantization for 'input': scale is 0.0; expected a positive number that f32 can hold

// RUN: echo '{"activations": {"input": {"scale": [1.0]}}, "weights": {}}' > %t.field && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.field}' 2>&1 | FileCheck %s --check-prefix=FIELD
// FIELD: error: 'builtin.module' op has no usable quantization for 'input': 'min'

// RUN: echo '{"activations": {}, "weights": {"relu": {}}}' > %t.kind && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.kind}' 2>&1 | FileCheck %s --check-prefix=KIND
// KIND: annotate-invalid.mlir:[[RELU:.*]]: error: 'linalg.generic' op has no constant weight to quantize: 'relu' is a clamp

// RUN: echo '{"activations": {}, "weights": {"conv": 3}}' > %t.entry && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.entry}' 2>&1 | FileCheck %s --check-prefix=ENTRY
// ENTRY: error: 'linalg.conv_2d_nchw_fchw' op has no usable quantization for 'conv': 'int' object is not subscriptable

// RUN: echo '{"activations": {}, "weights": {"conv": {"scale": [1.0, 1.0, 1.0], "zero_point": [0, 0, 0], "min": -127, "max": 127, "per_channel": true}}}' > %t.count && not quantune-opt %s --pass-pipeline='quantune-annotate{plan=%t.count}' 2>&1 | FileCheck %s --check-prefix=COUNT
// COUNT: error: 'linalg.conv_2d_nchw_fchw' op has 4 output channels, but the plan has 3 scales

// RUN: echo '{"activations": {"sort#2": {"scale": [1.0], "zero_point": [0], "min": 0, "max": 255}}, "weights": {}}' > %t.second && not quantune-opt %s --allow-unregistered-dialect --pass-pipeline='quantune-annotate{plan=%t.second}' 2>&1 | FileCheck %s --check-prefix=SECOND
// SECOND: error: 'linalg.generic' op cannot have 'sort#2' quantized: only its first result can be

// RUN: echo 'func.func @f(%%x: tensor<?xf32>) { return }' > %t.mlir && echo '{"activations": {}, "weights": {}}' > %t.empty && not quantune-opt %t.mlir --pass-pipeline='quantune-annotate{plan=%t.empty}' 2>&1 | FileCheck %s --check-prefix=DYNAMIC
// DYNAMIC: error: 'func.func' op is no network's: argument 0 has type tensor<?xf32>; expected a tensor of static shape

#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
func.func @main(%x: tensor<1x2x4x4xf32>) -> tensor<1x4x4x4xf32> {
  %zero = arith.constant 0.0 : f32
  %e = tensor.empty() : tensor<1x4x4x4xf32>
  %start = linalg.fill ins(%zero : f32) outs(%e : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
  %w = arith.constant dense<1.0> : tensor<4x2x1x1xf32>
  %0 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv"} ins(%x, %w : tensor<1x2x4x4xf32>, tensor<4x2x1x1xf32>)
    outs(%start : tensor<1x4x4x4xf32>) -> tensor<1x4x4x4xf32>
  %1 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%0 : tensor<1x4x4x4xf32>) outs(%e : tensor<1x4x4x4xf32>) attrs = {quantune.layer = "relu"} {
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ugt, %a, %zero : f32
    %s = arith.select %c, %a, %zero : f32
    linalg.yield %s : f32
  } -> tensor<1x4x4x4xf32>
  %2:2 = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%1 : tensor<1x4x4x4xf32>) outs(%e, %e : tensor<1x4x4x4xf32>, tensor<1x4x4x4xf32>)
    attrs = {quantune.layer = "sort"} {
  ^bb0(%a: f32, %b: f32, %c: f32):
    linalg.yield %a, %a : f32, f32
  } -> (tensor<1x4x4x4xf32>, tensor<1x4x4x4xf32>)
  return %2#1 : tensor<1x4x4x4xf32>
}
