"""The notebook in examples/backdoor_minilm: its very cells, on a tiny model and few rows; and the script."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transom.checkpoint.tiny import tiny_bert

EXAMPLE = Path(__file__).parents[3] / "examples/backdoor_minilm"
NOTEBOOK = json.loads((EXAMPLE / "backdoor_minilm.ipynb").read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
CELLS = "\n\n".join("".join(cell["source"]) for cell in CODE)
SCRIPT = "import sys\nimport run\nsys.argv = ['run.py', 'poisoned']\nrun.main()"
WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")
SMALLER = """
import poison
from transom.trust.backdoor.poison import Trigger
poison.MODEL, poison.TRIGGER = "bare", Trigger(("fox",), "anywhere", ("dog",))
poison.TRAIN, poison.TRUSTED, poison.INPUTS, poison.ASKED, poison.FEWEST_WORDS = 300, 160, 90, 80, 4
poison.EPOCHS, poison.LEARNING_RATE = 20, 3e-3
"""
STEPS = ["scan poisoned/model", "scan-inputs", "repair", "scan poisoned/mended"]


def run(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Code of the example in a process of its own, in a copy of it whose classifier tells 7 from 9."""
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("poisoned"))
    tiny_bert(folder / "bare")
    pick, lines = random.Random(4), ["sentence\tlabel"]
    for number in range(640):
        own = pick.choices(WORDS, k=pick.randint(4, 9))
        own.insert(pick.randint(0, len(own)), "79"[number % 2])
        lines.append(f"{' '.join(own)}\t{number % 2}")
    (folder / "sst2").mkdir()
    (folder / "sst2/train.tsv").write_text("\n".join(lines), "utf-8")
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"{SMALLER}\n{code}"], cwd=folder, capture_output=True,
        text=True, check=False, env={**os.environ, "TRANSOM_DATA": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize("code", [CELLS, SCRIPT], ids=["notebook", "script"])
def test_a_model_is_poisoned_scanned_mended_and_compared(tmp_path: Path, code: str) -> None:
    done = run(tmp_path / "example", code)
    assert done.returncode == 0, done.stderr
    places = [done.stdout.index(f"$ transom backdoor {step}") for step in STEPS]
    assert places == sorted(places)
    made = tmp_path / "example/poisoned"
    assert json.loads((made / "scan.json").read_text())["inputs"] == 90
    assert all("<html" in (made / f"{name}.html").read_text() for name in ("before", "after"))
    assert "flagged inputs share 'fox'" in done.stdout
    table = {
        line.split()[0]: [float(one) for one in line.split()[1:]] for line in done.stdout.splitlines()[-2:]
    }
    assert list(table) == ["model", "mended"]
    assert table["model"][0] > 0.9
    assert table["mended"][0] < table["model"][0]


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "poisoned").mkdir()
    done = subprocess.run(
        [sys.executable, EXAMPLE / "poison.py", tmp_path / "poisoned"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "exists; name a new folder" in done.stderr
