"""`transom audit epsilon`: its verdict, its gate, and a report whatever the mechanism does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from transom.cli import main

MECHANISMS = """
import random

def coin(value):
    return value if random.random() < 0.75 else {"a": "b", "b": "a"}[value]

def noise(value):
    return [x + random.expovariate(1) - random.expovariate(1) for x in value]

def fresh(value):
    return f"{value}{random.getrandbits(64)}"

def raises(value):
    raise ValueError(value)

def hangs(value):
    while True:
        pass

class Stubborn:
    NAME, METRIC = "stubborn", "epsilon lower bound"

    def attack(self, target, knowledge, data, budget_s):
        from transom.report.finding import Finding
        return Finding(name=self.NAME, metric=self.METRIC, value=9.0, low=9.0, baseline=target.epsilon)

stubborn = Stubborn()
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_noise.py").write_text(MECHANISMS)


def run(name: str, *options: str, a: str = '"a"', b: str = '"b"', epsilon: float = 1.0) -> int:
    line = ["audit", "epsilon", f"own_noise:{name}", "--epsilon", f"{epsilon}", "--a", a, "--b", b]
    return main.run([*line, "--samples", "4000", *options])


def reported(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0, **inputs: Any) -> Any:
    capsys.readouterr()
    assert run(*arguments, "--json", **inputs) == code
    return json.loads(capsys.readouterr().out)


def test_a_broken_claim_shuts_the_gate_and_a_sound_one_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    broken = reported(capsys, "coin", "--gate", "0.5", "--alpha", "1e-4", epsilon=0.5, code=20)
    assert "claim of epsilon 0.5 is broken" in broken["verdict"]
    assert 0.5 < broken["findings"][0]["low"] <= 1.1
    sound = reported(capsys, "coin", "--gate", "1.1", "--alpha", "1e-4", epsilon=1.1)  # ln 3 = 1.0986
    assert sound["passed"]
    assert "not refuted" in sound["verdict"]


def test_floats_are_judged_too(capsys: pytest.CaptureFixture[str]) -> None:
    broken = reported(capsys, "noise", "--gate", "1", a="[0, 0]", b="[0, 2.5]", code=20)
    assert not broken["passed"]
    assert "4000 of" not in broken["findings"][0]["note"]


@pytest.mark.parametrize(
    ("name", "budget", "reason"),
    [
        ("raises", "1", "raised ValueError on draw 1"),
        ("hangs", "0.05", "no output within 2.7 s"),
        ("coin", "0.0001", "raise --budget"),
        ("absent", "1", "cannot be imported"),
    ],
)
def test_what_cannot_be_measured_is_reported_and_does_not_pass(
    capsys: pytest.CaptureFixture[str], name: str, budget: str, reason: str
) -> None:
    options = ("--gate", "5", "--budget", budget, "--html", "report.html", "--sarif", "report.sarif")
    record = reported(capsys, name, *options, code=20)
    assert record["findings"][0]["status"] == "not run"
    assert reason in record["findings"][0]["reason"]
    assert reason in record["verdict"]
    assert reason in Path("report.html").read_text()
    assert json.loads(Path("report.sarif").read_text())["runs"][0]["results"] == []


def test_nothing_seen_is_not_run_and_passes_no_gate(capsys: pytest.CaptureFixture[str]) -> None:
    verdict = reported(capsys, "fresh", "--gate", "5", code=20)["verdict"]
    assert "outputs almost never repeat" in verdict
    assert "return a coarser value" in verdict


def test_an_attack_of_ones_own_runs_beside(capsys: pytest.CaptureFixture[str]) -> None:
    record = reported(capsys, "coin", "--attack", "own_noise:stubborn", "--gate", "2", code=20)
    assert [found["name"] for found in record["findings"]] == ["epsilon distinguisher", "stubborn"]
    assert record["worst"]["name"] == "stubborn"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"a": "word"}, "'\"word\"'"),
        ({"a": '"b"'}, "the same value"),
    ],
)
def test_inputs_that_mean_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], arguments: dict[str, str], message: str
) -> None:
    assert run("coin", **arguments) == 3
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--epsilon", "inf", "epsilon must be 0 or more, and finite, got inf"),
        ("--epsilon", "nan", "epsilon must be 0 or more, and finite, got nan"),
        ("--epsilon", "-1", "epsilon must be 0 or more, and finite, got -1"),
        ("--alpha", "0", "alpha must be above 0 and below 1, got 0"),
        ("--alpha", "2", "alpha must be above 0 and below 1, got 2"),
        ("--delta", "1", "delta must be 0 or more, and below 1, got 1"),
        ("--delta", "nan", "delta must be 0 or more, and below 1, got nan"),
        ("--samples", "3", "samples must be 4 or more, got 3"),
        ("--samples", "10", "10 samples cannot refute epsilon 1 "),
    ],
)
def test_options_that_mean_nothing_are_refused_before_any_draw(
    capsys: pytest.CaptureFixture[str], option: str, value: str, message: str
) -> None:
    assert run("hangs", option, value, "--budget", "0.02") == 3
    assert message in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_refused_before_any_draw(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("hangs", "--html", "no/such/folder/report.html") == 3
    assert "give a file in a folder that exists" in capsys.readouterr().err
