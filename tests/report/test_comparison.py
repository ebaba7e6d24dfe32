"""Settings side by side: the headline, the JSON, and the page, which escapes every text."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from transom.report.comparison import FATES, Column, Comparison, Mark, Row, Spot
from transom.report.html import page
from transom.report.report import Report

NASTY = "</span><script>alert(1)</script>"
TABLE = Comparison(
    (
        Column(
            "mild", (Spot("3:4", NASTY, "health", True),), (), (("3", (Mark("readable", NASTY, NASTY),)),)
        ),
        Column("strict", (), (Spot("9:1", "Horse", "name"),), (("3", (Mark("", NASTY),)),)),
    ),
    (Row("private, still readable", ("1 of 4 (25.0 %)", "none there"), (0.25, None)),),
    ("mild: a note",),
)
REPORT = Report(kind="text", target={"target": "mine.txt"}, findings=(), comparison=TABLE, cost_s=1.0)


def test_the_headline_is_the_first_row() -> None:
    assert REPORT.headline == "Private, still readable: 25.0 % under mild."
    assert REPORT.details == ("Mild: a note.",)
    assert "Private, still readable" in REPORT.verdict
    nothing = replace(TABLE, rows=(Row("private, still readable", ("-", "-"), (None, None)),))
    assert replace(REPORT, comparison=nothing).headline == "Private, still readable: nothing there."


def test_json_holds_figures_and_places_and_no_marked_text() -> None:
    read = json.loads(json.dumps(REPORT.to_dict()))["comparison"]
    assert read["rows"][0]["values"] == {"mild": 0.25, "strict": None}
    assert read["spots"]["mild"]["readable"][0]["where"] == "3:4"
    assert read["spots"]["strict"]["changed"][0]["text"] == "Horse"
    assert "texts" not in read
    assert "comparison" not in replace(REPORT, comparison=None).to_dict()


def test_the_page_escapes_every_text() -> None:
    written = page(REPORT)
    assert "<script" not in written
    assert written.count("&lt;script&gt;alert(1)&lt;/script&gt;") == 4  # spot, mark, its title, plain text
    for said in FATES.values():
        assert said in written
    assert "on your lists" in written
    assert "9:1, name" in written


@pytest.mark.parametrize("fate", FATES)
def test_every_fate_has_its_colour(fate: str) -> None:
    assert f".fate.{fate} {{" in page(REPORT)
