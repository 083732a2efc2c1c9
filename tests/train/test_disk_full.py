"""Training on a full disk: one line says so, no checkpoint is half-visible, and the run goes on once there is room."""

import pytest

from dim.errors import JobFailed
from dim.train import checkpoint
from dim.train.config import TrainConfig
from dim.train.job import train


@pytest.mark.slow
@pytest.mark.parametrize("disk", [128 * 2**20], indirect=True)
def test_training_goes_on_once_there_is_room(disk, fill, ray_session, tmp_path):
    config = TrainConfig(
        out=str(disk / "run"), scratch=str(tmp_path), epochs=2, image_size=32, precision="float32", dimension=64,
        top=64, batch_size=16, train_layers="pca",
    )  # fmt: skip
    filler = fill(disk, 300_000)
    with pytest.raises(JobFailed, match=r"No space left on device.*make room and run the same command again"):
        train(config)
    assert not list(disk.rglob("*.tmp")) and not (disk / "run" / "result.json").exists()
    filler.unlink()
    assert train(config)["epochs"] == 2
    assert checkpoint.whole(str(disk / "run" / "checkpoints"), [2]) == 2
