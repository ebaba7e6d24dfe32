"""SARIF: what the standard requires of a log, and that no audited text is in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

from transom.report.finding import Example, Finding, not_run, share
from transom.report.report import Report
from transom.report.sarif import sarif

HIGH = replace(
    share("exact Bayes", "token recovery", hits=70, n=100, baseline=0.1, cost_s=2), setting="epsilon 8"
)
SOME = share("mask", "token recovery", hits=20, n=100, baseline=0.1, cost_s=2)
NONE = share("guess", "token recovery", hits=10, n=100, baseline=0.1, cost_s=2)
TWO_OF_A_NAME = replace(NONE, metric="top-10 token recovery")
MISSING = not_run("beam", "token recovery", "no language")


def log(*findings: Finding, gate: float | None = 0.4) -> dict[str, Any]:
    made = Report(
        kind="words",
        target={"target": "my notes:1"},
        findings=findings,
        gate=gate,
        created="2030-01-02T03:04:05Z",
        cost_s=3,
    )
    read: dict[str, Any] = json.loads(json.dumps(sarif(made)))
    return read


def test_the_log_has_what_the_standard_requires() -> None:
    """SARIF 2.1.0: 3.13 log, 3.14 run, 3.18 tool, 3.19 component, 3.20 invocation, 3.27 result, 3.49 rule."""
    found = log(HIGH, SOME, NONE, TWO_OF_A_NAME, MISSING)
    assert found["version"] == "2.1.0"
    assert set(found) <= {"$schema", "version", "runs"}
    (run,) = found["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert run["tool"]["driver"]["name"]
    assert run["automationDetails"]["id"] == "transom/words/"
    assert len({rule["id"] for rule in rules}) == len(rules) == 5
    for result in run["results"]:
        assert set(result) >= {"message", "ruleId", "level"}
        assert result["message"]["text"]
        assert result["level"] in {"none", "note", "warning", "error"}
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        (location,) = result["locations"]
        assert location["logicalLocations"][0]["name"] == "my notes:1"
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "my%20notes%3A1"  # no scheme
    (invocation,) = run["invocations"]
    assert isinstance(invocation["executionSuccessful"], bool)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", invocation["endTimeUtc"])
    for notification in invocation["toolExecutionNotifications"]:
        assert notification["message"]["text"]
        assert rules[notification["associatedRule"]["index"]]["id"] == notification["associatedRule"]["id"]


def test_levels_follow_the_gate_and_chance() -> None:
    levels = [result["level"] for result in log(HIGH, SOME, NONE)["runs"][0]["results"]]
    assert levels == ["error", "warning", "note"]
    without = [result["level"] for result in log(HIGH, SOME, NONE, gate=None)["runs"][0]["results"]]
    assert without == ["warning", "warning", "note"]


def test_an_attack_is_one_rule_at_every_setting() -> None:
    (run,) = log(HIGH, replace(HIGH, setting="epsilon 1"))["runs"]
    assert [rule["name"] for rule in run["tool"]["driver"]["rules"]] == ["exact Bayes"]
    assert [result["properties"]["setting"] for result in run["results"]] == ["epsilon 8", "epsilon 1"]
    assert run["results"][0]["message"]["text"].startswith("exact Bayes, epsilon 8: 70.0 %")


def test_what_was_not_run_is_a_notification_and_no_result() -> None:
    (run,) = log(MISSING)["runs"]
    assert run["results"] == []
    (invocation,) = run["invocations"]
    assert not invocation["executionSuccessful"]
    assert "no language" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_audited_text_is_not_in_it() -> None:
    shown = replace(HIGH, examples=(Example("the secret", "a thing", "the secret"),))
    assert "secret" not in json.dumps(log(shown))
