"""Temporary folders end with their job, even a killed one; folders of others are never touched."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dim.errors import UserError
from dim.io import scratch
from dim.train.feature_cache import FeatureCache

OTHER = 12345  # another user

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make files of another user")


def test_a_folder_is_gone_at_its_end(tmp_path):
    with scratch.temporary_folder(str(tmp_path)) as folder:
        (Path(folder) / "a").touch()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def left(tmp_path):
    """What a killed job left, long ago."""
    program = f"""if True:
        import os, signal
        from dim.io import scratch
        with scratch.temporary_folder({str(tmp_path)!r}):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", program], check=False)
    (left,) = tmp_path.iterdir()
    return left


def begin(tmp_path):
    with scratch.temporary_folder(str(tmp_path)):
        pass


def test_what_a_killed_job_left_is_swept_and_what_is_in_use_is_kept(tmp_path, left):
    with scratch.temporary_folder(str(tmp_path)) as new:
        assert left.exists()  # it may be one that just begins
        os.utime(left, (0, 0))
        os.utime(new, (0, 0))
        with scratch.temporary_folder(str(tmp_path)):
            assert not left.exists() and Path(new).exists()


def test_a_folder_of_such_a_name_that_dim_did_not_make_is_kept(tmp_path):
    results = tmp_path / "dim-job-results"
    results.mkdir()
    (results / "a").touch()
    os.utime(results, (0, 0))
    begin(tmp_path)
    assert (results / "a").exists()


def test_a_link_is_not_followed(tmp_path, left):
    elsewhere = tmp_path / "elsewhere"
    left.rename(elsewhere)
    (elsewhere / "a").touch()
    left.symlink_to(elsewhere)
    os.utime(elsewhere, (0, 0))
    begin(tmp_path)
    assert left.is_symlink() and (elsewhere / "a").exists()


@as_root
def test_another_users_is_left_to_that_user(tmp_path, left):
    os.utime(left, (0, 0))
    os.chown(left, OTHER, OTHER)
    begin(tmp_path)
    assert left.exists()


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("DIM_SCRATCH", str(tmp_path))
    return tmp_path / f"dim-{os.getuid()}"


def test_where_things_are_kept(monkeypatch, place):
    assert scratch.persistent_folder() == place and place.stat().st_mode & 0o777 == 0o700
    assert scratch.persistent_folder(str(place / "flag")) == place / "flag" / place.name
    monkeypatch.chdir(place)
    monkeypatch.setenv("DIM_SCRATCH", "relative")
    assert scratch.default_place() == place / "relative"
    monkeypatch.delenv("DIM_SCRATCH")
    assert scratch.persistent_folder().name == place.name


def test_one_that_others_could_write_is_closed(place):
    place.mkdir(mode=0o777)
    place.chmod(0o777)
    assert scratch.persistent_folder().stat().st_mode & 0o777 == 0o700


def refused(fault, path):
    return pytest.raises(UserError, match=rf"scratch folder '{path}' {fault}.*; delete it, or .* by DIM_SCRATCH")


def test_a_link_that_another_may_have_made_is_refused_and_what_it_names_stands(place, tmp_path):
    (tmp_path / "home" / "trunk" / "work").mkdir(parents=True)
    place.symlink_to(tmp_path / "home")
    for use in (scratch.require_own, scratch.persistent_folder, lambda: FeatureCache(None, "any", 0)):
        with refused("is a link or not a folder", place):
            use()
    assert (tmp_path / "home" / "trunk" / "work").exists()


def test_a_link_to_nowhere_is_refused(place):
    place.symlink_to("nowhere")
    with refused("is a link or not a folder", place):
        scratch.require_own()


@as_root
def test_another_users_is_refused(place):
    place.mkdir()
    os.chown(place, OTHER, OTHER)
    for use in (scratch.require_own, scratch.persistent_folder):
        with refused(f"belongs to user {OTHER}", place):
            use()


def test_a_file_in_the_way_is_named(place):
    place.touch()
    with pytest.raises(UserError, match=rf"'{place}' .*DIM_SCRATCH"):
        scratch.persistent_folder()


def test_a_place_that_a_flag_names_is_another_flag_s(place):
    place.parent.joinpath("file").touch()
    with pytest.raises(UserError, match=r"\(Not a directory\); name another place by --scratch$"):
        scratch.persistent_folder(str(place.parent / "file"))


def test_a_folder_that_holds_other_things_keeps_them(tmp_path):
    (tmp_path / "trunk" / "my own").mkdir(parents=True)  # such as a checkout
    (tmp_path / "trunk" / "my own" / "a").write_bytes(bytes(1000))
    FeatureCache(str(tmp_path), "one", 0).put("ab12", np.zeros(10))
    assert (tmp_path / "trunk" / "my own" / "a").exists()
