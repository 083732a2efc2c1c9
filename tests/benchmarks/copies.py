"""How many edited copies of photos group.py finds as copies, each kind apart, and how many of what it finds are copies.

    python tests/benchmarks/copies.py --photos $DIM_BENCH --out runs/copies-benchmark

The folder of photos has a manifest.csv. Of 200 of its photos, drawn by --seed, it makes eight copies each: JPEG at
quality 30, half and a quarter of the size, a crop of 80 % of each side, brighter by 40 %, mirrored, a caption bar, a
border. All photos and copies are extracted with --model and grouped. Prints one JSON line for each --copies threshold:
the precision of all pairs that are copies by group.py (true: both made from the same photo), and the recall of the
pairs of a photo and its copy, by kind.
"""

import argparse
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from dim.data import manifest as manifests
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.group.config import GroupConfig
from dim.group.job import group
from dim.io import tables

ORIGINALS = 200


def _scaled(photo: Image.Image, factor: float) -> Image.Image:
    return photo.resize(
        (max(1, round(photo.width * factor)), max(1, round(photo.height * factor))), Image.Resampling.LANCZOS
    )


def _cropped(photo: Image.Image, generator: np.random.Generator) -> Image.Image:
    width, height = round(0.8 * photo.width), round(0.8 * photo.height)
    left, top = (int(generator.integers(0, most + 1)) for most in (photo.width - width, photo.height - height))
    return photo.crop((left, top, left + width, top + height))


def _captioned(photo: Image.Image) -> Image.Image:
    bar = round(0.12 * photo.height)
    canvas = ImageOps.expand(photo, (0, 0, 0, bar), "white")
    ImageDraw.Draw(canvas).text(
        (bar // 3, photo.height + bar // 4), "a caption below", "black", font_size=max(8, bar // 2)
    )
    return canvas


EDITS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "jpeg30": lambda photo, _: photo,
    "half": lambda photo, _: _scaled(photo, 0.5),
    "quarter": lambda photo, _: _scaled(photo, 0.25),
    "crop": _cropped,
    "brighter": lambda photo, _: ImageEnhance.Brightness(photo).enhance(1.4),
    "mirrored": lambda photo, _: ImageOps.mirror(photo),
    "caption": lambda photo, _: _captioned(photo),
    "border": lambda photo, _: ImageOps.expand(photo, round(0.06 * max(photo.size)), "black"),
}


def make(manifest: str, folder: Path, seed: int) -> tuple[str, dict[str, tuple[str, str]]]:
    """Writes the copies and a manifest of all photos. Returns its path, and by id of a copy its original and kind."""
    rows = manifests.read(manifest)
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    table = {"image_id": rows.image_ids.tolist(), "path": list(rows.paths)}
    made = {}
    for number in np.sort(generator.choice(len(rows), ORIGINALS, replace=False)).tolist():
        photo = ImageOps.exif_transpose(Image.open(rows.paths[number])).convert("RGB")
        for kind, edit in EDITS.items():
            path = folder / f"{number}-{kind}.jpg"
            edit(photo, generator).save(path, quality=30 if kind == "jpeg30" else 90)
            made[path.stem] = (rows.image_ids[number], kind)
            table["image_id"].append(path.stem)
            table["path"].append(str(path))
    tables.write(f"{folder}.parquet", pa.table(table))
    return f"{folder}.parquet", made


def figures(groups: str, made: dict[str, tuple[str, str]]) -> dict[str, object]:
    """The precision of the pairs of copies in the table `groups`, and the recall of each kind."""
    table = pq.read_table(groups).to_pandas()
    group_of = dict(table[table["level"] == "copy"][["image_id", "group"]].dropna().to_numpy().tolist())
    by_group: dict[str, list[str]] = {}
    for image_id, name in group_of.items():
        by_group.setdefault(name, []).append(image_id)
    source = {image_id: original for image_id, (original, _) in made.items()}
    right = wrong = 0
    for members in by_group.values():
        for one, other in itertools.combinations(members, 2):
            same = source.get(one, one) == source.get(other, other)
            right, wrong = right + same, wrong + (not same)
    found = {kind: [0, 0] for kind in EDITS}
    for image_id, (original, kind) in made.items():
        found[kind][0] += group_of.get(image_id, image_id) == group_of.get(original)
        found[kind][1] += 1
    recall = {kind: round(hits / of, 3) for kind, (hits, of) in found.items()}
    return {"precision": round(right / max(1, right + wrong), 4), "pairs": right + wrong, "recall": recall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default=os.environ.get("DIM_BENCH"), required="DIM_BENCH" not in os.environ)
    parser.add_argument("--model", default="vgg16-gem")
    parser.add_argument("--thresholds", default="0.85,0.9,0.95")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/copies-benchmark")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    manifest, made = make(str(Path(arguments.photos) / "manifest.csv"), out / "copies", arguments.seed)
    extract(ExtractConfig(manifest=manifest, model=arguments.model, out=str(out / "descriptors")))
    for threshold in map(float, arguments.thresholds.split(",")):
        config = GroupConfig(
            manifest=manifest, descriptors=str(out / "descriptors"), out=str(out / "groups"), copies=threshold
        )
        result = group(config)
        measured = figures(str(out / "groups" / "groups.parquet"), made)
        print(json.dumps({"copies": threshold, **measured, "seconds": result.get("seconds")}))


if __name__ == "__main__":
    main()
