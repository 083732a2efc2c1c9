"""Mining across the cluster: `mine` brings descriptors into blocks, runs a strategy's tasks, and ranks the triplets.

The driver holds ids, labels and ranks of the rows, but no descriptors, and of the triplets only some at a time.
"""

from collections.abc import Sequence
from typing import Any

from dim.app.progress import Progress, step
from dim.mine import blocks, hardest, random_draws, ranking
from dim.mine.config import Mining
from dim.mine.pool import BLOCK_ROWS, Column, check_labels, pool_of
from dim.mine.ranking import Ranked
from dim.mine.remote import Remote
from dim.search.exact import Part


def mine(
    parts: Sequence[Part],
    labels: Column,
    image_ids: Column,
    settings: Mining,
    *,
    remote: Remote,
    share: int,
    where: str = "the training set",
    block_rows: int = BLOCK_ROWS,
) -> Ranked:
    """Mines the hardest triplets of a training set. Ray must be connected.

    Without `settings.candidates` the result is the same for any `share`, any `block_rows` and any cluster.

    Args:
        parts: The descriptors, (N, D), rows L2-normalised.
        labels: The labels, str (N,); None for a row that takes no part.
        image_ids: Unique ids (N,), which decide ties.
        settings: Which triplets are candidates and which are kept.
        remote: Runs the tasks.
        share: The bytes of data that each task may hold.
        where: What the rows are, for messages.
        block_rows: Rows per block of descriptors.

    Returns:
        The triplets as positions in `labels`, hardest first.

    Raises:
        UserError: The labels cannot give triplets, a labelled row is not normalised, or FAISS can't make the index.
    """
    check_labels(labels, settings, where)
    pool = pool_of(labels, image_ids, block_rows)
    strategy = _strategy(settings)
    with remote:
        with step("reading the descriptors"):
            stored = blocks.stored(remote, parts, pool, share=share, where=where, image_ids=image_ids)
        remote.expect(Progress("mining", strategy.calls(stored, settings), "parts"))
        runs = list(strategy.runs(remote, stored, settings))
        remote.expect(None)
        with step("ranking the triplets"):
            return ranking.ranked(remote, stored, runs, settings.top)


def check_candidates(settings: Mining, dimension: int) -> None:
    """Raises UserError if FAISS cannot make the index of `settings.candidates` for descriptors of `dimension`."""
    if settings.candidates:
        from dim.mine import indexed  # noqa: PLC0415  (only mining with an index needs FAISS)

        indexed.empty_index(settings, dimension)


def _strategy(settings: Mining) -> Any:
    if settings.candidates:
        from dim.mine import indexed  # noqa: PLC0415  (as above)

        return indexed
    return random_draws if settings.strategy == "random" else hardest
