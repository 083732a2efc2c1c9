"""TensorBoard gets each figure of each epoch, once, whatever dies and wherever the run's folder is."""

import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from dim.io import files
from dim.train.history import EpochHistory


def epoch(number):
    return {"epoch": number, "val_map": None} | {f"figure_{place}": number + place / 8 for place in range(28)}


def scalars(run):
    """Every (name, epoch, value) in the event files of a run, as their format says: length, its sum, event, its sum."""
    found = []
    for name in files.names(f"{run}/tensorboard"):
        content, start = files.read_bytes(f"{run}/tensorboard/{name}"), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            event = Event.FromString(content[start + 12 : start + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            start += 16 + length
        assert start == len(content)
    return sorted(found)


def expected(*epochs):
    return sorted(
        (name, row["epoch"], value) for row in epochs for name, value in row.items() if name.startswith("figure_")
    )


@pytest.fixture(params=["disk", "s3"])
def run(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path)
    return f"{request.getfixturevalue('s3').bucket('history')}/{tmp_path.name}"


def test_all_figures_of_all_epochs_arrive_as_the_run_goes(run):
    history = EpochHistory(run)
    epochs = []
    for number in range(1, 5):
        epochs.append(epoch(number))
        history.write(epochs)
        assert scalars(run) == expected(*epochs)


def test_an_epoch_that_is_done_again_after_a_death_stands_once(run):
    epochs = [epoch(1), epoch(2)]
    EpochHistory(run).write(epochs[:1])
    EpochHistory(run).write([epochs[0], epoch(2) | {"figure_0": 9.0}])  # its checkpoint never came
    resumed = EpochHistory(run)
    resumed.write(epochs)
    resumed.write([*epochs, epoch(3)])
    assert scalars(run) == expected(*epochs, epoch(3))
