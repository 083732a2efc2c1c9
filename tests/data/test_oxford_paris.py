"""The unpickler of ROxford5k and RParis6k: plain data is read, and everything else is refused and not run."""

import datetime
import io
import os
import pickle
import random
import struct
import subprocess
import time
from collections import OrderedDict

import numpy as np
import pytest

from dim.data.oxford_paris import unpickle
from dim.errors import UserError

ORDINARY = {
    "gnd": [{"bbx": [1.5, 2, 3, 4], "easy": [1, 2**40], "hard": [], "junk": [-3]}],
    "imlist": ["a", "ü", "a"],
    "rest": [None, True, False, {1, 2}, frozenset({"x"}), b"\0\1", bytearray(b"z"), 1 - 2**53, ()],
}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / "gnd.pkl"
        path.write_bytes(content)
        return str(path)

    return write


@pytest.mark.parametrize("protocol", [4, 5])
def test_built_in_types_are_read(written, protocol):
    plain = ORDINARY if protocol == 5 else {**ORDINARY, "rest": ORDINARY["rest"][:6]}
    assert unpickle(written(pickle.dumps(plain, protocol=protocol))) == plain


@pytest.mark.parametrize("protocol", range(4))
def test_old_protocols_are_read(written, protocol):
    plain = {key: ORDINARY[key] for key in ("gnd", "imlist")}
    assert unpickle(written(pickle.dumps(plain, protocol=protocol))) == plain


class Calls:
    """A pickle that calls a function."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_and_not_made(written, tmp_path, protocol):
    proof = tmp_path / "proof"
    path = written(pickle.dumps({"imlist": ["a"], "gnd": Calls(os.system, f"touch {proof}")}, protocol=protocol))
    with pytest.raises(UserError, match=r"gnd\.pkl.*(posix|nt)\.system, and only built-in types") as caught:
        unpickle(path)
    assert "\n" not in str(caught.value)
    assert not proof.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.zeros(3),
        np.float64(1),
        OrderedDict(a=1),
        datetime.date(2020, 1, 1),
        Calls(eval, "1"),
        Calls(subprocess.run, ["true"]),
        Calls(getattr, "", "join"),
        range(3),
        len,
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_types_are_refused(written, value):
    with pytest.raises(UserError, match="only built-in types are allowed"):
        unpickle(written(pickle.dumps(value)))


def test_objects_from_outside_are_refused(written):
    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return "id" if obj == "outside" else None

    for protocol in range(6):
        file = io.BytesIO()
        Pickler(file, protocol).dump(["outside"])
        with pytest.raises(UserError, match="persistent"):
            unpickle(written(file.getvalue()))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        b"<html>",
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02\x82\x01.",  # a class by its number in the registry of extensions
        b"\x80\x04]\x94r" + struct.pack("<I", 2**32 - 1) + b".",  # a memo of 64 GiB
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",  # bytes of 2**60
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"].",  # a frame of 2**60
        b"\x80\x02}" + b")" + b"\x85" * 10**6 + b"Ns.",  # a key that is a tuple in a tuple in a tuple …
        b"\x80\x02" + b"]" * 10**5 + b"a" * 10**5 + b".",
        b"I" + b"1" * 5000 + b"\n.",
        b"cos\n" + b"x" * 10**6 + b"\n.",
        b"\x80\x02}]Ns.",  # a list as key
        b"\x80\x02}}b.",  # the state of a dict
    ],
)
def test_what_is_no_sound_pickle(written, content):
    with pytest.raises(UserError, match=r"gnd\.pkl") as error:
        unpickle(written(content))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize(
    "instruction",
    [
        b"I9007199254740992\n",
        b"L-9007199254740992L\n",
        b"\x8a\x08" + struct.pack("<q", 2**53),
        b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20,
    ],
    ids=["INT", "LONG", "LONG1", "LONG4"],
)
def test_large_whole_numbers_are_refused(written, instruction):
    with pytest.raises(UserError, match=r"cannot read the pickle '.*gnd\.pkl': an integer has more than 53 bits"):
        unpickle(written(b"\x80\x02]" + instruction + b"a."))


def test_keys_with_one_hash_are_refused_at_once(written):
    keys = (pickle.dumps(key * (2**61 - 1), 2)[2:-1] + b"N" for key in range(200_000))
    started = time.monotonic()
    with pytest.raises(UserError, match="more than 53 bits"):
        unpickle(written(b"\x80\x02}(" + b"".join(keys) + b"u."))
    assert time.monotonic() - started < 5


def test_tuples_are_refused_as_the_hash_of_one_may_take_for_ever(written):
    """Each of 200 tuples holds the one before twice: as a key the last takes 2**200 steps, written in 1.6 kB."""
    doubled = b"".join(b"0h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(200))
    with pytest.raises(UserError, match="it has a tuple; write a list"):
        unpickle(written(b"\x80\x02})q\x00" + doubled + b"Ns."))


def test_limits_and_missing_files(written, tmp_path, monkeypatch):
    monkeypatch.setattr("dim.data.oxford_paris._MAX_BYTES", 10)
    with monkeypatch.context() as patch:
        patch.setattr("dim.io.files.read_bytes", lambda _: pytest.fail("read before its size was looked at"))
        with pytest.raises(UserError, match="11 bytes; the limit for a pickle is 10"):
            unpickle(written(b"x" * 11))
    for path, message in ((tmp_path / "none.pkl", "no file"), (tmp_path, "cannot read")):
        with pytest.raises(UserError, match=message):
            unpickle(str(path))


def test_any_corrupt_pickle_is_a_user_error(written):
    chance = random.Random(0)
    sources = [pickle.dumps(ORDINARY, protocol=5), pickle.dumps(np.zeros(3)), pickle.dumps(ORDINARY["gnd"], protocol=0)]
    refused = 0
    for trial in range(1500):
        content = bytearray(sources[trial % len(sources)])
        for _ in range(chance.choice((1, 3, 10))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            unpickle(written(bytes(content[: chance.choice((len(content), chance.randrange(len(content))))])))
        except UserError:
            refused += 1
    assert refused > 1000


@pytest.mark.parametrize(("name", "images"), [("gnd_roxford5k.pkl", 4993), ("gnd_rparis6k.pkl", 6322)])
def test_the_official_files(shared, name, images):
    document = unpickle(str(shared(f"oracle/groundtruth/{name}")))
    assert len(document["imlist"]) == images
    assert len(document["qimlist"]) == len(document["gnd"]) == 70
