"""Rewrites that only the CPU backend profits from."""
