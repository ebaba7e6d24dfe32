"""`transom words sanitize --map` and `restore`: files come back to the byte, answers with their values."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transom.cli import words as words_command
from transom.cli.records import MapTo, Selection, sanitize_file
from transom.data.rows import Format
from transom.errors import MisconfiguredError
from transom.privacy.mapfile import make_key, open_map, read_key
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer

LETTERS = [
    "Dear Quentin, the dog sleeps.",
    'Zoe paid 4711\nto "Ann"',
    "",
    "[NAME_1] and Zoe saw the cat",
    "plain",
]


def words(*arguments: object) -> None:
    result = CliRunner().invoke(words_command.app, [str(one) for one in arguments])
    if result.exception is not None:
        raise result.exception


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_key(tmp_path / "key")
    with (tmp_path / "in.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerows([["id", "text"], *enumerate(LETTERS)])
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": one, "n": 1}) + "\n" for one in LETTERS))
    (tmp_path / "in.txt").write_text("\n".join(one.replace("\n", " ") for one in LETTERS) + "\n")
    return tmp_path


def mapped(folder: Path, name: str, *arguments: object) -> Path:
    to = folder / f"out.{name}"
    words(
        "sanitize",
        folder / f"in.{name}",
        "--out",
        to,
        "--map",
        folder / "map",
        "--key",
        folder / "key",
        *arguments,
    )
    return to


WAYS = pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("csv", ("--column", "text")), ("jsonl", ("--field", "text")), ("txt", ()), ("txt", ("--document",)),
        ("csv", ("--column", "text", "--preset", "entities", "--workers", "2")),
    ],
)  # fmt: skip


@WAYS
def test_an_unmodified_file_comes_back_to_the_byte(
    folder: Path, name: str, arguments: tuple[str, ...]
) -> None:
    made = mapped(folder, name, *arguments)
    assert b"Quentin" not in made.read_bytes() + (folder / "map").read_bytes()
    back = folder / "back"
    words(
        "restore", made, "--sanitised", made, "--map", folder / "map", "--key", folder / "key", "--out", back
    )
    assert back.read_bytes() == (folder / f"in.{name}").read_bytes()
    assert back.stat().st_mode & 0o077 == 0


def test_answers_in_another_column_get_their_values(folder: Path) -> None:
    with mapped(folder, "csv", "--column", "text").open(newline="") as file:
        head, *rows = csv.reader(file)
    with (folder / "answers.csv").open("w", newline="") as file:
        answers = [[*row, "[Person_1]'s answer, [PERSON_9]"] for row in rows]
        csv.writer(file).writerows([[*head, "answer"], *answers])
    back = folder / "back.csv"
    words(
        "restore", folder / "answers.csv", "--map", folder / "map", "--key", folder / "key",
        "--column", "answer", "--out", back,
    )  # fmt: skip
    with back.open(newline="") as file:
        given = list(csv.reader(file))[1:]
    assert given[0][2] == "Quentin's answer, [PERSON_9?]"
    assert given[4][2] == "[Person_1]'s answer, [PERSON_9?]"
    assert [row[1] for row in given] == [row[1] for row in rows]


@pytest.mark.parametrize("change", [lambda lines: lines[:-1], lambda lines: [*lines, "one more\n"]])
def test_another_number_of_records_is_refused_and_nothing_is_written(
    folder: Path, change: Callable[[list[str]], list[str]]
) -> None:
    made = mapped(folder, "txt")
    made.write_text("".join(change(made.read_text().splitlines(keepends=True))))
    with pytest.raises(MisconfiguredError, match="does not have the 5 records"):
        words("restore", made, "--map", folder / "map", "--key", folder / "key", "--out", folder / "back")
    assert not (folder / "back").exists()
    with pytest.raises(MisconfiguredError, match="map of a file with SHA-256"):
        words("restore", made, "--sanitised", made, "--map", folder / "map", "--key", folder / "key")


def test_a_map_needs_a_key_a_file_to_write_and_one_input(folder: Path) -> None:
    source = folder / "in.txt"
    for arguments in (["--map", folder / "map"], ["--map", folder / "map", "--key", folder / "key"]):
        with pytest.raises(MisconfiguredError, match="--map FILE needs"):
            words("sanitize", source, *arguments)
    mapped(folder, "txt")
    with pytest.raises(MisconfiguredError, match="exists"):
        words("sanitize", source, "--out", folder / "2", "--map", folder / "map", "--key", folder / "key")
    assert (folder / "map").exists()


def test_a_run_that_was_stopped_goes_on_with_its_map(folder: Path) -> None:
    source, target = folder / "long.txt", folder / "long.out"
    source.write_text("".join(f"Quentin saw dog {i} in Berlin\n" for i in range(30_000)))
    secret = read_key(folder / "key")

    read: list[int] = []

    def stop(size: int) -> None:
        read.append(size)
        if sum(read) > 600_000:
            raise KeyboardInterrupt

    def go(advance: Callable[[int], object], *, resume: bool) -> None:
        make, selection = (lambda: Sanitizer(load_policy())), Selection(Format.text)
        mapping = MapTo(folder / "map", secret)
        sanitize_file(make, source, target, selection, advance=advance, resume=resume, mapping=mapping)

    with pytest.raises(KeyboardInterrupt):
        go(stop, resume=False)
    with pytest.raises(MisconfiguredError, match="cut short"):
        open_map(folder / "map", secret)
    go(bool, resume=True)
    assert open_map(folder / "map", secret, target).records == 30_000
    back = folder / "back"
    words("restore", target, "--map", folder / "map", "--key", folder / "key", "--out", back)
    assert back.read_bytes() == source.read_bytes()


def test_json_says_how_many_texts_came_back(folder: Path) -> None:
    made, back = mapped(folder, "txt"), folder / "back"
    sealed = ["--map", str(folder / "map"), "--key", str(folder / "key"), "--json"]
    result = CliRunner().invoke(words_command.app, ["restore", str(made), *sealed, "--out", str(back)])
    assert json.loads(result.stdout) == {"texts": 5, "out": str(back)}
    refused = CliRunner().invoke(words_command.app, ["restore", str(made), *sealed])
    assert isinstance(refused.exception, MisconfiguredError)
