"""How well a region of a photo is found: photos pasted into other scenes, at a known place.

    python tests/benchmarks/collages.py $DIM_BENCH/manifest.csv --model vgg16-gem --resize long-side --image-size 448

Draws `--count` photos of split val by --seed. Each is scaled to 40 to 70 % of another photo, rotated by up to 10
degrees, and pasted into it. Prints one JSON line for each method: the mean intersection over union of the box that is
found and the smallest box around the pasted photo (0 if no box is found), the share of boxes with at least 0.5, and
the share of boxes that overlap at all.
"""

import argparse
import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from dim.app import cluster
from dim.data import manifest as manifests
from dim.extract.config import ExtractConfig
from dim.extract.job import recipe_of
from dim.localise.config import Method, Rerank
from dim.localise.rerank import Reranker

SCALES = (0.4, 0.7)
TURN = 10.0  # degrees, at most


def collage(
    photo: Image.Image, scene: Image.Image, scale: float, turn: float, generator: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Pastes `photo` into `scene`, with `scale` times its size and turned by `turn` degrees.

    Returns the collage and the box (x1, y1, x2, y2) around the pasted photo.
    """
    scale *= min(scene.width / photo.width, scene.height / photo.height)
    small = photo.resize((max(1, round(photo.width * scale)), max(1, round(photo.height * scale))))
    turned = small.convert("RGBA").rotate(turn, expand=True, resample=Image.Resampling.BICUBIC)
    left, top = (int(generator.integers(0, max(1, scene.size[k] - turned.size[k]))) for k in range(2))
    pasted = scene.copy()
    pasted.paste(turned, (left, top), turned)
    right, bottom = min(left + turned.width, scene.width), min(top + turned.height, scene.height)
    return pasted, np.array([left, top, right, bottom])


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two boxes, 0 if one of them is NaN."""
    if not np.isfinite(one).all():
        return 0.0
    inner = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    both = np.prod(np.maximum(inner, 0))
    return float(both / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - both))


def make(
    paths: list[str],
    labels: list[str],
    folder: Path,
    *,
    count: int,
    seed: int,
    scales: tuple[float, float] = SCALES,
) -> tuple[list[str], list[str], np.ndarray]:
    """Writes `count` collages. Returns the paths of the photos in them, of the collages, and the boxes."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    photos, collages, boxes = [], [], []
    for number in range(count):
        one, other = generator.choice(len(paths), 2, replace=False)
        while labels[one] == labels[other]:
            one, other = generator.choice(len(paths), 2, replace=False)
        photo, scene = (ImageOps.exif_transpose(Image.open(paths[row])).convert("RGB") for row in (one, other))
        made, box = collage(photo, scene, generator.uniform(*scales), generator.uniform(-TURN, TURN), generator)
        collages.append(str(folder / f"{number}.jpg"))
        made.save(collages[-1], quality=92)
        photos.append(paths[one])
        boxes.append(box)
    return photos, collages, np.array(boxes)


def table(paths: list[str]) -> pa.Table:
    return pa.table({"path": paths, "box": pa.nulls(len(paths), pa.list_(pa.float64()))})


def overlaps(
    photos: list[str], collages: list[str], boxes: np.ndarray, method: Method, config: ExtractConfig
) -> np.ndarray:
    """The overlap of the box that `method` finds in each collage with the true one, (N,)."""
    queries, database = table(photos), table(collages)
    recipe = recipe_of(config, config.source(config.model))
    rerank = Reranker(Rerank(method, 1), recipe, queries.take, database.take, config)
    heads = [(np.array([row]), np.zeros(1)) for row in range(len(photos))]
    found = rerank(np.arange(len(photos)), heads)
    return np.array([overlap(one.boxes[0], box) for one, box in zip(found, boxes, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest")
    parser.add_argument("--model", default="vgg16-gem")
    parser.add_argument("--resize", default=None)
    parser.add_argument("--image-size", type=int, default=None)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/collages"))
    arguments = parser.parse_args()
    chosen = manifests.read(arguments.manifest).select("val")
    made = make(chosen.paths, list(chosen.labels), arguments.out, count=arguments.count, seed=arguments.seed)
    config = ExtractConfig(
        manifest="", out="", model=arguments.model, resize=arguments.resize, image_size=arguments.image_size
    )
    with cluster.connected():
        for method in get_args(Method):
            found = overlaps(*made, method, config)
            figures = {"iou": found.mean(), "at least 0.5": (found >= 0.5).mean(), "found": (found > 0).mean()}
            print(json.dumps({"method": method} | {name: round(float(value), 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
