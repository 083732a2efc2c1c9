"""train, extract and evaluate of the demo set on an S3 server that fails and dawdles, against the same on a disk.

    python tests/benchmarks/object_store.py --failing 0.05 --slow 0.05
    python tests/benchmarks/object_store.py --requests 1000 --latency 0.1

Photos, runs, checkpoints, descriptors and reports lie on the server of tests/s3_server.py, on loopback. Prints one JSON
line: `rows` and `lost` (not there exactly once, as ok, with the same descriptor to a cosine of 0.9999) of one model's
extraction in both places, `map` of its evaluation in both, `train_map` of both trainings, and what the server did.

With --requests, no job: seconds, requests and the most in flight of what comes before the first of so many photos, and
of reading them as a decoding task does, as objects and as members of a tar; one after another, for comparison, a tenth
of them. The server answers some 300 requests a second at most, whatever their latency.
"""

import argparse
import collections
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from dim.data import photos  # noqa: E402
from dim.data.photos import list_folder  # noqa: E402
from dim.data.prefetch import prefetch  # noqa: E402
from dim.extract import store  # noqa: E402
from dim.io import files, object_listings, storage  # noqa: E402
from dim.train.job import DEMO  # noqa: E402

BUCKET = "s3://dim-benchmark"


def job(name: str, *flags: str) -> dict:
    """Runs a job and returns its last line."""
    done = subprocess.run(
        [sys.executable, f"jobs/{name}.py", *flags], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def ask(path: str, content: bytes, method: str) -> bytes:
    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{path}", content, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def served(port: int) -> subprocess.Popen:
    """The server, once it answers, with an empty bucket."""
    environment = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_ACCESS_KEY_ID": "a"}
    os.environ |= environment | {"AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    server = subprocess.Popen([sys.executable, REPOSITORY / "tests" / "s3_server.py", "--port", str(port)])
    while server.poll() is None:
        try:
            ask("faults", b"{}", "POST")
            break
        except OSError:
            time.sleep(0.2)
    ask(BUCKET.removeprefix("s3://"), b"", "PUT")
    return server


def measured(latency: float, call: Callable[[], Iterable[object]]) -> dict[str, float]:
    """What exhausting what `call` gives takes, where each request takes `latency` seconds."""
    ask("faults", json.dumps({"latency": latency}).encode(), "POST")
    start = time.monotonic()
    collections.deque(call(), 0)
    seconds = round(time.monotonic() - start, 2)
    counts = json.loads(ask("faults", b"{}", "POST"))
    return {"seconds": seconds, "requests": counts["requests"], "in_flight": counts["most"]}


def packed(uris: list[str]) -> list[str]:
    """A tar of the objects at `uris`, and the names of its members."""
    content, tar = io.BytesIO(), f"{BUCKET}/requests/a.tar"
    with tarfile.open(fileobj=content, mode="w") as archive:
        for number in range(len(uris)):
            member = tarfile.TarInfo(f"{number}.jpg")
            member.size = 20_000
            archive.addfile(member, io.BytesIO(bytes(member.size)))
    files.write_bytes(tar, content.getvalue())
    return [f"{tar}#{number}.jpg" for number in range(len(uris))]


def requests(count: int, latency: float) -> dict[str, dict[str, float]]:
    uris = [f"{BUCKET}/requests/{number % 10}/{number}.jpg" for number in range(count)]
    storage.for_each(lambda uri: files.write_bytes(uri, bytes(20_000)), uris)
    tenth = uris[: count // 10]
    members = packed(uris)
    found = {
        "a tenth asked one by one": measured(latency, lambda: map(files.info, tenth)),
        "asked at once": measured(latency, lambda: files.infos(uris)),
        "a tenth read one by one": measured(latency, lambda: map(photos.read, tenth)),
        "read ahead": measured(latency, lambda: (photo.read() for photo in prefetch(uris))),
        "read from a tar": measured(latency, lambda: (photo.read() for photo in prefetch(members))),
    }
    object_listings.FEWEST = count
    return found | {"asked and listed": measured(latency, lambda: files.infos(uris))}


def rows(folder: str) -> list[dict]:
    return [row for name in store.shards(folder) for row in store.read_shard(folder, name).to_pylist()]


def lost(here: list[dict], there: list[dict]) -> int:
    """The rows that are not in both places once, as ok, with the same descriptor."""
    known = {row["image_id"]: row["descriptor"] for row in here if row["status"] == store.OK}
    found = {row["image_id"]: row["descriptor"] for row in there if row["status"] == store.OK}
    same = sum(np.dot(known[name], found[name]) > 0.9999 for name in known.keys() & found.keys())
    return max(len(here), len(there)) - int(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--failing", type=float, default=0.05)
    parser.add_argument("--slow", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", default="224")
    parser.add_argument("--requests", type=int)
    parser.add_argument("--latency", type=float, default=0.1)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = served(port)
    try:
        if arguments.requests:
            print(json.dumps(requests(arguments.requests, arguments.latency)))
            return
        for name in list_folder(str(DEMO.parent)).files:
            files.write_bytes(f"{BUCKET}/photos/{name}", (DEMO.parent / name).read_bytes())
        rates = {name: getattr(arguments, name) for name in ("failing", "slow", "seed")}
        size = ("--image-size", arguments.image_size, "--precision", "float32")
        with tempfile.TemporaryDirectory() as disk:
            ask("faults", json.dumps(rates).encode(), "POST")
            results = {}
            for place, manifest in ((disk, str(DEMO)), (BUCKET, f"{BUCKET}/photos/manifest.csv")):
                scratch = ("--scratch", f"{disk}/scratch-{len(results)}")
                fitted = job("train", "--manifest", manifest, "--out", f"{place}/run", *scratch, *size)
                # One model in both places, so that its descriptors can be compared.
                model = results[disk][0]["model"] if results else fitted["model"]
                if place == BUCKET:
                    for name in files.names(model):
                        files.write_bytes(f"{BUCKET}/model/{name}", files.read_bytes(f"{model}/{name}"))
                    model = f"{BUCKET}/model"
                job("extract", "--manifest", manifest, "--model", model, "--out", f"{place}/out", *size)
                told = ("--descriptors", f"{place}/out", "--split", "test", "--out", f"{place}/metrics")
                results[place] = fitted, rows(f"{place}/out"), job("evaluate", "--manifest", manifest, *told)
            did = json.loads(ask("faults", b"{}", "POST"))
        (trained, here, judged), (trained_there, there, judged_there) = results.values()
    finally:
        server.kill()
        server.wait()
    line = {"rows": len(there), "lost": lost(here, there), "map": [judged["map"], judged_there["map"]]}
    line |= {"train_map": [trained["map_after"], trained_there["map_after"]], "server": did, **rates}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
