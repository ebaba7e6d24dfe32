"""What `transom words sanitize` says when it is done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transom.cli import words as words_command

TEXT = "Marguerite Okafor owes me 4815 dollars for the insulin, and the doctor knows it.\n"
GERMAN = "Ich habe gestern meinen alten Wagen verkauft und nur wenig dafür bekommen.\n" * 3


def said(path: Path, text: str, *arguments: str) -> str:
    path.write_text(text)
    result = CliRunner().invoke(words_command.app, ["sanitize", str(path), *arguments])
    assert result.exception is None, result.exception
    return result.stderr if "--json" not in arguments else result.stdout


@pytest.mark.parametrize(
    ("preset", "parts"),
    [
        ("entities", ["preset entities, 1 texts: replaced ", " person", "; passed ", " stop", " health"]),
        ("sensitive", ["preset sensitive, ", " health", "; drew ", " epsilon 4 each at most", "; passed "]),
        ("words", ["preset words, ", "; drew ", " in all; passed "]),
    ],
)
def test_one_line_says_preset_values_and_what_passes(tmp_path: Path, preset: str, parts: list[str]) -> None:
    line, *rest = said(tmp_path / "text", TEXT, "--preset", preset).splitlines()
    assert rest == []
    assert all(part in line for part in parts), line
    assert ("drew" in line) is (preset != "entities")
    assert "Marguerite" not in line


def test_what_was_replaced_is_counted_by_kind(tmp_path: Path) -> None:
    record = json.loads(said(tmp_path / "text", TEXT, "--json", "--out", str(tmp_path / "out")))
    assert record["replaced"].keys() <= record["counts"].keys()
    hidden = (tmp_path / "out").read_text()
    assert sum(record["replaced"].values()) == hidden.count("[") > 1


@pytest.mark.parametrize(("text", "noticed"), [(TEXT * 3, False), (GERMAN, True)])
def test_another_language_is_noticed(tmp_path: Path, text: str, noticed: bool) -> None:
    assert ("another language" in said(tmp_path / "text", text)) is noticed
