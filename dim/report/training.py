"""The page of a training run, report.html. It is made from the tables in the run's folder."""

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa

from dim.app.output_folder import Output
from dim.evaluate.metrics import four_digits
from dim.evaluate.protocols import Verdict
from dim.io import files, tables
from dim.report import charts, parts
from dim.report.charts import Line
from dim.report.markup import Html, element, user_text
from dim.report.page import Page
from dim.report.page_photos import PagePhoto, PagePhotos
from dim.report.parts import Card, Column, Row
from dim.train import history as run_history
from dim.train.config import Labels, TrainConfig
from dim.train.history import HISTORY, MODEL
from dim.train.training_set import TrainingPhotos

EPOCHS = 20  # epochs whose triplets are shown, at most; they are spread evenly over the run
TRIPLETS = 6  # triplets shown per epoch, at most
BETTER, WORSE = 8, 4  # queries shown, at most: those whose AP rose most, those whose AP fell most

log = logging.getLogger(__name__)

T = TypeVar("T")
Epoch: TypeAlias = dict[str, float | None]
Pair: TypeAlias = tuple[dict[str, Any], dict[str, Any]]


def write(config: TrainConfig, photos: TrainingPhotos, summary: dict[str, Any], out: Output) -> None:
    """Writes the report of a run whose result is `summary`."""
    table = tables.read(out.path(HISTORY)).to_pylist()
    history: list[Epoch] = [{k: None if v is None else float(v) for k, v in row.items()} for row in table]
    page = Page("train", "Training", [user_text(config.manifest or "the demo photos"), " → ", user_text(config.out)])
    warnings = [element("li", warning) for warning in summary["warnings"]]
    page.section(
        "Headline",
        element("ul", warnings, class_="note") if warnings else None,
        parts.figures(_figures(summary)),
        parts.facts(_settings(config, len(photos.mined()), summary)),
        note=summary["verdict"],
    )
    page.section("Curves", _curves(config, history, summary))
    page.section("Epochs", _table(history))
    cards, changed = _Cards(page.photos, photos), _changed(config.out)
    for title, pairs in changed.items():
        if pairs:
            note = f"The queries of split {summary['judged_on']} whose AP changed most."
            page.section(title, parts.legend("right", "wrong"), [cards.change(*pair) for pair in pairs], note=note)
    mined = _spread(list(run_history.hardest(config.out).items()), EPOCHS)
    strips = [(element("h3", f"Epoch {epoch}"), cards.triplets(triplets)) for epoch, triplets in mined]
    page.section(
        "Hardest triplets", strips, note=_NOTE.format(label="label" if config.labels == "manifest" else "group")
    )
    page.write(out.path("report.html"))
    label_of = dict(zip(photos.image_ids, photos.labels, strict=True))
    for change, pairs in zip(("improved", "worsened"), changed.values(), strict=True):
        if pairs:
            log.info("%s photo %s", summary["judged_on"], _in_words(change, *pairs[0], label_of))
            break
    log.info("look at %s; the network is in %s", out.path("report.html"), files.join(config.out, MODEL))


def _in_words(change: str, before: dict[str, Any], after: dict[str, Any], label_of: dict[str, str | None]) -> str:
    """Says how the hits of a query have changed: which of them are right, and the rank of the first right one."""
    own = label_of[before["query_id"]]
    right, first = [], []
    for row in (before, after):
        ranks = [rank for rank, image_id in enumerate(row["found"], start=1) if label_of[image_id] == own]
        right.append(len(ranks))
        first.append(f"at rank {ranks[0]}" if ranks else "not among them")
    moved = f"was {first[0]}, now it is {first[1]}" if first[0] != first[1] else f"is {first[0]}, as before"
    return (
        f"{before['query_id']!r} ({own}) {change} most: {right[0]} of its {len(after['found'])} nearest photos were "
        f"right before, {right[1]} are now; the first right one {moved}"
    )


_NOTE = (
    "The triplets of the largest loss, one for each anchor. The photo of another {label} (✗) is nearer to the anchor "
    "than the one of its own {label} (✓), or almost. d² is the squared distance to the anchor. Wrong {label}s show up "
    "here first."
)
_LABELS: dict[Labels, str] = {
    "manifest": "the manifest's",
    "groups": "groups of similar photos, which each mining found with the current network",
}


def _figures(summary: dict[str, Any]) -> dict[str, tuple[str, str]]:
    split = f"split {summary['judged_on']}" if summary["judged_on"] else "no split val or test"
    return {
        "mAP before": (four_digits(summary["map_before"]), f"{split}, by the network as it came"),
        "mAP fitted": (four_digits(summary["map_fitted"]), f"{split}, with the fitted PCA layer"),
        "mAP after": (four_digits(summary["map_after"]), f"{split}, by the network that is kept"),
        "Best epoch": (_best(summary["best_epoch"]), f"of {summary['epochs']}, by split val"),
    }


def _best(epoch: int | None) -> str:
    return "none" if epoch is None else str(epoch)


def _final_whitening(config: TrainConfig, summary: dict[str, Any]) -> str:
    if config.final_whitening == "none":
        return "none"
    kept = "kept" if summary["final_whitening"] else "not kept"
    return f"{config.final_whitening}, {kept}: mAP on split val with it is {four_digits(summary['val_whitened'])}"


def _settings(config: TrainConfig, mined_from: int, summary: dict[str, Any]) -> dict[str, str]:
    workers = "1 worker" if config.workers == 1 else f"up to {config.workers} workers"
    return {
        "Model": config.model,
        "Trained layers": config.train_layers,
        "Labels of split train": _LABELS[config.labels],
        "Strategy": config.strategy,
        "Loss": config.loss,
        "Margin": f"{config.margin:g}",
        "Learning rate": f"{config.learning_rate:g}, {config.schedule}, {config.optimizer}",
        "Triplets": f"the {config.triplets(mined_from):,} hardest",
        "Batch": f"{config.batch_size} triplets on {workers}",
        "Whitening after training": _final_whitening(config, summary),
        "Seed": str(config.seed),
    }


def _column(history: Sequence[Epoch], column: str) -> tuple[list[float], list[float]]:
    """The epochs that have a value in `column`, and the values."""
    points = [(row["epoch"], value) for row in history if (value := row[column]) is not None]
    return [epoch for epoch, _ in points if epoch is not None], [value for _, value in points]


def _curves(config: TrainConfig, history: Sequence[Epoch], summary: dict[str, Any]) -> Html:
    epochs = charts.numbers("epoch", len(history))
    loss, active, val = (_column(history, column) for column in ("loss", "active_share", "val_map"))
    drawn = [
        charts.lines("Loss", epochs, charts.axis(f"mean {config.loss} loss", loss[1]), [Line("loss", *loss)]),
        charts.lines("Active", epochs, charts.shares("share with a loss"), [Line("active", *active)]),
    ]
    if val[0]:
        shown = [Line("after the epoch", *val)]
        for name, value in {"as it came": summary["val_before"], "fitted": summary["val_fitted"]}.items():
            if value is not None:
                shown.append(Line(name, [1, max(2, len(history))], [value, value]))
        # An axis that spans what chance alone changes does not make noise look like progress.
        values = [*(value for line in shown for value in line.y), *(summary["val_interval"] or ())]
        y = charts.axis("mAP on split val", values, zero=False)
        drawn.append(charts.lines("Validation", epochs, y, shown))
    times = [Line(part, *_column(history, f"{part}_seconds")) for part in ("embed", "mine", "fit", "validate")]
    seconds = charts.axis("seconds", [value for line in times for value in line.y])
    return charts.grid(*drawn, charts.lines("Time", epochs, seconds, times))


def _table(history: Sequence[Epoch]) -> Html:
    """The table of all epochs."""
    forms = {
        "epoch": ".0f",
        "loss": ".4f",
        "active_share": ".3f",
        "val_map": ".4f",
        "candidates": ",.0f",
        "kept": ",.0f",
    }
    columns = [
        Column(name.replace("_", " "), form, spare=name in ("candidates", "kept")) for name, form in forms.items()
    ]
    return parts.table(columns, [Row([row[name] for name in forms]) for row in history], "epochs")


def _spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of `items`, evenly spaced, including the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[place * (len(items) - 1) // (most - 1)] for place in range(most)]


def _changed(run: str) -> dict[str, list[Pair]]:
    """The queries whose AP rose most and fell most, each with its hits before and after the training."""
    before = {row["query_id"]: row for row in run_history.found(run, run_history.BEFORE).to_pylist()}
    after = run_history.found(run, run_history.AFTER).to_pylist()
    pairs = [(before[row["query_id"]], row) for row in after if row["ap"] is not None and row["query_id"] in before]
    pairs.sort(key=lambda pair: (pair[0]["ap"] - pair[1]["ap"], pair[1]["query_id"]))
    better = [pair for pair in pairs if pair[1]["ap"] > pair[0]["ap"]][:BETTER]
    worse = [pair for pair in pairs[::-1] if pair[1]["ap"] < pair[0]["ap"]][:WORSE]
    return {"Found better": better, "Found worse": worse}


class _Cards:
    """Draws triplets and queries, given the photos of the run."""

    def __init__(self, shown: PagePhotos, photos: TrainingPhotos) -> None:
        self._shown, self._photos = shown, photos
        self._row_of = {image_id: row for row, image_id in enumerate(photos.image_ids)}

    def _card(self, image_id: str, note: str, verdict: Verdict | None = None) -> Card:
        row = self._row_of[image_id]
        photo = PagePhoto(self._photos.paths[row], self._photos.boxes[row])
        return Card(image_id, photo, self._photos.labels[row], note, verdict)

    def triplets(self, mined: pa.Table) -> Html:
        """The first triplet of each of the first `TRIPLETS` anchors, as a strip of three photos."""
        of_anchor: dict[str, dict[str, Any]] = {}
        for triplet in mined.to_pylist():
            of_anchor.setdefault(triplet["anchor_id"], triplet)
        strips = [self._triplet(triplet) for triplet in list(of_anchor.values())[:TRIPLETS]]
        return element("div", strips, class_="triplets")

    def _triplet(self, triplet: dict[str, Any]) -> Html:
        cards = [
            self._card(triplet["positive_id"], f"d² {triplet['distance_ap']:.3f}", "right"),
            self._card(triplet["negative_id"], f"d² {triplet['distance_an']:.3f}", "wrong"),
        ]
        return parts.strip(self._shown, cards, self._card(triplet["anchor_id"], f"loss {triplet['loss']:.3f}"))

    def change(self, before: dict[str, Any], after: dict[str, Any]) -> Html:
        """A query with its hits before and after the training."""
        heading = element("h3", f"AP {before['ap']:.3f} → {after['ap']:.3f}")
        strips = [
            (element("p", when, class_="note"), self._list(row)) for when, row in (("Before", before), ("After", after))
        ]
        return element("article", heading, strips)

    def _list(self, row: dict[str, Any]) -> Html:
        own = self._photos.labels[self._row_of[row["query_id"]]]
        cards = []
        for image_id, score in zip(row["found"], row["scores"], strict=True):
            right = self._photos.labels[self._row_of[image_id]] == own
            cards.append(self._card(image_id, f"{score:.3f}", "right" if right else "wrong"))
        return parts.strip(self._shown, cards, self._card(row["query_id"], "query"))
