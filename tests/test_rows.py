"""What is lost, doubled or foreign is named; and each job looks for it before it says that it is done."""

import pytest

from dim.rows import require_once


def test_each_once_in_any_order():
    require_once(["a", "b", "c"], iter(["c", "a", "b"]), "here")
    require_once([], [], "here")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a"], "1 lost, such as 'b'"),
        ([], "2 lost, such as 'a'"),
        (["a", "b", "b"], "1 more than once, such as 'b'"),
        (["a", "b", "c"], "1 never asked for, such as 'c'"),
        (["a", "a", "z"], "1 lost, such as 'b'; 1 more than once, such as 'a'; 1 never asked for, such as 'z'"),
    ],
)
def test_what_is_wrong_is_named(given, said):
    with pytest.raises(RuntimeError, match=f"^the rows of 'out' are not the 2 asked for: {said}$"):
        require_once(["a", "b"], given, "'out'")
