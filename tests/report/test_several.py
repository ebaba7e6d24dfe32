"""Reports on one page: what went in comes out under its name, and what is no report is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from transom.cli.main import app
from transom.errors import MisconfiguredError
from transom.report.charts import frontier_chart
from transom.report.finding import Example, not_run, share
from transom.report.html import page
from transom.report.report import Frontier, FrontierPoint, Report
from transom.report.several import read_report, together

POINTS = tuple(
    FrontierPoint(label, setting, r, r, r, u, u, u, "sst2")
    for label in ("words", "words+obfuscated")
    for setting, r, u in (("epsilon 1", 0.1, 0.6), ("epsilon 8", 0.7, 0.85))
)


def one(hits: int = 70, points: tuple[FrontierPoint, ...] = POINTS, kind: str = "words") -> Report:
    found = replace(share("bayes", "token recovery", hits=hits, n=100, baseline=0.1), setting="epsilon 1")
    shown = replace(found, examples=(Example("the plain", "the seen", "the read"),), note="a note")
    return Report(
        kind=kind,
        target={"target": "notes.txt"},
        findings=(shown, not_run("beam", "token recovery", "no language")),
        frontier=Frontier(points) if points else None,
        cost_s=2.0,
    )


@given(hits=st.integers(0, 100), with_points=st.booleans(), gate=st.none() | st.floats(0, 1))
def test_what_was_printed_is_read_back(hits, with_points, gate):
    report = replace(one(hits, POINTS if with_points else ()), gate=gate)
    read = read_report(json.dumps(report.to_dict()), "a.json")
    assert read == report
    assert read.to_dict() == report.to_dict()


def test_each_finding_and_line_goes_by_its_report():
    both = together({"rnm": one(70), "mine": one(20, POINTS[:2])})
    assert [(found.setting, found.value) for found in both.findings] == [
        ("rnm, epsilon 1", 0.7),
        ("rnm", None),
        ("mine, epsilon 1", 0.2),
        ("mine", None),
    ]
    labels = dict.fromkeys(point.label for point in both.frontier.points)
    assert list(labels) == ["rnm, words", "rnm, words+obfuscated", "mine"]
    assert both.headline.startswith("20.0 % (mine, epsilon 1) to 70.0 % (rnm, epsilon 1) of the replaced")
    assert both.target == {"rnm": "notes.txt", "mine": "notes.txt"}
    assert both.cost_s == 4


def test_reports_without_utility_have_no_line_in_the_plot():
    assert together({"a": one(points=()), "b": one(points=())}).frontier is None
    assert {
        p.label for p in together({"a": one(points=()), "b": one(points=POINTS[:1])}).frontier.points
    } == {"b"}


def test_kinds_that_do_not_compare_are_refused():
    with pytest.raises(MisconfiguredError, match="2 kinds"):
        together({"a": one(), "b": one(kind="adapter")})


def test_many_lines_stay_apart():
    """By tone and marker together, for as many as there are pairs of them."""
    points = tuple(replace(POINTS[0], label=f"line {number}") for number in range(18))
    chart = frontier_chart(Frontier(points))
    keys = re.findall(r'<li class="series (s\d)"><svg[^>]*>(.+?)</svg>', chart)
    assert len(set(keys)) == len(keys) == 18
    css = Path(page.__code__.co_filename).with_name("page.css").read_text()
    assert all(f".{tone} {{" in css for tone, _ in keys)


SECRET = "my own secret"


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        f'"{SECRET}"',
        json.dumps({"kind": "words"}),
        json.dumps(one().to_dict() | {"findings": [{"name": SECRET}]}),
        json.dumps(one().to_dict() | {"findings": SECRET}),
        json.dumps(one().to_dict() | {"findings": [{"name": "x", "metric": "y", "value": SECRET}]}),
        json.dumps(one().to_dict() | {"frontier": [{"label": SECRET}]}),
        json.dumps(one().to_dict() | {"cost_s": SECRET}),
        '{"kind": "words", "kind": "words"}',
    ],
)
def test_what_is_no_report_is_refused_without_its_text(text):
    with pytest.raises(MisconfiguredError, match=r"a\.json holds no") as caught:
        read_report(text, "a.json")
    assert SECRET not in str(caught.value)


def test_figures_that_cannot_be_are_not_run():
    record = one().to_dict()
    record["findings"][0]["value"] = 0.0  # below its interval
    found = read_report(json.dumps(record), "a.json").findings[0]
    assert (found.status, found.setting) == ("not run", "epsilon 1")
    assert "outside its interval" in found.reason


def test_the_command_writes_one_page_for_its_owner(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("rnm.json").write_text(json.dumps(one().to_dict()))
    Path("other").mkdir()
    Path("other/rnm.json").write_text(json.dumps(one(20).to_dict()))
    done = CliRunner().invoke(app, ["audit", "plot", "rnm.json", "other/rnm.json", "--out", "both.html"])
    assert done.exit_code == 0, done.exception
    assert "other/rnm.json, epsilon 1" in done.stdout
    text = Path("both.html").read_text()
    assert text.count('class="path"') == 4  # two lines of two points each, from each report
    assert Path("both.html").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("reports", "message"),
    [(["a.json", "a.json"], "named twice"), (["absent.json"], "cannot be read")],
)
def test_the_command_refuses(tmp_path, monkeypatch, reports, message):
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(one().to_dict()))
    done = CliRunner().invoke(app, ["audit", "plot", *reports, "--out", "both.html"])
    assert isinstance(done.exception, MisconfiguredError)
    assert message in str(done.exception)
    assert not Path("both.html").exists()
