"""`transom hallucination`: fit on labels and on references, score, and what is refused."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest

from transom.checkpoint.tiny import tiny_llama
from transom.cli import main

TRUE, FALSE = ("cat", "mat", "fox"), ("dog", "rain", "bird")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def answers(count: int, seed: int) -> list[dict[str, Any]]:
    """Answers that are made up where they end in certain words, which states tell."""
    draw, rows = random.Random(seed), []
    for number in range(count):
        made_up = number % 2
        words = draw.choices(("the", "a", "one", "sat", "on", "with"), k=draw.randint(2, 7))
        last = draw.choice(FALSE if made_up else TRUE)
        rows.append({"question": f"what {number}", "answer": f"{' '.join(words)} {last}", "made_up": made_up})
    return rows


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def detector(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fitted")
    file, out = write(folder / "answers.csv", answers(160, 0)), folder / "detector"
    line = ["hallucination", "fit", str(model), str(file), "--label", "made_up", "--out", str(out)]
    assert main.run([*line, "--prompt", "Q: {text} A:", "--json"]) == 0
    return out


def run(capsys: pytest.CaptureFixture[str], *line: Any) -> Any:
    capsys.readouterr()
    assert main.run(["hallucination", *map(str, line), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_answers_are_scored_by_what_was_learnt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path, detector: Path
) -> None:
    rows = answers(40, 1)
    asked = [*rows, {"question": "what", "answer": "the cat. " * 200, "made_up": 0}]
    file = write(tmp_path / "new.csv", asked)
    line = ["score", model, file, "--detector", detector, "--prompt", "Q: {text} A:", "--tokens"]
    said = run(capsys, *line, "--most-tokens", "120")
    assert (said["answers"], said["not_scored"]) == (41, 1)
    long = said["rows"][-1]
    assert (long["risk"], long["flagged"]) == (None, None)
    assert "more than 120 tokens" in long["reason"]
    high = [row["risk"] for row, one in zip(said["rows"], rows, strict=False) if one["made_up"]]
    low = [row["risk"] for row, one in zip(said["rows"], rows, strict=False) if not one["made_up"]]
    assert sum(a > b for a in high for b in low) / len(high) / len(low) > 0.9
    for row in said["rows"][:-1]:
        assert row["flagged"] == (row["risk"] > said["line"])
        assert bool(row["why"]) <= row["flagged"]
        assert row["answer"][row["sentences"][0]["start"] : row["sentences"][-1]["end"]] == row["answer"]
        assert row["tokens"][-1]["end"] == len(row["answer"])
    assert main.run(["hallucination", *map(str, line)]) == 0
    assert "answers are at risk" in capsys.readouterr().out


def test_a_model_answers_questions_itself_and_references_say_what_is_true(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    """References are made of what the model says, so that half of its answers are right."""
    questions = [{"question": f"{one} {number}"} for number in range(30) for one in ("where", "what")]
    first = run(
        capsys, "fit", model, write(tmp_path / "known.csv", answers(60, 0)), "--label", "made_up",
        "--out", tmp_path / "one",
    )  # fmt: skip
    assert first["answers"] == 60
    asked = run(
        capsys, "score", model, write(tmp_path / "q.csv", questions), "--detector", tmp_path / "one",
        "--answer-tokens", "5",
    )  # fmt: skip
    said = [row["answer"] for row in asked["rows"]]
    for row, text in zip(asked["rows"], said, strict=True):
        assert (row["risk"] is None) == (text == "")  # it says nothing to some
        assert ("the answer is empty" in row["reason"]) == (text == "")
    known = [
        {"question": one["question"], "right": text if number % 2 else "xyzzy"}
        for number, (one, text) in enumerate(zip(questions, said, strict=True))
    ]
    found = run(
        capsys, "fit", model, write(tmp_path / "refs.csv", known), "--correct", "right",
        "--answer-tokens", "5", "--out", tmp_path / "two", "--kind", "boosting",
    )  # fmt: skip
    scored = [number for number, text in enumerate(said) if text]
    assert found["answers"] == len(scored)
    assert found["made_up"] == sum(number % 2 == 0 for number in scored)
    assert (found["not_told"], found["left_out"]) == (60 - len(scored), {})
    assert found["about"]["kind"] == "boosting"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ([], "say what is made up in one way"),
        (["--label", "made_up", "--grounded"], "say what is made up in one way"),
        (["--incorrect", "answer"], "say what is made up in one way"),
        (["--label", "absent"], "a row without 'absent'"),
        (["--label", "made_up", "--rate", "0.01"], "cannot be told by 20 true answers"),
        (["--label", "made_up", "--most-tokens", "8"], "answers of one kind are too few"),
    ],
)
def test_what_cannot_be_fitted_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path, more: list[str], message: str
) -> None:
    file, out = write(tmp_path / "answers.csv", answers(40, 0)), tmp_path / "out"
    assert main.run(["hallucination", "fit", str(model), str(file), "--out", str(out), *more]) == 3
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_detector_of_another_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], detector: Path
) -> None:
    other = tiny_llama(tmp_path / "other", seed=9)
    file = write(tmp_path / "new.csv", answers(4, 1))
    asked = ["hallucination", "score", str(other), str(file), "--detector", str(detector)]
    assert main.run(asked) == 3
    assert "something else around" in capsys.readouterr().err
    assert main.run([*asked, "--prompt", "Q: {text} A:"]) == 3
    assert "belongs to another model" in capsys.readouterr().err


def test_a_report_studies_each_set_and_what_transfers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    files = [write(tmp_path / f"{name}.csv", answers(150, seed)) for name, seed in (("one", 3), ("two", 4))]
    html = tmp_path / "report.html"
    found = run(capsys, "report", model, *files, "--label", "made_up", "--html", html)
    one, two = found["sets"]
    assert (one["name"], two["name"]) == ("one", "two")
    assert min(one["auroc"], two["auroc"], one["transfer_from"]["two"]) > 0.85
    assert {"query", "generation"} <= set(one["stages"])
    assert one["negated"] is None
    text = html.read_text()
    assert "What transfers" in text
    assert html.stat().st_mode & 0o077 == 0
    copied = tmp_path / "copied.csv"
    copied.write_bytes(files[0].read_bytes())
    asked = ["hallucination", "report", str(model), str(files[0])]
    for other, message in ((copied, "share 150 answers"), (files[0], "two sets are called one")):
        assert main.run([*asked, str(other), "--label", "made_up"]) == 3
        assert message in " ".join(capsys.readouterr().err.split())
