"""A fault that one of two workers meets ends the run, with its own message, instead of leaving the other to wait."""

import re
import signal

import pyarrow as pa
import pytest

from dim.errors import JobFailed, UserError
from dim.io import tables
from dim.train.config import TrainConfig
from dim.train.job import DEMO, train

TWO = {
    "image_size": 32,
    "precision": "float32",
    "dimension": 16,
    "top": 32,
    "batch_size": 16,
    "epochs": 1,
    "workers": 2,
}

# A run that hangs again can't be ended by an exception: Ray drops those that come while it waits.
pytestmark = pytest.mark.timeout(300, method="thread")


@pytest.fixture
def failed(ray_session, scratch, tmp_path):
    """Trains with two workers on half of the demo photos, each row of their table passed through `change`; the error,
    and the run's folder.
    """

    def run(change=dict, **options):
        rows = [change(row | {"path": str(DEMO.parent / row["path"])}) for row in tables.read(str(DEMO)).to_pylist()]
        tables.write(str(tmp_path / "photos.csv"), pa.Table.from_pylist(rows[::2]))
        settings = {"manifest": str(tmp_path / "photos.csv"), "out": str(tmp_path / "run"), "scratch": scratch}
        with pytest.raises((UserError, JobFailed)) as raised:
            train(TrainConfig(**(settings | TWO | options)))
        assert "\n" not in str(raised.value)
        return raised.value, tmp_path / "run"

    return run


@pytest.mark.slow
def test_what_worker_0_alone_cannot_write_ends_the_run(failed, tmp_path):
    (tmp_path / "run" / "history.csv").mkdir(parents=True)
    error, _ = failed()
    assert isinstance(error, JobFailed)
    assert re.fullmatch(r"cannot write '.*history\.csv' \(.*\); fix this and run the same command again", str(error))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.slow
def test_photos_that_worker_0_cannot_mine_end_the_run(failed, tmp_path):
    unreadable = tmp_path / "unreadable.jpg"
    unreadable.write_bytes(b"no photo")
    seen = set()

    def spoilt(row):  # of each label of split train one photo can be read
        spoil = row["split"] == "train" and row["label"] in seen
        seen.add(row["label"])
        return row | ({"path": str(unreadable)} if spoil else {})

    error, _ = failed(spoilt, dimension=4)
    assert isinstance(error, UserError) and "label" in str(error)


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_both_workers(failed):
    error, out = failed(learning_rate=1e38, optimizer="sgd")
    assert re.search(r"step \d+ of epoch 1; its 16 triplets are in .*\['.*--learning-rate", str(error))
    assert tables.read(str(out / "diverged.csv")).num_rows == 16
