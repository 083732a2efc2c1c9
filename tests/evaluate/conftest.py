"""Ground truth made by hand."""

import pyarrow as pa
import pytest

from dim.io import tables


@pytest.fixture
def write_truth(tmp_path):
    def write(*rows):
        columns = dict(zip(("query_id", "image_id", "grade"), zip(*rows, strict=True), strict=True))
        tables.write(str(tmp_path / "truth.csv"), pa.table({k: list(v) for k, v in columns.items()}))
        return str(tmp_path / "truth.csv")

    return write
