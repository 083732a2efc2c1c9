"""The console command `dim`: which jobs it has, what it says, and that it runs them as the programs of jobs/ do."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import dim.jobs
from dim.jobs import command

PROGRAMS = Path(__file__).resolve().parents[2] / "jobs"


@pytest.fixture
def dim_command(monkeypatch, capfd):
    """Runs `dim` in this process: (exit status, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["/bin/dim", *arguments])
        with pytest.raises(SystemExit) as end:
            command.main()
        return end.value.code, *capfd.readouterr()

    return run


def test_each_job_is_a_module_and_a_program():
    modules = {path.stem for path in Path(dim.jobs.__file__).parent.glob("*.py")} - {"__init__", "command"}
    assert set(command.JOBS) == modules == {path.stem for path in PROGRAMS.glob("*.py")}


@pytest.mark.parametrize("job", command.JOBS)
def test_each_program_runs_its_job(job, monkeypatch):
    ran = []
    monkeypatch.setattr(command, "run_job", ran.append)
    runpy.run_path(str(PROGRAMS / f"{job}.py"), run_name="__main__")
    assert ran == [job]


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_the_jobs(dim_command, flag):
    status, out, err = dim_command(flag)
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines() if line.startswith("  ")] == command.JOBS
    assert "  split     Split labelled photos into train, val and test" in out


@pytest.mark.parametrize("job", command.JOBS)
def test_the_help_of_a_job_names_jobs_as_the_command_does(dim_command, job):
    status, out, _ = dim_command(job, "--help")
    assert status == 0 and out.startswith(f"usage: dim {job} ")
    assert f"    dim {job} " in out or f"    dim {job}\n" in out
    assert "jobs/" not in out and not [other for other in command.JOBS if f" {other}.py" in out]


def test_the_files_of_the_repository_keep_their_names(dim_command):
    assert "dim/data/benchmarks.py, dim/data/oxford_paris.py" in dim_command("import", "--help")[1]


def test_a_job_gets_its_arguments_and_its_name(dim_command, monkeypatch, tmp_path):
    monkeypatch.setenv("DIM_LOG", "json")
    status, out, err = dim_command("split", str(tmp_path / "none"), "--out", str(tmp_path / "photos.csv"))
    assert (status, out) == (2, "")
    assert '"job": "split"' in err.splitlines()[-1] and str(tmp_path / "none") in err


def test_help_imports_nothing_slow():
    program = "import sys; sys.argv = ['dim', '--help']; from dim.jobs.command import main; main()"
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", program], capture_output=True, text=True, check=True
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dim.train.config" in imported
    assert not imported & {"numpy", "pyarrow", "yaml", "h5py", "ray", "tensorflow", "PIL"}
