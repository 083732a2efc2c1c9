"""Reasons by kind."""

from hypothesis import given
from hypothesis import strategies as st

from dim.errors import count_reasons


def test_numbers_and_quotes_do_not_tell_kinds_apart():
    reasons = [
        "no such file",
        "image file is truncated (5 bytes not processed)",
        "image file is truncated (1,234 bytes not processed)",
        "it begins with b'<html>'",
        "it begins with b'<!DOC'",
        "it begins with b'x'",
    ]
    assert count_reasons(reasons) == (
        "3 × it begins with …, 2 × image file is truncated (… bytes not processed), 1 × no such file"
    )
    assert count_reasons(reasons[1:2] * 2) == "2 × image file is truncated (5 bytes not processed)"


@given(st.lists(st.text("abcdefghij", min_size=1, max_size=1), min_size=1))
def test_each_is_counted_once(reasons):
    parts = [part.split(" × ") for part in count_reasons(reasons).split(", ")]
    assert sum(int(count) for count, _ in parts) == len(reasons) and len(parts) <= 6
    assert all(reasons.count(kind) == int(count) for count, kind in parts if kind != "other reasons")
