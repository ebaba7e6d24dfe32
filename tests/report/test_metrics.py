"""The table of metrics and that of kinds: complete, and the same to all that read them."""

from __future__ import annotations

import math
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.audit import attacks
from transom.audit.attacks import membership, tfma
from transom.report.charts import recovery_chart
from transom.report.checked import checked
from transom.report.finding import Finding, share
from transom.report.html import page
from transom.report.kinds import kind_of
from transom.report.metrics import EPSILON_METRIC, METRICS, Metric, figure, metric
from transom.report.report import Report, exceeds, gauge, mark
from transom.report.sarif import sarif

ROWS = pytest.mark.parametrize("row", METRICS, ids=lambda row: row.name)
BUILTIN = {
    module.METRIC
    for found in iter_modules(attacks.__path__, "transom.audit.attacks.")
    if hasattr(module := import_module(found.name), "METRIC")
}


def found(name: str, value: float = 0.5, low: float = 0.4, high: float | None = 0.6) -> Finding:
    return Finding(name="a", metric=name, value=value, low=low, high=high, baseline=0.1, n=9)


def report(*findings: Finding, gate: float | None = None, kind: str = "words") -> Report:
    return Report(
        kind=kind, target={}, findings=findings, gate=gate, created="2030-01-02T03:04:05Z", cost_s=1
    )


def believed(one: Finding) -> Finding:
    return checked("a", one.metric, one)


def test_names_differ() -> None:
    assert len({row.name for row in METRICS}) == len(METRICS)


@pytest.mark.parametrize(
    "name",
    sorted(
        BUILTIN
        | {membership.AREA, "BLEU-4", "utility"}
        | {f"top-{top} recovery of {over}" for top in tfma.TOP for over in ("tokens", "types")}
        | {f"recovery of {over}" for over in ("tokens", "types")}
    ),
)
def test_every_metric_of_an_attack_of_ours_has_a_row(name: str) -> None:
    assert metric(name) in METRICS


@ROWS
def test_the_gate_compares_what_the_row_says(row: Metric) -> None:
    one = found(row.name, high=None if row.certified else 0.6)
    end = 0.4 if row.certified else 0.6
    assert gauge(one) == (end if row.gated else None)
    assert report(one).worst == (one if row.gated else None)
    assert exceeds(one, end - 0.01) is row.gated
    assert not exceeds(one, end)


@ROWS
def test_figures_outside_the_range_are_not_believed(row: Metric) -> None:
    inside = max(row.least, 0.0), min(row.most, 1.0)
    high = None if row.certified else inside[1]
    assert believed(found(row.name, inside[0], inside[0], high)).status == "run"
    beyond = [end for end in (row.least - 0.01, row.most + 0.01) if not math.isinf(end)]
    for value in beyond:
        assert f"no {row.unit} between" in believed(found(row.name, value, value, value)).reason
    assert beyond or row.name == "cosine"


@ROWS
def test_only_what_an_attacker_wants_high_is_an_alarm(row: Metric) -> None:
    one = found(row.name, high=None if row.certified else 0.6)
    assert mark(one, None) == ("above" if row.better == "attacker" else "level")
    (result,) = sarif(report(one))["runs"][0]["results"]
    assert result["level"] == ("warning" if row.better == "attacker" else "note")
    beaten = report(one, found("ttrsr", low=0.0)).headline
    assert ("beats guessing" in beaten) is (row.better == "attacker" and not row.gated)


@ROWS
def test_page_and_chart_explain_it_as_the_row_does(row: Metric) -> None:
    one = found(row.name, high=None if row.certified else 0.6)
    chart = recovery_chart([one], None)
    assert f"above {row.beside}" in chart
    assert ("95 % interval</li>" in chart) is not row.certified
    assert (f"<b>{row.name}</b>: {row.meaning}." in page(report(one))) is bool(row.meaning)
    assert figure(row.name, 0.5) == ("0.50" if row.certified else "50.0 %")
    if row.outcome:
        assert report(one).headline == f"50.0 % {row.outcome}."


@given(st.text(max_size=30))
def test_an_unknown_metric_is_a_share_that_is_gated(name: str) -> None:
    row = metric(name)
    if row not in METRICS:
        assert (row.least, row.most, row.gated, row.better, row.certified) == (0, 1, True, "attacker", False)
        assert report(found(name)).headline == f"50.0 % {name} is what an attacker reaches."


def test_families_and_the_one_best_guess() -> None:
    assert metric("top-1 ttrsr") == metric("ttrsr")
    assert not metric("top-10 ttrsr").gated
    assert not metric("top-100 ttrsr").gated
    assert metric("top-5 ttrsr").gated  # not one of ours: what nobody vouched for is gated
    assert metric("cosine distance") == metric("cosine")
    assert metric(f"{EPSILON_METRIC} of another") not in METRICS


def test_every_kind_of_the_command_line_has_its_words() -> None:
    cli = Path(__file__).parents[2] / "src/transom/cli"
    kinds = {kind for path in cli.glob("*.py") for kind in re.findall(r'auditing\("(\w+)"', path.read_text())}
    assert kinds >= {"words", "epsilon"}
    assert all(kind_of(kind).title != kind for kind in kinds)
    assert kind_of("odd").title == "odd"
    page(report(share("a", "ttrsr", hits=1, n=2, baseline=0.1, cost_s=1), kind="odd"))
