"""How a run went, as one HTML page in the style of an audit's: charts of lines, what is said, figures.

No script, no external resource, light and dark, narrow, wide and on paper.
Threat model: names may hold anything; the template escapes all text, and the page's own policy forbids it to
run or to load anything. Does not protect against: who is given the page.
Source: own design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from transom.report.heatmap import HeatMap, heat_map
from transom.report.lines import Chart, line_chart
from transom.report.report import now


@dataclass(frozen=True)
class Said:
    """A part of a page: sentences, charts, heat maps, and figures by their names."""

    title: str
    said: tuple[str, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    lead: str = ""
    charts: tuple[Chart, ...] = ()
    maps: tuple[HeatMap, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunPage:
    """A page: what ran, what came of it in a line, what that rests on, charts, and parts below them."""

    title: str
    headline: str
    details: tuple[str, ...] = ()
    charted: str = "How it went"
    chart_lead: str = ""
    charts: tuple[Chart, ...] = ()
    parts: tuple[Said, ...] = ()
    created: str = field(default_factory=now)


def run_page(run: RunPage) -> str:
    """The whole page. Every text in it is escaped."""
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_beside("run.html.j2"))
    return template.render(run=run, css=_beside("page.css"), drawn=_drawn, heat_map=heat_map)


def _drawn(charts: Sequence[Chart]) -> list[str]:
    return [line_chart(chart) for chart in charts if chart.points]


def _beside(name: str) -> str:
    return files("transom.report").joinpath(name).read_text("utf-8")
