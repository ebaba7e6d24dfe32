"""Findings: the interval covers, the chance level decides, and what was not run has no figures."""

from __future__ import annotations

import json
from dataclasses import replace

from transom.report.finding import Example, not_run, share


def test_above_chance_needs_the_whole_interval() -> None:
    def found(hits: int, n: int) -> bool:
        return share("x", "ttrsr", hits=hits, n=n, baseline=0.1, cost_s=0).above_chance

    assert not found(1, 4)  # 25 %, but it could well be chance
    assert found(100, 400)
    assert not found(2, 400)


def test_not_run_has_no_figures_and_a_reason() -> None:
    finding = not_run("x", "ttrsr", "no gate")
    assert finding.status == "not run"
    assert finding.reason == "no gate"
    assert finding.value is finding.low is finding.high is finding.baseline is None
    assert not finding.above_chance


def test_a_finding_survives_json() -> None:
    finding = share("x", "ttrsr", hits=3, n=4, baseline=0.01, cost_s=1.23456, note="why")
    record = json.loads(json.dumps(finding.to_dict()))
    assert type(finding)(**record) == finding
    assert record["status"] == "run"


def test_examples_travel_with_a_finding_and_are_not_printed_with_it() -> None:
    bare = share("x", "ttrsr", hits=3, n=4, baseline=0.01, cost_s=1)
    shown = replace(bare, examples=(Example("a secret", "[NAME_1]", "a secret"),))
    assert "secret" not in repr(shown) + repr(shown.examples)
    assert shown.to_dict()["examples"] == (
        {"original": "a secret", "seen": "[NAME_1]", "recovered": "a secret"},
    )
    assert shown == bare  # the figures are the finding
