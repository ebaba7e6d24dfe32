"""The notebook in examples/split_sst2: its very cells, on a tiny model and few rows."""

from __future__ import annotations

import csv
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from .runs import WORDS

EXAMPLE = Path(__file__).parents[2] / "examples/split_sst2"
NOTEBOOK = json.loads((EXAMPLE / "split_sst2.ipynb").read_text("utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
FEWER = "import rows\nrows.TRAIN, rows.EVALUATE = 24, 8\n"


def run(folder: Path, model: Path) -> subprocess.CompletedProcess[str]:
    """All cells in a process of their own, in a copy of the example whose job is smaller."""
    shutil.copytree(EXAMPLE, folder)
    job = (folder / "job.yaml").read_text().replace("minilm", str(model)).replace("epochs: 3", "epochs: 2")
    (folder / "job.yaml").write_text(job)
    pick = random.Random(4)
    texts = [
        f"{' '.join(pick.choices(WORDS, k=pick.randint(2, 9)))}\t{pick.randint(0, 1)}" for _ in range(40)
    ]
    (folder / "sst2").mkdir()
    (folder / "sst2/train.tsv").write_text("\n".join(["sentence\tlabel", *texts]), "utf-8")
    code = "\n\n".join([FEWER, *("".join(cell["source"]) for cell in CODE)])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "TRANSOM_DATA": str(folder)},
    )  # fmt: skip


def test_the_cells_tune_predict_and_export(bert: Path, tmp_path: Path) -> None:
    done = run(tmp_path / "example", bert)
    assert done.returncode == 0, done.stderr
    made = tmp_path / "example/reviews"
    reports = {
        out: json.loads((made / out / "customer/report.json").read_text()) for out in ("plain", "tuned")
    }
    assert [reports[out]["noise"]["noise"]["kind"] for out in reports] == ["none", "d_chi"]
    for out, report in reports.items():
        accuracies = [point["metrics"]["accuracy"] for point in report["history"]]
        assert f"{out}: accuracy after each epoch {accuracies}\n" in done.stdout
        assert len(accuracies) == 2
    assert f"eta: {reports['tuned']['noise']['eta']}\n" in done.stdout
    with (made / "scores.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    assert "'adapter_model.safetensors'" in done.stdout
