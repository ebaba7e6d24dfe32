"""Running attacks one after another within a budget; whatever happens, each one has a finding.

What an attack leaves of its share goes to those after it. One that raises, does not fit, returns something
else than a finding that can be, has no time left or overruns its share by far is "not run" with its reason;
an interruption leaves the rest so. What an attack prints goes to standard error: standard output is the
report's.

Threat model: none of its own. Does not protect against: an attack stuck in compiled code, which no alarm
reaches; mechanisms of a user's own are run in another process for that (`transom.audit.draws`).
Source: own design.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from transom.errors import TransomError
from transom.report.checked import checked
from transom.report.finding import INTERRUPTED, RAISE_BUDGET, Attack, Finding, not_run

SMALLEST_SHARE_S = 0.1
_OVERRUN = 2.0  # an attack is stopped after this many times its share, and never long after the budget's end
_GRACE_S = 1.0


class _OverrunError(BaseException):
    """Raised inside an attack by the alarm; no `except Exception` of its own stops it."""


def run(
    attacks: Sequence[Attack],
    target: object,
    knowledge: object,
    data: object,
    *,
    budget_s: float,
    progress: bool = True,
) -> tuple[Finding, ...]:
    """One finding for each of `attacks`, in their order, within about `budget_s` seconds. Never raises.

    The budget is passed by a second, and by what compiled code does not let itself be stopped in.
    """
    ends = time.monotonic() + budget_s
    found: list[Finding] = []
    with _progress(progress) as bar:
        task = bar.add_task("", total=len(attacks), ends=ends)
        try:
            for number, attack in enumerate(attacks):
                bar.update(task, description=f"{number + 1} of {len(attacks)}: {attack.NAME}")
                left_s = ends - time.monotonic()
                share_s = left_s / (len(attacks) - number)
                limit_s = min(_OVERRUN * share_s, left_s) + _GRACE_S
                found.append(_one(attack, (target, knowledge, data), share_s, limit_s))
                bar.advance(task)
        except KeyboardInterrupt:
            found += [not_run(attack.NAME, attack.METRIC, INTERRUPTED) for attack in attacks[len(found) :]]
    return tuple(found)


def _one(attack: Attack, given: tuple[object, object, object], share_s: float, limit_s: float) -> Finding:
    if share_s < SMALLEST_SHARE_S:
        return not_run(
            attack.NAME,
            attack.METRIC,
            f"the budget leaves it {max(share_s, 0):.2g} s, less than {SMALLEST_SHARE_S:g} s; {RAISE_BUDGET}",
        )
    started = time.monotonic()
    try:
        with _stopped_after(limit_s), redirect_stdout(sys.stderr):
            returned = attack.attack(*given, share_s)
        found = checked(attack.NAME, attack.METRIC, returned)
    except _OverrunError:
        took_s = time.monotonic() - started
        reason = f"it was stopped after {took_s:.3g} s of a share of {share_s:.3g} s; {RAISE_BUDGET}"
        found = not_run(attack.NAME, attack.METRIC, reason)
    except TransomError as error:
        found = not_run(attack.NAME, attack.METRIC, str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # its text may hold content
        found = not_run(attack.NAME, attack.METRIC, f"it raised {type(error).__name__}")
    return found if found.cost_s else replace(found, cost_s=round(time.monotonic() - started, 3))


@contextmanager
def _stopped_after(limit_s: float) -> Iterator[None]:
    """Raise _OverrunError inside after `limit_s`, where alarms exist; another's alarm is put back."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise _OverrunError

    started = time.monotonic()
    handler = signal.signal(signal.SIGALRM, stop)
    left_s, _ = signal.setitimer(signal.ITIMER_REAL, limit_s, 1.0)  # and again, for who catches everything
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left_s:
            signal.setitimer(signal.ITIMER_REAL, max(left_s - (time.monotonic() - started), 0.001))


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
