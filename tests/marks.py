"""Values of tests that only `pytest -m slow` tries, while the default run tries others of the same kind."""

import pytest


def slow(*values):
    """The `values` of a test's parameter, marked as slow."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
