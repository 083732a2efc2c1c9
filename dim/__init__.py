"""dim, deep image matching: finds the photographs that show the same object or place."""

__version__ = "0.1.0"
