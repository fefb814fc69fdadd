"""Rewrites that the Vulkan (SPIR-V) backend needs for exact integers."""
