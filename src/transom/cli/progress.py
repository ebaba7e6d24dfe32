"""Bars for what takes long: on standard error, for people alone.

Threat model: none. A bar names files and steps, never content. Does not protect anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
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


@contextmanager
def progress(text: str, total: float | None = None, *, quiet: bool = False) -> Iterator[Meter]:
    """A bar up to `total`, or one that only moves; nothing when `quiet`, or where nobody sees it."""
    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    off = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=off) as bar:
        yield Meter(bar, bar.add_task(text, total=total or None))
