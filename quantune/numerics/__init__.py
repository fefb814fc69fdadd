"""Quantizers, range clipping and histograms in numpy: the specification of what the compiler must compute."""
