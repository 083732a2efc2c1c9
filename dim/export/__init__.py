"""Exports descriptors and networks to formats that other tools read."""
