"""The files for people and for Prometheus: trend.html with all nights, metrics.prom with the last one."""

import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dim.nightly import history as histories
from dim.nightly.history import ACCEPTED, REFUSED, NightlyHistory, NightRow
from dim.report import nightly

NAMES = ("shelf", "a <b> & \"c\" \\ 'd'")


def rows(date, status=ACCEPTED, value=0.5, embedding="one", **known):
    return [NightRow(date, name, status, map=value, images=1200, embedding=embedding, **known) for name in NAMES]


@pytest.fixture
def page(tmp_path):
    """The page of five nights: the first, one of the same network, two missed, a refused one, one of a new network."""
    history = NightlyHistory(str(tmp_path))
    history.put("2020-02-27", rows("2020-02-27"))
    same = {"baseline": "2020-02-27", "difference": 0.0, "low": 0.0, "high": 0.0, "p_value": 1.0}
    history.put("2020-02-28", rows("2020-02-28", value=0.49, **same))
    worse = {"baseline": "2020-02-28", "difference": -0.1, "low": -0.15, "high": -0.05, "p_value": 0.002}
    history.put("2020-03-02", rows("2020-03-02", REFUSED, 0.39, "two", reason="shelf: mAP fell <by> 0.1", **worse))
    better = {"baseline": "2020-02-28", "difference": 0.1, "low": 0.05, "high": 0.15, "p_value": 0.004}
    history.put("2020-03-03", rows("2020-03-03", ACCEPTED, 0.59, "three", **better))
    nightly.write(str(tmp_path), history.rows)
    histories.write_metrics_file(str(tmp_path), history.rows)
    return (tmp_path / "trend.html").read_text()


def test_each_night_stands_there_with_the_way_to_its_report(page):
    links = re.findall(r'<a href="(nights/[^"]+)">', page)
    assert links[4:] == [f"nights/2020-0{day}/shelf/report.html" for day in ("3-03", "3-02", "2-28", "2-27")]
    assert links[0] == "nights/2020-03-03/a%20%3Cb%3E%20%26%20%22c%22%20%5C%20%27d%27/report.html"
    assert len(links) == 8  # none to a night that was missed
    assert page.count("2020-02-29") >= 2 and "a &lt;b&gt; &amp;" in page and "<b> &" not in page
    assert "mAP fell &lt;by&gt; 0.1" in page
    assert "default-src 'none'" in page


def test_what_became_of_each_night_is_marked(page):
    shelf = page.split('class="timeline"')[1].split('class="tools"')[0]
    drawing, key = shelf.split('<ul class="key">')
    counts = {shape: drawing.count(f'class="{shape}"') for shape in ("dot", "turn", "cross", "gap", "interval")}
    assert counts == {"dot": 2, "turn": 1, "cross": 1, "gap": 2, "interval": 2}  # of the same network there is none
    told = "2020-03-02, refused: mAP 0.3900 with 1,200 photos; -0.1000 against the network of 2020-02-28, 95 % interval"
    assert told in drawing
    for name in ("accepted", "with another network than before", "refused", "missed"):
        assert name in key
    assert "accepted, 1 refused, 2 missed" in page


def test_the_last_nights_figures_are_read_by_prometheus_own_parser(page, tmp_path):
    found = {
        (sample.name, sample.labels["evaluation"]): sample.value
        for family in text_string_to_metric_families((tmp_path / "metrics.prom").read_text())
        for sample in family.samples
    }
    for name in NAMES:
        values = {key: value for (key, evaluation), value in found.items() if evaluation == name}
        assert values == {
            "dim_night_map": 0.59,
            "dim_night_difference": 0.1,
            "dim_night_images": 1200,
            "dim_night_accepted": 1,
            "dim_night_seconds": 1583193600,  # 2020-03-03T00:00:00Z
        }
        assert {key for key in values if key not in histories.__doc__} == set()


def test_a_night_writes_both(night, embedded, tmp_path):
    done = night("2020-01-01")
    out = tmp_path / "nightly"
    assert "nights/2020-01-01/shelf/report.html" in (out / "trend.html").read_text()
    assert f"{done['evaluations']['shelf']['map']}" in (out / "metrics.prom").read_text()


def test_a_value_that_a_person_mended_to_none_is_left_out(tmp_path):
    history = NightlyHistory(str(tmp_path))
    history.put("2020-02-27", rows("2020-02-27"))
    path = tmp_path / "history.csv"
    path.write_text(path.read_text().replace("0.5", "about a half").replace("1200", "nan"))
    known = NightlyHistory(str(tmp_path)).rows
    nightly.write(str(tmp_path), known)
    histories.write_metrics_file(str(tmp_path), known)
    assert "dim_night_map{" not in (tmp_path / "metrics.prom").read_text()
    assert "nan" not in (tmp_path / "metrics.prom").read_text().lower()


def test_an_evaluation_that_is_no_longer_asked_for_is_on_the_page_alone(tmp_path):
    history = NightlyHistory(str(tmp_path))
    history.put("2020-02-27", rows("2020-02-27"))
    history.put("2020-02-28", rows("2020-02-28")[:1])
    nightly.write(str(tmp_path), history.rows)
    histories.write_metrics_file(str(tmp_path), history.rows)
    assert "<b>" not in (tmp_path / "metrics.prom").read_text()  # its age would be an alarm for ever
    assert "a &lt;b&gt; &amp;" in (tmp_path / "trend.html").read_text()


def test_an_evaluation_whose_only_night_was_taken_out_by_hand_has_no_section(tmp_path):
    history = NightlyHistory(str(tmp_path))
    history.put("2020-02-27", rows("2020-02-27")[:1])
    history.put("2020-03-01", rows("2020-03-01"))
    path = tmp_path / "history.csv"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "2020-03-01" not in line))
    nightly.write(str(tmp_path), NightlyHistory(str(tmp_path)).rows)
    assert "a &lt;b&gt; &amp;" not in (tmp_path / "trend.html").read_text()
