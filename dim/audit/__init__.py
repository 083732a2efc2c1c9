"""Likely label errors and duplicates, from descriptors and labels."""
