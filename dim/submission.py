"""What Ray tells a job that was submitted to a cluster (`ray job submit`) of itself, in the environment."""

import dataclasses
import json
import logging
import os
from pathlib import Path
from typing import Any, TypeVar

from dim.errors import UserError

C = TypeVar("C")

_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"

log = logging.getLogger(__name__)


def _known() -> dict[str, Any]:
    try:
        known = json.loads(os.environ.get(_CONFIG, "{}"))
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def identifier() -> str | None:
    """The id under which the job was submitted; None where it was not."""
    metadata = _known().get("metadata")
    known = metadata.get("job_submission_id") if isinstance(metadata, dict) else None
    return None if known is None else str(known)


def keeping_its_output(config: C) -> C:
    """`config`, a job's, whose `out` outlives the job.

    A submitted job runs in a copy of its working directory, which Ray deletes some time later. Raises UserError there
    for a relative `out`. But the demo, a job that is given neither photos nor an `out`, gets a folder in `dim-runs` of
    the home folder. The other nodes don't have that folder, so the demo leaves the cluster alone: its Ray will be its
    own, on this machine.
    """
    out = getattr(config, "out", None)
    if out is None or identifier() is None or "://" in out or out.startswith(("/", "~")):
        return config
    if getattr(config, "manifest", None) is None and out == _default(config, "out"):
        kept = str(Path.home() / "dim-runs" / Path(out).name)
        log.info("running the demo on this machine alone, with its output in %s, as no --out is given", kept)
        for name in (_CONFIG, "RAY_ADDRESS"):
            os.environ.pop(name, None)
        return dataclasses.replace(config, out=kept)  # type: ignore[type-var]
    raise UserError(
        f"--out {out!r} is relative, and would be lost with this submitted job's copy of the working directory; write "
        "s3://…, gs://…, or a whole path that starts with /"
    )


def _default(config: Any, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(config) if field.name == name)
