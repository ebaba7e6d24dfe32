"""Several reports as one, for a page that draws them side by side: recovery of each, and against utility.

Reports are read from the JSON that `transom audit ... --json` prints. Their findings keep their figures; the
setting of each begins with its report's name.
Threat model: a report may hold anything: what is no finding is refused, figures that cannot be are "not run",
and the page escapes all text. Does not check: that the reports are of the same texts.
Source: own design.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from transom.config import load_json
from transom.errors import MisconfiguredError
from transom.report.checked import checked
from transom.report.report import Frontier, Report


def read_report(text: str | bytes, name: str) -> Report:
    """The report in the JSON `text` of the file `name`. Raises MisconfiguredError for anything else."""
    from pydantic import TypeAdapter, ValidationError

    try:
        record = load_json(text)
        if not isinstance(record, dict) or not isinstance(record.get("target"), dict):
            raise MisconfiguredError(f"{name} holds no report; give what transom audit ... --json printed")
        parts, points = ("kind", "target", "findings", "gate", "created", "cost_s"), record.get("frontier")
        made = {part: record.get(part) for part in parts} | {"frontier": points and {"points": points}}
        report = TypeAdapter(Report).validate_python(made)
    except ValidationError as error:  # its text holds the values
        place = ".".join(map(str, error.errors(include_input=False)[0]["loc"]))
        raise MisconfiguredError(f"{name} holds no report that can be read: see its {place}") from None
    except ValueError as error:
        raise MisconfiguredError(f"{name} holds no JSON that can be read ({error})") from None
    believed = (replace(checked(one.name, one.metric, one), setting=one.setting) for one in report.findings)
    return replace(report, findings=tuple(believed))


def together(reports: Mapping[str, Report]) -> Report:
    """One report of all, by their names. Raises MisconfiguredError for kinds that do not compare."""
    kinds = sorted({report.kind for report in reports.values()})
    if len(kinds) != 1:
        raise MisconfiguredError(
            f"reports of {len(kinds)} kinds ({', '.join(kinds)}); give those of one kind"
        )
    points = [
        replace(point, label=_joined(name, point.label) if several else name)
        for name, report in reports.items()
        if report.frontier
        for several in [len({point.label for point in report.frontier.points}) > 1]
        for point in report.frontier.points
    ]
    return Report(
        kind=kinds[0],
        target={name: str(report.target.get("target", "")) for name, report in reports.items()},
        findings=tuple(
            replace(found, setting=_joined(name, found.setting))
            for name, report in reports.items()
            for found in report.findings
        ),
        frontier=Frontier(tuple(points)) if points else None,
        cost_s=sum(report.cost_s for report in reports.values()),
    )


def _joined(*names: str) -> str:
    return ", ".join(filter(None, names))
