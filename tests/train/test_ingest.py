"""Photos come decoded from Ray's tasks, in their order, the unreadable with the reason, whatever dies on the way."""

import os
import signal

import numpy as np
import pytest

from dim.data.decode import decode
from dim.train.features import Ingest
from dim.train.training_set import TrainingPhotos


@pytest.fixture
def photos(demo, tmp_path):
    paths = sorted(map(str, demo.glob("*/0[0-2].jpg")))[:9]
    (tmp_path / "broken.jpg").write_bytes(b"<html>")
    paths[3], paths[6] = str(tmp_path / "broken.jpg"), str(tmp_path / "missing.jpg")
    names = np.array([f"photo {row}" for row in range(9)], dtype=object)
    return TrainingPhotos(names, names, names, paths, [None] * 8 + [(0.0, 0.0, 20.0, 20.0)], paths, 48, "squash")


def test_photos_come_in_their_order_with_the_reason_of_the_unreadable(ray_session, photos):
    rows = [8, 3, 0, 0, 6, 5]
    found = list(Ingest(photos, 2, 1).decoded(rows, [""] * len(rows)))
    assert "<html>" in found[1] and "cannot read the file" in found[4]
    for place in (0, 2, 3, 5):
        path, box = photos.paths[rows[place]], photos.boxes[rows[place]]
        with open(path, "rb") as file:
            np.testing.assert_array_equal(found[place], decode(file.read(), 48, "squash", box).pixels)
    assert list(Ingest(photos, 2, 1).decoded([], [])) == []


def test_a_decoder_that_dies_costs_no_photo_and_changes_no_order(ray_session, photos):
    rows = [0, 1, 2, 4, 5, 7]

    def marked(pixels, name):
        from dim.app import cluster

        if name == "4" and cluster.earlier_attempts() < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full_like(pixels, int(name))

    found = Ingest(photos, 2, 2).decoded(rows, [str(row) for row in rows], marked)
    assert [pixels[0, 0, 0] for pixels in found] == rows
