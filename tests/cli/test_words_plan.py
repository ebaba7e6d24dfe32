"""`transom words plan`: what presets cost on texts counted by hand, and what is proposed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.audit.listed_policy import listed_policy
from typer.testing import CliRunner

from transom.cli.main import app
from transom.errors import MisconfiguredError


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = listed_policy(tmp_path_factory.mktemp("listed")).path
    assert path is not None
    return path


def plan(policy: Path, file: Path, *arguments: object) -> dict[str, Any]:
    command = ["words", "plan", str(file), "--policy", str(policy), *map(str, arguments), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, (result.exception, result.output)
    read: dict[str, Any] = json.loads(result.stdout)
    return read


def written(folder: Path, *lines: str) -> Path:
    path = folder / "mine.txt"
    path.write_text("\n".join(lines), "utf-8")
    return path


def test_each_preset_is_priced(policy: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "the cat owes 40", "my dog is red and my cow is blue")
    read = plan(policy, file, "--questions", 10, "--cap", 30)
    words = read["presets"]["words"]
    assert words["epsilon_a_text"] == (2 + 8) / 2
    assert words["epsilon_largest_text"] == 8
    assert words["epsilon_of_questions"] == 50
    assert (words["draws_a_text"], words["placeholders_a_text"]) == (2.5, 0.5)
    assert (words["texts_in_cap"], words["texts_in_gateway_cap"]) == (6, 200)
    assert words["cap_for_questions"] >= 50 + 2 * 10**0.5 * 4.2
    assert read["presets"]["entities"]["epsilon_a_text"] == 0


def test_the_mildest_preset_is_proposed_that_leaves_little_readable(policy: Path, tmp_path: Path) -> None:
    plain = plan(policy, written(tmp_path, *["the cat owes 40"] * 30, "my flu"))
    assert (plain["preset"], plain["cap"]) == ("entities", 0.0)
    assert "No cap is needed" in " ".join(plain["reasons"])
    ill = plan(policy, written(tmp_path, *["the cat owes 40"] * 10, "my flu"))
    assert ill["preset"] == "sensitive"
    assert "9% of the texts" in ill["reasons"][0]


def test_a_cap_is_proposed_where_something_is_spent(policy: Path, tmp_path: Path) -> None:
    """A rule holds under every preset: with illnesses drawn, entities leaves none readable."""
    file = written(tmp_path, *["my flu and a rash"] * 10)
    read = plan(policy, file, "--rule", "health=2", "--questions", 25, "--cap", 100)
    assert read["preset"] == "entities"
    assert read["cap"] == 100  # 25 texts of two draws at 2, all alike
    said = " ".join(read["reasons"])
    assert "allows 50 such draws" in said
    assert "at most 7 to 1" in said  # e^2
    assert "A cap of 100 fits 25 texts" in said
    assert "account" not in said


def test_lists_are_applied_as_they_would_be(policy: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists.yaml"
    lists.write_text("terms: [cat]\n", "utf-8")
    read = plan(policy, written(tmp_path, "the cat is red"), "--lists", lists)
    assert read["presets"]["entities"]["placeholders_a_text"] == 1
    assert read["presets"]["words"]["epsilon_a_text"] == 2


def test_people_read_a_table_and_sentences(policy: Path, tmp_path: Path) -> None:
    file = written(tmp_path, "the cat owes 40")
    result = CliRunner().invoke(app, ["words", "plan", str(file), "--policy", str(policy)])
    assert "epsilon a text, mean" in result.stdout
    assert "Proposed preset: entities." in result.stdout


def test_another_language_is_said(policy: Path, tmp_path: Path) -> None:
    german = written(tmp_path, "leider kann ich die rechnung nicht bezahlen weil das geld fehlt")
    assert any("another language" in reason for reason in plan(policy, german)["reasons"])


def test_bad_input_is_refused(policy: Path, tmp_path: Path) -> None:
    blank = written(tmp_path, " ", "")
    command = ["words", "plan", str(blank), "--policy", str(policy)]
    assert isinstance(CliRunner().invoke(app, command).exception, MisconfiguredError)
