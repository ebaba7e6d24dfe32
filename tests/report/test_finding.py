"""Findings: the interval covers, the chance level decides, and what was not run has no figures."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from transom.errors import MisconfiguredError
from transom.report.finding import Example, not_run, share
from transom.report.statistics import interval


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.97])
@pytest.mark.parametrize("n", [20, 200])
def test_the_interval_covers_the_rate(rate: float, n: int) -> None:
    from scipy.stats import binom

    hits = np.arange(n + 1)
    bounds = np.array([interval(int(h), n) for h in hits])
    covered = (bounds[:, 0] <= rate) & (rate <= bounds[:, 1])
    assert binom.pmf(hits, n, rate)[covered].sum() >= 0.95


@pytest.mark.parametrize("n", [1, 7, 500])
def test_the_interval_holds_its_share_and_stays_between_0_and_1(n: int) -> None:
    for hits in {0, 1, n // 2, n}:
        low, high = interval(hits, n)
        assert 0 <= low <= hits / n <= high <= 1
    assert interval(0, n)[0] == 0
    assert interval(n, n)[1] == 1
    assert interval(0, n)[1] == pytest.approx(1 - 0.025 ** (1 / n))  # its closed form at no hits


def test_more_trials_narrow_the_interval() -> None:
    widths = [high - low for low, high in (interval(n // 4, n) for n in (40, 400, 4000))]
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(("hits", "n", "confidence"), [(-1, 5, 0.9), (6, 5, 0.9), (0, 0, 0.9), (1, 5, 1.0)])
def test_counts_that_cannot_be_are_refused(hits: int, n: int, confidence: float) -> None:
    with pytest.raises(MisconfiguredError, match="need 0 <= hits <= n"):
        interval(hits, n, confidence)


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
