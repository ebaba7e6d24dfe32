"""`transom vertical train|simulate|predict`: from two files to a model, its report and scores by ID."""

from __future__ import annotations

import csv
import importlib
import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from transom.cli import main
from transom.cli.watched import Pace
from transom.link.told import Told
from transom.vertical import timeline
from transom.vertical.ids import canonical, is_test_N

ROWS = 120


@pytest.fixture(autouse=True)
def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bank.yaml and shop.yaml, whose rows are in different orders, with a few that the other lacks."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(1)
    x_NF = draw.normal(size=(ROWS, 4)).round(4)
    says_N = np.where(x_NF @ [1.0, -1.0, 2.0, 1.0] > 0, "yes", "no")
    ids = [f"Person {number}" for number in range(ROWS)]
    write("bank.csv", "id,a,b,y", [[ids[n], *x_NF[n, :2], says_N[n]] for n in draw.permutation(ROWS)[5:]])
    write("shop.csv", "id,c,d", [[ids[n].upper(), *x_NF[n, 2:]] for n in draw.permutation(ROWS)[5:]])
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
    for name, other, way in (("bank", "shop", "listen"), ("shop", "bank", "connect")):
        assert main.run(["link", "keys", "--out", name, "--name", name]) == 0
        link = {
            "job": "credit", "run": "r1", "party": name, "partner": other, way: place, "timeout_s": 30,
            "identity": name, "partner_certificate": f"{other}/tls.pem",
        }  # fmt: skip
        change(
            name, name="credit", task="binary", out=f"{name}_out", link=link, width=4,
            bottom={"hidden": [8]}, data={"path": f"{name}.csv"},
            train={"epochs": 3, "batch_rows": 16, "learning_rate": 0.05, "deadline_s": 30},
        )  # fmt: skip
    change("bank", classes=["no", "yes"], data={"path": "bank.csv", "label_column": "y"})


def write(path: str, head: str, rows: list[list[Any]]) -> None:
    Path(path).write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")


def change(name: str, /, **fields: Any) -> None:
    path = Path(f"{name}.yaml")
    path.write_text(yaml.safe_dump((yaml.safe_load(path.read_text()) if path.exists() else {}) | fields))


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The command's JSON."""
    capsys.readouterr()
    assert main.run(["vertical", *arguments, "--json"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert shown.err == ""
    return json.loads(shown.out)


def both(capsys: pytest.CaptureFixture[str], ours: list[str], theirs: list[str]) -> tuple[int, str, int, str]:
    """Exit codes and outputs of the bank here, and of the shop in a process of its own."""
    command = [sys.executable, "-m", "transom.cli.main", "vertical", *theirs]
    capsys.readouterr()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as other:
        code = main.run(["vertical", *ours])
        told, _ = other.communicate(timeout=60)
    shown = capsys.readouterr()
    return code, shown.out if code == 0 else shown.err, other.returncode, told


def test_two_processes_align_train_and_score(capsys: pytest.CaptureFixture[str]) -> None:
    change("shop", noise={"kind": "gaussian", "clip": 1.0, "mu": 2.0})
    change("bank", partner_noise="gaussian")
    code, out, other_code, told = both(capsys, ["train", "bank.yaml", "--json"], ["train", "shop.yaml"])
    assert (code, other_code) == (0, 0), out + told
    found = json.loads(out)
    common = json.loads(Path("bank_out/label/aligned.json").read_text())["ids"]
    assert common == json.loads(Path("shop_out/feature/aligned.json").read_text())["ids"]
    assert 100 <= len(common) < ROWS
    assert found["rows"] == len(common)
    assert found["score"]["low"] <= found["score"]["value"] == found["history"][-1]["metrics"]["auc"]
    assert told.startswith(f"trained in {found['steps']} steps on {found['rows_of_training']} rows")
    theirs = json.loads(Path("shop_out/feature/report.json").read_text())
    assert theirs["noise"]["mu"] == pytest.approx(2.0)
    assert theirs["sent"]["train"] == {"messages": found["steps"], "rows": 3 * found["rows_of_training"]}
    tested = found["rows"] - found["rows_of_training"]
    assert theirs["sent"]["evaluate"] == {"messages": 3, "rows": 3 * tested}
    code, out, other_code, told = both(
        capsys, ["predict", "bank.yaml", "--out", "scores.csv"], ["predict", "shop.yaml"]
    )
    assert (code, other_code) == (0, 0), out + told
    assert told == f"{len(common)} embeddings sent\n"
    assert out.startswith(f"{len(common)} rows scored, loss ")
    with Path("scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == common
    assert all(float(row["no"]) + float(row["yes"]) == pytest.approx(1) for row in rows)
    assert Path("scores.csv").stat().st_mode & 0o777 == 0o600
    by_id = {row["id"]: float(row["yes"]) for row in rows}
    for name, count in (("bank", 40), ("shop", 60)):
        lines = Path(f"{name}.csv").read_text().splitlines()
        Path(f"{name}2.csv").write_text("\n".join(lines[: count + 1]) + "\n")
    code, out, other_code, told = both(
        capsys, ["predict", "bank.yaml", "--rows", "bank2.csv", "--json"],
        ["predict", "shop.yaml", "--rows", "shop2.csv"],
    )  # fmt: skip
    assert (code, other_code) == (0, 0), out + told
    again = {row["id"]: row["yes"] for row in json.loads(out)["scores"]}
    assert 0 < len(again) < 40
    assert again == pytest.approx(
        {one: by_id[one] for one in again}, rel=1e-5
    )  # with the very noise of before


def test_a_party_that_lost_the_common_rows_finds_them_with_one_that_has_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, other_code, told = both(capsys, ["psi", "bank.yaml"], ["psi", "shop.yaml"])
    assert (code, other_code) == (0, 0), out + told
    kept = Path("bank_out/label/aligned.json").read_bytes()
    Path("shop_out/feature/aligned.json").unlink()  # killed before it was written
    code, out, other_code, told = both(capsys, ["train", "bank.yaml", "--json"], ["train", "shop.yaml"])
    assert (code, other_code) == (0, 0), out + told
    assert Path("bank_out/label/aligned.json").read_bytes() == kept
    again, first = (
        ran(capsys, "train", "bank.yaml"),
        json.loads(out),
    )  # nobody is there, and nothing left to do
    assert [again[one] for one in ("steps", "score", "history", "sent")] == [
        first[one] for one in ("steps", "score", "history", "sent")
    ]


def test_both_here_and_what_a_fresh_process_says_of_rows(capsys: pytest.CaptureFixture[str]) -> None:
    change("bank", out="out")
    change("shop", out="out")
    found = ran(capsys, "simulate", "bank.yaml", "shop.yaml")
    assert found["score"]["name"] == "auc"
    assert found["score"]["value"] > 0.8
    everything = ran(capsys, "predict", "bank.yaml", "shop.yaml")
    by_id = {row["id"]: row for row in everything["scores"]}
    some = ran(capsys, "predict", "bank.yaml", "shop.yaml", "--id", " PERSON 7", "--id", "person 3")
    assert [row["id"] for row in some["scores"]] == ["person 7", "person 3"]
    for row in some["scores"]:
        assert row["yes"] == pytest.approx(by_id[row["id"]]["yes"], rel=1e-6)
    copied = Path("shop.csv").read_text().splitlines()
    Path("new.csv").write_text("\n".join([copied[0], *copied[1:6]]) + "\n")
    Path("own.csv").write_text(
        "\n".join(line.rpartition(",")[0] for line in Path("bank.csv").read_text().splitlines()) + "\n"
    )  # without the label
    named = ["--rows", "own.csv", "--partner-rows", "new.csv", "--out", "new.json"]
    new = ran(capsys, "predict", "bank.yaml", "shop.yaml", *named)
    assert new["metrics"] == {}
    scored = json.loads(Path("new.json").read_text())
    assert 0 < new["rows"] == len(scored) <= 5
    for row in scored:
        assert row["yes"] == pytest.approx(by_id[row["id"]]["yes"], rel=1e-6)


def test_the_reports_say_what_crossed_and_what_is_promised(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["vertical", "simulate", "bank.yaml", "shop.yaml"]) == 0
    assert "auc 0." in capsys.readouterr().out
    for folder, mine, promise in (
        ("bank_out/label", "gradients of the loss", "nothing is protected"),
        ("shop_out/feature", "embeddings of this party", "nothing is protected"),
    ):
        report = json.loads(Path(folder, "report.json").read_text())
        page = Path(folder, "report.html").read_text()
        assert any(one.startswith(mine) for one in report["disclosed"])
        assert any("order" in one for one in report["disclosed"])
        assert report["noise"]["guarantee"]["kind"] == "empirical"
        assert promise in page
        assert f"{report['sent']['train']['messages']:,} messages" in page
        assert {*report["timeline"]} == {"span_s", "seconds", *timeline.OF}
        assert sum(report["timeline"]["sending"]) > 0
        assert "The partner" in page
    assert Path("bank_out/label/report.html").read_text().count("<figure") == 2 + 3
    assert "AUC 0." in Path("bank_out/label/report.html").read_text()


def test_a_test_part_of_one_class_has_no_auc_and_a_run_still_ends(capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = Path("bank.csv").read_text().splitlines()
    ids = [canonical(row.partition(",")[0]) for row in rows]
    tested = is_test_N(ids, "credit", 0.3)
    rows = [
        row.rpartition(",")[0] + ",no" if is_test else row for row, is_test in zip(rows, tested, strict=True)
    ]
    Path("bank.csv").write_text("\n".join([head, *rows]) + "\n")
    found = ran(capsys, "simulate", "bank.yaml", "shop.yaml")
    assert found["score"] is None
    assert found["history"][-1]["metrics"]["auc"] is None
    assert found["history"][-1]["metrics"]["accuracy"] <= 1
    assert Path("bank_out/label/report.html").read_text().count("<figure") == 1 + 3


def test_what_does_not_fit_is_told_with_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> tuple[int, str]:
        code = main.run(["vertical", *arguments])
        return code, capsys.readouterr().err

    code, err = said("simulate", "shop.yaml", "bank.yaml")
    assert code == 3
    assert "shop.yaml names no data.label_column; name the label party's job first" in err
    code, err = said("predict", "bank.yaml", "shop.yaml")
    assert code == 4
    assert "train first" in err
    code, err = said("predict", "shop.yaml", "--id", "x")
    assert code == 3
    assert "the label party gets the scores" in err
    code, err = said("predict", "bank.yaml", "shop.yaml", "--rows", "bank.csv")
    assert code == 3
    assert "--partner-rows" in err
    change("bank", link=None)
    code, err = said("train", "bank.yaml")
    assert code == 3
    assert "transom vertical simulate" in err


def test_parties_whose_jobs_differ_are_told_both_values(capsys: pytest.CaptureFixture[str]) -> None:
    change("shop", width=5)
    code, err, other_code, told = both(capsys, ["train", "bank.yaml"], ["train", "shop.yaml"])
    assert (code, other_code) == (15, 15)
    assert "width is 4 here and 5 there" in err
    assert "width is 5 here and 4 there" in told
    assert not Path("bank_out/label/state.safetensors").exists()


def test_a_party_whose_file_changed_since_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, "simulate", "bank.yaml", "shop.yaml")
    text = Path("shop.csv").read_text().splitlines()
    Path("shop.csv").write_text("\n".join([text[0], text[1].rpartition(",")[0] + ",9.5", *text[2:]]) + "\n")
    assert main.run(["vertical", "predict", "bank.yaml", "shop.yaml"]) == 4
    assert "file was" in capsys.readouterr().err


def test_a_board_shows_what_the_run_told(capsys: pytest.CaptureFixture[str]) -> None:
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = ran(capsys, "simulate", "bank.yaml", "shop.yaml", "--tensorboard", "board")
    board = reader.EventAccumulator("board").Reload()
    assert [one.step for one in board.Scalars("evaluate/auc")] == [one["step"] for one in found["history"]]
    shown = {name: board.Scalars(f"train/{name}") for name in ("loss", "wait_s", "rows_per_s", "waiting")}
    assert len(shown["loss"]) == len(shown["wait_s"]) == found["steps"]
    assert [one.step for one in shown["rows_per_s"]] == list(range(2, found["steps"] + 1))
    assert all(one.value > 0 for one in shown["rows_per_s"])
    assert all(0 <= one.value <= 1.01 for one in shown["waiting"])
    ages = [one.value for one in board.Scalars("train/staleness_most")]
    assert 0 < len(ages) <= found["steps"]
    assert ages == sorted(ages)
    assert ages[-1] <= 4  # five batches are under way


def test_the_pace_is_of_what_this_process_did() -> None:
    pace = Pace(10)

    def said(told: Told, now_s: float) -> str:
        return pace.words(told, pace.of(told, now_s))

    assert said(Told("ready", 100, 400), 5.0) == ""
    assert said(Told("step", 101, 400, {"wait_s": 3.0}), 10.0) == ""
    words = said(Told("step", 105, 400, {"wait_s": 4.0, "staleness_mean": 1.25}), 14.0)
    assert words == ": 10 rows/s, 25 % waiting, gradients 1.2 steps old"
    assert said(Told("evaluated", 105, 400, {"auc": 0.75}), 15.0) == ", auc 0.75"
    assert said(Told("step", 106, 400, {"wait_s": 4.0}), 15.0).endswith("20 % waiting, auc 0.75")
    for step in range(64):  # only the last ones count
        said(Told("step", 200 + step, 400, {"wait_s": 4.0}), 100.0 + step)
    assert said(Told("step", 264, 400, {"wait_s": 4.0}), 164.0) == ": 10 rows/s, 0 % waiting, auc 0.75"
