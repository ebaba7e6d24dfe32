"""`examples/vertical_credit`: its made-up rows and its jobs fit, and a model of both parties learns."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from transom.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples/vertical_credit/rows.py"


def test_the_made_up_rows_train_both_parties_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLE))["write"](tmp_path, None)
    assert "made up: no real people" in capsys.readouterr().out
    for name in ("bank", "shop"):
        job = tmp_path / f"{name}.yaml"
        job.write_text(job.read_text().replace("epochs: 10", "epochs: 3"))
    jobs = [str(tmp_path / f"{name}.yaml") for name in ("bank", "shop")]
    assert main.run(["vertical", "simulate", *jobs, "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    assert 5400 <= found["rows"] <= 5700
    assert found["score"]["low"] > 0.75


def test_without_the_files_it_says_what_is_wanting(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"lacks vfl/default_credit_hetero_guest\.csv"):
        runpy.run_path(str(EXAMPLE))["write"](tmp_path / "out", tmp_path)
