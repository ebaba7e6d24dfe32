"""What every `transom audit` command shares: its options, and how a report leaves.

`--json` prints the report as one line; `--html` and `--sarif` write files that only their owner can read,
for a report shows audited text. With --gate the exit code is 20 when a finding may exceed the bound, when no
attack could be run, or when the audit was not done; without one it is 21 when time was wanting for most of
the attacks. The files are written in every case: `auditing` sees to it.

Threat model: the report is the auditor's own; standard error and errors hold names and figures, never text.
Source: own design.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transom.config import Setting
from transom.errors import MisconfiguredError, TransomError
from transom.files import require_writable, write_file
from transom.report.comparison import Comparison
from transom.report.finding import INTERRUPTED, Attack, Finding, interrupted, not_run
from transom.report.html import page
from transom.report.kinds import kind_of
from transom.report.metrics import figure
from transom.report.report import Frontier, Report, exceeds, span
from transom.report.runner import run
from transom.report.sarif import sarif

GATE_EXIT = 20
LEFT_OUT_EXIT = 21
_NOTES_FROM = 140  # columns of a terminal
_SPOTS = 10  # that a terminal lists of each setting


@dataclass(frozen=True, kw_only=True)
class Options:
    """The common options of one command. Raises MisconfiguredError before an attack spends any time."""

    attack: Annotated[
        tuple[str, ...], Setting("Only this one, or module:object to add your own; repeatable.")
    ] = ()
    budget: Annotated[float, Setting("Minutes for the attacks together; loading comes on top.", least=0)] = (
        10.0
    )
    json: Annotated[bool, Setting("The report as one JSON object on one line.")] = False
    sarif: Annotated[Path | None, Setting("Write the report as SARIF 2.1.0.")] = None
    html: Annotated[Path | None, Setting("Write the report as one HTML page.")] = None
    gate: Annotated[float | None, Setting("Exit with 20 when a finding may exceed this bound.", least=0)] = (
        None
    )
    started_s: float = field(init=False, default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for path in filter(None, (self.sarif, self.html)):
            require_writable(path)
        if self.sarif and self.html and self.sarif.absolute() == self.html.absolute():
            raise MisconfiguredError(f"--sarif and --html both name {self.html}; give two files")

    @property
    def budget_s(self) -> float:
        """The budget in seconds."""
        return 60 * self.budget


@dataclass
class Audit:
    """One audit while it goes on: what is found so far, and the seconds of its budget that are left."""

    kind: str
    record: dict[str, Any]
    options: Options
    setting: str = ""
    findings: list[Finding] = field(default_factory=list)
    frontier: Frontier | None = None
    comparison: Comparison | None = None
    stopped: str = ""

    def __post_init__(self) -> None:
        self.left_s = self.options.budget_s

    def attack(
        self, attacks: Sequence[Attack], target: object, knowledge: object, data: object, *, of: int = 1
    ) -> list[Finding]:
        """Run `attacks` in one part of `of` of the time that is left; their findings at this setting.

        Raises KeyboardInterrupt when it was interrupted, its findings kept.
        """
        started = time.monotonic()
        budget_s, shown = self.left_s / of, not self.options.json
        found = run(attacks, target, knowledge, data, budget_s=budget_s, progress=shown)
        self.left_s -= time.monotonic() - started
        self.findings += (made := [replace(one, setting=self.setting) for one in found])
        if interrupted(found):
            raise KeyboardInterrupt
        return made

    def add(self, findings: Sequence[Finding]) -> None:
        """Findings that were made by other means than `attack`, at this setting."""
        self.findings += [replace(one, setting=self.setting) for one in findings]

    def stop(self, attacks: Sequence[Attack], reason: str) -> None:
        """Note that it broke off, and that what was still to be done at this setting was not run."""
        self.stopped = reason
        if interrupted(self.findings):
            return
        known = {(found.name, found.setting) for found in self.findings}
        missing = [one for one in attacks if (one.NAME, self.setting) not in known]
        rest = [not_run(one.NAME, one.METRIC, reason) for one in missing] or [not_run("rest", "", reason)]
        self.findings += [replace(one, setting=self.setting) for one in rest]

    @property
    def report(self) -> Report:
        """What there is to tell now."""
        return Report(
            kind=self.kind,
            target=self.record,
            findings=tuple(self.findings),
            frontier=self.frontier,
            comparison=self.comparison,
            gate=self.options.gate,
            stopped=self.stopped,
            cost_s=round(time.monotonic() - self.options.started_s, 3),
        )


@contextmanager
def auditing(
    kind: str, record: Mapping[str, Any], attacks: Sequence[Attack], options: Options
) -> Iterator[Audit]:
    """An audit that ends in its report, whatever happens inside: what `attacks` had still to do is then "not
    run" with the reason, and the error goes on its way afterwards, unless the gate shuts first.

    `record` names the target and the settings for the reader. Raises typer.Exit.
    """
    audit = Audit(kind, dict(record), options)
    stopped: BaseException | None = None
    try:
        yield audit
    except BaseException as error:
        stopped = error
        audit.stop(attacks, told(error))
    finish(audit.report, options)
    if stopped is not None:
        raise stopped


def told(error: BaseException) -> str:
    """Why it stopped; the text of an unexpected error may hold content."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return str(error) if isinstance(error, TransomError) else f"it raised {type(error).__name__}"


def finish(report: Report, options: Options) -> None:
    """Write and print `report`; exit with 20 when its gate is shut, with 21 when most or all was left out."""
    _write(report, options)
    if options.json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        console = Console(highlight=False)
        notes = console.width >= _NOTES_FROM
        if report.comparison is not None:
            console.print(_compared(report.comparison, str(report.target.get("target", ""))))
            for line in _spots(report.comparison):
                console.print(escape(line))
        else:
            console.print(_table(report, notes=notes))
        for line in filter(None, (*([] if notes else _reasons(report)), report.standing, report.verdict)):
            console.print(escape(line))
    if report.passed is False:
        typer.echo(f"gate {report.gate:g} not passed: {_shut_by(report)}", err=True)
        raise typer.Exit(GATE_EXIT)
    if report.stopped:  # what broke it off has a code of its own
        return
    if report.left_out:
        typer.echo("most attacks were not run for want of time; raise --budget", err=True)
        raise typer.Exit(LEFT_OUT_EXIT)
    if not any(found.status == "run" for found in report.findings):
        typer.echo("no attack was run; the report says why", err=True)
        raise typer.Exit(LEFT_OUT_EXIT)


def _write(report: Report, options: Options) -> None:
    if options.html is not None:
        write_file(options.html, page(report).encode("utf-8", "replace"), mode=0o600)
    if options.sarif is not None:
        written = json.dumps(sarif(report), indent=2) + "\n"
        write_file(options.sarif, written.encode("utf-8", "replace"), mode=0o600)


def _shut_by(report: Report) -> str:
    worst = report.worst
    if report.stopped:
        return "the audit broke off"
    if report.left_out and (worst is None or not exceeds(worst, report.gate or 0.0)):
        return "most attacks were not run for want of time"
    return "no attack ran" if worst is None else f"{worst.label}: {span(worst)} ({worst.metric})"


def _table(report: Report, *, notes: bool) -> Table:
    """A row for each finding; one metric alone stands in the title, and `notes` need room."""
    metrics = list(dict.fromkeys(found.metric for found in report.findings))
    title = f"{report.kind}: {report.target.get('target', '')}"
    several = len(metrics) > 1
    beside = kind_of(report.kind).beside
    table = Table(title=escape(title if several or not metrics else f"{title}, {metrics[0]}"))
    for column in ("attack", *["metric"] * several, "value", "95 % interval", beside, "n", "s"):
        table.add_column(column, overflow="fold")
    if notes:
        table.add_column("note")
    for found in report.findings:
        cells = (
            found.label,
            *[found.metric] * several,
            *_figures(found),
            *[found.note or found.reason] * notes,
        )
        table.add_row(*map(escape, cells))
    return table


def _compared(found: Comparison, target: str) -> Table:
    """The measures by rows, the settings by columns."""
    table = Table(title=escape(f"text: {target}"))
    for head in ("", *(column.name for column in found.columns)):
        table.add_column(escape(head), overflow="fold")
    for row in found.rows:
        table.add_row(escape(f"  {row.measure}" if row.part else row.measure), *map(escape, row.cells))
    return table


def _spots(found: Comparison) -> Iterator[str]:
    """Where each setting leaves something readable: the first places, as the file spells them."""
    for column in found.columns:
        first = sorted(column.readable, key=lambda spot: spot.kind == "namesake")
        shown = [f"{spot.where} {spot.text} ({spot.kind})" for spot in first[:_SPOTS]]
        rest = len(column.readable) - len(shown)
        more = f" and {rest} more (--html and --json list them)" if rest else ""
        if shown:
            yield f"{column.name} leaves readable: {', '.join(shown)}{more}"


def _figures(found: Finding) -> tuple[str, ...]:
    if found.value is None:
        return ("not run", "", "", "", f"{found.cost_s:.1f}")
    chance = "" if found.baseline is None else figure(found.metric, found.baseline)
    return (figure(found.metric, found.value), span(found), chance, str(found.n), f"{found.cost_s:.1f}")


def _reasons(report: Report) -> list[str]:
    return [f"not run: {found.label}: {found.reason}" for found in report.findings if found.reason]
