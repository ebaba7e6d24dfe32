"""Scores as rows and files: they agree with each other and with what torch makes of them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.split.metrics import Tally
from transom.split.predicted import Predicted

LABELS = ("bad", "so, so", "good")


@given(st.lists(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_likeliest_label_and_its_share(scores: list[list[float]]) -> None:
    scores_RC = torch.tensor(scores)
    rows = Predicted(LABELS, (), (), scores_RC).rows()
    for number, (row, score_C) in enumerate(zip(rows, scores_RC, strict=True), 1):
        shares = [row[label] for label in LABELS]
        assert row["row"] == number
        assert sum(shares) == pytest.approx(1)
        assert row[row["predicted"]] == pytest.approx(max(shares))
        assert score_C[LABELS.index(row["predicted"])] == score_C.max()


def test_metrics_where_the_truth_is_known(tmp_path: Path) -> None:
    scores_RC = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0], [1.0, 0.0, 0.0]])
    known = Predicted(LABELS, (0, 2, 1), (), scores_RC)
    loss = float(torch.nn.functional.cross_entropy(scores_RC, torch.tensor([0, 2, 1])))
    assert known.metrics() == pytest.approx({"loss": loss, "accuracy": 2 / 3})
    assert Predicted(LABELS, (), (), scores_RC).metrics() == {}
    tallies = (Tally(2.0, 1, 2), Tally(9.0, 0, 3))
    assert Predicted((), (), tallies, None).metrics()["loss"] == pytest.approx(11 / 5)


def test_csv_and_json_hold_the_rows(tmp_path: Path) -> None:
    for found in (
        Predicted(LABELS, (), (), torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]])),
        Predicted((), (), (Tally(2.0, 1, 2), Tally(9.0, 0, 3)), None),
        Predicted(LABELS, (), (), torch.zeros(0, 3)),
    ):
        found.write(tmp_path / "rows.json")
        found.write(tmp_path / "rows.csv")
        assert json.loads((tmp_path / "rows.json").read_text()) == found.rows()
        with (tmp_path / "rows.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert read == [{name: str(value) for name, value in row.items()} for row in found.rows()]
