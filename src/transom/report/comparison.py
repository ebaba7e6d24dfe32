"""Settings side by side: one table of measures, what each leaves readable and changes, and texts with marks.

Threat model: it holds the auditor's own text as it was typed: for the terminal, the JSON and the page of who
audits, and for nobody else. Does not protect anything.
Source: own design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from transom.report.metrics import figure

MOST_SPOTS = 1000  # that a column lists; its row counts them all
Fate = Literal["", "readable", "maybe", "placeholder", "drawn", "needless"]
FATES: Mapping[str, str] = {
    "readable": "private, and readable",
    "maybe": "readable, and may be a name",
    "placeholder": "replaced by a placeholder",
    "drawn": "exchanged for another word",
    "needless": "changed without need",
}


@dataclass(frozen=True)
class Row:
    """A measure: a cell for each column as people read it, and the figures behind them. `part`: of the row
    above."""

    measure: str
    cells: tuple[str, ...]
    values: tuple[float | None, ...]
    part: bool = False


class Spot(NamedTuple):
    """A word in the user's file: where it stands, how it is spelled there, and the kind it is of."""

    where: str
    text: str
    kind: str
    listed: bool = False


class Mark(NamedTuple):
    """A stretch of a text, what became of it, and what stands in its place."""

    fate: Fate
    text: str
    output: str = ""


@dataclass(frozen=True)
class Column:
    """One setting. Of `readable` and `changed` words the first MOST_SPOTS are listed."""

    name: str
    readable: tuple[Spot, ...] = field(default=(), repr=False)
    changed: tuple[Spot, ...] = field(default=(), repr=False)
    texts: tuple[tuple[str, tuple[Mark, ...]], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class Comparison:
    """The table, its columns, and what its reader should know."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The first row in a sentence."""
        first = self.rows[0]
        said = (
            f"{figure('', value)} under {column.name}"
            for column, value in zip(self.columns, first.values, strict=True)
            if value is not None
        )
        return f"{first.measure[:1].upper()}{first.measure[1:]}: {', '.join(said) or 'nothing there'}."

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; marked texts are for the page alone."""
        names = [column.name for column in self.columns]
        return {
            "rows": [
                {
                    "measure": row.measure,
                    "part": row.part,
                    "values": dict(zip(names, row.values, strict=True)),
                    "cells": dict(zip(names, row.cells, strict=True)),
                }
                for row in self.rows
            ],
            "spots": {
                column.name: {
                    "readable": [spot._asdict() for spot in column.readable],
                    "changed": [spot._asdict() for spot in column.changed],
                }
                for column in self.columns
            },
            "notes": list(self.notes),
        }
