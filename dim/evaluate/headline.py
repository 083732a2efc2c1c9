"""The figures of metrics.json in words for people, and all that one must know to set them beside another's."""

from typing import Any

from dim.evaluate.config import EvaluateConfig
from dim.evaluate.protocols import PROTOCOLS

_MEANINGS = {
    "map": ("mAP", "mean average precision"),
    "map_at_r": ("mAP@R", "AP within the first R, R = positives"),
    "ns_score": ("N-S score", "found in the first 4, of 4"),
}
_AT = {
    "recall": ("Recall@{}", "share with a positive in the first {}"),
    "mp": ("mP@{}", "mean precision of the first {}"),
}
_DEPTHS = ("1", "5", "10")


def figures(metrics: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """What → (value, meaning), for `parts.figures`."""
    levels = PROTOCOLS[metrics["protocol"]].levels
    found = {f"mAP, {level}": (_shown(metrics[level]["map"]), _MEANINGS["map"][1]) for level in levels}
    if not levels:
        found = {name: (_shown(metrics[key]), told) for key, (name, told) in _MEANINGS.items() if key in metrics}
    for key, (name, told) in _AT.items():
        for depth in _DEPTHS:
            if depth in metrics.get(key, {}):
                found[name.format(depth)] = (_shown(metrics[key][depth]), told.format(depth).removesuffix(" 1"))
    return found | {"Queries": (f"{metrics['n_queries']:,}", f"in {metrics['n_database']:,} photos")}


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def settings(config: EvaluateConfig, metrics: dict[str, Any]) -> dict[str, str]:
    """Name → value, for `parts.facts`."""
    embedding = metrics["embedding"]
    splits = [metrics["query_split"] or "all rows", metrics["database_split"] or "all rows"]
    steps = [f"{step['method']} with {step['neighbours']} neighbours" for step in metrics["expansion"]]
    whitenings = [f"by {step['by']}, learned on {_learned_on(step['learned_on'])}" for step in metrics["whitening"]]
    distractors = f", {metrics['n_distractors']:,} of them distractors" if metrics["n_distractors"] else ""
    return {
        "Protocol": config.protocol,
        "Manifest": config.manifest,
        "Ground truth": config.ground_truth or "labels",
        "Queries from": splits[0],
        "Database from": splits[1] + distractors,
        "Own photo": "the query's photo is in its list" if metrics["query_in_database"] else "leaves the query's list",
        "Not readable": f"{metrics['unreadable_queries']} queries, {metrics['unreadable_database']} of the database",
        "Network": f"{embedding['backbone']}-{embedding['pooling']}@{embedding['layer']}",
        "Photos": f"{embedding['image_size']} px {embedding['resize']}, {embedding['preprocessing']}",
        "Scales": ", ".join(f"{scale:g}" for scale in embedding["scales"]),
        "Whitening": "; ".join(whitenings) or "none",
        "After the search": "; ".join(steps) or "nothing",
        "Precision": embedding["precision"],
        "Embedding": embedding["id"][:16],
    }


def _learned_on(learned_on: dict[str, Any] | None) -> str:
    return ", ".join(f"{key} {value}" for key, value in (learned_on or {}).items()) or "what is not known"
