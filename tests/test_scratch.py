"""Temporary folders: gone with the job, also with one that was killed."""

import os
import subprocess
import sys
from pathlib import Path

from dim import scratch


def test_a_folder_is_gone_at_its_end(tmp_path):
    with scratch.folder(str(tmp_path)) as folder:
        (Path(folder) / "a").touch()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_job_left_is_swept_and_what_is_in_use_is_kept(tmp_path):
    program = f"""if True:
        import os, signal
        from dim import scratch
        with scratch.folder({str(tmp_path)!r}):
            os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", program], check=False)
    (left,) = tmp_path.iterdir()
    with scratch.folder(str(tmp_path)) as new:
        assert left.exists()  # it may be one that just begins
        os.utime(left, (0, 0))
        os.utime(new, (0, 0))
        with scratch.folder(str(tmp_path)):
            assert not left.exists() and Path(new).exists()


def test_where_things_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("DIM_SCRATCH", str(tmp_path))
    assert scratch.kept() == tmp_path
    monkeypatch.delenv("DIM_SCRATCH")
    assert scratch.kept().name == f"dim-{os.getuid()}"
