"""Image sources, the built-in tasks, and disjoint calibration and evaluation splits."""
