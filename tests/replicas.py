"""A worker of a training with several replicas on its machine, as GPUs are, but of logical CPUs.

    python replicas.py RANK LOCAL OUT [HOST:PORT HOST:PORT …]

For each of CASES, two epochs of the loop's own steps on activations of several shapes, with a checkpoint between them,
then an embedding of all photos. Writes weights, figures, and embeddings to OUT, a .npz, beside which the checkpoints
stand.
"""

import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np

SHAPES = [(2, 2, 512), (3, 1, 512), (1, 2, 512)]
PHOTOS = 13
TRIPLETS = 11
BATCH = 5  # of four replicas, one has two triplets, the others one
SGD = {"optimizer": "sgd", "learning_rate": 0.5}
# The norm of a batch's gradient is about 20, so that each of these steps is clipped.
WHOLE = {"schedule": "cosine", "warm_up": 0.25, "weight_decay": 0.1, "clip_norm": 0.01, "ema": 0.6}
CASES = {
    "sgd": SGD,
    "adam": {"optimizer": "adam", "learning_rate": 1e-3},
    "whole": SGD | WHOLE,
    "contrastive": SGD | {"loss": "contrastive"},
    "ap": SGD | {"loss": "ap"},
    "ap whole": SGD | WHOLE | {"loss": "ap"},
    "multi-similarity": SGD | {"loss": "multi-similarity"},
}


def fitted(strategy, rank, workers, folder):
    """What worker `rank` holds at the end, by name."""
    from dim.model import network
    from dim.model.backend import keras
    from dim.model.spec import Spec
    from dim.train import checkpoint
    from dim.train.config import TrainConfig
    from dim.train.embed import Inference
    from dim.train.gradient_descent import Fitting
    from dim.train.locality import Ownership
    from dim.train.optimizer import averaged, optimizer_of
    from dim.train.step import TrainedNetwork

    generator = np.random.default_rng(3)
    activations = {row: generator.random(SHAPES[row % 3]).astype(np.float16) for row in range(PHOTOS)}
    triplets = np.stack([generator.permutation(PHOTOS)[:3] for _ in range(TRIPLETS)])
    features = SimpleNamespace(read=lambda lists: [{row: activations[row] for row in rows} for rows in lists])
    ids = np.array([f"photo {row}" for row in range(PHOTOS)])
    spec = Spec(pooling="gem", dimension=8, resize="long-side")
    job = SimpleNamespace(source=SimpleNamespace(spec=spec))
    job.photos = SimpleNamespace(labels=np.array([f"object {row % 4}" for row in range(PHOTOS)]), image_ids=ids)
    owned = Ownership(np.arange(workers), np.arange(PHOTOS) % workers)
    found = {}
    for name, options in CASES.items():
        job.config = TrainConfig(batch_size=BATCH, margin=0.5, top=TRIPLETS, epochs=2, out=str(folder), **options)
        keras.utils.set_random_seed(7)
        with strategy.scope():
            trained = TrainedNetwork(strategy, network.build(spec), spec, "block5", from_pixels=False)
            optimizer = optimizer_of(job.config, PHOTOS, trained.variables)
        fitting = Fitting(job, trained, optimizer, features, rank=rank, ownership=owned)
        found[f"{name}/begun"] = flat(trained.variables)
        losses = [fitting.fit(triplets, job.photos.labels, 0)["loss"]]
        kept = str(folder / f"checkpoint-{name}-{rank}")
        checkpoint.write(
            kept, checkpoint.State(1, history=[{"epoch": 1, "val_map": 0.5}]), trained.variables, optimizer
        )
        for variable in [*trained.variables, *optimizer.variables]:
            variable.assign(np.ones_like(variable.numpy()))
        checkpoint.read(kept, 1, trained.variables, optimizer)
        losses.append(fitting.fit(triplets, job.photos.labels, 1)["loss"])
        ((rows, vectors),) = Inference(trained, features, job, rank, owned).blocks(np.arange(PHOTOS))
        found |= {f"{name}/losses": losses, f"{name}/ended": flat(trained.variables)}
        found |= {f"{name}/rows": rows, f"{name}/vectors": vectors}
        with averaged(optimizer, trained.variables):
            found[f"{name}/averaged"] = flat(trained.variables)
    return found | {"replicas": strategy.num_replicas_in_sync}


def flat(variables):
    return np.concatenate([variable.numpy().ravel() for variable in variables])


def main(rank, local, out, *workers):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    if workers:
        task = {"type": "worker", "index": rank}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    import tensorflow as tf
    from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

    (cpu,) = tf.config.list_physical_devices("CPU")
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * local)
    if workers:
        # Of several CPUs it takes the first, but of several GPUs all.
        CollectiveAllReduceExtended._initialize_local_devices = lambda _, __, worker: (
            tuple(f"{worker}/device:CPU:{number}" for number in range(local)),
            "CPU",
        )
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    else:
        strategy = tf.distribute.MirroredStrategy()
    np.savez(out, **fitted(strategy, rank, max(1, len(workers)), out.parent))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), *sys.argv[4:])
