"""What a run tells, for people: a bar with how fast it goes and how long it waits, curves for TensorBoard.

Threat model: none; counts and metrics, no content. Does not protect anything. Source: own.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from transom.cli.output import progress
from transom.errors import extra

if TYPE_CHECKING:
    from transom.link.told import Listener, Told

_PACE_STEPS = 64


@contextmanager
def watched(text: str, rows_a_step: int, folder: Path | None = None, *, quiet: bool) -> Iterator[Listener]:
    """A bar that says rows a second, the share of the time that was waited for the partner, how old
    gradients are, and the last evaluation; and a board if a folder is named."""
    with board(folder) as write, progress(text, 1.0, quiet=quiet) as bar:
        pace = Pace(rows_a_step)

        def tell(told: Told) -> None:
            found = pace.of(told, time.monotonic())
            if told.total:
                bar.reach(told.step / told.total)
                bar.say(f"{text}{pace.words(told, found)}")
            write(replace(told, found={**told.found, **found}))

        yield tell


class Pace:
    """How fast steps come, and which share of the time was waited, over the last steps that this process was
    told of."""

    def __init__(self, rows_a_step: int) -> None:
        self._rows, self._last = rows_a_step, ""
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=_PACE_STEPS)  # when, waited till then

    def of(self, told: Told, now_s: float) -> dict[str, float]:
        """After what was told at a time; nothing after the first step."""
        if told.kind != "step":
            return {}
        self._steps.append((told.step, now_s, told.found.get("wait_s", 0.0)))
        steps, begun_s, before_s = self._steps[0]
        took_s = now_s - begun_s
        if took_s <= 0:
            return {}
        waited_s = self._steps[-1][2] - before_s
        return {"rows_per_s": (told.step - steps) * self._rows / took_s, "waiting": waited_s / took_s}

    def words(self, told: Told, found: Mapping[str, float]) -> str:
        """For people, with the last evaluation."""
        if told.kind == "evaluated":
            self._last = "".join(f", {name} {value:.4g}" for name, value in told.found.items())
        if not found:
            return self._last
        words = f": {found['rows_per_s']:,.0f} rows/s, {100 * found['waiting']:.0f} % waiting"
        if "staleness_mean" in told.found:
            words += f", gradients {told.found['staleness_mean']:.1f} steps old"
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
