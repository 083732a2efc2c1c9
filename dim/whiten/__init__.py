"""Fits a whitening to the descriptors of photos, or to the vectors of the regions that R-MAC pools."""
