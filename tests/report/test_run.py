"""The page of a run: nothing runs or loads, all is escaped, and lines stand where their figures are."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.report.heatmap import HeatMap, heat_map
from transom.report.lines import Chart, Line, line_chart, nice
from transom.report.run import RunPage, Said, run_page

from .test_html import EVIL, Reader

LOSS = Chart("Loss", (Line("training", ((1, 0.7), (2, 0.5))), Line("test", ((1, 0.8), (2, 0.6)))))
SCORE = Chart("AUC", (Line("test", ((1, 0.6), (2, 0.75)), ((0.5, 0.7), (0.65, 0.85))),))


def page(name: str = "credit") -> str:
    parts = (Said(f"Crossed {name}", (f"It is {name}.",), ((name, f"4 {name}"),), f"Lead {name}."),)
    return run_page(
        RunPage(
            title=f"Training {name}", headline=f"AUC 0.75 {name}", details=(f"Of {name}.",),
            charts=(LOSS, SCORE, Chart("Empty", (Line("none", ()),))), parts=parts,
            created="2030-01-02T03:04:05Z",
        )
    )  # fmt: skip


def test_a_cell_is_as_deep_as_its_value() -> None:
    shown = HeatMap(EVIL, ((0.0, 0.5, -0.2), (math.nan, 1.0, 0.25)))
    made = heat_map(shown)
    assert re.findall(r'fill-opacity="([\d.]+)"', made) == [
        "0.000",
        "0.500",
        "0.000",
        "0.000",
        "1.000",
        "0.250",
    ]
    assert "layer 1, head 2: 0.250" in made
    assert EVIL not in made
    places = [float(one) for one in re.findall(r'<rect x="([\d.]+)%"', made)]
    width = float(re.findall(r'width="([\d.]+)%" fill', made)[0])
    assert places[:3] == places[3:]
    assert places[2] + width == pytest.approx(100, abs=0.01)
    page_of_it = run_page(RunPage(title="a", headline="b", parts=(Said("c", maps=(shown,)),)))
    assert Reader(page_of_it).texts
    assert page_of_it.count("<rect") == 6
    assert "NaN" not in heat_map(HeatMap("none", ()))


def test_all_is_said_and_nothing_is_loaded() -> None:
    text = page()
    reader = Reader(text)
    said = " ".join(reader.texts)
    for words in (
        "Training credit",
        "AUC 0.75 credit",
        "Of credit.",
        "Lead credit.",
        "It is credit.",
        "4 credit",
    ):
        assert words in said
    assert not {name for name, _ in reader.tags} & {"script", "img", "link", "iframe"}
    assert "default-src 'none'" in text
    assert text.count("<figure") == 2  # a chart without a point is none
    assert "http" not in re.sub(r"http-equiv", "", text)


def test_what_a_name_holds_never_becomes_markup() -> None:
    reader = Reader(page(EVIL))
    assert not {name for name, _ in reader.tags} & {"script", "img"}
    chart = line_chart(Chart(EVIL, (Line(EVIL, ((0, 1), (1, 2))),), EVIL))
    assert "<script" not in chart
    Reader(chart)


def test_points_stand_where_their_values_are() -> None:
    drawn = line_chart(SCORE)
    dots = re.findall(r'cx="([\d.]+)%" cy="([\d.]+)%" r="3.5"', drawn)
    assert [float(x) for x, _ in dots] == [0.0, 100.0]
    ticks = [
        (float(y), float(text))
        for y, text in re.findall(
            r'<text x="-8" y="([\d.]+)%" dy="4" text-anchor="end">([\d.]+)</text>', drawn
        )
    ]
    (low, first), (high, last) = ticks[0], ticks[-1]
    assert first <= 0.5
    assert last >= 0.85
    for (_, y), value in zip(dots, (0.6, 0.75), strict=True):
        assert float(y) == pytest.approx(low + (value - first) / (last - first) * (high - low), abs=0.01)
    assert drawn.count('class="reach"') == 2


def numbers(drawn: str, pattern: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found)) for found in re.findall(pattern, drawn)]


def test_equal_ratios_are_equal_distances_on_logarithmic_scales() -> None:
    points = ((16, 8.0), (0, 1.0), (64, 2.0), (256, 0.5), (1024, -1.0), (1024, 0.125))
    drawn = line_chart(Chart("Seconds", (Line("one", points),), logarithmic=True))
    dots = numbers(drawn, r'cx="([\d.]+)%" cy="([\d.]+)%" r="3.5"')
    assert [x for x, _ in dots] == pytest.approx([0, 100 / 3, 200 / 3, 100], abs=0.01)
    assert [y for _, y in dots] == pytest.approx(
        [dots[0][1] + at * (dots[1][1] - dots[0][1]) for at in range(4)], abs=0.05
    )
    ticks = numbers(drawn, r'<text x="-8" y="([\d.]+)%" dy="4" text-anchor="end">([\d.]+)</text>')
    slopes = {
        round((y - v) / math.log(value / other), 2) for (y, value), (v, other) in itertools.pairwise(ticks)
    }
    assert max(slopes) - min(slopes) < 0.1
    shown = numbers(drawn, r'<text x="([\d.]+)%" y="258" text-anchor="middle">([\d.]+)</text>')
    assert [x for x, _ in shown] == pytest.approx([100 * math.log(v / 16, 64) for _, v in shown], abs=0.01)


def test_bars_stand_upon_each_other_and_side_by_side() -> None:
    lines = Line("one", ((0, 10), (2, 40), (4, 0))), Line("other", ((0, 5), (2, 60), (4, 20)))
    drawn = line_chart(Chart("Spent", lines, "seconds", stacked=True))
    bars = numbers(drawn, r'x="([\d.]+)%" y="([\d.]+)%" width="([\d.]+)%" height="([\d.]+)%"')
    third = pytest.approx(100 / 3, abs=0.01)
    assert [width for _, _, width, _ in bars] == [third] * 6
    assert [x for x, *_ in bars] == pytest.approx([0, 100 / 3, 200 / 3] * 2, abs=0.01)
    assert [height for *_, height in bars] == pytest.approx([10, 40, 0, 5, 60, 20], abs=0.01)
    assert [100 - y for _, y, *_ in bars] == pytest.approx([10, 40, 0, 15, 100, 20], abs=0.01)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e6), st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf])),
        min_size=1,
        max_size=20,
    )
)
def test_any_values_are_drawn_within_the_plot(points: list[tuple[float, float]]) -> None:
    chart = Chart("any", (Line("one", tuple(points)),))
    if not chart.points:
        return
    drawn = line_chart(chart)
    Reader(drawn)
    assert "nan" not in drawn.partition("<svg role")[2].partition(">")[2]
    assert drawn.count('r="3.5"') == len(chart.points)


@given(st.floats(1e-9, 1e9))
def test_steps_are_round_and_no_smaller(step: float) -> None:
    found = nice(step)
    assert step * 0.999 <= found <= 2.5 * step * 1.01
    assert float(f"{found:.0e}"[0]) in (1, 2, 5)
