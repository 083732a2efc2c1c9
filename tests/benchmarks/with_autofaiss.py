"""Builds an index with autofaiss, for tests/benchmarks/index.py.

    python tests/benchmarks/with_autofaiss.py FOLDER FACTORY OUT

FOLDER has the vectors as .npy files, float32. Prints the seconds of clock and CPU, imports left out. This file imports
nothing of dim, because the Python that has autofaiss may be another.
"""

import json
import logging
import sys
import time

from autofaiss import build_index


def main() -> None:
    folder, factory, out = sys.argv[1:]
    started, worked = time.perf_counter(), time.process_time()
    build_index(
        embeddings=folder,
        index_path=f"{out}/knn.index",
        index_infos_path=f"{out}/infos.json",
        index_key=factory,
        metric_type="ip",
        max_index_memory_usage="8G",
        current_memory_available="12G",
        verbose=logging.ERROR,
    )
    print(json.dumps({"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - worked}))


if __name__ == "__main__":
    main()
