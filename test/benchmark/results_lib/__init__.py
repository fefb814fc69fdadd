"""Parts of results.py: what was measured, its plots, and the page made of both."""
