"""The report: the worst finding, the gate, the verdict's words."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from transom.report.finding import INTERRUPTED, Example, Finding, not_run, share
from transom.report.metrics import EPSILON_METRIC, figure
from transom.report.report import Frontier, FrontierPoint, Report, span

WORDS = share("bayes", "token recovery", hits=300, n=1000, baseline=0.1, cost_s=2)
WEAK = share("mask", "token recovery", hits=100, n=1000, baseline=0.1, cost_s=1)
CONTEXT = share("contextual", "token recovery", hits=450, n=1000, baseline=0.44, cost_s=1)
SMALL = share("tiny", "token recovery", hits=1, n=4, baseline=0.1, cost_s=1)
LIST = share("tfma", "top-100 token recovery", hits=990, n=1000, baseline=0.1, cost_s=1)
AREA = share("ratio", "AUC", hits=900, n=1000, baseline=0.5, cost_s=1)
MISSING = not_run("beam", "token recovery", "no language to search with")


def report(*findings: Finding, gate: float | None = None, kind: str = "words") -> Report:
    return Report(
        kind=kind,
        target={"target": "x"},
        findings=findings,
        gate=gate,
        created="2030-01-02T03:04:05Z",
        cost_s=3,
    )


def claim(low: float, claimed: float = 1.0) -> Finding:
    return Finding(name="distinguisher", metric=EPSILON_METRIC, value=low, low=low, baseline=claimed, n=10)


def test_the_worst_is_the_one_that_may_reach_furthest() -> None:
    assert report(WEAK, WORDS, MISSING).worst == WORDS
    assert report(WORDS, SMALL).worst == SMALL  # four trials: it may be as high as 80 %
    assert report(WEAK, LIST).worst == WEAK  # a token among a hundred guesses is not read
    assert report(MISSING, LIST).worst is None


@pytest.mark.parametrize(
    ("findings", "gate", "passed"),
    [
        ((WORDS,), None, None),
        ((WORDS,), 0.33, True),
        ((WORDS,), 0.31, False),  # the value is below, the interval is not
        ((WEAK, SMALL), 0.5, False),
        ((WEAK, LIST), 0.2, True),
        ((WEAK, MISSING), 0.2, True),
        ((MISSING,), 0.9, False),
        ((), 0.9, False),
        ((WEAK, not_run("beam", "ttrsr", INTERRUPTED)), 0.9, False),
        ((claim(0.9),), 1.0, True),
        ((claim(1.1),), 1.0, False),
    ],
)
def test_the_gate(findings: tuple[Finding, ...], gate: float | None, passed: bool | None) -> None:
    assert report(*findings, gate=gate).passed is passed


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (report(WORDS), ["30.0 % of the replaced words can be read back", "bayes", "guessing 10.0 %"]),
        (
            report(SMALL, WORDS),
            ["30.0 % of the replaced"],
        ),  # four trials show nothing, however far they reach
        (report(CONTEXT, WORDS), ["45.0 % of the replaced words can be read back", "guessing 44.0 %"]),
        (report(WEAK), ["No attack is shown to beat guessing"]),
        (report(WORDS, gate=0.2), ["Not passed: bayes may be above the bound of 20.0 %"]),
        (report(WORDS, gate=0.9), ["Passed: within the bound of 90.0 %"]),
        (
            report(WEAK, AREA),
            ["ratio beats guessing: 90.0 % AUC, where guessing gives 50.0 %.", "mask: 10.0 %"],
        ),
        (report(MISSING), ["Nothing was measured", "no language to search with"]),
        (report(), ["Nothing was measured", "No attack could be run"]),
        (report(MISSING, not_run("ima", "ttrsr", "no model")), ["No attack could be run"]),
        (report(WEAK, not_run("a", "m", INTERRUPTED), gate=0.9), ["Not passed: the audit was interrupted"]),
        (report(claim(1.5)), ["claim of epsilon 1 is broken", "at least 1.50"]),
        (report(claim(0.5), gate=1.0), ["was not refuted", "at least 0.50"]),
        (report(claim(1.5), gate=1.0), ["Not passed: distinguisher is above the bound of 1.00"]),
        (report(share("a", "BLEU-4", hits=3, n=4, baseline=0.0, cost_s=0)), ["75.0 % BLEU-4 is what"]),
    ],
)
def test_the_verdict_is_in_plain_words(made: Report, words: list[str]) -> None:
    for word in words:
        assert word in made.verdict


AT_1, AT_8 = (replace(found, setting=f"epsilon {e}") for found, e in ((WEAK, 1), (WORDS, 8)))
AT_3 = replace(WORDS, name="averaging", setting="epsilon 3", value=0.25, low=0.2)


@pytest.mark.parametrize(
    ("findings", "headline"),
    [
        ((AT_3, AT_8), "25.0 % (epsilon 3) to 30.0 % (epsilon 8) of the replaced words can be read back."),
        (
            (AT_1, AT_3, AT_8),
            "Up to 30.0 % of the replaced words can be read back (epsilon 8); at some settings no attack is "
            "shown to beat guessing.",
        ),
        (
            (AT_1, replace(AT_1, setting="epsilon 2"), replace(AREA, setting="epsilon 2")),
            "ratio, epsilon 2 beats guessing: 90.0 % AUC, where guessing gives 50.0 %.",
        ),
        ((AT_1, replace(AT_1, setting="epsilon 2")), "No attack is shown to beat guessing at any setting."),
        (
            (replace(AT_3, metric="ttrsr"), AT_8),
            "Up to 30.0 % of the replaced words can be read back (epsilon 8).",
        ),
        ((AT_8,), "30.0 % of the replaced words can be read back."),
        ((AT_8, replace(MISSING, setting="epsilon 1")), "30.0 % of the replaced words can be read back."),
    ],
)
def test_a_sweep_is_told_from_where_least_is_read_to_where_most_is(
    findings: tuple[Finding, ...], headline: str
) -> None:
    assert report(*findings).headline == headline


def test_a_sweep_rests_on_the_strongest_attack_at_each_setting() -> None:
    weaker = replace(AT_8, name="weaker", value=0.4, low=0.2)  # of few trials
    details = report(AT_1, AT_3, weaker, AT_8, gate=0.25).details
    assert [line.split(",")[0] for line in details] == [
        "epsilon 1: mask",
        "epsilon 3: averaging",
        "epsilon 8: bayes",
    ]
    assert (
        details[2]
        == "epsilon 8: bayes, 30.0 % token recovery (95 % interval 27.2 % to 32.9 %); guessing 10.0 %."
    )
    assert (
        report(AT_1, AT_8, gate=0.25).gate_sentence
        == "Not passed: bayes, epsilon 8 may be above the bound of 25.0 %."
    )


def test_figures_read_well() -> None:
    values = (0, 2.03e-5, 0.00051, 0.0123, 0.5, 1.0)
    assert [figure("ttrsr", value) for value in values] == [
        "0 %",
        "0.002 %",
        "0.05 %",
        "1.2 %",
        "50.0 %",
        "100.0 %",
    ]
    assert figure(EPSILON_METRIC, 2.5) == "2.50"
    assert span(claim(1.5)) == "at least 1.50"
    assert span(MISSING) == ""


def test_a_report_survives_json() -> None:
    point = FrontierPoint("words", "epsilon 3", 0.3, 0.2, 0.4, 0.8, 0.7, 0.9, "sst2")
    shown = Finding(
        name="a", metric="ttrsr", value=0.1, low=0.0, high=0.2, examples=(Example("p", "s", "r"),)
    )
    made = Report(
        kind="words",
        target={"target": "x"},
        findings=(shown, MISSING),
        frontier=Frontier((point,)),
        gate=0.5,
        created="2030-01-02T03:04:05Z",
        cost_s=3,
    )
    record = json.loads(json.dumps(made.to_dict()))
    assert record["worst"] == {"name": "a", "setting": "", "metric": "ttrsr", "high": 0.2}
    assert record["passed"] is True
    assert record["findings"][0]["examples"] == [{"original": "p", "seen": "s", "recovered": "r"}]
    assert record["findings"][1]["reason"] == MISSING.reason
    assert record["frontier"] == [json.loads(json.dumps(vars(point)))]
    assert "'p'" not in repr(made)  # audited text stays out of whatever prints a report
