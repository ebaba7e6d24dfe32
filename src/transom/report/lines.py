"""A plot of lines over steps or epochs, as inline SVG: a loss, a score with its interval.

Positions are percentages and sizes are pixels, so a plot fills any width and its text keeps its size.
Threat model: names may hold anything; none of it becomes markup. Does not protect anything.
Source: own design, as `transom.report.charts`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from itertools import pairwise

_HEIGHT = 240  # in pixels
_PARTS = 4  # that the upright axis has, about
_DOTS = 60  # points of which each is drawn; of more the line alone


@dataclass(frozen=True)
class Line:
    """Points (x, y) under one name, and for each of them the ends of an interval, or none."""

    name: str
    points: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float] | None, ...] = ()


@dataclass(frozen=True)
class Chart:
    """Lines on one scale; `under` names what goes to the right. Values that are not finite are left out.
    `logarithmic`: both scales, of values above 0; those that are not are left out. `stacked`: bars, a line's
    upon another's, each as wide as from its point to the next; all lines have the same ones, finite."""

    title: str
    lines: tuple[Line, ...]
    under: str = "epoch"
    logarithmic: bool = False
    stacked: bool = False

    @property
    def points(self) -> tuple[tuple[float, float], ...]:
        """All that can be drawn."""
        return tuple(point for line in self.lines for point in line.points if self.shows(point))

    def shows(self, point: tuple[float, float]) -> bool:
        """Whether it can be drawn."""
        return all(map(math.isfinite, point)) and (not self.logarithmic or min(point) > 0)


def line_chart(chart: Chart) -> str:
    """A figure with the lines, their names and both axes. The chart has a point that can be drawn."""
    area: _Area | _LogArea
    if chart.stacked:
        area, drawn = _stacked(chart)
    else:
        area = _LogArea.around(chart) if chart.logarithmic else _Area.around(chart)
        drawn = [_line(line, area, chart) for line in chart.lines]
    groups = "".join(f'<g class="series s{number}">{one}</g>' for number, one in enumerate(drawn))
    keys = "".join(
        f'<li class="series s{number}"><svg width="26" height="18" aria-hidden="true">'
        f'<circle class="dot" cx="13" cy="9" r="5"/></svg>{escape(line.name)}</li>'
        for number, line in enumerate(chart.lines)
    )
    spoken = f"{chart.title}: " + "; ".join(
        f"{line.name} from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}"
        for line in chart.lines
        if line.points
    )
    return (
        f'<figure class="panel"><figcaption>{escape(chart.title)}</figcaption>'
        f'<ul class="legend">{keys}</ul>'
        f'<svg role="img" aria-label="{escape(spoken)}" height="{_HEIGHT}">{_frame(area)}{groups}</svg>'
        f'<p class="under">{escape(chart.under)}</p></figure>'
    )


@dataclass(frozen=True)
class _Area:
    """What a plot shows: from `left` to `right`, and from `bottom` in `steps` of `step` upwards."""

    left: float
    right: float
    bottom: float
    step: float
    steps: int

    @classmethod
    def around(cls, chart: Chart) -> _Area:
        xs = [x for x, _ in chart.points]
        ends = [end for line in chart.lines for both in line.intervals if both for end in both]
        ys = [y for _, y in chart.points] + [end for end in ends if math.isfinite(end)]
        step = nice((max(ys) - min(ys)) / _PARTS or abs(ys[0]) / _PARTS or 1.0)
        bottom = math.floor(min(ys) / step)
        steps = max(math.ceil(max(ys) / step) - bottom, 1)
        return cls(min(xs), max(xs), bottom * step, step, steps)

    @classmethod
    def above_zero(cls, chart: Chart) -> _Area:
        """Of bars: from nothing to the highest, to the end of the last."""
        xs = [x for x, _ in chart.lines[0].points]
        top = max(
            sum(y for _, y in points) for points in zip(*(one.points for one in chart.lines), strict=True)
        )
        step = nice(top / _PARTS or 1.0)
        last = xs[-1] - xs[-2] if xs[1:] else 1.0
        return cls(xs[0], xs[-1] + last, 0.0, step, max(math.ceil(top / step * 0.999), 1))

    def x(self, value: float) -> str:
        width = self.right - self.left
        return _at((value - self.left) / width if width else 0.5)

    def y(self, value: float) -> str:
        return _at(1 - (value - self.bottom) / (self.step * self.steps))

    @property
    def xs(self) -> tuple[float, ...]:
        """What the lower axis names."""
        return (self.left, self.right) if self.right > self.left else (self.left,)

    @property
    def ys(self) -> tuple[float, ...]:
        """What the upright axis names."""
        return tuple(self.bottom + at * self.step for at in range(self.steps + 1))


@dataclass(frozen=True)
class _LogArea:
    """As `_Area`, in logarithms: from `left` to `right`, upwards from a nice number to another."""

    left: float
    right: float
    ys: tuple[float, ...]

    @classmethod
    def around(cls, chart: Chart) -> _LogArea:
        xs, ys = zip(*chart.points, strict=True)
        bottom, top = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
        nices = [times * 10.0**power for power in range(bottom, top + 1) for times in (1, 2, 5)]
        low = max((one for one in nices if one <= min(ys)), default=nices[0])
        high = next(one for one in (*nices, 10.0 ** (top + 1)) if one >= max(ys) and one > low)
        return cls(min(xs), max(xs), tuple(one for one in nices if low <= one <= high))

    def x(self, value: float) -> str:
        return _at(math.log(value / self.left) / math.log(self.right / self.left) if self.xs[1:] else 0.5)

    def y(self, value: float) -> str:
        return _at(1 - math.log(value / self.ys[0]) / math.log(self.ys[-1] / self.ys[0]))

    @property
    def xs(self) -> tuple[float, ...]:
        if self.right <= self.left:
            return (self.left,)
        steps = max(round(math.log2(self.right / self.left) / _PARTS), 1)
        count = int(math.log2(self.right / self.left) / steps)
        return tuple(self.left * 2.0 ** (steps * at) for at in range(count + 1))


def nice(step: float) -> float:
    """The next of 1, 2 and 5 times a power of ten that is no smaller.

    >>> nice(0.03), nice(7), nice(2.0)
    (0.05, 10.0, 2.0)
    """
    power = 10.0 ** math.floor(math.log10(step))
    return next(
        float(f"{times * power:.3g}") for times in (1, 2, 5, 10, 20) if times * power >= step * 0.9999
    )


def _frame(area: _Area | _LogArea) -> str:
    parts = []
    for value in area.ys:
        y = area.y(value)
        parts.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
        shown = f"{float(f'{value:.10g}'):.4g}"
        parts.append(f'<text x="-8" y="{y}" dy="4" text-anchor="end">{shown}</text>')
    for x in area.xs:
        parts.append(f'<text x="{area.x(x)}" y="{_HEIGHT + 18}" text-anchor="middle">{x:g}</text>')
    return "".join(parts)


def _line(line: Line, area: _Area | _LogArea, chart: Chart) -> str:
    spots = [(area.x(x), area.y(y)) for x, y in line.points if chart.shows((x, y))]
    parts = [
        f'<line class="path" x1="{x}" y1="{y}" x2="{u}" y2="{v}"/>' for (x, y), (u, v) in pairwise(spots)
    ]
    for (x, _), both in zip(line.points, line.intervals, strict=False):
        if both and chart.shows(both):
            parts.append(
                f'<line class="reach" x1="{area.x(x)}" x2="{area.x(x)}" y1="{area.y(both[0])}" '
                f'y2="{area.y(both[1])}"/>'
            )
    if len(spots) <= _DOTS:
        parts += [f'<circle class="dot" cx="{x}" cy="{y}" r="3.5"/>' for x, y in spots]
    return "".join(parts)


def _stacked(chart: Chart) -> tuple[_Area, list[str]]:
    area = _Area.above_zero(chart)
    xs = [*(x for x, _ in chart.lines[0].points), area.right]
    heights = [0.0] * len(chart.lines[0].points)
    drawn = []
    for line in chart.lines:
        bars = []
        for at, (x, y) in enumerate(line.points):
            share = (xs[at + 1] - x) / (area.right - area.left)
            size = y / (area.step * area.steps)
            heights[at] += y
            bars.append(
                f'<rect class="bar" x="{area.x(x)}" y="{area.y(heights[at])}" width="{_at(share)}" '
                f'height="{_at(size)}"/>'
            )
        drawn.append("".join(bars))
    return area, drawn


def _at(share: float) -> str:
    return f"{100 * min(max(share, 0.0), 1.0):.2f}%"
