"""Which machine owns which photos: it embeds them and caches their features, in every epoch and every later run.

Objects are assigned by rendezvous hashing with bounded loads (Thaler and Ravishankar 1998; Mirrokni, Thorup and
Zadimoghaddam 2018): each machine draws a number for each object from a hash of both names, and the machine with the
largest draw that has room owns the object. So, when a machine comes or goes, few objects change their owner.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dim.train.training_set import TrainingPhotos

SLACK = 1.05  # a machine may own this times its fair part, so that the largest draw mostly decides
PARTS = 8  # an object with more photos than 1 / PARTS of a machine's fair part is divided


@dataclass(frozen=True)
class Ownership:
    """The owner of each photo. Machines are numbered from 0."""

    machines: np.ndarray  # the machine of each worker, (W,)
    owners: np.ndarray  # the machine that owns each row, (n,)

    def rows(self, rows: np.ndarray, worker: int) -> np.ndarray:
        """Those of `rows` that `worker` embeds. The workers of a machine divide its photos among themselves."""
        mates = np.flatnonzero(self.machines == self.machines[worker])
        own: np.ndarray = rows[self.owners[rows] == self.machines[worker]]
        return own[int(np.flatnonzero(mates == worker)[0]) :: len(mates)]


def ownership(photos: TrainingPhotos, names: Sequence[str]) -> Ownership:
    """Divides `photos` among machines; `names` has the name of each worker's machine.

    Photos with the same label stay together. Each machine owns a part of each split in proportion to its workers.
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
    """The name and the rows of each object or part of an object that stays on one machine, the largest first."""
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
