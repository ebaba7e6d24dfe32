"""The common end of every audit: what is printed, what is written and for whom, and the exit code."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import typer

from transom.audit.finding import Example, Finding, not_run
from transom.audit.report import Report
from transom.cli.audit_report import GATE_EXIT, Options, finish, now
from transom.errors import MisconfiguredError

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
    finished(SHOWN, MISSING, as_json=True)
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


def test_the_budget_is_in_minutes() -> None:
    assert Options(budget_min=1.5).budget_s == 90
