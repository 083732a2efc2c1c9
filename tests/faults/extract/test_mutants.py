"""Mutated photos, from a seed: an extraction gives each a row, dies of none, and stays within a limit of memory.

All tests here are slow.
"""

import csv
import io
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

# What a process that decodes may take: the largest photo that is let in has 178 million pixels, and with alpha needs 16
# bytes for each while it is laid on white; and Python with its libraries.
MEMORY = 178_000_000 * 16 + 300 * 2**20
SHARD_ROWS = 1024
FLAGS = ("--model", "vgg16-mac", "--image-size", "32", "--batch-size", "64", "--shard-rows", str(SHARD_ROWS))
WRITTEN_AS = {
    "JPEG": {"exif": True},
    "PNG": {"exif": True},
    "WEBP": {"exif": True},
    "TIFF": {"exif": True, "compression": "tiff_lzw"},
    "AVIF": {"exif": True},
    "GIF": {},
    "BMP": {},
    "JPEG2000": {},
    "PPM": {},
}


def sources():
    """A sound photo in each format, in colour, grey or with a palette as the format has it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (10, 15, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((96, 64))
    found = []
    for name, options in WRITTEN_AS.items():
        file = io.BytesIO()
        photo.save(file, name, **({**options, "exif": exif} if "exif" in options else options))
        found.append(file.getvalue())
    return found


def mutants(count, seed=0):
    """`count` files: bits flipped, a piece cut out or off, the head of another format put before or over."""
    chance, sound = random.Random(seed), sources()
    for _ in range(count):
        content, other = bytearray(chance.choice(sound)), chance.choice(sound)
        kind = chance.choice(("flip", "cut", "splice"))
        if kind == "flip":
            for _ in range(chance.choice((1, 4, 30))):
                # Half of the flips hit the header, where the decoders' own code reads.
                position = chance.randrange(min(len(content), chance.choice((120, len(content)))))
                content[position] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            start = chance.randrange(len(content))
            del content[start : chance.choice((len(content), start + 40))]
        else:
            head = other[: chance.choice((4, 16, 64, 400))]
            content[: chance.choice((0, len(head)))] = head
        yield kind, bytes(content)


@pytest.fixture(params=[60, 10_000])
def mutated(request, tmp_path):
    """A manifest of mutants; the kind of each image_id."""
    kinds = {}
    with (tmp_path / "mutants.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image_id", "path"])
        for number, (kind, content) in enumerate(mutants(request.param)):
            kinds[f"mutant {number}"] = kind
            (tmp_path / f"{number}.jpg").write_bytes(content)
            writer.writerow([f"mutant {number}", f"{number}.jpg"])
    return tmp_path / "mutants.csv", kinds


def most_memory(job, known):
    """The most that a decoding process of `job` has taken so far, or `known` if that is more, in bytes."""
    for pid in job.pids("decoder"):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        known = max([known, *(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))])
    return known


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_each_mutant_is_a_row(extract, mutated, out, capsys):
    manifest, kinds = mutated
    job = extract(manifest, out, *FLAGS)
    peak = 0

    def ended():
        nonlocal peak
        peak = most_memory(job, peak)
        return False

    job.until(ended, seconds=2500, pause=0.5)  # to look at all processes takes long
    status, result = job.end()
    assert status == 0, job.said()
    rows = pa.concat_tables(pq.read_table(path) for path in out.glob("part-*.parquet")).to_pylist()
    assert Counter(row["image_id"] for row in rows) == Counter(list(kinds))
    assert all(bool(row["error"]) == (row["status"] == "error") == (row["descriptor"] is None) for row in rows)
    errors = Counter(kinds[row["image_id"]] for row in rows if row["error"])
    killed = sum("killed the process" in (row["error"] or "") for row in rows)
    with capsys.disabled():
        figures = {"mutants": len(rows), "errors": dict(errors), "killed": killed, "peak_mib": peak >> 20}
        print("\n" + json.dumps(figures | {"limit_mib": MEMORY >> 20, "seconds": result["seconds"]}))
    assert killed == 0
    assert 0.1 * len(rows) < result["errors"] < 0.9 * len(rows)
    assert 0 < peak <= MEMORY
