"""The two plots of a report, as inline SVG: recovery of each attack, and recovery against utility.

Positions are percentages and sizes are pixels, so a plot fills any width and its text and dots keep their
size. Numbers go through `_at`, and all text is escaped.
Threat model: names and notes may hold anything; none of it becomes markup.
Does not protect anything.
Source: own design; dots and intervals on one scale as in Cleveland 1985, "The Elements of Graphing Data".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from transom.report.finding import Finding
from transom.report.metrics import figure, metric
from transom.report.report import Frontier, FrontierPoint, gauge, mark, span

_SCALES = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
_STEPS = 4  # parts that an axis is divided into
_TONES = 6  # that the page has; then they come again with other markers
_PANEL = 240  # height of a frontier panel in pixels


def recovery_chart(findings: Sequence[Finding], gate: float | None) -> str:
    """A row for each attack that ran: interval, value and guessing on one scale, highest first; those of one
    setting of a sweep together."""
    run = sorted((found for found in findings if found.value is not None), key=lambda f: -(f.value or 0))
    if not run:
        return ""
    ends = [end for f in run for end in (f.value, f.high, f.baseline, gate) if end is not None]
    top = _scale(max(ends), None if any(metric(f.metric).certified for f in run) else 1.0)
    several = len({found.metric for found in run}) > 1
    settings = list(dict.fromkeys(found.setting for found in findings if found.value is not None))
    rows = "".join(
        f'<h3 class="setting">{escape(setting)}</h3>' * (len(settings) > 1)
        + "".join(_row(found, top, gate, with_metric=several) for found in run if found.setting == setting)
        for setting in settings
    )
    return f'{_legend(run, gate)}<div class="rows">{rows}{_axis(run[0].metric, top)}</div>'


def _row(found: Finding, top: float, gate: float | None, *, with_metric: bool) -> str:
    value, low, high = found.value or 0.0, found.low, found.high
    parts = [_line(at / _STEPS, at / _STEPS, "grid") for at in range(_STEPS + 1)]
    if low is not None:
        parts.append(_line(low / top, (top if high is None else high) / top, "span" if high else "span open"))
    if found.baseline is not None:
        parts.append(_line(found.baseline / top, found.baseline / top, "guess", "10%", "90%"))
    if gate is not None and gauge(found) is not None:
        parts.append(_line(gate / top, gate / top, "gate"))
    parts.append(f'<circle class="dot" cx="{_at(value / top)}" cy="50%" r="5.5"/>')
    spoken = f"{found.label}: {figure(found.metric, value)}"
    if span(found):
        spoken += f", 95 % interval {span(found)}"
    if found.baseline is not None:
        spoken += f", {metric(found.metric).beside} {figure(found.metric, found.baseline)}"
    named = f' <span class="metric">{escape(found.metric)}</span>' if with_metric else ""
    return (
        f'<div class="row {mark(found, gate)}"><span class="name">{escape(found.name)}{named}</span>'
        f'<svg role="img" aria-label="{escape(spoken)}" height="28">{"".join(parts)}</svg>'
        f'<span class="value">{figure(found.metric, value)}</span></div>'
    )


def _legend(run: list[Finding], gate: float | None) -> str:
    row = metric(run[0].metric)
    said = {
        "over": "above the bound, or may be",
        "above": f"above {row.beside}",
        "level": f"not above {row.beside}",
    }
    marks = {mark(found, gate) for found in run}
    entries = [
        (f'<circle class="dot {kind}" cx="13" cy="9" r="5.5"/>', text)
        for kind, text in said.items()
        if kind in marks
    ]
    if not row.certified:
        entries.append(('<line class="span" x1="3" x2="23" y1="9" y2="9"/>', "95 % interval"))
    entries.append(('<line class="guess" x1="13" x2="13" y1="1" y2="17"/>', row.beside))
    if gate is not None:
        bound = f"bound, {figure(row.name, gate)}"
        entries.append(('<line class="gate" x1="13" x2="13" y1="0" y2="18"/>', bound))
    items = "".join(
        f'<li><svg width="26" height="18" aria-hidden="true">{drawn}</svg>{text}</li>'
        for drawn, text in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _axis(name: str, top: float) -> str:
    anchors = ("start", *["middle"] * (_STEPS - 1), "end")
    ticks = "".join(
        f'<text x="{_at(at / _STEPS)}" y="14" text-anchor="{anchor}">{_tick(name, top * at / _STEPS)}</text>'
        for at, anchor in enumerate(anchors)
    )
    return (
        '<div class="row axis" aria-hidden="true"><span></span>'
        f'<svg height="20">{ticks}</svg><span></span></div>'
    )


def _tick(name: str, value: float) -> str:
    return f"{value:g}" if metric(name).certified else f"{100 * value:g} %"


def frontier_chart(frontier: Frontier) -> str:
    """One panel a task: utility over recovery, a line for each label."""
    labels = list(dict.fromkeys(point.label for point in frontier.points))
    tasks = list(dict.fromkeys(point.task for point in frontier.points))
    keys = "".join(
        f'<li class="series s{number % _TONES}"><svg width="26" height="18" aria-hidden="true">'
        f"{_marker(number, 13, 9)}</svg>{escape(label)}</li>"
        for number, label in enumerate(labels)
    )
    panels = "".join(
        _panel(task, [point for point in frontier.points if point.task == task], labels) for task in tasks
    )
    return f'<ul class="legend">{keys}</ul><div class="panels">{panels}</div>'


def _panel(task: str, points: list[FrontierPoint], labels: list[str]) -> str:
    area = _Area.around(points)
    parts = [_frame(area)]
    named: set[str] = set()
    for number, label in enumerate(labels):
        line = sorted((point for point in points if point.label == label), key=lambda point: point.recovery)
        spots = [(area.x(point.recovery), area.y(point.utility)) for point in line]
        drawn = [
            f'<line class="path" x1="{x}" y1="{y}" x2="{u}" y2="{v}"/>' for (x, y), (u, v) in pairwise(spots)
        ]
        for at, point in enumerate(line):
            first = at % 2 == 0 and point.recovery < 0.93 * area.right  # in turn; the last on the left
            drawn.append(_point(point, area, number, first=first, named=point.setting not in named))
        named |= {point.setting for point in line}
        parts.append(f'<g class="series s{number % _TONES}">{"".join(drawn)}</g>')
    spoken = "; ".join(
        f"{point.label}, {point.setting}: recovery {figure('', point.recovery)}, "
        f"utility {figure('', point.utility)}"
        for point in points
    )
    return (
        f'<figure class="panel"><figcaption>{escape(task)}</figcaption>'
        f'<svg role="img" aria-label="{escape(f"{task}: {spoken}")}" height="{_PANEL}">{"".join(parts)}</svg>'
        '<p class="under">recovered by the attacker</p></figure>'
    )


@dataclass(frozen=True)
class _Area:
    """What a panel shows: utility from `bottom` in `steps` of `step`, recovery from 0 to `right`."""

    bottom: float
    step: float
    steps: int
    right: float

    @classmethod
    def around(cls, points: list[FrontierPoint]) -> _Area:
        low, high = min(p.utility_low for p in points), max(p.utility_high for p in points)
        step = 0.05 if high - low <= 0.2 else 0.1 if high - low <= 0.5 else 0.25
        bottom = math.floor(low / step)
        steps = max(math.ceil(high / step) - bottom, 1)
        return cls(bottom * step, step, steps, _scale(max(p.recovery_high for p in points), 1.0))

    def x(self, recovery: float) -> str:
        return _at(recovery / self.right)

    def y(self, utility: float) -> str:
        return _at(1 - (utility - self.bottom) / (self.step * self.steps))


def _frame(area: _Area) -> str:
    parts = []
    for at in range(_STEPS + 1):
        share = at / _STEPS
        parts.append(_line(share, share, "grid"))
        if at % 2 == 0:  # every other one, or they touch on a narrow panel
            tick = _tick("", area.right * share)
            parts.append(f'<text x="{_at(share)}" y="{_PANEL + 18}" text-anchor="middle">{tick}</text>')
    for at in range(area.steps + 1):
        utility = area.bottom + area.step * at
        y = area.y(utility)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="-8" y="{y}" dy="4" text-anchor="end">{100 * utility:.3g}</text>')
    return "".join(parts)


def _point(point: FrontierPoint, area: _Area, number: int, *, first: bool, named: bool) -> str:
    """A cross, its marker, and its name, below on the right or above on the left of a line that rises."""
    x, y = area.x(point.recovery), area.y(point.utility)
    place = 'dx="8" dy="16" text-anchor="start"' if first else 'dx="-8" dy="-8" text-anchor="end"'
    name = f'<text x="{x}" y="{y}" {place}>{escape(point.setting)}</text>' if named else ""
    return (
        f'<line class="reach" x1="{x}" x2="{x}" y1="{area.y(point.utility_low)}" '
        f'y2="{area.y(point.utility_high)}"/>'
        f'<line class="reach" x1="{area.x(point.recovery_low)}" x2="{area.x(point.recovery_high)}" '
        f'y1="{y}" y2="{y}"/>'
        f'<svg x="{x}" y="{y}" overflow="visible">{_marker(number, 0, 0)}</svg>{name}'
    )


def _marker(number: int, x: int, y: int) -> str:
    """A circle, a square or a diamond: series differ by shape and not by colour alone."""
    shape = (number + number // _TONES) % 3
    if shape == 0:
        return f'<circle class="dot" cx="{x}" cy="{y}" r="5"/>'
    turned = f' transform="rotate(45 {x} {y})"' if shape == 2 else ""
    return f'<rect class="dot" x="{x - 4.5}" y="{y - 4.5}" width="9" height="9"{turned}/>'


def _line(start: float, end: float, kind: str, top: str = "0", bottom: str = "100%") -> str:
    if start != end:
        top = bottom = "50%"
    return f'<line class="{kind}" x1="{_at(start)}" x2="{_at(end)}" y1="{top}" y2="{bottom}"/>'


def _at(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"


def _scale(largest: float, most: float | None) -> float:
    """The end of an axis that shows `largest`: a round number, at most `most`."""
    end = next((scale for scale in _SCALES if scale >= largest), largest)
    return end if most is None else min(end, most)
