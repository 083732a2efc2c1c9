import gzip
import json
from pathlib import Path

import pytest

from dim.evaluate.job import oxford, revisited

CASES = json.loads(gzip.decompress((Path(__file__).parent / "golden" / "revisited_cases.json.gz").read_bytes()))


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_revisited_equals_the_benchmarks_own_code(case):
    found = revisited(case["ranks"], case["gnd"])
    for level in ("easy", "medium", "hard"):
        assert found[level]["map"] == pytest.approx(case[level]["map"], abs=1e-9)
        assert list(found[level]["mp"].values()) == pytest.approx(case[level]["mp@1,5,10"], abs=1e-9)
        for ap, expected in zip(found[level]["aps"], case[level]["aps"], strict=True):
            assert ap == (None if expected is None else pytest.approx(expected, abs=1e-9))


def test_revisited_without_any_positive_is_none_and_not_nan():
    found = revisited([[0, 1]], [{"easy": [1], "hard": [], "junk": []}])
    assert found["hard"] == {
        "map": None,
        "mp": {"1": None, "5": None, "10": None},
        "recall": {"1": None, "5": None, "10": None, "20": None},
        "aps": [None],
    }


def test_oxford_equals_what_compute_ap_printed(shared):
    systems = json.loads(gzip.decompress(shared("oracle/oxford5k_ranked_lists.json.gz").read_bytes()))
    folder = shared("oracle/groundtruth/oxford5k")
    compared = 0
    for queries in systems.values():
        for query, case in queries.items():
            graded = {g: (folder / f"{query}_{g}.txt").read_text().split() for g in ("good", "ok", "junk")}
            assert f"{oxford(case['list'], **graded):g}" == f"{case['ap']:g}", query
            compared += 1
    assert compared == 110


def test_oxford_takes_junk_out_and_counts_positives_that_are_not_listed():
    assert oxford(["j", "n", "a"], good=["a", "a"], ok=[], junk=["j"]) == 0.25
    assert oxford(["a"], good=["a"], ok=["b"], junk=[]) == 0.5
    assert oxford(["a"], good=[], ok=[], junk=["a"]) is None
