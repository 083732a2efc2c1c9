"""Which GPUs a process leaves to TensorFlow; the machine's two GPUs, and TensorFlow, are made up."""

import sys
from types import SimpleNamespace

import pytest
import ray

from dim.export import job
from dim.extract import embedder
from dim.model import devices

GPUS = ["/physical_device:GPU:0", "/physical_device:GPU:1"]


@pytest.fixture
def tensorflow(monkeypatch):
    """A stand-in for TensorFlow. TensorFlow would fill the memory of the `visible` GPUs except those in `growing`."""
    found = SimpleNamespace(visible=list(GPUS), growing=[])

    def show(gpus, kind):
        assert kind == "GPU"
        found.visible = list(gpus)

    config = SimpleNamespace(
        list_physical_devices=lambda _: list(GPUS),
        get_visible_devices=lambda _: found.visible,
        set_visible_devices=show,
        experimental=SimpleNamespace(set_memory_growth=lambda gpu, grows: found.growing.append(gpu) if grows else None),
        threading=SimpleNamespace(
            set_intra_op_parallelism_threads=lambda _: None, set_inter_op_parallelism_threads=lambda _: None
        ),
    )
    monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(config=config))
    return found


@pytest.fixture
def assigned(monkeypatch):
    """Makes this process a worker to which Ray has assigned these GPUs."""

    def to(*ids):
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": list(ids), "TPU": []})
        monkeypatch.setattr(ray, "get_runtime_context", lambda: context)

    return to


def test_a_worker_that_has_asked_for_none_sees_none(tensorflow, assigned):
    assigned()
    embedder.set_up_tensorflow(2)
    assert tensorflow.visible == []


def test_a_worker_takes_the_memory_of_its_gpus_as_it_needs_it(tensorflow, assigned):
    assigned("0", "1")
    embedder.set_up_tensorflow(2)
    assert tensorflow.visible == tensorflow.growing == GPUS


def test_a_driver_sees_none(tensorflow, monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    devices.use_assigned_gpus()
    assert tensorflow.visible == []
    devices.use_assigned_gpus()  # TensorFlow may be at work by now, and refuses changes


@pytest.mark.parametrize("format", ["keras", "onnx"])
def test_an_export_leaves_the_gpus_alone(tensorflow, monkeypatch, format):
    seen = []

    def made(_):
        seen.append(list(tensorflow.visible))
        raise EOFError

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(job.importlib.util, "find_spec", lambda _: True)
    for name in ("keras_network", "onnx_graph"):
        monkeypatch.setitem(sys.modules, f"dim.export.{name}", SimpleNamespace(model_of=made))
    with pytest.raises(EOFError):
        job.NETWORKS[format](None)
    assert seen == [[]]


def test_a_user_s_process_shares_the_gpus_that_it_sees(tensorflow):
    tensorflow.visible = GPUS[:1]
    assert devices.share_gpus()
    assert tensorflow.visible == tensorflow.growing == GPUS[:1]


def test_a_gpu_that_is_in_use_keeps_its_settings(tensorflow, monkeypatch):
    def refuse(gpu, grows):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(sys.modules["tensorflow"].config.experimental, "set_memory_growth", refuse)
    assert devices.share_gpus()
    tensorflow.visible = []
    assert not devices.share_gpus()
