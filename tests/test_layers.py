"""The layers of dim: a module imports from those below it and never, not even by a detour, from itself."""

import ast
import graphlib
import re
from pathlib import Path

import dim

DIM = Path(dim.__file__).parent
# Lowest first. A job puts the parts of its package and its page together, so it stands above the pages.
LAYERS = [
    "errors", "io", "app", "data", "model", "extract", "localise", "search", "whiten", "mine", "group", "evaluate",
    "train", "audit", "nightly.config", "nightly.history", "report", "search.job", "evaluate.job", "train.job",
    "audit.job", "group.job", "export", "nightly", "jobs",
]  # fmt: skip


def name_of(path):
    """dim/io/files.py → io.files; dim/io/__init__.py → io."""
    return ".".join(path.relative_to(DIM).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in DIM.rglob("*.py") if path != DIM / "__init__.py"}


def imported(path):
    """The modules of dim that `path` imports, wherever in the file: what is imported late is an arrow, too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.removeprefix("dim.") for alias in node.names if alias.name.startswith("dim."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "dim":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("dim.")
                yield whole if whole in MODULES else node.module.removeprefix("dim.")


def layer(module):
    """The place in LAYERS of the longest entry that `module` is, or is in."""
    held = [entry for entry in LAYERS if f"{module}.".startswith(f"{entry}.")]
    return LAYERS.index(max(held, key=len))


ARROWS = {name: {to for to in imported(path) if to in MODULES and to != name} for name, path in MODULES.items()}
# `dim.model.load` is what users import; it alone looks into its own package.
ARROWS["model"] = set()


def test_no_arrow_runs_up():
    upward = [f"{name} → {to}" for name, arrows in ARROWS.items() for to in arrows if layer(to) > layer(name)]
    assert not upward


def test_no_module_needs_itself():
    assert list(graphlib.TopologicalSorter(ARROWS).static_order())  # raises CycleError, which names the circle


def test_only_jobs_know_pages():
    knowing = {name for name, arrows in ARROWS.items() if any(to.startswith("report") for to in arrows)}
    assert {name for name in knowing if not name.startswith("report")} == {
        "audit.job", "evaluate.job", "group.job", "nightly.job", "search.job", "train.job",
    }  # fmt: skip


def test_the_layers_are_all_of_dim():
    assert {path.name for path in DIM.iterdir() if path.is_dir() and (path / "__init__.py").exists()} == {
        entry for entry in LAYERS if "." not in entry
    } - {"errors"}


def test_the_map_names_every_module():
    named = set(re.findall(r"^- `([a-z0-9_/]+\.py)`: .", (DIM / "README.md").read_text(), re.MULTILINE))
    assert named == {f"{name.replace('.', '/')}.py" for name in MODULES if "." in name}


def test_files_are_short():
    long = {name: lines for name, path in MODULES.items() if (lines := len(path.read_text().splitlines())) > 260}
    assert not long


def test_nothing_imports_conftest():
    """pytest would run it a second time, and it would draw other ports than those that the servers listen at."""
    for path in Path(__file__).parent.rglob("*.py"):
        found = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        names = {getattr(node, "module", None) for node in found} | {
            alias.name for node in found for alias in node.names
        }
        assert not names & {"conftest", "tests.conftest"}, path
