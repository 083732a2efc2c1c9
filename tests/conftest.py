"""Fixtures that all tests share: one Ray a session, the shipped demo photos, the benchmarks' data if there is any,
and folders of descriptors made by hand.
"""

import itertools
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from embeddings import embedding
from ports import free_ports

from dim.app import output_folder
from dim.extract import finished_shards, store
from dim.io import files, tables

# Packages are installed without being compiled, and each is compiled by the first test that imports it. Where this
# variable is set, each of the tests' many processes would compile them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Object stores for whoever asks for them by the fixtures `s3` and `gs`. Their addresses stand in the environment before
# any Ray starts, so that its workers know them too.
S3_PORT, GS_PORT = free_ports(2)
GS_FOLDER = Path(tempfile.gettempdir()) / f"dim-test-gs-{os.getpid()}"
os.environ |= {
    "CLOUD_STORAGE_EMULATOR_ENDPOINT": f"http://127.0.0.1:{GS_PORT}",
    "GOOGLE_APPLICATION_CREDENTIALS": str(GS_FOLDER / "key.json"),
    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{S3_PORT}",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-test",
    "AWS_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}

NUMBERS = itertools.count()  # of the buckets, so that no two tests share one

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("DIM_SHARED", REPOSITORY.parent / "shared"))


# Folders of files with few but long tests. They come first: at the end, other processes would have nothing to do.
LONG = ("train", "jobs", "faults", "export", "nightly", "extract", "search")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=place)


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """The path of a file of the benchmarks' data, which is not distributed; skips where it is absent."""

    def path(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs {name}, which is not distributed; set DIM_SHARED to the folder that holds it")
        return SHARED / name

    return path


@pytest.fixture(scope="session")
def demo() -> Path:
    """The folder of the shipped demo photos."""
    return REPOSITORY / "dim" / "assets" / "demo"


@pytest.fixture
def in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is spread over threads of this process, in which a test can replace functions, even if there is a Ray."""
    monkeypatch.setattr("dim.app.tasks.ray.is_initialized", lambda: False)


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """The one Ray of the test session."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    yield
    ray.shutdown()


class S3:
    """The S3 server of tests/s3_server.py, which `faults` tells how to fail."""

    def __init__(self):
        server = REPOSITORY / "tests" / "s3_server.py"
        self._process = subprocess.Popen([sys.executable, server, "--port", str(S3_PORT)])

    def wait(self):
        """Waits until the server answers."""
        end = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < end, "the S3 server did not start"
            time.sleep(0.1)

    def _answers(self):
        try:
            return self.faults() is not None
        except urllib.error.URLError:
            return False

    def faults(self, **rates):
        """From now on requests fail at these `rates` (failing, slow, stuck; seed), and take `latency` seconds each.

        Returns what was counted since the call before.
        """
        request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/faults", json.dumps(rates).encode())
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def bucket(self, name):
        """A new bucket, whose name begins with `name`; its URI."""
        name = f"{name}-{next(NUMBERS)}"
        request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/{name}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        return f"s3://{name}"

    def end(self):
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3]:
    server = S3()
    try:
        server.wait()
        yield server
    finally:
        server.end()


@pytest.fixture
def s3(_s3) -> Iterator[S3]:
    """An S3 server on loopback, which fails at no request until the test says so."""
    yield _s3
    _s3.faults()


class GS:
    """A server of Google's storage protocol, which forgets what it was given once it is stopped."""

    def __init__(self):
        GS_FOLDER.mkdir()
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        account = {"type": "service_account", "client_email": "test@dim.iam.gserviceaccount.com", "private_key": pem}
        account |= {"private_key_id": "1", "token_uri": "http://127.0.0.1:9/none"}
        (GS_FOLDER / "key.json").write_text(json.dumps(account))
        self.start()

    def start(self):
        server = REPOSITORY / "tests" / "gs_server.py"
        self._process = subprocess.Popen([sys.executable, server, "--port", str(GS_PORT)])

    def stop(self):
        self._process.kill()
        self._process.wait()

    def bucket(self, name):
        """A new bucket, whose name begins with `name`; its URI."""
        name = f"{name}-{next(NUMBERS)}"
        uri = f"{os.environ['CLOUD_STORAGE_EMULATOR_ENDPOINT']}/storage/v1/b?project=test"
        request = urllib.request.Request(uri, json.dumps({"name": name}).encode())
        request.add_header("Content-Type", "application/json")
        end = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(request, timeout=30).close()
                return f"gs://{name}"
            except urllib.error.URLError:
                assert self._process.poll() is None and time.monotonic() < end, "the server did not start"
                time.sleep(0.1)


@pytest.fixture(scope="session")
def gs() -> Iterator[GS]:
    """A server of Google's storage protocol on loopback."""
    server = GS()
    yield server
    server.stop()
    shutil.rmtree(GS_FOLDER)


@dataclass(frozen=True)
class _Config:
    note: str = "made by hand"


@pytest.fixture
def write_manifest(tmp_path):
    def write(name="photos.csv", **columns):
        rows = len(columns["image_id"])
        columns = {"path": [f"{image_id}.jpg" for image_id in columns["image_id"]], "split": ["test"] * rows, **columns}
        tables.write(str(tmp_path / name), pa.table(columns))
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def _written(tmp_path_factory):
    """A folder for what `write_descriptors` writes, and the folders in it by their content: many tests share one."""
    return tmp_path_factory.mktemp("written"), {}


@pytest.fixture
def write_descriptors(tmp_path, _written):
    """Writes descriptors (N, D), L2-normalised unless `raw`, in shards of three; ids in `errors` become error rows. A
    store that is not `sealed` is as dim wrote it before there were seals, but for the number of images.
    """
    kept, known = _written

    def write(ids, vectors, *, name="descriptors", errors=(), inputs=None, raw=False, sealed=False, **changes):
        vectors = np.asarray(vectors, dtype=np.float32)
        if not raw:
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        content = list(ids), vectors, list(errors), inputs or {}, sealed, changes
        folder = known.setdefault(pickle.dumps(content), kept / str(len(known)))
        if not folder.exists():
            _write_descriptors(str(folder), *content)
        return shutil.copytree(folder, str(tmp_path / name), dirs_exist_ok=True)

    return write


def _write_descriptors(folder, ids, vectors, errors, inputs, sealed, changes):  # noqa: PLR0917
    with output_folder.opened(folder, "extract", _Config(), inputs, embedding(**changes).as_json()) as out:
        facts = {}
        for start in range(0, len(ids), 3):
            part = ids[start : start + 3]
            rows = [
                {
                    "image_id": image_id,
                    "descriptor": None if image_id in errors else vector.tolist(),
                    "status": store.ERROR if image_id in errors else store.OK,
                }
                for image_id, vector in zip(part, vectors[start : start + 3], strict=True)
            ]
            table = pa.Table.from_pylist(rows, schema=store.schema(vectors.shape[1]))
            name = store.shard_name(pa.array(part, pa.string()), pa.array([""] * len(part)))
            facts[name] = store.write_shard(folder, name, store.marked(table, embedding(**changes)))
            if not sealed:
                files.write_json(f"{folder}/{name}.json", facts[name])
        out.finish({}, finished_shards.sealed(facts) if sealed else None)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A small disk: a tmpfs of 256 KiB, or of as many bytes as the test's parameter says."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.getuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    size = getattr(request, "param", 256 * 1024)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "dim-test", folder]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def fill() -> Callable[[Path, int], Path]:
    """Fills a disk but for so many bytes, and returns the file that does."""

    def make(disk: Path, room: int) -> Path:
        with open(disk / "filler", "wb", buffering=0) as file:
            free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
            file.write(bytes(free - room))
        return disk / "filler"

    return make
