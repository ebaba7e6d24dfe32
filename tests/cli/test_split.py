"""`transom split`, from a job to scores and an adapter that PEFT reads."""

from __future__ import annotations

import csv
import importlib
import json
import re
import socket
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import typer
import yaml

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.cli import main, split
from transom.net.pin import make_certificate

ROWS = [("a good dog", "good"), ("the bad cat", "bad"), ("so fine a mat", "good"), ("rain and rain", "bad")]


def write_job(folder: Path, name: str = "job.yaml", **changes: Any) -> str:
    lines = ["text,label", *(f"{text},{label}" for text, label in ROWS * 2)]
    (folder / "rows.csv").write_text("\n".join(lines) + "\n", "utf-8")
    job = {
        "name": "reviews",
        "model": "model",
        "task": "classification",
        "labels": ["bad", "good"],
        "data": {"train": "rows.csv", "evaluate": "rows.csv", "max_tokens": 32},
        "train": {"epochs": 2, "batch_rows": 4},
        "out": "out",
    }
    (folder / name).write_text(yaml.safe_dump(job | changes), "utf-8")
    return str(folder / name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_bert(tmp_path / "model")
    return tmp_path


@pytest.fixture
def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The command's JSON."""
    capsys.readouterr()
    assert main.run([*arguments, "--json"]) == 0, capsys.readouterr().err
    shown = capsys.readouterr()
    assert shown.err == ""
    assert shown.out.count("\n") == 1
    return json.loads(shown.out)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_from_a_job_to_scores_and_an_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(folder)
    tuned = ran(capsys, "split", "simulate", job)
    assert (tuned["steps"], tuned["rows"], len(tuned["history"])) == (4, 8, 2)
    assert tuned["noise"]["guarantee"]["kind"] == "empirical"
    scored = ran(capsys, "split", "predict", job, "--out", str(folder / "scores.csv"))
    last = tuned["history"][-1]["metrics"]
    assert scored["metrics"] == pytest.approx(last, rel=1e-6)
    with (folder / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [list(row) for row in rows] == [["row", "predicted", "bad", "good"]] * 8
    right = sum(row["predicted"] == label for row, (_, label) in zip(rows, ROWS * 2, strict=True))
    assert right / 8 == last["accuracy"]
    ran(capsys, "split", "predict", job, "--data", str(folder / "rows.csv"), "--out", str(folder / "s.json"))
    again = json.loads((folder / "s.json").read_text())
    assert [one["good"] for one in again] == [pytest.approx(float(row["good"]), abs=1e-6) for row in rows]
    written = ran(capsys, "split", "export", job, "--out", str(folder / "adapter"))
    assert written["tensors"] == 16
    assert adapted(folder) == pytest.approx([one["good"] for one in again[:4]], abs=1e-5)


def adapted(folder: Path) -> list[float]:
    """What PEFT makes of the adapter, for the first rows."""
    import peft

    found = load(folder / "model", task="sequence-classification", num_labels=2)
    model = peft.PeftModel.from_pretrained(found.model, str(folder / "adapter")).eval()
    assert found.tokenizer is not None
    ids = [found.tokenizer.tokenizer.encode(text).ids for text, _ in ROWS]
    with torch.no_grad():
        return [float(model(torch.tensor([one])).logits.softmax(-1)[0, 1]) for one in ids]


def test_a_tunnel_is_said_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(folder)
    tunnel = ["--tunnel", "r3elu-dp", "--epsilon", "90", "--clip", "0.5"]
    told = ran(capsys, "split", "simulate", job, *tunnel)["noise"]
    assert (told["tunnel"]["kind"], told["tunnel"]["releases"]) == ("r3elu-dp", 1)
    assert 80 < told["tunnel"]["spent"] <= told["tunnel"]["epsilon"] == 90
    assert (told["guarantee"]["kind"], told["guarantee"]["unit"]) == ("approximate-dp", "one token's vector")
    out = ["--out", str(folder / "scores.csv")]
    assert ran(capsys, "split", "predict", job, *tunnel, *out)["rows"] == 8
    assert main.run(["split", "predict", job, *out]) != 0  # without what the rows passed in training
    assert "is not this job's" in " ".join(capsys.readouterr().err.split())
    assert main.run(["split", "simulate", write_job(folder, "other.yaml", out="other"), *tunnel]) == 0
    assert "through r3elu-dp (epsilon " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--epsilon", "3"], "--epsilon and --clip go with --tunnel"),
        (["--tunnel", "laplace"], "laplace wants epsilon"),
        (["--tunnel", "r3elu-dp", "--epsilon", "-3"], "tunnel.epsilon must be a number, above 0"),
        (["--tunnel", "d_chi", "--epsilon", "1e-9"], "no strength has 1 releases"),
    ],
)
def test_bad_tunnels_are_told_before_anything_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], what: str
) -> None:
    assert main.run(["split", "simulate", write_job(folder), *options]) != 0
    assert what in " ".join(capsys.readouterr().err.split())
    assert not list(folder.glob("out/*/state.safetensors"))


def test_people_see_what_is_trained_and_how_it_ended(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = write_job(folder)
    assert main.run(["split", "simulate", job]) == 0
    shown = capsys.readouterr()
    assert shown.err.startswith("trains bert.encoder.layer.0.attention.self.query.lora_A.weight, ")
    assert shown.err.endswith(" and 10 more\n")
    assert shown.out.startswith("tuned in 4 steps on 8 rows, accuracy ")
    assert main.run(["split", "predict", job, "--out", str(folder / "scores.csv")]) == 0
    assert capsys.readouterr().out.startswith("8 rows scored, in ")


def both(capsys: pytest.CaptureFixture[str], vendor: list[str], customer: list[str]) -> str:
    """What the two commands print, run at the same time."""
    codes: list[int] = []
    other = Thread(target=lambda: codes.append(main.run(["split", *vendor])))
    other.start()
    codes.append(main.run(["split", *customer]))
    other.join(60)
    shown = capsys.readouterr()
    assert codes == [0, 0], shown.err
    return shown.out


def test_two_processes_worth_of_parties_over_tcp(
    folder: Path, capsys: pytest.CaptureFixture[str], free_port: int
) -> None:
    for name in ("lab", "clinic"):
        make_certificate(folder / name, name)
    ways = {"lab": {"listen": f"127.0.0.1:{free_port}"}, "clinic": {"connect": f"127.0.0.1:{free_port}"}}
    jobs = {}
    for name, other in (("lab", "clinic"), ("clinic", "lab")):
        link = {
            "job": "reviews", "run": "r1", "party": name, "partner": other, "identity": name,
            "partner_certificate": f"{other}/tls.pem", **ways[name],
        }  # fmt: skip
        jobs[name] = write_job(folder, f"{name}.yaml", link=link)
    scores = str(folder / "scores.csv")
    assert both(capsys, ["vendor", jobs["lab"]], ["customer", jobs["clinic"]]).startswith("tuned in 4 steps")
    asks = ["predict", jobs["clinic"], "--out", scores]
    shown = both(capsys, ["vendor", jobs["lab"], "--predict"], asks)
    assert "answered" in shown
    assert "8 rows scored" in shown
    report = json.loads((folder / "out/customer/report.json").read_text())
    alone = ran(capsys, "split", "simulate", write_job(folder, "alone.yaml", out="alone"))
    assert report["history"] == alone["history"]
    states = [(folder / one / "vendor/state.safetensors").read_bytes() for one in ("out", "alone")]
    assert states[0] == states[1]


def test_a_language_model_on_lines_of_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama(tmp_path / "model")
    job = write_job(
        tmp_path, task="causal", labels=[], layout="customer", train={"epochs": 1, "batch_rows": 4}
    )
    tuned = ran(capsys, "split", "simulate", job)
    assert "perplexity" in tuned["history"][-1]["metrics"]
    (tmp_path / "more.txt").write_text("a good dog\nthe cat sat\n", "utf-8")
    out = tmp_path / "scores.json"
    scored = ran(capsys, "split", "predict", job, "--data", str(tmp_path / "more.txt"), "--out", str(out))
    rows = json.loads(out.read_text())
    assert [set(row) for row in rows] == [{"row", "tokens", "loss", "accuracy", "perplexity"}] * 2
    total = sum(row["loss"] * row["tokens"] for row in rows) / sum(row["tokens"] for row in rows)
    assert scored["metrics"]["loss"] == pytest.approx(total)


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "told"),
    [
        ({"labels": ["bad"]}, ["simulate"], 3, "labels"),
        ({"data": {"train": "none.csv"}}, ["simulate"], 3, "none.csv"),
        ({"data": {"train": "rows.csv", "label_column": "class"}}, ["simulate"], 3, "none has a column"),
        ({"data": None}, ["simulate"], 3, "names no rows"),
        ({"model": "gone"}, ["simulate"], 4, "gone"),
        ({}, ["simulate", "--device", "nowhere"], 3, "nowhere"),
        ({}, ["vendor"], 3, "the job has no link"),
        ({}, ["customer"], 3, "the job has no link"),
        ({}, ["predict", "--out", "scores.csv"], 4, "holds no finished run"),
        ({}, ["export", "--out", "adapter"], 4, "holds no finished run"),
    ],
)
def test_what_cannot_be_done_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any], arguments: list[str], code: int, told: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(folder)
    command, *more = arguments
    assert main.run(["split", command, write_job(folder, **changes), *more]) == code
    error = capsys.readouterr().err
    assert told in error
    assert error.startswith("transom: ")
    assert not (folder / "out/customer/report.json").exists()


def test_bad_rows_are_told_by_number_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = write_job(folder)
    (folder / "rows.csv").write_text("text,label\nsecret one,good\n,bad\nsecret two,fine\n", "utf-8")
    assert main.run(["split", "simulate", job]) == 3
    error = capsys.readouterr().err
    assert "row 3: no text" in error
    assert "row 4: a label" in error
    assert "secret" not in error
    (folder / "rows.csv").write_text("text,label\none,good\ntwo,good\n", "utf-8")
    assert main.run(["split", "simulate", job]) == 3
    assert "two or more" in capsys.readouterr().err


def test_a_board_is_an_extra(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    job = write_job(folder)
    assert main.run(["split", "simulate", job, "--tensorboard", str(folder / "board")]) == 3
    assert "pip install '.[tensorboard]'" in capsys.readouterr().err


def test_a_board_shows_the_history_of_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    job = write_job(folder, train={"epochs": 3, "batch_rows": 4, "patience": 3})
    history = ran(capsys, "split", "simulate", job, "--tensorboard", str(folder / "board"))["history"]
    board = reader.EventAccumulator(str(folder / "board")).Reload()
    assert {*board.Tags()["scalars"]} == {"train/loss", "evaluate/loss", "evaluate/accuracy"}
    for name in ("loss", "accuracy"):
        shown = [(event.step, event.value) for event in board.Scalars(f"evaluate/{name}")]
        assert shown == [(one["step"], pytest.approx(one["metrics"][name])) for one in history]
    steps, losses = zip(*((event.step, event.value) for event in board.Scalars("train/loss")), strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    means = [sum(losses[at : at + 2]) / 2 for at in (0, 2, 4)]  # of an epoch's batches, which are alike
    assert means == pytest.approx([one["train_loss"] for one in history])
    assert len({*losses}) == 6


def test_the_guide_s_commands_lack_nothing() -> None:
    guide = (Path(__file__).parents[2] / "docs/split.md").read_text("utf-8")
    lines = re.findall(r"^\$ transom split ([^#\n]+)", guide, re.MULTILINE)
    commands: Any = typer.main.get_command(split.app)
    assert {line.split()[0] for line in lines} == {"vendor", "customer", "predict", "export"}
    for line in lines:
        name, *arguments = line.split()
        commands.commands[name].make_context(name, arguments)  # raises for an option that is missing
