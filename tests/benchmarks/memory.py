"""The memory of extract.py's driver and workers, from 1,000 to 20,000 photos.

    python tests/benchmarks/memory.py --plot memory.svg

The demo photos, repeated, at 64 px. While the job runs, the memory (PSS) of each of its processes is looked at every
second, beside the number of photos that are done. Prints one JSON line: for the driver, the network and the decoders
(all that there are) the MiB at each mark, and `growth_mib` from the first mark to the last; draws them as an SVG.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pyarrow as pa
from processes import MEBIBYTE, command_line, family, pss

from dim.data import manifest as manifests
from dim.io import files, tables

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "dim" / "assets" / "demo" / "manifest.csv"
PARTS = ("driver", "network", "decoders")
SHARD_ROWS = 500
WIDTH, HEIGHT, EDGE = 640, 360, 50
COLOURS = {"driver": "#1b6ca8", "network": "#c0392b", "decoders": "#2e8b57"}

Samples = list[tuple[int, dict[str, float]]]  # photos done, MiB of each part


def repeated(rows: int, file: str) -> None:
    """A manifest of the demo photos, repeated until they are `rows`."""
    photos = manifests.read(str(DEMO))
    paths = [files.absolute(photos.paths[row % len(photos)]) for row in range(rows)]
    tables.write(file, pa.table({"image_id": [f"{row:06d}" for row in range(rows)], "path": paths}))


def looked_at(root: int) -> dict[str, float]:
    """The MiB of each part of the job whose driver is `root`."""
    found = dict.fromkeys(PARTS, 0.0)
    for pid in family(root):
        name = command_line(pid)
        if pid == root:
            found["driver"] += pss(pid) / MEBIBYTE
        elif "Network" in name:
            found["network"] += pss(pid) / MEBIBYTE
        elif "_decode" in name or "ray::IDLE" in name:
            found["decoders"] += pss(pid) / MEBIBYTE
    return found


def watched(job: subprocess.Popen[bytes], out: Path) -> Samples:
    """What is seen, a second apart, until the job ends."""
    samples: Samples = []
    while job.poll() is None:
        done = SHARD_ROWS * len(list(out.glob("part-*.json")))
        samples.append((done, looked_at(job.pid)))
        time.sleep(1)
    return samples


def at_marks(samples: Samples, marks: list[int]) -> dict[str, dict[int, float]]:
    """The most that each part had between one mark and the next (or the end)."""
    found: dict[str, dict[int, float]] = {}
    for part in PARTS:
        for mark, end in zip(marks, [*marks[1:], float("inf")], strict=True):
            within = [seen[part] for done, seen in samples if mark <= done < end]
            if within:
                found.setdefault(part, {})[mark] = round(max(within))
    return found


def drawn(samples: Samples) -> str:
    """The samples as an SVG: photos done to the right, MiB upwards."""
    samples = [sample for sample in samples if sample[0] > 0]
    right, top = max(done for done, _ in samples), max(max(seen.values()) for _, seen in samples)
    across, up = (WIDTH - 2 * EDGE) / right, (HEIGHT - 2 * EDGE) / top
    lines = []
    for row, part in enumerate(PARTS):
        places = ((EDGE + across * done, HEIGHT - EDGE - up * seen[part]) for done, seen in samples)
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        colour = COLOURS[part]
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        lines.append(f'<text x="{EDGE + 8 + 90 * row}" y="{EDGE - 12}" fill="{colour}">{part}</text>')
    axes = f"M{EDGE},{EDGE} V{HEIGHT - EDGE} H{WIDTH - EDGE}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
            'font-size="13"><rect width="100%" height="100%" fill="white"/>',
            f'<path d="{axes}" fill="none" stroke="#555"/>',
            f'<text x="{EDGE - 6}" y="{EDGE + 4}" text-anchor="end">{top:.0f}</text>',
            f'<text x="{EDGE - 6}" y="{HEIGHT - EDGE + 4}" text-anchor="end">0</text>',
            f'<text x="{WIDTH - EDGE}" y="{HEIGHT - EDGE + 20}" text-anchor="end">{right:,} photos done</text>',
            f'<text x="8" y="{EDGE - 12}">MiB</text>',
            *lines,
            "</svg>\n",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--plot", type=Path, help="SVG to draw")
    arguments = parser.parse_args()
    marks = sorted({1000, *(arguments.photos * share // 4 for share in (1, 2, 3)), arguments.photos - 1000})
    with tempfile.TemporaryDirectory() as folder:
        repeated(arguments.photos, f"{folder}/photos.csv")
        out = Path(folder) / "out"
        command = [sys.executable, str(REPOSITORY / "jobs" / "extract.py"), "--manifest", f"{folder}/photos.csv"]
        command += ["--model", "vgg16-gem", "--image-size", "64", "--shard-rows", str(SHARD_ROWS), "--out", str(out)]
        environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.extend(job.stdout or []))
        reader.start()
        samples = watched(job, out)
        reader.join()
    if arguments.plot:
        arguments.plot.write_text(drawn(samples), encoding="utf-8")
    mib = at_marks(samples, marks)
    growth = {part: seen[max(seen)] - seen[min(seen)] for part, seen in mib.items()}
    result = {"photos": arguments.photos, "cpus": os.cpu_count(), "mib": mib, "growth_mib": growth}
    print(json.dumps(result | {"images_per_second": json.loads(lines[-1])["images_per_second"]}))


if __name__ == "__main__":
    main()
