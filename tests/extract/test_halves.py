import numpy as np
import pytest

from dim.extract import halves

EVERY = np.arange(2**16, dtype=np.uint16).view(np.float16)


@pytest.mark.parametrize("values", [EVERY, EVERY[np.isfinite(EVERY)], EVERY[:0]])
def test_every_value_is_what_numpy_makes_of_it(values):
    found = halves.to_float32(values)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))
    np.testing.assert_array_equal(np.signbit(found), np.signbit(values))


def test_the_values_are_left_as_they_are():
    values = EVERY.copy()[:100]
    halves.to_float32(values)
    np.testing.assert_array_equal(values, EVERY[:100])
