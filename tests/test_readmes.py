"""Every README: its commands are understood by the programs that they start, its files exist, its links lead somewhere.

What needs neither an account nor a network is tried. `python tests/readmes.py` lists the links to other sites.
"""

import ast
import functools
import importlib
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from readmes import READMES, REPOSITORY, anchors, blocks, commands, links, spans

from dim.app.cli import parse, parser_of
from dim.data import manifest
from dim.io import files

JOBS = {path.name: path for path in sorted((REPOSITORY / "jobs").glob("*.py"))}
README, CLUSTER, IN_JOBS, IN_TESTS = (REPOSITORY / folder / "README.md" for folder in (".", "cluster", "jobs", "tests"))
LINES, BYTES = 200, 12 * 1024  # of the first README
# Programs whose arguments are not checked here, and words of the shell.
OTHERS = {"aws", "chmod", "curl", "docker", "find", "git", "kubectl", "mypy", "openssl", "pdoc", "ruff", "sleep", "uv"}
SHELL = {".", "done", "echo", "export"}

each = pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(REPOSITORY)))


@functools.cache
def config(job):
    return typing.get_type_hints(importlib.import_module(f"dim.jobs.{job.removesuffix('.py')}").run)["config"]


@functools.cache
def flags(program):
    """The flags that a job takes, or those that the source of another program names."""
    if program in JOBS.values():
        return set(re.findall(r"--[a-z][a-z-]*", parser_of(config(program.name), "").format_usage()))
    return set(re.findall(r'"(--[a-z][a-z-]*)"', program.read_text()))


def test_the_first_readme_is_short():
    content = README.read_bytes()
    assert content.count(b"\n") <= LINES
    assert len(content) <= BYTES


def test_the_first_readme_names_every_job():
    assert sorted(re.findall(r"^\| `(\w+\.py)` \|", README.read_text(), re.MULTILINE)) == sorted(JOBS)


def test_the_list_of_benchmarks_is_whole():
    text = IN_TESTS.read_text()
    named = re.findall(r"`(\w+\.py)`", text[text.index("## Benchmarks") : text.index("## Measured")])
    programs = {path.name for path in (REPOSITORY / "tests" / "benchmarks").glob("*.py")} - {"processes.py"}
    assert sorted(named) == sorted(programs)


def test_ci_runs_the_command_that_is_marked():
    (line,) = re.findall(r"^command=.*$", (REPOSITORY / ".ci" / "run").read_text(), re.MULTILINE)
    script = f'{line}; echo "$command"'
    told = subprocess.run(["bash", "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    assert told in blocks(README, "bash")
    assert told.endswith(".venv/bin/python -m pytest -n 2 --dist loadfile\n")


def check(words):
    """Checks a command that is written in a README."""
    program = words[0].removeprefix(".venv/bin/")
    for word in words:
        if re.match(r"(cluster|dim|jobs|tests)/\w", word):
            assert (REPOSITORY / word).exists(), word
    if program == "python":
        check_python(words[1:])
    elif program.startswith("jobs/"):
        check_python(words)
    elif program == "pip":
        check_pip(words)
    elif program == "ray":
        check_ray(words[1:])
    else:
        assert program in OTHERS | SHELL | {"python3"}, program


def check_python(words):
    if words[0] == "-m":
        assert words[1] == "pytest"
        told = subprocess.run([sys.executable, "-m", "pytest", "--help"], capture_output=True, text=True, check=True)
        assert {word for word in words[2:] if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", told.stdout))
    elif words[0].startswith("jobs/"):
        parse(config(words[0].removeprefix("jobs/")), "", words[1:])
    else:
        given = {word.partition("=")[0] for word in words[1:] if word.startswith("--")}
        assert given <= flags(REPOSITORY / words[0])


def check_pip(words):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    for before, word in itertools.pairwise(words):
        assert before != "-r" or (REPOSITORY / word).is_file()
        assert not word.startswith(".[") or word[2:-1] in project["project"]["optional-dependencies"]
        assert not word.startswith("setuptools") or word in project["build-system"]["requires"]


def check_ray(words):
    """Checks a command of Ray by Ray's own parser, and the job that it submits."""
    from ray.scripts.scripts import cli

    command = cli
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    command.make_context(command.name, list(words), resilient_parsing=False)
    if "--" in words:
        check(words[words.index("--") + 1 :])


@each
def test_commands_are_understood(readme, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    for block in blocks(readme, "bash"):
        subprocess.run(["bash", "-n"], input=block, text=True, check=True)
        for words in commands(block):
            try:
                check(words)
            except (Exception, SystemExit) as error:
                pytest.fail(f"{shlex.join(words)}: {error}")


@each
def test_the_text_names_flags_that_there_are(readme):
    programs = [*JOBS.values(), *REPOSITORY.glob("tests/**/*.py")]
    every = set().union(*map(flags, programs)) | {"--build-arg", "--help", "--offline", "--runtime-env"}
    for span in spans(readme):
        found = re.match(r"(?:python )?(?:[\w/]+/)?([a-z_]+\.py) (?=\W)", span)
        known = [flags(path) for path in programs if path.name == found[1]] if found else [every]
        given = set(re.findall(r"(?<!\S)\[?(--[a-z][a-z-]*)", span)) if found or span.startswith("--") else set()
        assert any(given <= some for some in known), span


@each
def test_the_text_names_files_that_there_are(readme):
    for span in spans(readme):
        if re.fullmatch(r"[a-z.]\w*/[\w./*-]*\.(py|yaml|sh|lock|jpg)", span) and "NAME" not in span:
            assert [*REPOSITORY.glob(span), *readme.parent.glob(span)], f"there is no {span}"


@each
def test_links_lead_somewhere(readme):
    assert len(anchors(readme)) == len(set(anchors(readme)))
    for link in links(readme):
        name, _, anchor = link.partition("#")
        if "://" not in link:
            linked = readme.parent / name if name else readme
            assert linked.exists(), f"there is no {link}"
            assert not anchor or anchor in anchors(linked), f"there is no heading for {link}"


@each
def test_no_address_is_a_placeholder(readme):
    assert not re.search(r"https?://[^\s`)]*(…|example)", readme.read_text())


@each
def test_python_is_python(readme):
    for block in blocks(readme, "python"):
        ast.parse(block)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_commands_for_own_photos_run(tmp_path, demo):
    (tmp_path / "jobs").symlink_to(REPOSITORY / "jobs")
    photos = [path for path in sorted(demo.glob("*/*.jpg")) if path.stem < "04"][:32]
    for path in photos:
        (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "photos" / path.parent.name)
    shutil.copy(photos[0], tmp_path / "photo.jpg")
    text = README.read_text()
    part = text[text.index("### Train on your own") : text.index("### Run a benchmark")]
    script = "".join(block for block in blocks(README, "bash") if block in part)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(["bash", "-ec", script], cwd=tmp_path, env=os.environ | {"PATH": path}, check=True)
    for made in ("mine/model/model.json", "metrics/metrics.json", "audit/suspects.csv", "search/report.html"):
        assert (tmp_path / "runs" / made).is_file()
    assert pq.read_metadata(tmp_path / "runs" / "similar" / "ranked.parquet").num_rows == len(photos) * 10


def test_the_yaml_of_a_night_is_understood(tmp_path):
    (block,) = blocks(CLUSTER, "yaml")
    (tmp_path / "nightly.yaml").write_text(block)
    found, _ = parse(config("nightly.py"), "", ["--config", str(tmp_path / "nightly.yaml")])
    assert [evaluation.name for evaluation in found.evaluations] == ["products"]


def test_a_pile_of_photos_becomes_a_manifest(tmp_path):
    names = ["a.jpg", "in a box/b, c.jpg", "ü/d.png"]
    for name in names:
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    lines = "".join(blocks(README, "bash")).splitlines()
    (line,) = (line for line in lines if line.endswith("> pile.csv"))
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    read = manifest.read(str(tmp_path / "pile.csv"))
    assert sorted(read.image_ids) == names
    assert all(files.exists(path) for path in read.paths)


def test_the_listing_of_a_bucket_becomes_a_manifest(tmp_path, monkeypatch, s3):
    bucket = s3.bucket("pile")
    for name in ("photos/a.jpg", "photos/in a box/b, c.JPEG", "photos/notes.txt", "elsewhere/d.jpg"):
        files.write_bytes(f"{bucket}/{name}", b"")
    (block,) = blocks(CLUSTER, "python")
    monkeypatch.chdir(tmp_path)
    exec(block.replace("s3://bucket/photos", f"{bucket}/photos"), {})
    assert sorted(manifest.read("photos.parquet").paths) == [
        f"{bucket}/photos/a.jpg",
        f"{bucket}/photos/in a box/b, c.JPEG",
    ]


def test_descriptors_are_read_as_shown(tmp_path, monkeypatch, write_descriptors):
    write_descriptors(["a", "b"], [[1, 0], [0, 1]], sealed=True)
    (tmp_path / "runs").mkdir()
    (tmp_path / "descriptors").rename(tmp_path / "runs" / "descriptors")
    (block,) = (block for block in blocks(IN_JOBS, "python") if "runs/descriptors" in block)
    monkeypatch.chdir(tmp_path)
    exec(block, names := {})
    assert sorted(names["table"]["image_id"].to_pylist()) == ["a", "b"]
