"""Kernels for CPUs, written as MLIR for exactly one shape each; one file a family."""
