"""Importers of benchmarks as distributed: one function a layout, from the set's folder to a `Benchmark`."""
