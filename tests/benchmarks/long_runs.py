"""Many small extractions after each other on one Ray: does anything grow?

    python tests/benchmarks/long_runs.py --jobs 30

Prints one JSON line: of Ray and the driver together, after a third of the jobs and after the last (by then all that is
made once has been made), `processes`, open file `handles`, bytes of `shared_memory`, `object_store` bytes in use,
`memory` (PSS), and of the disk, `scratch` bytes in Ray's folder and TMPDIR. `grew` are those that are more than a tenth
above what they were; no growth: none.
"""

import argparse
import gc
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from dim.app import cluster
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.io import files
from dim.train.job import DEMO

SETTLE_SECONDS = 10.0  # in which ended workers are gone
# Ray's log monitor keeps the logs of ended workers open until it has 200; here fewer, so that the jobs reach its limit.
os.environ["RAY_LOG_MONITOR_MAX_OPEN_FILES"] = "30"


def processes() -> list[Path]:
    """This process and its descendants, as folders of /proc."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    own = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in own} - own:
        own |= more
    return [Path("/proc") / str(pid) for pid in sorted(own)]


def kilobytes(process: Path, names: tuple[str, ...]) -> Iterator[int]:
    for line in (process / "smaps_rollup").read_text().splitlines():
        if line.startswith(names):
            yield int(line.split()[1])


def used(folders: list[str]) -> dict[str, int]:
    """What Ray and the driver have now."""
    gc.collect()
    time.sleep(SETTLE_SECONDS)
    found = {"processes": 0, "handles": 0, "memory": 0, "shared_memory": 0}
    for process in processes():
        try:
            handles = len(list((process / "fd").iterdir()))
            memory = 1024 * sum(kilobytes(process, ("Pss:",)))
            shared = 1024 * sum(kilobytes(process, ("Pss_Shmem:",)))
        except OSError:  # it just ended
            continue
        new = {"processes": 1, "handles": handles, "memory": memory, "shared_memory": shared}
        found = {name: found[name] + value for name, value in new.items()}
    free, most = (total().get("object_store_memory", 0) for total in (ray.available_resources, ray.cluster_resources))
    on_disk = [file for folder in folders for file in Path(folder).rglob("*") if file.is_file()]
    return found | {"object_store": int(most - free), "scratch": sum(file.stat().st_size for file in on_disk)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=30)
    arguments = parser.parse_args()
    seen = []
    with tempfile.TemporaryDirectory() as out, cluster.connected():
        folders = [str(Path(ray.get_runtime_context().worker.node.get_session_dir_path())), os.environ["TMPDIR"]]
        started = time.monotonic()
        for number in range(arguments.jobs):
            done = extract(
                ExtractConfig(
                    manifest=str(DEMO), model="vgg16-gem", split="val", image_size=32, out=f"{out}/{number}",
                    precision="float32", weights="random",
                )
            )  # fmt: skip
            assert done["ok"] == done["images"] and files.names(f"{out}/{number}")
            shutil.rmtree(f"{out}/{number}")
            if number + 1 in (max(1, arguments.jobs // 3), arguments.jobs):
                seen.append(used(folders))
        seconds = time.monotonic() - started
    first, last = seen[0], seen[-1]
    grew = [name for name in last if last[name] > 1.1 * first[name]]
    line = {
        "jobs": arguments.jobs,
        "seconds": round(seconds, 1),
        "after_a_third": first,
        "at_the_end": last,
        "grew": grew,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
