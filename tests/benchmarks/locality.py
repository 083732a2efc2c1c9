"""How many activations each machine of a training finds in its cache: photos owned by machines, against dealt in turn.

    python tests/benchmarks/locality.py

Prints one JSON line: for each number of machines, the share of all activations of an epoch that the cache of the
machine held, epoch by epoch, once `dealt` (each machine embeds every n-th photo, a batch is cut into equal parts) and
once `owned`. Each machine has a folder of its own, and no network runs: descriptors are of objects in look-alike
families, and drift from epoch to epoch. The first epoch's embedding fills the caches. The last epoch is that of a run
that was resumed, whose ranks stand for other machines than before.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from dim.train import batches
from dim.train.feature_cache import FeatureCache
from dim.train.locality import Ownership, ownership
from dim.train.training_set import TrainingPhotos

OBJECTS, EACH, FAMILY = 200, 8, 5  # photos of an object, objects that look alike
DRIFT = 0.1  # of an epoch, of the length of a descriptor
POSITIVES, NEGATIVES, TOP, BATCH, EPOCHS = 2, 5, 1600, 32, 4
NOTHING = np.zeros(1, np.float16)


def photos() -> TrainingPhotos:
    """The photos of all objects."""
    count = OBJECTS * EACH
    ids = np.array([f"photo {row}" for row in range(count)], dtype=object)
    labels = np.array([f"object {row // EACH}" for row in range(count)], dtype=object)
    splits = np.array(["train"] * count, dtype=object)
    return TrainingPhotos(
        ids, labels, splits, [""] * count, [None] * count, [f"{row:08x}" for row in range(count)], 32, "squash"
    )


def mined(random: np.random.Generator) -> Iterator[np.ndarray]:
    """The hardest triplets (T, 3) of each epoch."""
    rows = np.arange(OBJECTS * EACH)
    objects = rows // EACH
    families = random.standard_normal((OBJECTS // FAMILY, 32))
    centres = families[np.arange(OBJECTS) // FAMILY] + 0.7 * random.standard_normal((OBJECTS, 32))
    vectors = centres[objects] + 0.7 * random.standard_normal((len(rows), 32))
    for _ in range(EPOCHS):
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        cosines = unit @ unit.T
        same = objects[:, None] == objects[None]
        positives = np.argsort(np.where(same & ~np.eye(len(rows), dtype=bool), cosines, 9), axis=1)[:, :POSITIVES]
        negatives = np.argsort(np.where(same, -9, cosines), axis=1)[:, -NEGATIVES:]
        anchors = np.repeat(rows, POSITIVES * NEGATIVES)
        near, far = np.repeat(positives, NEGATIVES, axis=1).reshape(-1), np.tile(negatives, POSITIVES).reshape(-1)
        hardest = np.argsort(cosines[anchors, near] - cosines[anchors, far])[:TOP]
        yield np.stack([anchors, near, far], axis=1)[hardest]
        vectors += DRIFT * np.linalg.norm(vectors, axis=1).mean() / 32**0.5 * random.standard_normal(vectors.shape)


def hit_rates(machines: int, owned: bool) -> dict[str, Any]:
    """The share of activations that were kept, of each epoch, and how many images a triplet embeds."""
    made, rows = photos(), np.arange(OBJECTS * EACH)
    names = [f"host-{machine}" for machine in range(machines)]
    rates, images = [], 0
    with tempfile.TemporaryDirectory() as folder:
        caches = {name: FeatureCache(f"{folder}/{name}", "trunk", 10**9) for name in names}
        for epoch, triplets in enumerate(mined(np.random.default_rng(0))):
            if epoch == EPOCHS - 1:
                names = names[1:] + names[:1]
            division = ownership(made, names) if owned else Ownership(np.arange(machines), rows % machines)
            plan = batches.epoch(
                triplets,
                made.labels,
                BATCH,
                machines=division.machines if owned else np.zeros(machines),
                owners=division.owners if owned else np.zeros(len(rows)),
                generator=np.random.default_rng(epoch),
            )
            read = [[division.rows(rows, worker)] for worker in range(machines)]
            for shares in plan:
                for own, share in zip(read, shares, strict=True):
                    own.append(share.rows)
            kept = [_kept(caches[name], made, np.concatenate(own)) for name, own in zip(names, read, strict=True)]
            images += sum(len(part) for own in read for part in own[1:])
            rates.append(round(sum(kept) / sum(len(part) for own in read for part in own), 4))
    return {"hit_rates": rates, "images_per_triplet": round(images / TOP / EPOCHS, 3)}


def _kept(cache: FeatureCache, made: TrainingPhotos, rows: np.ndarray) -> int:
    """How many of `rows` are kept, one after the other; all are from then on."""
    found = 0
    for row in rows.tolist():
        if cache.holds(made.keys[row]):
            found += 1
        else:
            cache.put(made.keys[row], NOTHING)
    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    result = {
        str(machines): {"dealt": hit_rates(machines, owned=False), "owned": hit_rates(machines, owned=True)}
        for machines in (1, 2, 4)
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
