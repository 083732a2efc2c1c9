"""Descriptors and networks in the formats of other tools."""
