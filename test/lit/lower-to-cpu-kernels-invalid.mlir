// RUN: not quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=sse9} 2>&1 | FileCheck %s --check-prefix=UNKNOWN
// RUN: not quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels 2>&1 | FileCheck %s --check-prefix=MISSING
// RUN: not quantune-opt %s --pass-pipeline=quantune-lower-to-cpu-kernels{features=avx512vnni} 2>&1 | FileCheck %s

// UNKNOWN: features is 'sse9'; expected one of i8mm, dotprod, avx512vnni, avxvnni, avx2
// MISSING: pass 'quantune-lower-to-cpu-kernels' needs option 'features'
// CHECK: error: 'builtin.module' op is no network: expected one func.func with a body, found 2
func.func @one() {
  return
}
func.func @two() {
  return
}
