"""Rewrites that only CPUs need: kernels written for their vector instructions."""
