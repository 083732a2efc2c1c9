"""What decoding takes, measured."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import json, os, sys
    from pathlib import Path
    from PIL import Image
    from dim.data.decode import decode, prepared
    from dim.data.limits import DecodeError

    Image.init()  # or the libraries would count

    def kept(what):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))

    for path in sys.argv[1:]:
        if os.fork():
            os.wait()
            continue
        content = Path(path).read_bytes()
        before, about = kept("VmRSS"), {}
        try:
            about["needed"] = prepared(content, 64, "squash").memory
            decode(content, 64, "squash")
        except DecodeError as error:
            about["error"] = str(error)
        print(json.dumps(about | {"taken": kept("VmHWM") - before + len(content)}), flush=True)
        os._exit(0)
"""


@pytest.fixture(scope="session")
def measured():
    """Measures photos at paths: what decoding each is said to need, and takes, in bytes; and the error, if any."""
    return _measured


def _measured(paths):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *map(str, paths)]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [json.loads(line) for line in done.stdout.splitlines()]
