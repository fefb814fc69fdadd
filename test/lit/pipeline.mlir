// A whole network, stage by stage: what is asked for, what the quant dialect says, what is computed, what is a program.

// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json}' | FileCheck %s --check-prefix=ANNOTATE
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,cse' | FileCheck %s --check-prefix=QDQ
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,quantune-lower-qdq-to-integer' | FileCheck %s --check-prefix=LOWER
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant' | FileCheck %s --check-prefix=INTEGER
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant' | FileCheck %s --check-prefix=GONE
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant,quantune-to-nhwc' | FileCheck %s --check-prefix=NHWC
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant,quantune-to-nhwc,quantune-outline-parameters' | FileCheck %s --check-prefix=PROGRAM
// RUN: quantune-opt %s --pass-pipeline='quantune-annotate{plan=%S/Inputs/pipeline.json},quantune-insert-qdq,quantune-lower-qdq-to-integer,quantune-lower-quant,quantune-to-nhwc,quantune-outline-parameters' | FileCheck %s --check-prefix=NUMBERS

#id = affine_map<(d0, d1, d2, d3) -> (d0, d1, d2, d3)>
#sum = affine_map<(d0, d1, d2, d3) -> (d0, d1)>
#id2 = affine_map<(d0, d1) -> (d0, d1)>
#row = affine_map<(d0, d1) -> (d1)>

// ANNOTATE: func.func @main(%{{.*}}: tensor<1x1x4x4xf32> {quantune.output = !quant.uniform<u8:f32, 2.000000e-02:3>})
// ANNOTATE: linalg.conv_2d_nchw_fchw {{.*}}quantune.weight = !quant.uniform<i8<-127:127>:f32:0, {1.000000e-02,2.000000e-02}>
// ANNOTATE: quantune.layer = "relu", quantune.output = !quant.uniform<u8:f32, 3.000000e-02>
// ANNOTATE: linalg.depthwise_conv_2d_nchw_chw {{.*}}quantune.output = {{.*}}quantune.weight =
// ANNOTATE: linalg.matmul {{.*}}quantune.weight = !quant.uniform<i8<-127:127>:f32:1

// Input, three weights and four tensors.
// QDQ-LABEL: func.func @main
// QDQ-COUNT-8: quant.qcast
// QDQ-NOT: quant.qcast
// QDQ: return

// The only cast left is the one of the input; its storage is what the first layer reads.
// LOWER-LABEL: func.func @main(%arg0
// LOWER: %[[Q:.*]] = quant.qcast %arg0
// LOWER-NEXT: quant.scast %[[Q]]
// LOWER: linalg.matmul {{.*}} tensor<1x2xi8>
// LOWER-NOT: quant.qcast
// LOWER: return

// INTEGER-LABEL: func.func @main(%arg0
// INTEGER: "cast.quantize.scale"
// INTEGER: math.roundeven
// INTEGER: tensor.pad
// INTEGER: linalg.conv_2d_nchw_fchw {{.*}} ins(%{{.*}} : tensor<1x1x6x6xi8>, tensor<2x1x3x3xi8>) outs(%{{.*}} : tensor<1x2x4x4xi32>)
// INTEGER: linalg.depthwise_conv_2d_nchw_chw {{.*}} ins(%{{.*}} : tensor<1x2x4x4xi8>, tensor<2x1x1xi8>) outs(%{{.*}} : tensor<1x2x4x4xi32>)
// INTEGER: "add.m_a"
// INTEGER: arith.shrsi
// INTEGER: iterator_types = ["parallel", "parallel", "reduction", "reduction"]
// INTEGER: linalg.matmul {{.*}} ins(%{{.*}} : tensor<1x2xi8>, tensor<2x3xi8>) outs(%{{.*}} : tensor<1x3xi32>)
// INTEGER: "fc.scale"
// INTEGER: arith.sitofp {{.*}} : i32 to f32
// INTEGER: return %{{.*}} : tensor<1x3xf32>

// No cast, no annotation and no f32 arithmetic between tensors is left.
// GONE-NOT: {{quant\.|quantune\.output|quantune\.weight|arith\.cmpf|arith\.divf %.*, %cst}}

// NHWC-LABEL: func.func @main
// NHWC: linalg.transpose {{.*}} permutation = [0, 2, 3, 1]
// NHWC: linalg.conv_2d_nhwc_hwcf {{.*}} ins(%{{.*}} : tensor<1x6x6x1xi8>, tensor<3x3x1x2xi8>) outs(%{{.*}} : tensor<1x4x4x2xi32>)
// NHWC: linalg.depthwise_conv_2d_nhwc_hwc
// NHWC-NOT: permutation
// NHWC: linalg.matmul

// Numbers are parameters, and nothing in the text depends on them.
// PROGRAM-DAG: #flow.parameter.named<"model"::"conv.weight"> : tensor<3x3x1x2xi8>
// PROGRAM-DAG: #flow.parameter.named<"model"::"conv.bias"> : tensor<2xi32>
// PROGRAM-DAG: #flow.parameter.named<"model"::"conv.padding"> : tensor<i8>
// PROGRAM-DAG: #flow.parameter.named<"model"::"mean.multiplier"> : tensor<2xf32>
// PROGRAM-DAG: #flow.parameter.named<"model"::"fc.scale"> : tensor<3xf32>
// PROGRAM: "util.global.load"() {global = @model.conv.weight
// NUMBERS-NOT: {{dense<[^1]|2.000000e-02}}

func.func @main(%x: tensor<1x1x4x4xf32>) -> tensor<1x3xf32> {
  %zero = arith.constant 0.0 : f32
  %sixteen = arith.constant 16.0 : f32
  %0 = tensor.pad %x low[0, 0, 1, 1] high[0, 0, 1, 1] {
  ^bb0(%i: index, %j: index, %k: index, %l: index):
    tensor.yield %zero : f32
  } : tensor<1x1x4x4xf32> to tensor<1x1x6x6xf32>
  %w0 = arith.constant dense<0.5> : tensor<2x1x3x3xf32>
  %b0 = arith.constant dense<[1.0, 2.0]> : tensor<2xf32>
  %e = tensor.empty() : tensor<1x2x4x4xf32>
  %start = linalg.broadcast ins(%b0 : tensor<2xf32>) outs(%e : tensor<1x2x4x4xf32>) dimensions = [0, 2, 3]
  %1 = linalg.conv_2d_nchw_fchw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "conv"} ins(%0, %w0 : tensor<1x1x6x6xf32>, tensor<2x1x3x3xf32>)
    outs(%start : tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  %2 = linalg.generic {indexing_maps = [#id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%1 : tensor<1x2x4x4xf32>) outs(%e : tensor<1x2x4x4xf32>) attrs = {quantune.layer = "relu"} {
  ^bb0(%a: f32, %out: f32):
    %c = arith.cmpf ugt, %a, %zero : f32
    %s = arith.select %c, %a, %zero : f32
    linalg.yield %s : f32
  } -> tensor<1x2x4x4xf32>
  %w1 = arith.constant dense<1.0> : tensor<2x1x1xf32>
  %none = linalg.fill ins(%zero : f32) outs(%e : tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  %3 = linalg.depthwise_conv_2d_nchw_chw {dilations = dense<1> : vector<2xi64>, strides = dense<1> : vector<2xi64>,
    quantune.layer = "depthwise"} ins(%2, %w1 : tensor<1x2x4x4xf32>, tensor<2x1x1xf32>)
    outs(%none : tensor<1x2x4x4xf32>) -> tensor<1x2x4x4xf32>
  %4 = linalg.generic {indexing_maps = [#id, #id, #id], iterator_types = ["parallel", "parallel", "parallel", "parallel"]}
    ins(%2, %3 : tensor<1x2x4x4xf32>, tensor<1x2x4x4xf32>) outs(%e : tensor<1x2x4x4xf32>) attrs = {quantune.layer = "add"} {
  ^bb0(%a: f32, %b: f32, %out: f32):
    %s = arith.addf %a, %b : f32
    linalg.yield %s : f32
  } -> tensor<1x2x4x4xf32>
  %f = tensor.empty() : tensor<1x2xf32>
  %nothing = linalg.fill ins(%zero : f32) outs(%f : tensor<1x2xf32>) -> tensor<1x2xf32>
  %5 = linalg.generic {indexing_maps = [#id, #sum], iterator_types = ["parallel", "parallel", "reduction", "reduction"]}
    ins(%4 : tensor<1x2x4x4xf32>) outs(%nothing : tensor<1x2xf32>) attrs = {quantune.layer = "mean"} {
  ^bb0(%a: f32, %out: f32):
    %s = arith.addf %a, %out : f32
    linalg.yield %s : f32
  } -> tensor<1x2xf32>
  %6 = linalg.generic {indexing_maps = [#id2, #id2], iterator_types = ["parallel", "parallel"]}
    ins(%5 : tensor<1x2xf32>) outs(%f : tensor<1x2xf32>) attrs = {quantune.layer = "mean"} {
  ^bb0(%a: f32, %out: f32):
    %s = arith.divf %a, %sixteen : f32
    linalg.yield %s : f32
  } -> tensor<1x2xf32>
  %w2 = arith.constant dense<1.0> : tensor<2x3xf32>
  %g = tensor.empty() : tensor<1x3xf32>
  %begin = linalg.fill ins(%zero : f32) outs(%g : tensor<1x3xf32>) -> tensor<1x3xf32>
  %7 = linalg.matmul {quantune.layer = "fc"} ins(%6, %w2 : tensor<1x2xf32>, tensor<2x3xf32>)
    outs(%begin : tensor<1x3xf32>) -> tensor<1x3xf32>
  %b2 = arith.constant dense<[1.0, 2.0, 3.0]> : tensor<3xf32>
  %8 = linalg.generic {indexing_maps = [#id2, #row, #id2], iterator_types = ["parallel", "parallel"]}
    ins(%7, %b2 : tensor<1x3xf32>, tensor<3xf32>) outs(%g : tensor<1x3xf32>) {
  ^bb0(%a: f32, %b: f32, %out: f32):
    %s = arith.addf %a, %b : f32
    linalg.yield %s : f32
  } -> tensor<1x3xf32>
  return %8 : tensor<1x3xf32>
}
