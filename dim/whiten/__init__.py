"""Fits a whitening to descriptors, or to R-MAC's regions of photos."""
