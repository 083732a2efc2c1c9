"""The locks: hashed, the same releases in the tests as on a cluster, and named in dim/README.md's list of licences."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
TESTS, *CLUSTERS = ["tests/requirements.lock", "cluster/requirements.lock", "cluster/requirements-gpu.lock"]


def requirements(lock):
    """The name, the release and the lines of each requirement; a Python may have its own release."""
    blocks = re.split(r"\n(?=\S)", (REPOSITORY / lock).read_text())
    found = [re.match(r"([a-z0-9.-]+)==([^ ;]+)", block) for block in blocks if not block.startswith("#")]
    assert len(found) > 50 and all(found)
    return [(pin[1], pin[2], pin.string) for pin in found]


def releases(lock):
    return {(name, release) for name, release, _ in requirements(lock)}


def names(lock):
    return {name for name, _, _ in requirements(lock)}


@pytest.mark.parametrize("lock", [TESTS, *CLUSTERS])
def test_each_requirement_has_hashes(lock):
    assert all("--hash=sha256:" in lines for _, _, lines in requirements(lock))


def test_clusters_run_the_releases_that_are_tested():
    without, with_gpus = map(releases, CLUSTERS)
    assert without <= with_gpus and without <= releases(TESTS)


def test_the_list_of_licences_names_what_clusters_install():
    readme = (REPOSITORY / "dim" / "README.md").read_text()
    rows = re.search(r"\| Licence \| Packages.*?\n\|---\|---\|\n(.*?)\n\n", readme, re.DOTALL)[1].splitlines()
    cells = [re.sub(r"\([^)]*\)", "", row.split("|")[2]) for row in rows]
    listed = [name.strip().rstrip("¹") for cell in cells for name in re.split("[,;]", cell)]
    families = tuple(name.rstrip("*") for name in listed if name.endswith("*"))
    whole = {name for name in names(CLUSTERS[0]) if not name.startswith(families)}
    assert sorted(name for name in listed if not name.endswith("*")) == sorted(whole)
