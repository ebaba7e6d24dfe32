"""A report as SARIF 2.1.0, for tools that collect findings. Holds names and figures, no audited text.

A rule is an attack; one that was not run is a notification of the invocation.
Threat model: the file may be uploaded to a code host, so examples stay out. Does not hide
names, figures, the target's name and the reasons of what was not run.
Source: OASIS, Static Analysis Results Interchange Format 2.1.0, sections 3.20, 3.27, 3.58.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import quote

from transom.report.finding import Finding
from transom.report.metrics import figure
from transom.report.report import Report, mark, span

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_LEVELS = {"over": "error", "above": "warning", "level": "note"}


def sarif(report: Report) -> dict[str, Any]:
    """The SARIF log of `report`, as plain values."""
    rules = list({_rule_id(found): found.name for found in report.findings}.items())
    ids = [rule for rule, _ in rules]
    run = [found for found in report.findings if found.status == "run"]
    missing = [found for found in report.findings if found.status != "run"]
    invocation = {
        "executionSuccessful": report.worst is not None and not report.left_out,
        "endTimeUtc": report.created,
        "toolExecutionNotifications": [_notification(found, ids) for found in missing],
    }
    return log(
        f"transom audit/{report.kind}",
        rules,
        invocation,
        [_result(found, ids, report) for found in run],
        {"verdict": report.verdict, "gate": report.gate, "passed": report.passed},
    )


def log(
    tool: str,
    rules: Sequence[tuple[str, str]],
    invocation: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    properties: Mapping[str, Any],
) -> dict[str, Any]:
    """A log of one run. `tool` is a command and, after a slash, the kind of its results; `rules` are ids and
    names, of which results give the place as `ruleIndex`."""
    name, _, kind = tool.partition("/")
    driver = {
        "name": name,
        "version": version("transom"),
        "rules": [{"id": rule, "name": text, "shortDescription": {"text": text}} for rule, text in rules],
    }
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "automationDetails": {"id": f"transom/{kind}/"},  # reports of two kinds stay apart
                "invocations": [invocation],
                "results": list(results),
                "properties": dict(properties),
            }
        ],
    }


def _result(found: Finding, ids: list[str], report: Report) -> dict[str, Any]:
    rule = _rule_id(found)
    value = figure(found.metric, found.value or 0.0)
    target = str(report.target.get("target", report.kind))
    return {
        "ruleId": rule,
        "ruleIndex": ids.index(rule),
        "level": _LEVELS[mark(found, report.gate)],
        "message": {"text": f"{found.label}: {value} {found.metric} (95 % interval {span(found)})"},
        "locations": [location(target, report.kind)],
        "properties": {
            "metric": found.metric,
            "setting": found.setting,
            "value": found.value,
            "low": found.low,
            "high": found.high,
            "chance": found.baseline,
            "n": found.n,
            "cost_s": found.cost_s,
        },
    }


def location(target: str, kind: str) -> dict[str, Any]:
    """The target by its name, and as a file, without which code hosts refuse a result."""
    return {
        "physicalLocation": {"artifactLocation": {"uri": quote(target)}, "region": {"startLine": 1}},
        "logicalLocations": [{"name": target, "kind": kind}],
    }


def _notification(found: Finding, ids: list[str]) -> dict[str, Any]:
    return {
        "associatedRule": {"id": _rule_id(found), "index": ids.index(_rule_id(found))},
        "level": "warning",
        "message": {"text": f"{found.label} was not run: {found.reason}"},
    }


def _rule_id(found: Finding) -> str:
    return "transom/" + re.sub(r"[^a-z0-9]+", "-", f"{found.name} {found.metric}".lower()).strip("-")
