// RUN: not quantune-opt %s --pass-pipeline=quantune-to-nhwc 2>&1 | FileCheck %s
// CHECK: error: 'builtin.module' op is no network: expected one func.func with a body, found 2 (pass quantune-to-nhwc)
func.func @f() {
  return
}
func.func @g() {
  return
}
