"""history.csv: the nights it lists as missed, and files that are no history."""

import pytest

from dim.errors import UserError
from dim.io import tables
from dim.nightly.history import ACCEPTED, MISSED, MOST_MISSED, NightlyHistory, NightRow


def written(folder, date, *rows):
    NightlyHistory(str(folder)).put(date, rows or [NightRow(date, "shelf", ACCEPTED)])
    return folder / "history.csv"


def test_of_a_long_gap_only_the_last_nights_are_listed(tmp_path):
    written(tmp_path, "0001-01-01")
    rows = tables.read(str(written(tmp_path, "2020-01-02"))).to_pylist()
    missed = [row["date"] for row in rows if row["status"] == MISSED]
    assert len(missed) == MOST_MISSED and (missed[0], missed[-1]) == ("2019-01-01", "2020-01-01")
    assert NightlyHistory(str(tmp_path)).last == "2020-01-02"


@pytest.mark.parametrize("date", ["", "0", "yesterday", "2020-02-30", "20300101"])
def test_a_row_without_a_date_is_named(tmp_path, date):
    path = written(tmp_path, "2020-01-01")
    path.write_text(path.read_text().replace("2020-01-01", date))
    with pytest.raises(UserError, match=r"history\.csv': row 1 has date .*; correct or delete it"):
        NightlyHistory(str(tmp_path))


def test_what_a_spreadsheet_would_run_is_escaped_and_comes_back(tmp_path):
    names = ["=1+1", "@SUM(1)", "'=1", "-x", "'quoted", "shelf"]
    rows = [NightRow("2020-01-01", name, ACCEPTED, difference=-0.5, reason="+1-x", model="=m") for name in names]
    path = written(tmp_path, "2020-01-01", *rows)
    cells = {tuple(row.values()) for row in tables.read(str(path)).to_pylist()}
    assert {row[1] for row in cells} == {"'=1+1", "'@SUM(1)", "''=1", "'-x", "'quoted", "shelf"}
    for _ in range(2):
        history = NightlyHistory(str(tmp_path))
        for name in names:
            row = history.baseline(name, "2020-01-09")
            assert row and (row["difference"], row["reason"], row["model"]) == ("-0.5", "+1-x", "=m")
        history.put("2020-01-02", [])


def test_a_file_of_other_columns_is_no_history(tmp_path):
    (tmp_path / "history.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"history\.csv' is not a history of nights: it has no column 'date'"):
        NightlyHistory(str(tmp_path))
