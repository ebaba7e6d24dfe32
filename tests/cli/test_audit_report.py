"""The common end of every audit: what is printed, what is written and for whom, and the exit code."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from transom.cli.audit_report import GATE_EXIT, LEFT_OUT_EXIT, Options, auditing, finish
from transom.errors import MisconfiguredError
from transom.report.finding import INTERRUPTED, Bound, Example, Finding, not_run
from transom.report.report import Report, now

SHOWN = Finding(
    name="bayes",
    metric="token recovery",
    value=0.3,
    low=0.2,
    high=0.4,
    baseline=0.1,
    n=10,
    examples=(Example("the secret", "\ud800", "[bold]x"),),
)
MISSING = not_run("beam [1]", "token recovery", "no language")


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def finished(*findings: Finding, gate: float | None = None, **options: object) -> None:
    made = Report(
        kind="words", target={"target": "notes.txt"}, findings=findings, gate=gate, created=now(), cost_s=1
    )
    finish(made, Options(gate=gate, **options))  # type: ignore[arg-type]


def test_a_table_and_the_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    finished(SHOWN, MISSING)
    printed = capsys.readouterr()
    for words in ("words: notes.txt", "20.0 % to 40.0 %", "beam [1]", "not run", "no language", "read back"):
        assert words in printed.out
    assert "secret" not in printed.out + printed.err


@pytest.mark.parametrize("columns", ["60", "80", "200"])
def test_reasons_are_told_on_any_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    finished(SHOWN, MISSING)
    assert "no language" in capsys.readouterr().out


def test_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    finished(SHOWN, MISSING, json=True)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    assert [found["name"] for found in json.loads(out)["findings"]] == ["bayes", "beam [1]"]


@pytest.mark.parametrize(("gate", "shut"), [(0.5, False), (0.39, True)])
def test_the_gate_decides_the_exit_code_after_the_files_are_written(
    capsys: pytest.CaptureFixture[str], gate: float, shut: bool
) -> None:
    def write() -> None:
        finished(SHOWN, gate=gate, html=Path("r.html"), sarif=Path("r.sarif"))

    if shut:
        with pytest.raises(typer.Exit) as stop:
            write()
        assert stop.value.exit_code == GATE_EXIT
        assert "gate 0.39 not passed: bayes: 20.0 % to 40.0 %" in capsys.readouterr().err
    else:
        write()
    assert "token recovery" in Path("r.html").read_text()
    assert json.loads(Path("r.sarif").read_text())["version"] == "2.1.0"


def mounted(name: str, result: object = SHOWN) -> Bound:
    def attack(*_: object) -> Finding:
        if isinstance(result, BaseException):
            raise result
        return replace(result, name=name)  # type: ignore[type-var, return-value]

    return Bound(name, "token recovery", attack)


def broken_off(error: BaseException, *, at: str, gate: float | None = None) -> dict[str, Any]:
    """The report of a sweep over two settings that `error` ends before, in or after the second."""
    attacks = (mounted("bayes"), mounted("last", error if at == "in" else SHOWN))
    options = Options(html=Path("r.html"), sarif=Path("r.sarif"), gate=gate)

    def sweep() -> None:
        with auditing("words", {"target": "notes.txt"}, attacks, options) as audit:
            for setting in ("one", "two"):
                audit.setting = setting
                if (setting, at) == ("two", "before"):
                    raise error
                audit.attack(attacks[: 1 if (setting, at) == ("one", "in") else 2], None, None, None)
            raise error

    with pytest.raises(typer.Exit if gate is not None else type(error)):
        sweep()
    assert "<h1>" in Path("r.html").read_text()
    log: dict[str, Any] = json.loads(Path("r.sarif").read_text())["runs"][0]
    missing = log["invocations"][0]["toolExecutionNotifications"]
    return {
        "run": [result["message"]["text"].split(":")[0] for result in log["results"]],
        "missing": [one["message"]["text"] for one in missing],
    }


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyboardInterrupt(), INTERRUPTED),
        (MisconfiguredError("notes.txt holds no text"), "notes.txt holds no text"),
        (ValueError("the secret"), "it raised ValueError"),
    ],
)
def test_the_report_is_written_whatever_ends_the_audit(error: BaseException, reason: str) -> None:
    told = broken_off(error, at="before")
    assert told["run"] == ["bayes, one", "last, one"]
    assert told["missing"] == [f"{name}, two was not run: {reason}" for name in ("bayes", "last")]
    told = broken_off(error, at="after")
    assert len(told["run"]) == 4
    assert told["missing"] == [f"rest, two was not run: {reason}"]
    assert "secret" not in Path("r.sarif").read_text()


def test_an_interrupted_attack_ends_the_audit_and_what_ran_stays() -> None:
    told = broken_off(KeyboardInterrupt(), at="in")
    assert told["run"] == ["bayes, one", "bayes, two"]
    assert told["missing"] == [f"last, two was not run: {INTERRUPTED}"]


@pytest.mark.parametrize("at", ["before", "after"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), MisconfiguredError("why"), ValueError("secret")])
def test_a_gate_is_shut_by_an_audit_that_broke_off(
    capsys: pytest.CaptureFixture[str], error: BaseException, at: str
) -> None:
    broken_off(error, at=at, gate=0.9)  # what was found lies below the gate
    assert "gate 0.9 not passed" in capsys.readouterr().err
    assert "Not passed" in Path("r.html").read_text()


def test_what_runs_takes_from_the_time_that_is_left() -> None:
    shares: list[float] = []

    def note(target: object, knowledge: object, data: object, budget_s: float) -> Finding:
        shares.append(budget_s)
        return SHOWN

    options = Options(budget=1.0)
    with auditing("words", {}, (), options) as audit:
        for number in range(2):
            audit.attack([Bound("a", "token recovery", note)], None, None, None, of=2 - number)
    assert shares == pytest.approx([30, 60], rel=0.05)


def test_nothing_run_does_not_pass(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit):
        finished(MISSING, gate=0.9)
    assert "no attack ran" in capsys.readouterr().err


def test_files_are_for_their_owner_only() -> None:
    Path("r.html").write_text("an older report")
    Path("r.html").chmod(0o644)
    finished(SHOWN, html=Path("r.html"), sarif=Path("r.sarif"))
    for name in ("r.html", "r.sarif"):
        assert stat.S_IMODE(Path(name).stat().st_mode) == 0o600
    assert "the secret" in Path("r.html").read_text()
    assert "the secret" not in Path("r.sarif").read_text()


@pytest.mark.parametrize("path", ["missing/r.html", "."])
def test_a_place_that_cannot_be_written_is_refused_at_once(path: str) -> None:
    with pytest.raises(MisconfiguredError, match="cannot write"):
        Options(html=Path(path))


LATE = [not_run(name, "token recovery", "the budget leaves it 0 s; raise --budget") for name in "abc"]


@pytest.mark.parametrize(
    ("findings", "gate", "code"),
    [
        ([SHOWN, *LATE], None, LEFT_OUT_EXIT),
        ([SHOWN, *LATE], 0.9, GATE_EXIT),
        ([SHOWN, *LATE], 0.1, GATE_EXIT),
        ([SHOWN, *LATE[:1]], None, 0),
        ([SHOWN, *LATE[:1]], 0.9, 0),
        ([SHOWN, SHOWN, SHOWN, *LATE], None, 0),
        ([SHOWN, MISSING, MISSING], None, 0),
        (LATE, None, LEFT_OUT_EXIT),
        (LATE, 0.9, GATE_EXIT),
    ],
)
def test_an_audit_that_left_most_out_does_not_exit_as_one_that_ran(
    findings: list[Finding], gate: float | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    exited = 0
    try:
        finished(*findings, gate=gate, html=Path("r.html"))
    except typer.Exit as error:
        exited = error.exit_code
    assert exited == code
    printed = capsys.readouterr()
    late = sum(one in LATE for one in findings)
    for told in (printed.out.replace("\n", " "), Path("r.html").read_text()):
        assert (f"{late} of {len(findings)} attacks were not run for want of time" in told) == bool(late)
    assert ("want of time" in printed.err) == (code != 0 and gate != 0.1)


@pytest.mark.parametrize("count", [1, 2, 12])
def test_a_report_says_how_many_findings_stand_in_it(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    finished(*[SHOWN] * count, MISSING, html=Path("r.html"))
    for told in (capsys.readouterr().out.replace("\n", " "), Path("r.html").read_text()):
        assert (f"{count} findings stand in this report" in told) == (count > 1)
        assert ("99.58" in told) == (count == 12)


def test_two_reports_in_one_file_are_refused() -> None:
    with pytest.raises(MisconfiguredError, match="two files"):
        Options(html=Path("r"), sarif=Path("r"))


def test_the_budget_is_in_minutes() -> None:
    assert Options(budget=1.5).budget_s == 90
