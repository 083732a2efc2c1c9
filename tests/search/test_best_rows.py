import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dim.search.best_rows import BestRows


def sorted_lists(entries, tie_order, size, count):
    """What `BestRows` must hold after `entries` (query, row, score), by a sort of each list."""
    rows, scores = np.full((size, count), -1), np.full((size, count), -np.inf)
    for query in range(size):
        own = sorted((-score, tie_order[row], row) for of, row, score in entries if of == query)[:count]
        rows[query, : len(own)] = [row for _, _, row in own]
        scores[query, : len(own)] = [-score for score, _, _ in own]
    return rows, scores


@settings(deadline=None)
@given(
    seed=st.integers(0, 10**6),
    pieces=st.sampled_from([1, 2, 3, 7]),
    count=st.sampled_from([1, 3, 10, 40]),
    values=st.sampled_from([2, 5, 10**6]),
)
def test_lists_equal_a_sort_for_any_pieces_in_any_order(seed, pieces, count, values):
    random = np.random.default_rng(seed)
    tie_order = random.permutation(30)
    scores = random.integers(0, values, (4, 30)) / values
    entries = [(query, row, scores[query, row]) for query in range(4) for row in range(30) if random.random() < 0.6]
    whole, merged = BestRows(4, count, tie_order), BestRows(6, count, tie_order)
    random.shuffle(entries)
    for piece in range(pieces):
        some = sorted(entries[piece::pieces])
        own = BestRows(4, count, tie_order)
        for best in (whole, own):
            best.insert(
                *(np.array([entry[field] for entry in some], kind) for field, kind in enumerate((int, int, float)))
            )
        merged.merge(2, own.rows, own.scores)
    expected_rows, expected_scores = sorted_lists(entries, tie_order, 4, count)
    for found in (whole.rows, merged.rows[2:]):
        assert np.array_equal(found, expected_rows)
    for found in (whole.scores, merged.scores[2:]):
        assert np.array_equal(found, expected_scores)
    assert (merged.rows[:2] == -1).all()
