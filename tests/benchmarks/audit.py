"""How much of what is wrong the list of audit.py finds: labels of photos are made wrong on purpose, seed by seed.

    python tests/benchmarks/audit.py --photos $DIM_BENCH --out runs/audit-benchmark

The folder of photos has a manifest.csv. 3 % of all photos get wrong labels in two ways: exchanged (each gets the label
of another of them: every label keeps its number of photos, and of two photos of a label, one of which is wrong, nobody
can say which) and moved (each gets a label drawn from all). The descriptors are those of vgg16-gem, as they are and
whitened by a PCA that is fitted without labels; --descriptors takes others. Prints one JSON line: for each way and
descriptor the means over five seeds of the precision and recall of the list (kind label), with its default
--least-score and with 0.2; of the average precision of all scores; of the share of listed photos whose label has
somebody wrong in it, as the photos shown beside them tell; and what is listed with the labels as they are.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa

from dim.audit import neighbours, photos
from dim.audit.config import AuditConfig
from dim.audit.suspects import LABEL, Suspect, suspects
from dim.data import manifest as manifests
from dim.extract import descriptors
from dim.extract.config import ExtractConfig
from dim.extract.job import extract
from dim.search.database import parts_of
from dim.whiten import fit
from dim.whiten.fit import fit_pca

SHARE, SEEDS = 0.03, range(100, 105)
DUPLICATES = 1.0  # are not what is measured
LEAST = {"default": AuditConfig(manifest="", descriptors="", out="").least_score, "0.2": 0.2}


def exchanged(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Labels of which 3 % went round among their photos."""
    while True:
        chosen = generator.choice(len(labels), round(SHARE * len(labels)), replace=False)
        wrong = labels.copy()
        wrong[chosen] = labels[np.roll(chosen, 1)]
        if (wrong[chosen] != labels[chosen]).all():
            return wrong


def moved(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Labels of which 3 % were drawn from all labels."""
    wrong, names = labels.copy(), np.unique(labels)
    for row in generator.choice(len(labels), round(SHARE * len(labels)), replace=False):
        wrong[row] = generator.choice(names[names != labels[row]])
    return wrong


def suspected(
    vectors: np.ndarray, ids: np.ndarray, labels: np.ndarray, least: float, factory: str | None
) -> list[Suspect]:
    """The photos of a likely wrong label, with a score of `least` or more."""
    names = pa.chunked_array([pa.array(ids, pa.string())])
    audited = photos.of(parts_of(vectors), names, pa.array(labels, pa.string()), pa.nulls(len(ids), pa.string()))
    near = neighbours.by_index(audited, factory, None) if factory else neighbours.by_comparison(audited)
    return [one for one in suspects(audited, near, least, DUPLICATES)[0] if one.kind == LABEL]


def figures(found: list[Suspect], given: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How good the list `found` is for photos with the labels `given`, which should be `labels`."""
    wrong = given != labels
    hits = wrong[[one.row for one in found]]
    measured = {"average_precision": float((np.cumsum(hits) / np.arange(1, len(hits) + 1) * hits).sum() / wrong.sum())}
    for name, least in LEAST.items():
        listed = [one.row for one in found if one.score >= least]
        touched = np.isin(given[listed], given[wrong])
        measured |= {
            f"listed_{name}": len(listed),
            f"precision_{name}": float(wrong[listed].mean()),
            f"recall_{name}": float(wrong[listed].sum() / wrong.sum()),
            f"label_precision_{name}": float(touched.mean()),
        }
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default=os.environ.get("DIM_BENCH"), required="DIM_BENCH" not in os.environ)
    parser.add_argument("--descriptors", help="a folder that extract.py made of them")
    parser.add_argument("--candidates", help="an index that proposes neighbours, as of audit.py")
    parser.add_argument("--out", default="runs/audit-benchmark")
    arguments = parser.parse_args()
    manifest = str(Path(arguments.photos) / "manifest.csv")
    folder = arguments.descriptors or f"{arguments.out}/descriptors"
    if not arguments.descriptors:
        extract(ExtractConfig(manifest=manifest, model="vgg16-gem", out=folder))
    rows = manifests.read(manifest)
    embedded = descriptors.read(folder, rows)
    labels, ids = rows.labels[embedded.rows], rows.image_ids[embedded.rows]
    whitening = fit_pca(fit.moments_of(embedded.vectors), None, {"manifest": manifest, "rows": len(ids)}, power=0.25)
    results = {}
    for name, vectors in (("plain", embedded.vectors), ("whitened", whitening.apply(embedded.vectors))):
        clean = suspected(vectors, ids, labels, LEAST["default"], arguments.candidates)
        results[f"{name} as they are"] = {"listed_default": len(clean)}
        for way in (exchanged, moved):
            each = []
            for seed in SEEDS:
                given = way(labels, np.random.default_rng(seed))
                each.append(figures(suspected(vectors, ids, given, 1e-9, arguments.candidates), given, labels))
            results[f"{name} {way.__name__}"] = {
                figure: round(float(np.mean([one[figure] for one in each])), 4) for figure in each[0]
            }
    print(json.dumps({"photos": len(ids), "wrong": round(SHARE * len(ids)), "seeds": len(SEEDS), **results}))


if __name__ == "__main__":
    main()
