"""What a run tells, for people: a bar with how fast it goes and how long it waits, curves for TensorBoard.

Threat model: none; counts and metrics, no content. Does not protect anything. Source: own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from transom.cli.output import progress
from transom.errors import extra

if TYPE_CHECKING:
    from transom.link.told import Listener, Told


@contextmanager
def watched(text: str, rows_a_step: int, folder: Path | None = None, *, quiet: bool) -> Iterator[Listener]:
    """A bar that says rows a second, the share of the time that was waited for the partner, how old
    gradients are, and the last evaluation; and a board if a folder is named."""
    with board(folder) as write, progress(text, 1.0, quiet=quiet) as bar:
        pace = Pace(rows_a_step)

        def tell(told: Told) -> None:
            if told.total:
                bar.reach(told.step / told.total)
                bar.say(f"{text}{pace.of(told, time.monotonic())}")
            write(told)

        yield tell


class Pace:
    """How fast steps come, since the first one that this process was told of."""

    def __init__(self, rows_a_step: int) -> None:
        self._rows, self._last = rows_a_step, ""
        self._first: tuple[int, float, float] | None = None  # steps, when, how long was waited till then

    def of(self, told: Told, now_s: float) -> str:
        """In words, after what was told at a time."""
        found = told.found
        if told.kind == "evaluated":
            self._last = "".join(f", {name} {value:.4g}" for name, value in found.items())
        waited_s = found.get("wait_s", 0.0)
        if told.kind != "step":
            return self._last
        if self._first is None:
            self._first = told.step, now_s, waited_s
        steps, begun_s, before_s = self._first
        took_s = now_s - begun_s
        if took_s <= 0:
            return self._last
        words = f": {(told.step - steps) * self._rows / took_s:,.0f} rows/s"
        words += f", {100 * (waited_s - before_s) / took_s:.0f} % waiting"
        if "staleness_mean" in found:
            words += f", gradients {found['staleness_mean']:.1f} steps old"
        return words + self._last


@contextmanager
def board(folder: Path | None) -> Iterator[Listener]:
    """Writes steps and evaluations for TensorBoard; nothing without a folder. Raises MissingExtraError."""
    if folder is None:
        yield lambda told: None
        return
    with extra("tensorboard", "tensorboard"):
        from torch.utils.tensorboard import SummaryWriter
    with SummaryWriter(str(folder)) as writer:

        def write(told: Told) -> None:
            part = "train" if told.kind == "step" else "evaluate"
            for name, value in told.found.items():
                writer.add_scalar(f"{part}/{name}", value, told.step)

        yield write
