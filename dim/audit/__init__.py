"""Audit of a labelled data set: likely label errors and duplicates."""
