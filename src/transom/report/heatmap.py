"""A heat map of a table of figures, as inline SVG: a row a layer, a cell a head.

A cell's depth of colour is its value between zero and the largest; its title says the figure.
Threat model: names may hold anything; none of it becomes markup. Does not protect anything.
Source: own design, as `transom.report.lines`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

_ROW, _TOP = 18, 16  # in pixels
_LEFT = 5  # percent
_LABELS = 12  # of columns, at most


@dataclass(frozen=True)
class HeatMap:
    """Values [rows, columns], both counted from 0 under their names. Those that are not finite stay blank."""

    title: str
    values: tuple[tuple[float, ...], ...]
    row: str = "layer"
    column: str = "head"


def heat_map(shown: HeatMap) -> str:
    """A figure with the cells, and the largest value as its legend."""
    largest = max((one for row in shown.values for one in row if math.isfinite(one)), default=0.0)
    columns = max((len(row) for row in shown.values), default=0)
    height = _TOP + _ROW * len(shown.values)
    step = max(1, -(-columns // _LABELS))
    heads = "".join(
        f'<text x="{_x(number + 0.5, columns)}" y="11" text-anchor="middle">{number}</text>'
        for number in range(0, columns, step)
    )
    rows = "".join(
        f'<text x="0" y="{_TOP + _ROW * place + 13}">{place}</text>'
        + "".join(_cell(shown, place, number, value, largest, columns) for number, value in enumerate(row))
        for place, row in enumerate(shown.values)
    )
    said = f"{shown.title}: {shown.row}s down, {shown.column}s across; the deepest colour is {largest:.2f}"
    return (
        f'<figure class="heat"><svg width="100%" height="{height}" role="img" aria-label="{escape(said)}">'
        f'<g class="cells">{heads}{rows}</g></svg>'
        f'<figcaption class="note">{escape(said)}</figcaption></figure>'
    )


def _cell(shown: HeatMap, place: int, number: int, value: float, largest: float, columns: int) -> str:
    depth = max(0.0, value) / largest if math.isfinite(value) and largest > 0 else 0.0
    title = escape(f"{shown.row} {place}, {shown.column} {number}: {value:.3f}")
    return (
        f'<rect x="{_x(number, columns)}" y="{_TOP + _ROW * place}" height="{_ROW - 1}" '
        f'width="{(100 - _LEFT) / columns:.3f}%" fill-opacity="{depth:.3f}"><title>{title}</title></rect>'
    )


def _x(cells: float, columns: int) -> str:
    """The place where so many cells are to the left."""
    return f"{_LEFT + (100 - _LEFT) * cells / max(columns, 1):.3f}%"
