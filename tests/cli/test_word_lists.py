"""`--lists` and `--recogniser`: the user's own lists and recognisers, from the command line to the text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from transom.cli import words as words_command
from transom.cli.options import recogniser_of
from transom.errors import MisconfiguredError, MissingExtraError, RefusedError

LISTS = r"""
terms: [quarterly forecast]
patterns: [{pattern: '(?<=wing )\w+', kind: place}]
allow: [Quennell]
public: ["Summarise the following note in one sentence: {note}"]
"""
NOTE = "the quarterly forecast is in wing north, says Quennell to Ofori."
OWN = """
from transom.privacy.kinds import Span

class Wings:
    def find(self, text):
        at = text.find(" wing ")
        return [Span(at + 1, at + 5, "organisation")] if at >= 0 else []

wings, nothing = Wings(), 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "lists.yaml").write_text(LISTS)
    (tmp_path / "own_wings.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def sanitized(text: str, *options: str) -> Result:
    arguments = ["sanitize", "--preset", "entities", *options]
    return CliRunner().invoke(words_command.app, arguments, input=text)


def test_lists_and_recognisers_say_what_is_replaced_and_what_passes(folder: Path) -> None:
    question = f"Summarise the following note in one sentence: {NOTE}\n"
    result = sanitized(question, "--lists", "lists.yaml", "--recogniser", "own_wings:wings")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Summarise the following note in one sentence: the [TERM_1] is in [")
    assert " wing" not in result.stdout
    assert "north" not in result.stdout
    assert "says Quennell to [" in result.stdout
    assert "Ofori" not in result.stdout


def test_a_claim_is_replaced_whatever_the_rules_are(folder: Path) -> None:
    result = sanitized(NOTE, "--lists", "lists.yaml", "--rule", "rare=pass", "--rule", "name=pass")
    assert "quarterly" not in result.stdout
    assert "north" not in result.stdout


def test_lists_that_cannot_be_used_are_said(folder: Path) -> None:
    (folder / "lists.yaml").write_text("terms: [Anna]\nallow: [anna]\npublic: ['{x}']")
    error = sanitized(NOTE, "--lists", "lists.yaml").exception
    assert isinstance(error, MisconfiguredError)
    assert "allow[0] is allowed and stands in terms[0]" in str(error)
    assert "public[0]" in str(error)


def test_a_catastrophe_leaves_nothing_behind(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transom.privacy.patterns.CHARACTER_S", -1.0)
    (folder / "lists.yaml").write_text("patterns: [{pattern: '(a+)+$', kind: person}]")
    (folder / "in.txt").write_text("a" * 50 + "!")
    error = sanitized("", "in.txt", "--out", "out.txt", "--lists", "lists.yaml").exception
    assert isinstance(error, RefusedError)
    assert "(a+)+$" in str(error)
    assert not (folder / "out.txt").exists() or not (folder / "out.txt").read_text()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own_wings:Wings", "a class"),
        ("own_wings:nothing", "without find"),
        ("own_wings:missing", "cannot be imported"),
        ("wings", "not module:object"),
    ],
)
def test_what_is_no_recogniser_is_said(folder: Path, name: str, said: str) -> None:
    with pytest.raises(MisconfiguredError, match=said):
        recogniser_of(name)


def test_presidio_without_its_extra_is_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "presidio_analyzer", None)
    for name in ("presidio", "presidio:en_core_web_sm"):
        with pytest.raises(MissingExtraError, match="presidio"):
            recogniser_of(name)


def test_the_summary_says_what_was_claimed(folder: Path) -> None:
    result = sanitized(NOTE, "--lists", "lists.yaml", "--json", "--out", "out.txt")
    summary = json.loads(result.stdout)
    assert summary["counts"]["allowed"] == 1
    assert "the words and phrases that the caller allows (1), unchanged" in summary["guarantee"]["discloses"]
