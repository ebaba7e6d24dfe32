"""Running attacks one after another within a budget; whatever happens, each one has a finding.

What an attack leaves of its share goes to those after it. One that raises, does not fit, returns something
else than a finding, or has no time left is "not run" with its reason; an interruption leaves the rest so.

Threat model: none of its own. Does not protect against: an attack that ignores its budget and never comes
back; `transom audit epsilon` runs mechanisms in a process of their own for that.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from transom.audit.attack import Attack
from transom.audit.finding import INTERRUPTED, Finding, not_run
from transom.errors import TransomError

SMALLEST_SHARE_S = 0.1


def run(
    attacks: Sequence[Attack],
    target: object,
    knowledge: object,
    data: object,
    *,
    budget_s: float,
    progress: bool = True,
) -> tuple[Finding, ...]:
    """One finding for each of `attacks`, in their order, within about `budget_s` seconds. Never raises."""
    ends = time.monotonic() + budget_s
    found: list[Finding] = []
    with _progress(progress) as bar:
        task = bar.add_task("", total=len(attacks), ends=ends)
        try:
            for number, attack in enumerate(attacks):
                bar.update(task, description=f"{number + 1} of {len(attacks)}: {attack.NAME}")
                share_s = (ends - time.monotonic()) / (len(attacks) - number)
                found.append(_one(attack, target, knowledge, data, share_s))
                bar.advance(task)
        except KeyboardInterrupt:
            found += [not_run(attack.NAME, attack.METRIC, INTERRUPTED) for attack in attacks[len(found) :]]
    return tuple(found)


def _one(attack: Attack, target: object, knowledge: object, data: object, share_s: float) -> Finding:
    if share_s < SMALLEST_SHARE_S:
        return not_run(
            attack.NAME,
            attack.METRIC,
            f"the budget leaves it {max(share_s, 0):.2g} s, less than {SMALLEST_SHARE_S:g} s; raise --budget",
        )
    started = time.monotonic()
    try:
        found = _checked(attack, attack.attack(target, knowledge, data, share_s))
    except TransomError as error:
        found = not_run(attack.NAME, attack.METRIC, str(error))
    except (Exception, SystemExit) as error:  # its text may hold content
        found = not_run(attack.NAME, attack.METRIC, f"it raised {type(error).__name__}")
    return found if found.cost_s else replace(found, cost_s=round(time.monotonic() - started, 3))


def _checked(attack: Attack, found: object) -> Finding:
    if not isinstance(found, Finding):
        reason = f"it returned a {type(found).__name__}, not a Finding"
    elif any(figure is not None and not math.isfinite(figure) for figure in _figures(found)):
        reason = "its figures are not finite"
    elif found.status == "run" and found.value is None:
        reason = "it returned no value"
    else:
        return found
    return not_run(attack.NAME, attack.METRIC, reason)


def _figures(found: Finding) -> tuple[float | None, ...]:
    return found.value, found.low, found.high, found.baseline, found.cost_s


class _Left(ProgressColumn):
    """The time that the budget still allows."""

    def render(self, task: Task) -> Text:
        left_s = max(task.fields["ends"] - time.monotonic(), 0.0)
        return Text(f"at most {int(left_s) // 60}:{int(left_s) % 60:02d} left", style="progress.remaining")


def _progress(wanted: bool) -> Progress:
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        _Left(),
        console=console,
        transient=True,
        disable=not wanted or not console.is_terminal,
    )
