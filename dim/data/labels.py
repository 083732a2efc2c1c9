"""What the folders of a tree of photos say: the label of each photo, and its split; and labels that look alike."""

import logging
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from dim.errors import UserError, quoted

log = logging.getLogger(__name__)

_SPLITS = {"train": "train", "val": "val", "validation": "val", "valid": "val", "test": "test"}
# What a program writes where it knows no label.
_NOTHING = {"nan", "none", "null", "na", "n/a", "nat", "<na>", "nil", "#n/a"}
_MOST = 5


def of_folders(names: Sequence[str], where: str) -> tuple[list[str | None], list[str] | None]:
    """The label of each photo, and its split or None, by `names`, the paths of photos within the folder `where`.

    A photo's label is the folder that holds it. Where all top folders are named train, val (validation, valid) or test,
    in any case, they are the splits and no part of labels; None where the tree has no splits. A photo that lies in no
    folder of a label has the label None. Raises UserError where folders named so would be parts of labels.
    """
    folders = [name.split("/")[:-1] for name in names]
    tops = {folder[0] for folder in folders if folder}
    of_splits = {top for top in tops if top.lower() in _SPLITS}
    if of_splits != tops:
        _require_no_splits(folders, where)
        return ["/".join(folder) or None for folder in folders], None
    below = [folder[1:] for folder in folders]
    _require_no_splits(below, where)
    splits = [_SPLITS[folder[0].lower()] if folder else "" for folder in folders]
    return ["/".join(folder) or None for folder in below], splits if tops else None


def _require_no_splits(folders: Sequence[list[str]], where: str) -> None:
    """Raises UserError where train and test, say, stand side by side in `folders`, which are to be labels."""
    within: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for parts in {tuple(folder) for folder in folders}:
        for depth, part in enumerate(parts):
            within[parts[:depth]].add(part)
    for parent, children in sorted(within.items()):
        of_splits = sorted(child for child in children if child.lower() in _SPLITS)
        if len({_SPLITS[child.lower()] for child in of_splits}) < 2:
            continue
        inner = "/".join(parent)
        others = sorted(children - {*of_splits})
        beside = f"beside {others[0]!r}" if others else f"within {inner or 'such'!r}"
        instead = (
            f"name {where.rstrip('/')}/{inner}"
            if parent and len(within[()]) == 1
            else "let them, and no others, be the folders at its top"
        )
        raise UserError(
            f"{where!r} has folders {' and '.join(of_splits)} {beside}, where they would be parts of labels; if they "
            f"are splits, {instead}; else give a table with path and label"
        )


def tell(labels: Sequence[str]) -> None:
    """Warns of different `labels` that look alike, as 'a' and 'a ', of folders within one that is a label, too, and of
    labels that say that there is none.
    """
    counts = Counter(labels)
    groups: dict[str, list[str]] = defaultdict(list)
    for label in sorted(counts):
        groups[_seen(label)].append(label)
    _warn("labels that look alike stay apart", [group for group in groups.values() if len(group) > 1], counts)
    within = [[label.rpartition("/")[0], label] for label in sorted(counts) if label.rpartition("/")[0] in counts]
    _warn("labels within labels are labels of their own", within, counts)
    _warn("labels that look like none", [[label] for label in counts if label.strip().lower() in _NOTHING], counts)


def _warn(what: str, groups: list[list[str]], counts: Counter[str]) -> None:
    if groups:
        told = [
            " and ".join(f"{quoted(label)} ({counts[label]} photos)" for label in group) for group in groups[:_MOST]
        ]
        more = f"; and {len(groups) - _MOST} more" if len(groups) > _MOST else ""
        log.warning("%s: %s%s", what, "; ".join(told), more)


def _seen(label: str) -> str:
    """What a person sees of `label`: no case, no spaces around, nothing invisible, one Unicode form, 3 for 3.0."""
    visible = "".join(letter for letter in label if unicodedata.category(letter) != "Cf")
    text = " ".join(unicodedata.normalize("NFKC", visible).casefold().split())
    return re.sub(r"^(\d+)\.0+$", r"\1", text)
