"""Fitting a whitening to descriptors, or to regions of photos."""
