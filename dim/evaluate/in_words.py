"""The contents of metrics.json in words, for the log."""

from collections.abc import Iterator
from typing import Any

from dim.evaluate import evaluation, protocols
from dim.evaluate.descriptor_sets import DescriptorSet
from dim.evaluate.metrics import four_digits
from dim.evaluate.protocols import PROTOCOLS
from dim.localise.config import parsed

_FIGURES: tuple[str, ...] = ("map", "map_at_r", "oracle", "ns_score", "top_k_accuracy")  # in the order of the log line


def settings_and_figures(source: DescriptorSet, metrics: dict[str, Any]) -> list[str]:
    """The contents of metrics.json in words."""
    protocol = PROTOCOLS[metrics["protocol"]]
    steps = [
        f"{step['method']} with {step['neighbours']} neighbours, {step['seconds']:.1f} s"
        for step in metrics["expansion"]
    ]
    steps += [str(parsed(metrics["rerank"]))] if metrics["rerank"] else []
    omitted = [name for name in protocol.metrics if evaluation.covers_list(name, metrics["n_listed"])]
    whitenings = [f"whitened by {step['by']}, learned on {step['learned_on']}" for step in metrics["whitening"]]
    return [
        *figures(metrics),
        f"{metrics['n_queries']} queries in {metrics['n_database']} photos; not readable: "
        f"{metrics['unreadable_queries']} queries, {metrics['unreadable_database']} of the database",
        ", ".join(f"{name.lower()} {value}" for name, value in source.embedding.facts().items()),
        "; ".join(whitenings) or "not whitened",
        *(["after the search: " + "; ".join(steps)] if steps else []),
        *([f"not measured, as lists have {metrics['n_listed']} photos: {', '.join(omitted)}"] if omitted else []),
        f"query in the database: {'yes' if metrics['query_in_database'] else 'no'}",
    ]


def figures(metrics: dict[str, Any]) -> Iterator[str]:
    """Yields the figures of metrics.json, overall and at each level of the protocol."""
    yield f"{metrics['protocol']}: {_in_words(metrics)}"
    for level in PROTOCOLS[metrics["protocol"]].levels:
        yield f"{level}: {_in_words(protocols.value_of(level, metrics))}"


def _in_words(values: dict[str, Any]) -> str:
    found = {name: values[name] for name in _FIGURES if name in values}
    for name in ("recall", "mp"):
        found |= {f"{name}@{depth}": value for depth, value in values.get(name, {}).items()}
    return ", ".join(f"{name} {four_digits(value)}" for name, value in found.items())
