"""`transom vertical plan`: two processes choose alike, keep what they chose, and `train --plan` takes it."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from transom.cli import main

from .test_vertical_train import both, change, parties, ran

__all__ = ["parties"]  # a fixture that these tests use, too


def test_two_processes_plan_alike_and_train_as_planned(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, other_code, told = both(
        capsys, ["plan", "bank.yaml", "--json", "--cores", "1"], ["plan", "shop.yaml", "--memory-gb", "4"]
    )
    assert (code, other_code) == (0, 0), out + told
    found = json.loads(out)
    files = found["parties"]["label"]
    kept = [json.loads(Path(path).read_text()) for path in (files["plan"], "shop_out/feature/plan.json")]
    assert kept[0]["plan"] == kept[1]["plan"]
    assert kept[0]["given"] == kept[1]["given"]
    assert kept[0]["given"]["label"]["cores"] == 1
    assert kept[0]["given"]["feature"]["memory_bytes"] == 4e9
    assert kept[0]["given"]["wire"]["latency_s"] < 1
    rows = kept[0]["plan"]["chosen"]["batch_rows"]
    assert files["train"] == {"batch_rows": rows, "workers": kept[0]["workers"]}
    assert f"train:\n  batch_rows: {rows}\n  workers: {kept[1]['workers']}\n" in told
    assert found["reasons"][0] in told
    for folder in ("bank_out/label", "shop_out/feature"):
        page = Path(folder, "plan.html").read_text()
        assert f"Batches of {rows:,} rows" in page
        assert "Cores that it offers." in page
        assert page.count("<figure") == 2
        assert ET.parse(Path(folder, "plan.svg")).getroot().tag.endswith("svg")  # noqa: S314
    change("bank", train={"epochs": 3, "batch_rows": 7, "learning_rate": 0.05, "deadline_s": 30})
    change("shop", train={"epochs": 3, "batch_rows": 7, "learning_rate": 0.05, "deadline_s": 30})
    trained = ran(capsys, "simulate", "bank.yaml", "shop.yaml", "--plan")
    assert trained["steps"] == 3 * -(-trained["rows_of_training"] // rows)


def test_both_here_for_a_link_that_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(capsys, "plan", "bank.yaml", "shop.yaml", "--latency-ms", "5000", "--mbit-s", "8")
    assert found["chosen"]["bound"] == "latency of the link"
    assert set(found["parties"]) == {"label", "feature"}
    given = json.loads(Path(found["parties"]["feature"]["plan"]).read_text())["given"]
    assert given["wire"] == {"latency_s": 5.0, "bytes_per_s": 1e6}
    change("shop", width=5)
    change("bank", width=5)
    assert main.run(["vertical", "simulate", "bank.yaml", "shop.yaml", "--plan"]) == 4
    assert "width was '4', and is '5'" in capsys.readouterr().err


def test_what_does_not_fit_is_told_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, told in (
        (["plan", "bank.yaml", "--latency-ms", "5", "--mbit-s", "8"], "the link to the partner is measured"),
        (["plan", "bank.yaml", "shop.yaml", "--latency-ms", "5"], "go together"),
        (["plan", "shop.yaml", "bank.yaml"], "name the label party's job first"),
        (["plan", "bank.yaml", "shop.yaml", "--memory-gb", "0.001"], "no plan fits in memory"),
    ):
        assert main.run(["vertical", *arguments]) == 3
        assert told in capsys.readouterr().err
    assert main.run(["vertical", "simulate", "bank.yaml", "shop.yaml", "--plan"]) == 4
    assert "run transom vertical plan" in capsys.readouterr().err
