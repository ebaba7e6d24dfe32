"""The notebook in examples/hallucination_smollm2: its cells, on a tiny model and few rows; and the script."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transom.checkpoint.tiny import tiny_llama

EXAMPLE = Path(__file__).parents[3] / "examples/hallucination_smollm2"
NOTEBOOK = json.loads((EXAMPLE / "hallucination_smollm2.ipynb").read_text("utf-8"))
CELLS = "\n\n".join("".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
SCRIPT = "import sys\nimport run\nsys.argv = ['run.py', 'marked']\nrun.main()"
SMALLER = """
import prepare
prepare.MODEL, prepare.FIT, prepare.ASKED = "bare", 100, 45
prepare.matched = lambda _answer, correct, _incorrect: correct == ["Peru"]  # which the model never says
import live
live.MODEL, live.MOST_TOKENS, live.QUESTIONS = "bare", 12, ("In which country is the city of mat?",)
"""
STEPS = ["hallucination fit", "hallucination score", "hallucination report", "engine", "gateway"]
WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Code of the example in a process of its own, in a copy of it, with a model that answers anything."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("marked"))
    tiny_llama(folder / "bare")
    (folder / "true_false").mkdir()
    cities = [f"{one} {two}" for one in WORDS for two in WORDS]
    lines = [f"{city} is a city in {'the' if place % 2 else 'Peru'}.,1" for place, city in enumerate(cities)]
    (folder / "true_false/cities.csv").write_text("\n".join(["statement,label", *lines, ""]), "utf-8")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{SMALLER}\n{code}"], cwd=folder, capture_output=True,
        text=True, check=False, env={**os.environ, "TRANSOM_DATA": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize("code", [CELLS, SCRIPT], ids=["notebook", "script"])
def test_answers_are_given_judged_and_marked_as_they_come(tmp_path: Path, code: str) -> None:
    done = run(tmp_path / "example", code)
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f"$ transom {step}") for step in STEPS]
    assert places == sorted(places)
    made = tmp_path / "example/marked"
    assert len(json.loads((made / "scores.json").read_text())["rows"]) == 45
    assert "<html" in (made / "report.html").read_text()
    assert "AUROC" in done.stdout
    assert "> In which country is the city of mat?" in done.stdout
    assert done.stdout.count("(line 0.") == 1


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "marked").mkdir()
    done = subprocess.run(
        [sys.executable, EXAMPLE / "prepare.py", tmp_path / "marked"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "exists; name a new folder" in done.stderr
