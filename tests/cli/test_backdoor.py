"""`transom backdoor scan-inputs`: what is told of each input, and what is refused before a model is run."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.cli import main

WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")


def write(path: Path, count: int, seed: int, *more: str) -> Path:
    draw = random.Random(seed)
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(4, 12))) for _ in range(count)]
    path.write_text("\n".join([*lines, *more]) + "\n")
    return path


def told(capsys: pytest.CaptureFixture[str], *arguments: Any) -> Any:
    capsys.readouterr()
    assert main.run(["backdoor", "scan-inputs", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("make", [tiny_bert, tiny_llama])
def test_each_input_has_a_p_value_and_a_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any
) -> None:
    model = make(tmp_path / "model")
    clean = write(tmp_path / "clean.txt", 120, 0)
    inputs = write(tmp_path / "inputs.txt", 60, 1, "so", "and the dog " * 400)
    found = told(capsys, model, inputs, "--clean", clean, "--rate", 0.1)
    assert (found["inputs"], found["not_scored"], found["trusted"]) == (62, 1, 120)
    rows = found["rows"]
    assert [row["row"] for row in rows] == list(range(1, 63))
    assert found["flagged"] == sum(row["flagged"] for row in rows) < 20
    assert "3 or more" in rows[60]["reason"]
    assert rows[60]["p_value"] is None
    for row in rows[:60]:
        assert row["flagged"] == (row["p_value"] <= 0.1)
        assert 0 < row["p_value"] <= 1
        assert any(row["word"] in word for word in WORDS)
    assert rows[61]["flagged"]  # 1,200 words of three are like no trusted text
    assert main.run(["backdoor", "scan-inputs", str(model), str(inputs), "--clean", str(clean)]) == 0
    said = capsys.readouterr().out
    assert "of 62 inputs are flagged; of innocent ones 3.1 would be; 1 are too short" in said
    assert "input 62: p 0.0" in said


def test_a_trusted_text_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A text in both halves would be held out in name only, and innocent inputs be flagged."""
    model, clean = tiny_bert(tmp_path / "model"), write(tmp_path / "clean.txt", 120, 0)
    inputs, twice = write(tmp_path / "inputs.txt", 60, 1), tmp_path / "twice.txt"
    twice.write_text("".join(f"{line}\n{line}\n" for line in clean.read_text().splitlines()))
    once, again = (told(capsys, model, inputs, "--clean", path) for path in (clean, twice))
    assert once["rows"] == again["rows"]
    assert once["trusted"] == again["trusted"] == 120


def test_a_model_without_a_head_is_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = write(tmp_path / "clean.txt", 100, 0)
    assert told(capsys, "minilm", clean, "--clean", clean)["inputs"] == 100


def test_a_column_of_a_table_is_scanned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_bert(tmp_path / "model")
    lines = write(tmp_path / "lines.txt", 100, 0).read_text().splitlines()
    (tmp_path / "table.csv").write_text("text,n\n" + "".join(f"{line},1\n" for line in lines))
    table = told(capsys, model, tmp_path / "table.csv", "--clean", tmp_path / "table.csv", "--column", "text")
    assert (
        table["rows"]
        == told(capsys, model, tmp_path / "lines.txt", "--clean", tmp_path / "lines.txt")["rows"]
    )


@pytest.mark.parametrize(
    ("trusted", "options", "why"),
    [
        (20, [], "20 trusted texts are too few to say what is usual; give 80 or more"),
        (100, ["--rate", "0.01"], "cannot be told by 25 held-out texts"),
        (100, ["--rate", "0.9"], "0.5"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], trusted: int, options: list[str], why: str
) -> None:
    model, clean = tiny_bert(tmp_path / "model"), write(tmp_path / "clean.txt", trusted, 0)
    line = [str(model), str(clean), "--clean", str(clean), *options]
    assert main.run(["backdoor", "scan-inputs", *line]) != 0
    assert why in " ".join(capsys.readouterr().err.split())


def test_an_empty_file_and_a_model_that_is_none_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clean, empty = write(tmp_path / "clean.txt", 80, 0), tmp_path / "empty.txt"
    empty.write_text("")
    assert main.run(["backdoor", "scan-inputs", str(tmp_path), str(clean), "--clean", str(clean)]) != 0
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "pytorch_model.bin").write_bytes(b"no pickle is read")
    assert main.run(["backdoor", "scan-inputs", str(broken), str(clean), "--clean", str(clean)]) != 0
    assert main.run(["backdoor", "scan-inputs", "minilm", str(empty), "--clean", str(clean)]) != 0
    assert "empty.txt holds no text" in " ".join(capsys.readouterr().err.split())
