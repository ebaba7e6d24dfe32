"""What commands print: an answer, as text or as JSON, and on standard error bars and remarks for people.

Threat model: none. A bar names files and steps, never content. Does not protect anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class Meter:
    """What moves a bar."""

    bar: Progress
    line: TaskID

    def advance(self, amount: float) -> None:
        """So much more is done."""
        self.bar.advance(self.line, amount)

    def reach(self, done: float) -> None:
        """So much is done in all."""
        self.bar.update(self.line, completed=done)

    def say(self, text: str) -> None:
        """What stands beside the bar."""
        self.bar.update(self.line, description=escape(text))


@contextmanager
def progress(text: str, total: float | None = None, *, quiet: bool = False) -> Iterator[Meter]:
    """A bar up to `total`, or one that only moves; nothing when `quiet`, or where nobody sees it."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    off = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        yield Meter(bar, bar.add_task(text, total=total or None))


def answer(record: dict[str, Any], text: str, *, as_json: bool, remark: bool = False) -> None:
    """Print `record` as one line of JSON on standard output, or `text`, a `remark` on standard error."""
    if as_json:
        typer.echo(json.dumps(_finite(record)))
    else:
        plain_console(stderr=remark).print(text)


def plain_console(*, stderr: bool = False) -> Console:
    """One that prints what it is given, unbroken."""
    return Console(stderr=stderr, highlight=False, markup=False, soft_wrap=True)


def _finite(value: Any) -> Any:
    """JSON has no infinity: it becomes the string "inf"."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
