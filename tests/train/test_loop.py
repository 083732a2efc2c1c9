"""The order of a run's steps, and what it reports of each epoch; with a worker that only notes what it is asked."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

from dim.train import loop
from dim.train.checkpoint import State
from dim.train.config import TrainConfig

ROWS = np.arange(6)
LABELS = np.array(list("aabbcc"))


class Recorder:
    """A worker without a network; `calls` has the steps it was taken through."""

    workers, rank = 2, 1

    def __init__(self, resumed=None, **settings):
        self.calls, self._resumed = [], resumed
        photos = SimpleNamespace(
            mined=lambda: ROWS, rows=lambda _: ROWS, used=lambda: ROWS, write_unreadable=None, labels=LABELS,
            image_ids=np.array([f"photo {row}" for row in ROWS]), positions=lambda ids: ids, labelled=lambda _: LABELS,
        )  # fmt: skip
        source = SimpleNamespace(saved=None)
        self.job = SimpleNamespace(
            config=TrainConfig(**{"final_whitening": "none"} | settings),
            photos=photos,
            source=source,
            fit_pca=False,
            inputs=None,
            training=lambda epochs, best: {"epochs": epochs, "best_epoch": best},
        )
        self.fitting = SimpleNamespace(fit=self._fit)
        self.inference = SimpleNamespace(
            embed=self._embed, unreadable=dict, average_precisions=lambda *_: np.full(6, np.nan),
            reads=lambda: {"cached_share": 1.0, "computed": 0},
        )  # fmt: skip

    @contextlib.contextmanager
    def averaged(self):
        self.calls.append("average")
        yield
        self.calls.append("fitted")

    def _embed(self, rows, **_):
        self.calls.append("embed")
        return SimpleNamespace(rows=rows)

    def mine(self, *_):
        self.calls.append("mine")
        one = {"anchors": np.array([0]), "positives": np.array([1]), "negatives": np.array([2])}
        return SimpleNamespace(**one, summary=lambda: dict.fromkeys(loop.MINING, 1))

    def _fit(self, triplets, *_):
        self.calls.append("fit")
        assert triplets.tolist() == [["photo 0", "photo 1", "photo 2"]]
        return {"loss": 0.25, "active_share": 0.5, "steps": 1, "images_per_triplet": 3.0}

    def resume(self):
        return self._resumed

    def require_equal_weights(self):
        self.calls.append("compare")

    def save(self, state):
        self.calls.append(f"save {state.epoch}")


@pytest.fixture
def run(monkeypatch):
    """Takes a worker through a run; returns what it was asked, and what reached Ray Train."""

    def trained(worker):
        monkeypatch.setattr(loop.ray.train, "report", lambda figures: worker.calls.append(("report", figures)))
        monkeypatch.setattr(loop, "_finish", lambda *_: None)
        monkeypatch.setattr(loop, "_judge", lambda *_: None)
        loop.do_train(worker)
        reports = [call[1] for call in worker.calls if call[0] == "report"]
        return [call if isinstance(call, str) else call[0] for call in worker.calls], reports

    return trained


VALIDATED = ["average", "embed", "fitted", "compare"]
EPOCH = ["embed", "mine", "fit", *VALIDATED]


def test_each_epoch_embeds_mines_fits_validates_saves_and_reports(run):
    calls, _ = run(Recorder(epochs=2))
    begun = calls.index("save 0") + 1
    assert calls[begun:] == [*EPOCH, "save 1", "report", *EPOCH, "save 2", "report"]


def test_an_epoch_is_logged_before_a_worker_waits_for_the_others(run, monkeypatch, caplog):
    worker = Recorder(epochs=1)
    monkeypatch.setattr(worker, "save", lambda _: monkeypatch.setattr(loop.ray.train, "report", dies))
    with caplog.at_level("INFO", "dim"), pytest.raises(RuntimeError, match="another worker died"):
        run(worker)
    assert caplog.messages[-1].startswith("epoch 1 of 1: loss 0.2500")


def dies(_):
    raise RuntimeError("another worker died")


def test_every_worker_reports_each_epoch_s_numbers_to_ray_train(run):
    _, (first, second) = run(Recorder(epochs=2, mine_every=2))
    assert (first["epoch"], first["loss"], first["kept"], first["workers"]) == (1, 0.25, 1, 2)
    assert {"candidates", "cached_share", "fit_seconds"} <= first.keys()
    assert second["epoch"] == 2 and "candidates" not in second  # nothing was mined
    assert "val_map" not in first  # there is no mAP
    assert all(isinstance(value, int | float) for value in [*first.values(), *second.values()])


def test_a_resumed_run_goes_on_with_the_epoch_and_the_triplets_of_its_checkpoint(run):
    triplets = np.array([["photo 0", "photo 1", "photo 2"]])
    calls, (report,) = run(Recorder(State(epoch=1, triplets=triplets, history=[{}]), epochs=2, mine_every=2))
    assert calls == ["fit", *VALIDATED, "save 2", "report"]
    assert report["epoch"] == 2


@pytest.mark.parametrize(("patience", "epochs"), [(None, 1), (2, 1), (1, 0)])
def test_a_run_whose_map_has_not_risen_for_long_enough_takes_no_further_epoch(run, patience, epochs):
    rows = [{"epoch": 1, "val_map": 0.5}, {"epoch": 2, "val_map": 0.4}]
    _, reports = run(Recorder(State(epoch=2, val_fitted=0.3, history=rows), epochs=3, patience=patience))
    assert len(reports) == epochs


@pytest.mark.parametrize(("gain", "kept"), [(0.1, True), (-0.1, False)])
def test_the_pca_layer_is_set_to_the_whitening_after_training_if_that_is_better_on_val(monkeypatch, gain, kept):
    monkeypatch.setattr(loop, "_judge", lambda *_: 0.7)
    before = np.linspace(0.1, 0.6, 6)
    state = State(epoch=3, map_before=0.5, map_fitted=0.4, ap_before=before, ap=before)
    worker = Recorder(state, final_whitening="learned")
    worker.restore_best = lambda _: State(epoch=2, ap_before=before, ap=before + 0.2)
    worker.whitened = lambda *_: ("weights", {"kind": "learned"}, before + 0.2 + gain)
    for name in ("set_layer", "save_model"):
        setattr(worker, name, lambda *given, name=name: worker.calls.append((name, *given)))
    result = loop._finish(worker, state)
    assert (("set_layer", "pca", "weights") in worker.calls) == kept
    training = {"epochs": 3, "best_epoch": 2}
    assert ("save_model", training, {"kind": "learned"} if kept else None) in worker.calls
    assert result["final_whitening"] == ("learned" if kept else None)
    assert result["val_whitened"] == pytest.approx(0.55 + gain)
    assert result["val_after"] == pytest.approx(0.55 + max(gain, 0))


@pytest.mark.parametrize(("gain", "kept", "map_after"), [(0.1, 2, 0.7), (0.0, None, 0.5), (-0.1, None, 0.5)])
def test_the_network_that_is_returned_is_the_better_one_on_val(monkeypatch, gain, kept, map_after):
    monkeypatch.setattr(loop, "_judge", lambda *_: 0.7)
    before = np.linspace(0.1, 0.6, 6)
    state = State(epoch=3, map_before=0.5, map_fitted=0.4, ap_before=before, ap=before)
    worker = Recorder(state)
    worker.restore_best = lambda _: State(epoch=2, ap_before=before, ap=before + gain)
    worker.save_model = lambda *how: worker.calls.append(("save_model", *how))
    result = loop._finish(worker, state)
    assert (result["epochs"], result["best_epoch"], result["map_after"]) == (3, kept, map_after)
    assert result["val_after"] == pytest.approx(max(result["val_before"], result["val_before"] + gain))
    training = None if kept is None else {"epochs": 3, "best_epoch": kept}
    assert ("save_model", training, None) in worker.calls
