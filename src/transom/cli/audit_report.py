"""What every `transom audit` command shares: its options, and how a report leaves.

`--json` prints the report as one line; `--html` and `--sarif` write files that only their owner can read,
for a report shows audited text. With --gate the exit code is 20 when a finding may exceed the bound, or when
no attack could be run. The files are written in every case.

Threat model: the report is the auditor's own; standard error and errors hold names and figures, never text.
Source: own design.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from transom.audit.attack import Attack, choose
from transom.audit.finding import Finding
from transom.audit.report import Report, figure, span
from transom.audit.runner import run
from transom.errors import MisconfiguredError

GATE_EXIT = 20
_NOTES_FROM = 140  # columns of a terminal

BudgetOption = Annotated[float, typer.Option("--budget", help="Minutes for all attacks together.", min=0)]
JsonOption = Annotated[bool, typer.Option("--json", help="The report as one JSON object on one line.")]
SarifOption = Annotated[Path | None, typer.Option("--sarif", help="Write the report as SARIF 2.1.0.")]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Write the report as one HTML page.")]
GateOption = Annotated[
    float | None, typer.Option("--gate", help="Exit with 20 when a finding may exceed this bound.", min=0)
]
AttackOption = Annotated[
    list[str] | None,
    typer.Option("--attack", help="Only this one, or module:object to add your own; repeatable."),
]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The common options of one command. Raises MisconfiguredError before an attack spends any time."""

    budget_min: float = 10.0
    as_json: bool = False
    sarif: Path | None = None
    html: Path | None = None
    gate: float | None = None
    attacks: Sequence[str] = ()
    started_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for path in filter(None, (self.sarif, self.html)):
            if path.is_dir() or not path.absolute().parent.is_dir():
                raise MisconfiguredError(f"cannot write {path}; give a file in a folder that exists")

    @property
    def budget_s(self) -> float:
        """The budget in seconds."""
        return 60 * self.budget_min

    @property
    def progress(self) -> bool:
        """Whether to show progress on a terminal."""
        return not self.as_json


def audit(
    kind: str,
    record: Mapping[str, Any],
    attacks: Sequence[Attack],
    given: tuple[object, object, object],
    options: Options,
) -> None:
    """Run the chosen attacks on `given` (target, knowledge, data), report, and leave through the gate.

    `record` names the target and the settings for the reader. Raises MisconfiguredError, typer.Exit.
    """
    chosen = choose(attacks, options.attacks)
    findings = run(chosen, *given, budget_s=options.budget_s, progress=options.progress)
    report = Report(
        kind=kind,
        target=record,
        findings=findings,
        gate=options.gate,
        created=now(),
        cost_s=round(time.monotonic() - options.started_s, 3),
    )
    finish(report, options)


def now() -> str:
    """The time for `Report.created`, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def finish(report: Report, options: Options) -> None:
    """Write and print `report`; exit with 20 when its gate is shut."""
    _write(report, options)
    if options.as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        console = Console(highlight=False)
        notes = console.width >= _NOTES_FROM
        console.print(_table(report, notes=notes))
        for line in (*([] if notes else _reasons(report)), report.verdict):
            console.print(escape(line))
    if report.passed is False:
        typer.echo(f"gate {report.gate:g} not passed: {_shut_by(report)}", err=True)
        raise typer.Exit(GATE_EXIT)


def _write(report: Report, options: Options) -> None:
    from transom.audit.html import page
    from transom.audit.sarif import sarif
    from transom.files import write_file

    made: list[tuple[Path | None, Callable[[], str]]] = [
        (options.html, lambda: page(report)),
        (options.sarif, lambda: json.dumps(sarif(report), indent=2) + "\n"),
    ]
    for path, make in made:
        if path is not None:
            write_file(path, make().encode("utf-8", "replace"), mode=0o600)


def _shut_by(report: Report) -> str:
    worst = report.worst
    return "no attack ran" if worst is None else f"{worst.label}: {span(worst)} ({worst.metric})"


def _table(report: Report, *, notes: bool) -> Table:
    """A row for each finding; one metric alone stands in the title, and `notes` need room."""
    metrics = list(dict.fromkeys(found.metric for found in report.findings))
    title = f"{report.kind}: {report.target.get('target', '')}"
    several = len(metrics) > 1
    table = Table(title=escape(title if several or not metrics else f"{title}, {metrics[0]}"))
    for column in ("attack", *["metric"] * several, "value", "95 % interval", "chance", "n", "s"):
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


def _figures(found: Finding) -> tuple[str, ...]:
    if found.value is None:
        return ("not run", "", "", "", f"{found.cost_s:.1f}")
    chance = "" if found.baseline is None else figure(found.metric, found.baseline)
    return (figure(found.metric, found.value), span(found), chance, str(found.n), f"{found.cost_s:.1f}")


def _reasons(report: Report) -> list[str]:
    return [f"not run: {found.label}: {found.reason}" for found in report.findings if found.reason]
