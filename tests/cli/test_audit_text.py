"""`transom audit text`: the table for choosing a preset, where its figures come from, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.audit.listed_policy import listed_policy
from typer.testing import CliRunner

from transom.cli.main import app
from transom.errors import CheckpointError, MisconfiguredError, PolicyError

ALL = ("stop", "word", "number", "identifier", "name", "rare", "foreign", "symbol")
TEXT = "Rose red the flu and owes 40 to Jane\n\nmy cat is red <a>&\n"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = listed_policy(tmp_path_factory.mktemp("listed")).path
    assert path is not None
    return path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.txt"
    path.write_text(TEXT, "utf-8")
    return path


def run(*arguments: object, expected: int = 0) -> str:
    result = CliRunner().invoke(app, ["audit", "text", *map(str, arguments)])
    assert result.exit_code == expected, (result.exit_code, result.exception, result.output)
    return result.stdout


def report(*arguments: object) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(run(*arguments, "--json"))
    return read


def refused(*arguments: object, match: str, error: type[Exception] = MisconfiguredError) -> None:
    result = CliRunner().invoke(app, ["audit", "text", *map(str, arguments)])
    assert isinstance(result.exception, error), (result.exception, result.output)
    assert match in str(result.exception)
    assert "Rose" not in str(result.exception)


def rows(read: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    return {row["measure"]: row["values"] for row in read["comparison"]["rows"]}


def rules(rule: str) -> tuple[str, ...]:
    subs = ("health", "instruction", "dictionary", "person", "uncommon")
    return tuple(part for kind in (*ALL, *subs) for part in ("--rule", f"{kind}={rule}"))


def test_three_presets_stand_side_by_side(file: Path, policy: Path) -> None:
    read = report(file, "--policy", policy)
    found = rows(read)
    assert set(found["private, still readable"]) == {"entities", "sensitive", "words"}
    assert found["private, still readable"] == {
        "entities": pytest.approx(1 / 3),  # the flu; 40 and Jane are hidden
        "sensitive": 0.0,
        "words": 0.0,
    }
    capitals = found["capitals that may be names, readable"]
    assert capitals == {"entities": 1.0, "sensitive": None, "words": 0.0}  # sensitive takes `Rose` for a name
    assert found["epsilon a text, mean"] == {
        "entities": 0.0,
        "sensitive": 0.0,
        "words": pytest.approx((2 + 2 + 2 + 2 + 2) / 2),  # rose red flu | cat red
    }
    spots = read["comparison"]["spots"]
    places = [(one["where"], one["text"], one["kind"]) for one in spots["entities"]["readable"]]
    assert places == [("1:1", "Rose", "namesake"), ("1:14", "flu", "health")]
    changed = {one["where"] for one in spots["words"]["changed"]}
    assert changed <= {"1:6", "3:4", "3:11"}  # red | cat red, but where the draw kept the word
    assert "2 texts; 1 more are blank" in read["target"]["target"]
    by_name = {(one["name"], one["setting"]): one for one in read["findings"]}
    assert by_name["second opinion", "entities"]["n"] == 3
    assert by_name["an attacker", "entities"]["status"] == "run"


def test_hiding_everything_reads_nothing_and_passing_everything_all(file: Path, policy: Path) -> None:
    hidden = rows(report(file, "--policy", policy, "--preset", "words", *rules("placeholder")))
    shown = rows(report(file, "--policy", policy, "--preset", "words", *rules("pass")))
    for found, share in ((hidden, 0.0), (shown, 1.0)):
        assert found["private, still readable"] == {"words": share}
        assert found["an attacker reads, by weight"] == {"words": share}
        assert found["changed without need"] == {"words": 1.0 - share}
    assert shown["likeness of content words"] == {"words": pytest.approx(1.0)}


def test_the_table_and_the_places_are_printed(file: Path, policy: Path) -> None:
    printed = run(file, "--policy", policy, "--preset", "entities")
    assert "private, still readable" in printed
    assert "1:14 flu (health)" in " ".join(printed.split())


def test_the_page_shows_the_text_marked_and_escaped_to_its_owner_alone(
    file: Path, policy: Path, tmp_path: Path
) -> None:
    html = tmp_path / "out.html"
    run(file, "--policy", policy, "--html", html)
    page = html.read_text("utf-8")
    assert '<span class="fate readable" title="private, and readable: health">flu</span>' in page
    assert "&lt;a&gt;&amp;" in page
    assert "<a>&" not in page
    assert "<script" not in page
    assert html.stat().st_mode & 0o777 == 0o600


def test_lists_are_asked_and_not_applied(file: Path, policy: Path, tmp_path: Path) -> None:
    lists = tmp_path / "lists.yaml"
    lists.write_text("terms: [cat]\nallow: [flu]\n", "utf-8")
    read = report(file, "--policy", policy, "--preset", "entities", "--lists", lists)
    assert [one["text"] for one in read["comparison"]["spots"]["entities"]["readable"]] == ["Rose", "cat"]
    assert rows(read)["of these your lists would hide"] == {"entities": 1.0}


def test_several_budgets_are_attacked_together(file: Path, policy: Path) -> None:
    read = report(file, "--policy", policy, "--preset", "words", "--rule", "health=1", "--rule", "word=3")
    assert rows(read)["epsilon a text, mean"] == {"words": pytest.approx((3 + 3 + 1 + 3 + 3) / 2)}
    (found,) = (one for one in read["findings"] if one["name"] == "an attacker")
    assert "drawn words by" in found["note"]


def test_attacks_are_chosen_by_name(file: Path, policy: Path) -> None:
    settings = (file, "--policy", policy, "--preset", "words")
    for name in ("inversion", "bayes"):
        notes = [one["note"] for one in report(*settings, "--attack", name)["findings"]]
        assert any(f"drawn words by {name};" in note for note in notes)
    refused(*settings, "--attack", "averaging", match="unknown attack")
    refused(*settings, "--attack", "mine:Guess", match="audit words")


def test_a_table_without_header_is_read_by_number(policy: Path, tmp_path: Path) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("1\tthe cat\n2\tmy flu\n", "utf-8")
    read = report(table, "--policy", policy, "--column", 2, "--no-header", "--preset", "entities")
    assert [one["where"] for one in read["comparison"]["spots"]["entities"]["readable"]] == ["2:4"]


def test_a_large_file_is_sampled_and_the_table_says_so(policy: Path, tmp_path: Path) -> None:
    large = tmp_path / "large.csv"
    large.write_text("id,text\n" + "".join(f"{n},the cat has the flu\n" for n in range(500)), "utf-8")
    read = report(large, "--policy", policy, "--column", "text", "--limit", 20)
    assert "20 of 500 texts" in read["target"]["target"]
    spots = read["comparison"]["spots"]["entities"]["readable"]
    assert len(spots) == 20
    numbers = [int(one["where"].split(":")[0]) for one in spots]
    assert numbers == sorted(set(numbers))
    assert 2 <= numbers[0] < numbers[-1] <= 501
    assert [one["where"].split(":")[1] for one in spots] == ["17"] * 20


def test_a_huge_line_is_cut(policy: Path, tmp_path: Path) -> None:
    huge = tmp_path / "huge.txt"
    huge.write_text("the cat has the flu and " * 20_000 + "\n" + "a" * 10**6, "utf-8")
    read = report(huge, "--policy", policy, "--preset", "entities")
    assert "2 cut at 20,000 characters" in read["target"]["target"]


def test_json_fields_are_read_by_their_path(policy: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"messages": [{"text": "my cat"}, {"text": "my flu"}]}), "utf-8")
    read = report(chat, "--policy", policy, "--field", "messages[].text", "--preset", "entities")
    assert [one["where"] for one in read["comparison"]["spots"]["entities"]["readable"]] == ["1/2:4"]


def test_another_language_is_said(policy: Path, tmp_path: Path) -> None:
    german = tmp_path / "brief.txt"
    german.write_text("leider kann ich die rechnung nicht bezahlen weil das geld fehlt\n" * 3, "utf-8")
    assert "another language" in report(german, "--policy", policy)["verdict"]


def test_the_gate_looks_at_what_is_readable(file: Path, policy: Path) -> None:
    settings = (file, "--policy", policy, "--json")
    run(*settings, "--preset", "entities", "--gate", 0.1, expected=20)
    run(*settings, "--preset", "words", "--gate", 0.99)


def test_bad_input_is_refused_by_name(file: Path, policy: Path, tmp_path: Path) -> None:
    settings = ("--policy", policy)
    empty, blank, table = tmp_path / "empty.txt", tmp_path / "blank.txt", tmp_path / "t.csv"
    empty.touch()
    blank.write_text(" \n\t\n", "utf-8")
    table.write_text("a,b\nRose,2\n", "utf-8")
    refused(empty, *settings, match="is empty")
    refused(blank, *settings, match="2 texts, all of them blank")
    refused(tmp_path / "absent.txt", *settings, match="cannot be read")
    refused(table, *settings, match="--column")
    refused(table, *settings, "--column", "c", match="no column 'c'")
    refused(table, *settings, "--column", "1", match="--header")
    refused(file, *settings, "--column", "a", match="has no columns")
    refused(file, *settings, "--field", "a", match="is no JSON")
    refused(tmp_path / "t.jsonl", *settings, match="--field")
    refused(file, *settings, "--rule", "word=pass", "--rule", "word=4", match="contradict", error=PolicyError)
    refused(file, *settings, "--language-model", str(tmp_path / "none"), match="none", error=CheckpointError)
    result = CliRunner().invoke(app, ["audit", "text", str(file), "--preset", "entitis"])
    assert result.exit_code == 2
    assert "entities" in result.output
