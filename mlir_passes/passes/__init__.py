"""The rewrites: one file a pass, nothing else."""
