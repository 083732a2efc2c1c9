"""Divides the photos among machines. A machine embeds the photos that it owns, and caches the photos' features.

The owners are the same in every epoch and in every later run on the same machines. Objects are assigned by rendezvous
hashing with bounded loads (Thaler and Ravishankar 1998; Mirrokni, Thorup and Zadimoghaddam 2018). Each machine draws a
number for each object from a hash of the machine's name and the object's name. Of the machines with room, the machine
with the largest number owns the object. If a machine is added or removed, few objects change their owner.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dim.train.training_set import TrainingPhotos

SLACK = 1.05  # a machine may own SLACK times its fair part, so that the largest number mostly decides
PARTS = 8  # an object with more photos than 1 / PARTS of the smallest fair part of a machine is divided


@dataclass(frozen=True)
class Ownership:
    """The owner of each photo. Machines are numbered from 0."""

    machines: np.ndarray  # the machine of each worker, (W,)
    owners: np.ndarray  # the machine that owns each row, (n,)

    def rows(self, rows: np.ndarray, worker: int) -> np.ndarray:
        """The part of `rows` that `worker` embeds. The workers of a machine divide the machine's photos evenly."""
        mates = np.flatnonzero(self.machines == self.machines[worker])
        own: np.ndarray = rows[self.owners[rows] == self.machines[worker]]
        return own[int(np.flatnonzero(mates == worker)[0]) :: len(mates)]


def ownership(photos: TrainingPhotos, names: Sequence[str]) -> Ownership:
    """Divides `photos` among machines; `names` has the name of each worker's machine.

    Photos with the same label stay together, unless they are many (see PARTS). A machine's share of each split is about
    its share of the workers.
    """
    known, machines = np.unique(np.array(names), return_inverse=True)
    shares = np.bincount(machines) / len(machines)
    owners = np.zeros(len(photos.image_ids), np.int64)
    if len(known) > 1:
        for split in set(photos.splits.tolist()):
            units = _units(photos.rows(split), photos, shares)
            for unit, machine in _assigned(units, known.tolist(), shares):
                owners[unit] = machine
    return Ownership(machines, owners)


def _units(rows: np.ndarray, photos: TrainingPhotos, shares: np.ndarray) -> list[tuple[str, list[int]]]:
    """The name and the rows of each unit, largest first. A unit is a small object or a part of a large object."""
    by_label: dict[str, list[int]] = {}
    for row in rows.tolist():
        label = photos.labels[row]
        name = f"photo {photos.image_ids[row]}" if label is None else f"object {label}"
        by_label.setdefault(name, []).append(row)
    most = max(1, int(len(rows) * shares.min() / PARTS))
    divided = ((name, own, start) for name, own in by_label.items() for start in range(0, len(own), most))
    units = ((f"{name} {start}", own[start : start + most]) for name, own, start in divided)
    return sorted(units, key=lambda unit: (-len(unit[1]), unit[0]))


def _assigned(units: list[tuple[str, list[int]]], names: list[str], shares: np.ndarray) -> list[tuple[list[int], int]]:
    """The rows of each unit, with the machine that owns them."""
    total = sum(len(rows) for _, rows in units)
    most = SLACK * total * shares
    loads = np.zeros(len(names))
    found = []
    for unit, rows in units:
        order = sorted(range(len(names)), key=lambda machine: _draw(unit, names[machine]), reverse=True)
        having_room = (machine for machine in order if loads[machine] + len(rows) <= most[machine])
        machine = next(having_room, int(np.argmin(loads / shares)))
        loads[machine] += len(rows)
        found.append((rows, machine))
    return found


def _draw(unit: str, name: str) -> bytes:
    return hashlib.sha256(f"{name}\t{unit}".encode()).digest()
