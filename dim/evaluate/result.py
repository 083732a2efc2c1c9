"""What metrics.json and the terminal say of one evaluation."""

from typing import Any

from dim.evaluate import classification, evaluation
from dim.evaluate.config import EvaluateConfig
from dim.evaluate.evaluation import Judged
from dim.evaluate.protocols import PROTOCOLS
from dim.evaluate.sources import Source
from dim.evaluate.task import Task
from dim.search.methods import Step

MEASURES: tuple[str, ...] = ("map", "map_at_r", "ns_score", "top_k_accuracy")


def metrics(
    config: EvaluateConfig, task: Task, source: Source, judged: list[Judged], steps: list[Step]
) -> dict[str, Any]:
    """The contents of metrics.json: measures, counts, and all that one must know to set them beside another's.

    What is 1 whatever the descriptors, as it takes in all of a list, is left out.
    """
    columns, n_listed = len(source.database), evaluation.shortest(task, source.queries, source.database)
    result = {"protocol": config.protocol} | evaluation.summary(task, judged, n_listed)
    if task.protocol.top_k and task.protocol.top_k < n_listed:
        result["top_k_accuracy"] = classification.top_k_accuracy(*classified(judged, task.protocol.top_k))
    return result | {
        "n_database": columns,
        "n_listed": n_listed,
        "n_distractors": columns - len(source.database.rows),
        "unreadable_queries": len(task.queries) - len(judged),
        "unreadable_database": len(task.database) - len(source.database.rows),
        "query_split": config.query_split or config.split,
        "database_split": config.database_split or config.split,
        "query_in_database": task.query_in_database,
        "embedding": source.embedding.as_json(),
        "whitening": source.whitenings,
        "expansion": [step.as_json() for step in steps],
    }


def classified(judged: list[Judged], top_k: int) -> tuple[list[str], list[list[str | None]]]:
    """The label of each query that has a positive, and those of its `top_k` nearest photos."""
    kept = [(query.label, query.nearest(top_k)) for query in judged if query.label and query.n_positives]
    return [label for label, _ in kept], [nearest for _, nearest in kept]


def lines(result: dict[str, Any]) -> list[str]:
    """What the terminal says of `result`, the contents of metrics.json."""
    embedding = result["embedding"]
    levels = {name: result[name] for name in PROTOCOLS[result["protocol"]].levels}
    scales = ", ".join(f"{scale:g}" for scale in embedding["scales"])
    steps = [
        f"{step['method']} with {step['neighbours']} neighbours, {step['seconds']:.1f} s"
        for step in result["expansion"]
    ]
    omitted = [name for name in PROTOCOLS[result["protocol"]].metrics if evaluation.takes_all(name, result["n_listed"])]
    whitenings = [f"whitened by {step['by']}, learned on {step['learned_on']}" for step in result["whitening"]]
    return [
        *(f"{name}: {_measures(values)}" for name, values in ({result["protocol"]: result} | levels).items()),
        f"{result['n_queries']} queries in {result['n_database']} photos; not readable: "
        f"{result['unreadable_queries']} queries, {result['unreadable_database']} of the database",
        f"{embedding['backbone']}-{embedding['pooling']}@{embedding['layer']}, {embedding['image_size']} px "
        f"{embedding['resize']}, scales {scales}, preprocessing {embedding['preprocessing']}, {embedding['precision']}",
        "; ".join(whitenings) or "not whitened",
        *(["after the search: " + "; ".join(steps)] if steps else []),
        *([f"not measured, as lists have {result['n_listed']} photos: {', '.join(omitted)}"] if omitted else []),
        f"query in the database: {'yes' if result['query_in_database'] else 'no'}",
    ]


def _measures(values: dict[str, Any]) -> str:
    found = {name: values[name] for name in MEASURES if name in values}
    for name in ("recall", "mp"):
        found |= {f"{name}@{depth}": value for depth, value in values.get(name, {}).items()}
    return ", ".join(f"{name} {'none' if value is None else format(value, '.4f')}" for name, value in found.items())
