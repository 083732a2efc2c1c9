"""Rows that are lost, repeated or foreign are named, and each job checks for them before it is done."""

from types import SimpleNamespace

import numpy as np
import pytest

from dim.audit.config import AuditConfig
from dim.audit.job import audit
from dim.errors import UserError
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.job import evaluate
from dim.export.config import ExportConfig
from dim.export.job import export
from dim.group.config import GroupConfig
from dim.group.job import group
from dim.io.tables import require_each_once
from dim.mine.config import MineConfig
from dim.mine.job import mine_folder
from dim.search.build_index import build
from dim.search.config import IndexConfig, SearchConfig
from dim.search.job import search
from dim.whiten.config import WhitenConfig
from dim.whiten.job import whiten


def test_each_once_in_any_order():
    require_each_once(["a", "b", "c"], iter(["c", "a", "b"]), "here")
    require_each_once([], [], "here")


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
        require_each_once(["a", "b"], given, "'out'")


IDS = [f"photo {number}" for number in range(6)]
JOBS = {
    "evaluate": lambda made: evaluate(EvaluateConfig(manifest=made.manifest, descriptors=(made.twice,), out=made.out)),
    "audit": lambda made: audit(AuditConfig(manifest=made.manifest, descriptors=made.twice, out=made.out)),
    "group": lambda made: group(GroupConfig(manifest=made.manifest, descriptors=made.twice, out=made.out)),
    "mine": lambda made: mine_folder(MineConfig(manifest=made.manifest, descriptors=made.twice, out=made.out)),
    "whiten": lambda made: whiten(WhitenConfig(manifest=made.manifest, descriptors=made.twice, out=made.out)),
    "index": lambda made: build(IndexConfig(descriptors=made.twice, out=made.out)),
    "search": lambda made: search(SearchConfig(index=made.twice, queries=made.twice, out=made.out)),
    "export": lambda made: export(ExportConfig(descriptors=made.twice, out=made.out, format="npy")),
}


@pytest.mark.parametrize("job", JOBS)
def test_a_row_that_stands_twice_ends_a_job(ray_session, write_manifest, write_descriptors, tmp_path, job):
    vectors = np.random.default_rng(0).standard_normal((7, 4))
    made = SimpleNamespace(
        manifest=write_manifest(image_id=IDS, label=["a", "b"] * 3, split=["train"] * 6),
        twice=write_descriptors([*IDS, IDS[2]], vectors),
        out=str(tmp_path / "out"),
    )
    with pytest.raises((RuntimeError, UserError), match=r"more than once|7 descriptors were summed, not 6"):
        JOBS[job](made)
    assert not (tmp_path / "out" / "result.json").exists()
