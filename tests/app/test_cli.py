"""Flags → configuration; the life of a job's process: its last line, its exit status, what stays off the terminal."""

import dataclasses
import importlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
import traceback
import typing
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from terminal import messages

from dim.app.cli import main, parse
from dim.app.config import option
from dim.errors import GateNotMet, JobFailed, UserError

JOBS = sorted((Path(__file__).resolve().parents[2] / "jobs").glob("*.py"))


@dataclass(frozen=True)
class Config:
    source: str = option(help="where from", positional=True)
    out: str = option(help="where to, 100% of it", metavar="DIR", group="output")
    image_size: int | None = option(None, help="side", group="network")
    scales: tuple[float, ...] = option((1.0,), help="scales", group="network")
    resize: Literal["squash", "long-side"] = option("squash", help="how", group="network")
    ignore_label: tuple[str, ...] = option((), help="leave out", metavar="L")
    retry: bool = option(False, help="again")
    margin: float = option(0.1, help="room")

    def __post_init__(self):
        if self.image_size == 0:
            raise UserError("--image-size must be at least 1, not 0")


@dataclass(frozen=True)
class Cooking:
    preset: Literal["plain", "rich"] = option(
        "plain", help="how much", presets={"plain": {}, "rich": {"butter": 3, "eggs": 2}}
    )
    butter: int = option(1, help="spoons")
    eggs: int = option(0, help="whole")


def parsed(*arguments):
    return parse(Config, "What it does.", arguments)[0]


def test_flags():
    assert parsed("in", "--out", "o") == Config("in", "o")
    assert parsed(
        *("in", "--out=o", "--image-size", "320", "--scales", "1,0.7", "--resize", "long-side"),
        *("--ignore-label", "a", "--ignore-label", "b", "--retry"),
    ) == Config("in", "o", 320, (1.0, 0.7), "long-side", ("a", "b"), True)
    assert parse(Config, "", ["in", "--out", "o", "-v"])[1]


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "flags.yaml"
    path.write_text("source: there\nout: o\nimage-size: 100\nresize: long-side\nretry: true\n")
    assert parsed("here", "--config", str(path), "--image-size", "200", "--no-retry") == Config(
        "here", "o", 200, resize="long-side"
    )


def test_flags_and_yaml_win_over_a_preset(tmp_path):
    (tmp_path / "rich.yaml").write_text("preset: rich\neggs: 4\n")
    for arguments, expected in (
        ([], Cooking()),
        (["--preset", "rich"], Cooking("rich", 3, 2)),
        (["--preset", "rich", "--butter", "1"], Cooking("rich", 1, 2)),
        (["--config", str(tmp_path / "rich.yaml")], Cooking("rich", 3, 4)),
        (["--config", str(tmp_path / "rich.yaml"), "--preset", "plain"], Cooking("plain", 1, 4)),
    ):
        assert parse(Cooking, "", arguments)[0] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["in"], r"--out is required \(see --help\)"),
        (["--out", "o"], "the following arguments are required: SOURCE"),
        (["in", "--out", "o", "--image-sise", "3"], r"unknown argument '--image-sise'; did you mean '--image-size'\?"),
        (["in", "--out", "o", "--imagesize=3"], r"unknown argument '--imagesize'; did you mean '--image-size'\?"),
        (["in", "--out", "o", "--image", "3"], r"unknown argument '--image'; did you mean '--image-size'\?"),
        (["in", "--out", "o", "--zzz"], "unknown argument '--zzz'; known: --out, "),
        (["in", "--out", "o", "extra"], "unknown argument 'extra'"),
        (["in", "--out", "o", "--image-size", "big"], "--image-size: 'big' is not a whole number"),
        (["in", "--out", "o", "--scales", "1,x"], "--scales: '1,x' is not a list of numbers such as 1,0.5"),
        (["in", "--out", "o", "--scales", "1,nan"], "--scales: '1,nan' is not a list of numbers such as 1,0.5"),
        (["in", "--out", "o", "--margin", "inf"], "--margin: 'inf' is not a number"),
        (["in", "--out", "o", "--resize", "stretch"], "--resize: invalid choice: 'stretch' .*squash"),
        (["in", "--out", "o", "--image-size", "0"], "--image-size must be at least 1, not 0"),
        (["in", "--out"], "--out: expected one argument"),
        (["in", "--out", "o", "--config", "none.yaml"], "cannot read the configuration 'none.yaml'"),
    ],
)
def test_wrong_flags_are_named_in_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        parsed(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_help_imports_nothing_slow_and_opens_with_the_commands(job):
    command = [sys.executable, "-X", "importtime", job, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "dim.app.cli" in imported
    assert not imported & {"numpy", "pyarrow", "yaml", "h5py", "ray", "tensorflow", "PIL"}
    assert f"python jobs/{job.name} " in done.stdout or f"python jobs/{job.name}\n" in done.stdout
    assert f"ray job submit --working-dir . -- python jobs/{job.name} " in done.stdout


def job_module(job):
    return importlib.import_module(f"dim.jobs.{job.stem}")


def examples(job):
    """The commands in a job's description, each as the arguments of `python jobs/JOB.py`."""
    text = job_module(job).__doc__.replace("\\\n", " ")
    for line in text.splitlines():
        before, found, rest = line.strip().partition(f"python jobs/{job.name}")
        if found and before in ("", "ray job submit --working-dir . -- "):
            yield shlex.split(rest)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_the_examples_of_a_help_are_understood(job, monkeypatch):
    monkeypatch.chdir(job.parents[1])
    config = typing.get_type_hints(job_module(job).run)["config"]
    given = list(examples(job))
    assert len(given) >= 2
    for arguments in given:
        parse(config, "", arguments)


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.stem)
def test_each_flag_is_explained(job):
    config = typing.get_type_hints(job_module(job).run)["config"]
    for field in dataclasses.fields(config):
        assert len(field.metadata["help"]) > 3, field.name


@pytest.fixture
def whole(monkeypatch, capfd):
    """Runs a job in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["job.py", "in", "--out", "o"])
    handlers = list(logging.getLogger().handlers)

    def run(job, *flags):
        sys.argv += flags
        with pytest.raises(SystemExit) as exit:
            main(job, Config, "What it does.")
        assert logging.getLogger().handlers == handlers
        return exit.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def ended(whole):
    """Runs a job as `whole` does; of stderr, what follows the announcement."""

    def run(job, *flags):
        status, out, err = whole(job, *flags)
        begun, _, rest = err.partition("\n")
        assert begun.partition(" ")[2] == "What it does: in --out o"
        return status, out, rest

    return run


def test_the_last_line_is_the_result(ended):
    status, out, err = ended(lambda config: {"source": config.source, "ok": 3})
    result = json.loads(out)
    assert status == 0 and err == ""
    assert result.pop("seconds") >= 0
    assert result == {"source": "in", "ok": 3}


def test_the_last_line_is_json_also_where_a_figure_is_no_number(ended):
    _, out, _ = ended(lambda _: {"map": float("nan"), "ok": 3})
    assert json.loads(out, parse_constant=pytest.fail).items() >= {"map": None, "ok": 3}.items()


def fail(error):
    def job(config):
        raise error

    return job


@pytest.mark.parametrize(
    ("error", "expected", "said"),
    [
        (UserError("no file 'x'"), 2, "error: no file 'x'\n"),
        (JobFailed("it diverged"), 1, "failed: it diverged\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume\n"),
        (SystemExit(0), 130, "interrupted; run the same command again to resume\n"),
    ],
)
def test_how_a_job_ends(ended, error, expected, said):
    assert ended(fail(error)) == (expected, "", said)


def test_a_message_is_not_as_long_as_the_file_that_it_quotes(ended):
    _, _, err = ended(fail(UserError("x" * 10**6)))
    assert err.startswith("error: xxx") and err.endswith("x…\n") and len(err) < 2100


@pytest.mark.parametrize("flags", [(), ("-v",)])
def test_a_disk_or_store_that_fails_ends_in_a_line(ended, flags):
    def run(_):
        raise OSError("When getting information for key 'x' in bucket 'b':\nAWS Error NETWORK_CONNECTION")

    status, _, err = ended(run, *flags)
    line = "failed: When getting information for key 'x' in bucket 'b': AWS Error NETWORK_CONNECTION; "
    assert status == 1
    assert err.endswith(f"{line}once this is fixed, run the same command again\n")
    assert ("Traceback" in err) is bool(flags)


def test_a_bug_ends_in_its_traceback(ended):
    status, out, err = ended(fail(ZeroDivisionError("division by zero")))
    assert (status, out) == (1, "")
    assert err.startswith("Traceback") and err.endswith("ZeroDivisionError: division by zero\n")


def test_a_gate_that_is_not_met_still_prints_the_result(ended):
    status, out, err = ended(fail(GateNotMet("mAP fell", {"map": 0.5})))
    assert (status, err) == (3, "gate not met: mAP fell\n")
    assert json.loads(out)["map"] == 0.5


def test_sigterm_ends_a_job_as_ctrl_c_does(ended):
    def job(config):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    assert ended(job) == (130, "", "interrupted; run the same command again to resume\n")


def noisy(config):
    logging.getLogger("dim.something").info("3 photos")
    logging.getLogger("dim.something").debug("a detail")
    logging.getLogger("some.library").info("hello")
    print("a worker died")
    os.write(2, b"C++ has something to say\n")
    return {}


def gate_not_met(_):
    raise GateNotMet("mAP fell", {"map": 0.5})


@pytest.mark.parametrize(
    ("job", "flags", "ending"),
    [
        (lambda _: {}, (), (0, None)),
        (fail(UserError("no file 'x'")), (), (2, "error: no file 'x'")),
        (
            lambda _: {},
            ("--imagesize", "3"),
            (2, "error: unknown argument '--imagesize'; did you mean '--image-size'?"),
        ),
        (lambda _: {}, ("--margin", "inf"), (2, "error: argument --margin: 'inf' is not a number (see --help)")),
        (fail(JobFailed("it diverged")), (), (1, "failed: it diverged")),
        (
            fail(OSError("disk\nfull")),
            ("-v",),
            (1, "failed: disk full; once this is fixed, run the same command again"),
        ),
        (fail(ZeroDivisionError("division\nby zero")), (), (1, r"failed: ZeroDivisionError: division\nby zero")),
        (gate_not_met, (), (3, "gate not met: mAP fell")),
        (fail(KeyboardInterrupt()), (), (130, "interrupted; run the same command again to resume")),
    ],
)
def test_a_machine_reads_json_however_a_job_ends(whole, monkeypatch, job, flags, ending):
    status, said = ending
    monkeypatch.setenv("DIM_LOG", "json")
    found, _, err = whole(job, *flags)
    records = [json.loads(line) for line in err.splitlines()]
    assert found == status
    assert all(record["job"] == "job" and record["time"] and record["level"] for record in records)
    if said is not None:
        assert records[-1]["message"] == said
        assert records[-1]["level"] == ("WARNING" if status == 130 else "ERROR")
    if "ZeroDivision" in (said or ""):
        assert records[-1]["exception"].startswith("Traceback")


@pytest.mark.parametrize("flags", [(), ("-v",)])
def test_a_machine_reads_json_whoever_speaks(whole, monkeypatch, flags):
    def job(config):
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
        try:
            raise ZeroDivisionError("which is told and survived")
        except ZeroDivisionError:
            traceback.print_exc()
        print("begun, ", end="", file=sys.stderr)
        print("and ended", file=sys.stderr)
        return noisy(config)

    monkeypatch.setenv("DIM_LOG", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, out, err = whole(job, *flags)
    assert list(json.loads(out)) == ["seconds"]
    said = [json.loads(line)["message"] for line in err.splitlines()]
    assert [line for line in said if "this is old" in line]
    for line in ("3 photos", "begun, and ended", "a worker died", "ZeroDivisionError: which is told and survived"):
        assert line in said
    assert ("C++ has something to say" in said) is bool(flags)


@pytest.mark.parametrize("machine", [False, True])
def test_what_native_code_said_is_shown_if_the_job_fails(whole, monkeypatch, machine):
    def job(config):
        os.write(2, b"".join(b"line %d\n" % number for number in range(100_000)))
        noisy(config)
        raise JobFailed("it diverged")

    if machine:
        monkeypatch.setenv("DIM_LOG", "json")
    _, _, err = whole(job)
    lines = [json.loads(line)["message"] if machine else line for line in err.splitlines()]
    assert lines[-3:] == [
        "native code: line 99999", "native code: C++ has something to say", "failed: it diverged",
    ]  # fmt: skip
    assert "native code: line 99000" not in lines


@pytest.mark.parametrize("ending", [signal.SIGABRT, signal.SIGKILL])
def test_what_native_code_said_is_shown_if_a_signal_ends_the_job(tmp_path, ending):
    program = """
        import os
        from dim.app.cli import main
        from dim.extract.config import ExtractConfig

        def job(config):
            os.write(2, b"Error: index out of range\\n")
            os.kill(os.getpid(), ENDING)

        main(job, ExtractConfig, "What it does.")
    """
    (tmp_path / "job.py").write_text(textwrap.dedent(program).replace("ENDING", str(int(ending))))
    command = [sys.executable, "job.py", "--manifest", "a.csv", "--model", "vgg16-gem", "--out", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-ending, "")
    assert messages(done.stderr) == ["native code: Error: index out of range"]


def test_the_terminal_is_the_jobs_own(ended):
    status, out, err = ended(noisy)
    assert status == 0 and list(json.loads(out)) == ["seconds"]
    assert [line.partition(" ")[2] for line in err.splitlines()] == ["3 photos", "worker died"]


def test_verbose_shows_everything_on_stderr(ended):
    _, out, err = ended(noisy, "--verbose")
    assert list(json.loads(out)) == ["seconds"]
    for said in ("3 photos", "a detail", "a worker died", "C++ has something to say"):
        assert said in err
