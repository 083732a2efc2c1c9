"""The network's layers on an accelerator under JAX: right, forward and backward, and how fast.

    KERAS_BACKEND=jax PYTHONPATH=. python tests/benchmarks/gpu.py
    KERAS_BACKEND=jax PYTHONPATH=. python tests/benchmarks/gpu.py --smoke      # some seconds, on a CPU

For a machine that has JAX, Keras, pyarrow and h5py and no TensorFlow; where that is installed, dim runs on it. Prints a
JSON line for each check (a pooling with what follows it, up to the triplet loss, against NumPy in float64: the largest
error of the descriptors and of the gradient along a random direction) and for each timing (images/s of batches that lie
in the device's memory already, and what the compiled program takes of that). `float32` is that in earnest, `tf32` what
GPUs make of it by default, `bfloat16` the network's mixed precision. Sized for ten minutes on one H100: what
`--seconds` leave no time for is left out, and said to be. Ends in status 1 where a check fails.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else the memory in use says nothing

import jax
import numpy as np

from dim.model import network, spec
from dim.model.backend import keras, ops
from dim.model.layers import L2Normalisation
from dim.model.pooling import POOLINGS, region_starts
from dim.train.loss import triplet_loss

MARGIN, OUTPUTS = 0.5, 16
MAPS = [(7, 7), (14, 14), (24, 32), (5, 1)]
# By the images' side: the batches, of which the last but one is taken where one must do.
BATCHES = {224: (16, 64, 256), 448: (8, 32, 64), 1024: (2, 8, 16)}
SMOKE = {64: (1, 2, 3)}
ARITHMETIC = {"float32": ("float32", "highest"), "tf32": ("float32", "tensorfloat32"), "bfloat16": ("bfloat16", None)}
TOLERANCES = {"float32": 1e-4, "tf32": 2e-2, "bfloat16": 2e-2}  # of the descriptors' lengths of 1
REGIONS_WHITENED = "rmac, regions whitened"


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.maximum((x**2).sum(-1, keepdims=True), 1e-12))


def pooled(name: str, x: np.ndarray, whitening: list[np.ndarray]) -> np.ndarray:
    """Maps (N, H, W, K) float64 → (N, K) as the definition of the pooling says."""
    _, height, width, _ = x.shape
    if name == "mac":
        return x.max((1, 2))
    if name == "spoc":
        return x.sum((1, 2))
    if name == "spoc-prior":
        down, across = (np.arange(side) - (side - 1) / 2 for side in (height, width))
        squares = down[:, None] ** 2 + across**2
        return (np.exp(-squares / (2 * (min(height, width) / 6) ** 2))[..., None] * x).sum((1, 2))
    if name == "gem":
        return (np.maximum(x, 1e-6) ** 3).mean((1, 2)) ** (1 / 3)
    if name == "crow":
        total, share = x.sum(3), (x > 0).mean((1, 2))
        norm = np.sqrt((total**2).sum((1, 2), keepdims=True))
        spatial = np.sqrt(np.divide(total, norm, out=np.zeros_like(total), where=norm > 0))
        ratio = np.divide(share.sum(1, keepdims=True), share, out=np.ones_like(share), where=share > 0)
        return np.log(ratio) * (spatial[..., None] * x).sum((1, 2))
    found = (x[:, top : top + side, left : left + side].max((1, 2)) for top, left, side in regions(height, width))
    vectors = unit(np.stack(list(found), axis=1))
    if whitening:
        kernel, bias = whitening
        vectors = unit(vectors @ kernel + bias)
    return vectors.sum(1)


def regions(height: int, width: int) -> Iterator[tuple[int, int, int]]:
    """R-MAC's regions as (top, left, side), in the order of `region_maxima`."""
    short = min(height, width)
    for level in range(1, 4):
        if side := 2 * short // (level + 1):
            down, across = (region_starts(length, short, side, level, np).tolist() for length in (height, width))
            yield from ((top, left, side) for top in down for left in across)


def expected(name: str, x: np.ndarray, whitening: list[np.ndarray], pca: list[np.ndarray]) -> tuple[np.ndarray, float]:
    """Descriptors, and the loss of the one triplet that the first three are, in float64."""
    descriptors = unit(unit(pooled(name, x, whitening)) @ pca[0] + pca[1])
    a, p, n = descriptors[:3]
    return descriptors, max(0.0, MARGIN + ((a - p) ** 2).sum() - ((a - n) ** 2).sum())


def maps(height: int, width: int, channels: int, dtype: str) -> np.ndarray:
    """As a ReLU leaves them: half zeros, one channel and one image zero throughout; float64 that `dtype` can hold."""
    x = np.maximum(np.random.default_rng(height).normal(size=(4, height, width, channels)) * 30, 0)
    x[0, ..., 1] = 0
    x[-1] = 0
    return np.asarray(ops.convert_to_numpy(ops.cast(ops.cast(x, dtype), "float32")), np.float64)


def check(name: str, size: tuple[int, int], arithmetic: str, channels: int) -> bool:
    """Holds a pooling, and the layers and the loss that follow it, against NumPy."""
    generator = np.random.default_rng(1)
    dtype, _ = ARITHMETIC[arithmetic]
    x = maps(*size, channels, dtype)
    options = {"dimension": OUTPUTS} if name == REGIONS_WHITENED else {}
    name = name.partition(",")[0]
    pooling, pca = POOLINGS[name](**options), keras.layers.Dense(OUTPUTS, dtype="float32")
    head = keras.Sequential([pooling, L2Normalisation(), pca, L2Normalisation()])
    head.build(x.shape)
    weights = [
        [generator.normal(size=weight.shape) / np.sqrt(channels) for weight in layer.weights if weight.shape]
        for layer in (pooling, pca)
    ]
    for layer, values in zip((pooling, pca), weights, strict=True):
        if values:
            layer.set_weights(values)
    weights = [[value.astype(np.float32).astype(np.float64) for value in values] for values in weights]

    def loss(given: Any) -> Any:
        descriptors = head(given)
        return triplet_loss(descriptors[:1], descriptors[1:2], descriptors[2:3], MARGIN)[0], descriptors

    (value, found), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(ops.cast(x, dtype))
    descriptors, right = expected(name, x, *weights)
    # Along what is not zero: there, all poolings are smooth.
    direction = generator.normal(size=x.shape) * (x > 0)
    step = 1e-6
    slope = (expected(name, x + step * direction, *weights)[1] - expected(name, x - step * direction, *weights)[1]) / (
        2 * step
    )
    gradient = np.asarray(ops.convert_to_numpy(ops.cast(gradient, "float32")), np.float64)
    scale = np.linalg.norm(gradient * (x > 0))  # what a random direction's slope is like
    errors = {
        "descriptors": float(np.abs(np.asarray(found) - descriptors).max()),
        "loss": abs(float(value) - right),
        "gradient": float(abs((gradient * direction).sum() - slope) / scale),
    }
    ok = bool(np.isfinite(gradient).all()) and all(error <= TOLERANCES[arithmetic] for error in errors.values())
    say(check=name if not options else REGIONS_WHITENED, maps=size, arithmetic=arithmetic, ok=ok, **errors)
    return ok


@contextlib.contextmanager
def computing(arithmetic: str) -> Iterator[None]:
    _, matmul = ARITHMETIC[arithmetic]
    with jax.default_matmul_precision(matmul) if matmul else contextlib.nullcontext():
        yield


def a_call(function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float) -> float:
    """Seconds of a call of what has been called before: the fastest of several rounds."""
    rounds = []
    end = time.monotonic() + seconds
    while len(rounds) < 3 or time.monotonic() < end:
        started = time.monotonic()
        jax.block_until_ready(function(*arguments))
        rounds.append(time.monotonic() - started)
    return min(rounds)


def timed(about: dict[str, Any], function: Callable[..., Any], arguments: tuple[Any, ...], images: int) -> Any:
    """Says how fast `function` is, compiled or, with `jit` false, one operation after the other; returns its result."""
    started = time.monotonic()
    try:
        if about["jit"]:
            function = jax.jit(function).lower(*arguments).compile()
            memory = function.memory_analysis()
            about["mib"] = round((memory.temp_size_in_bytes + memory.output_size_in_bytes) / 2**20)
        result = jax.block_until_ready(function(*arguments))
        first = time.monotonic() - started
        seconds = a_call(function, arguments, 1.0)
    except jax.errors.JaxRuntimeError as error:  # memory, mostly
        say(**about, error=str(error).partition("\n")[0][:200])
        return None
    say(**about, images_per_second=round(images / seconds, 1), first_call_seconds=round(first, 2))
    return result


def loaded(name: str, precision: str) -> keras.Model:
    return network.load(spec.resolve(f"vgg16-{name}"), precision)


def stateless(model: keras.Model) -> tuple[Callable[..., Any], Any]:
    """`model` as a function of its weights and a batch: as constants, they would be compiled into the program."""
    weights = [variable.value for variable in model.trainable_variables]
    others = [variable.value for variable in model.non_trainable_variables]
    return lambda given, batch: model.stateless_call(given, others, batch, training=False)[0], weights


def forward(arithmetic: str, side: int, size: int, *, jit: bool) -> np.ndarray | None:
    """Times VGG16 with GeM; its descriptors."""
    images = np.random.default_rng(side).integers(0, 256, (size, side, side, 3), np.uint8)
    function, weights = stateless(loaded("gem", ARITHMETIC[arithmetic][0]))
    about = {"timing": "vgg16-gem", "arithmetic": arithmetic, "side": side, "batch": size, "jit": jit}
    with computing(arithmetic):
        return timed(about, function, (weights, jax.device_put(images)), size)


def pooling(name: str, side: int, size: int) -> None:
    """Times a pooling alone, on maps as VGG16 leaves them in bfloat16."""
    options = {"dimension": 512} if name == REGIONS_WHITENED else {}
    layer = POOLINGS[name.partition(",")[0]](**options)
    x = ops.cast(np.abs(np.random.default_rng(0).normal(size=(size, side // 16, side // 16, 512))), "bfloat16")
    layer.build(x.shape)
    timed({"timing": f"pooling {name}", "side": side, "batch": size, "jit": True}, layer, (x,), size)


def fitting(arithmetic: str, size: int, side: int) -> None:
    """Times the gradient of the loss by the last block and all that follows, on `size` images' kept activations."""
    head = network.part(loaded("gem", ARITHMETIC[arithmetic][0]), "block4_pool", None)
    function, weights = stateless(head)
    kept = np.random.default_rng(0).random((size, side // 16, side // 16, 512)).astype(np.float16)

    def loss(given: Any, batch: Any) -> Any:
        a, p, n = ops.split(function(given, batch), 3)
        return ops.sum(triplet_loss(a, p, n, MARGIN))

    about = {"timing": "gradient of block5", "arithmetic": arithmetic, "side": side, "batch": size, "jit": True}
    with computing(arithmetic):
        timed(about, jax.grad(loss), (weights, jax.device_put(kept)), size)


def timings(batches: dict[int, tuple[int, ...]]) -> Iterator[Callable[[], Any]]:
    """All that is timed, what says most first."""
    for jit in (True, False):
        for side, sizes in batches.items():
            for arithmetic in ARITHMETIC:
                yield functools.partial(forward, arithmetic, side, sizes[-2], jit=jit)
    for arithmetic in ARITHMETIC:
        yield functools.partial(fitting, arithmetic, 96, next(iter(batches)))
    for side, sizes in batches.items():
        for name in (*POOLINGS, REGIONS_WHITENED):
            yield functools.partial(pooling, name, side, sizes[-2])
    for side, sizes in batches.items():
        for size in (sizes[0], sizes[-1]):
            for arithmetic in ARITHMETIC:
                yield functools.partial(forward, arithmetic, side, size, jit=True)


def equal(batches: dict[int, tuple[int, ...]]) -> bool:
    """Whether the descriptors of all arithmetics point the same way."""
    side, sizes = next(iter(batches.items()))
    exact, *others = (forward(arithmetic, side, sizes[0], jit=True) for arithmetic in ARITHMETIC)
    if exact is None or any(other is None for other in others):
        return False
    cosines = [float((np.asarray(exact) * np.asarray(other)).sum(-1).min()) for other in others]
    ok = min(cosines) > 0.999
    say(check="cosine with float32", ok=ok, **dict(zip(list(ARITHMETIC)[1:], cosines, strict=True)))
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="no timing begins after these")
    parser.add_argument("--smoke", action="store_true", help="small maps and images, to see that it runs")
    arguments = parser.parse_args()
    if keras.backend.backend() != "jax":
        sys.exit("Keras runs on another backend; set KERAS_BACKEND=jax, in an environment without TensorFlow")
    end = time.monotonic() + arguments.seconds
    device = jax.devices()[0]
    say(device=device.device_kind, platform=device.platform, jax=jax.__version__, keras=keras.__version__)
    batches, sizes, channels = (SMOKE, MAPS[2:], 8) if arguments.smoke else (BATCHES, MAPS, 512)
    ok = True
    for arithmetic in ARITHMETIC:
        with computing(arithmetic):
            for name in (*POOLINGS, REGIONS_WHITENED):
                for size in sizes:
                    ok &= check(name, size, arithmetic, channels)
    ok &= equal(batches)
    left_out = 0
    for timing in timings(batches):
        if time.monotonic() > end:
            left_out += 1
        else:
            timing()
    statistics = device.memory_stats() or {}
    peak = statistics.get("peak_bytes_in_use")
    say(ok=ok, left_out=left_out, peak_mib=peak and round(peak / 2**20))
    sys.exit(not ok)


if __name__ == "__main__":
    main()
