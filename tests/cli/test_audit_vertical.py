"""`transom audit vertical`: a party's own record and truth, both parties' together, and what is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transom.cli import main
from transom.cli.audit_report import GATE_EXIT, LEFT_OUT_EXIT
from transom.cli.audit_vertical import attacks
from transom.vertical import align, part, run
from transom.vertical.job import VerticalJob, read_job
from transom.vertical.table import read_table

ON_FEATURES = {"inversion/values", "inversion/variance"}
ON_CLASSES = {f"labels/{name}" for name in ("norm", "direction", "classifier", "gradient", "completion")}


def write(path: str, columns: dict[str, Any]) -> None:
    with Path(path).open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        out.writerows(zip(*columns.values(), strict=True))


def job_file(path: str, data: dict[str, Any], **more: Any) -> VerticalJob:
    train = {"schedule": "vfl", "epochs": 3, "batch_rows": 32, "learning_rate": 0.01, "record_traffic_mb": 5}
    plain = {
        "name": "loans", "task": "binary", "data": data, "width": 6, "bottom": {"hidden": [8]},
        "train": train,
    } | more  # fmt: skip
    Path(path).write_text(json.dumps(plain))  # JSON is YAML
    return read_job(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parties' files, jobs and folders after a run that both have recorded."""
    root = tmp_path_factory.mktemp("loans")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        draw = np.random.default_rng(0)
        x_NF = draw.normal(size=(300, 5)).round(3)
        people = [f"p{number:03}" for number in range(300)]
        bad_N = np.where(x_NF.sum(1) > 0, "yes", "no")
        write("label.csv", {"id": people, "own": x_NF[:, 0], "own2": x_NF[:, 1], "bad": bad_N})
        write("feature.csv", {"id": people[::-1]} | {f"f{at}": x_NF[::-1, at] for at in (2, 3, 4)})
        of_label = {"path": "label.csv", "label_column": "bad"}
        label = job_file("label.yaml", of_label, classes=["no", "yes"])
        feature = job_file("feature.yaml", {"path": "feature.csv"})
        run.simulate((label, feature), part.load_here((label, feature)), lambda told: None)
        tables = [read_table(one) for one in (label, feature)]
        for one, aligned in zip((label, feature), align.here(tables[0], tables[1]), strict=True):
            align.write(one, aligned)
    return root


@pytest.fixture(autouse=True)
def in_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def reported(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run(f"audit vertical {line} --json --known 60".split()) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def ran(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    assert [one["name"] for one in record["findings"]] == [one.NAME for one in attacks()]
    return {one["name"]: one for one in record["findings"] if one["status"] == "run"}


def test_the_feature_party_learns_what_its_embeddings_tell(capsys: pytest.CaptureFixture[str]) -> None:
    record = reported(capsys, "feature.yaml --gate 0.2 --html page.html --sarif out.sarif", GATE_EXIT)
    found = ran(record)
    assert set(found) == ON_FEATURES
    assert found["inversion/variance"]["low"] > 0.3
    assert "column 'f" in found["inversion/values"]["note"]
    assert record["target"]["epochs"] == "3 of 3 recorded whole"
    page = Path("page.html")
    assert "a vertical training" in page.read_text()
    assert page.stat().st_mode & 0o077 == 0
    assert Path("out.sarif").exists()


def test_the_label_party_learns_what_its_gradients_tell(capsys: pytest.CaptureFixture[str]) -> None:
    found = ran(reported(capsys, "label.yaml"))
    assert set(found) == ON_CLASSES
    assert found["labels/direction"]["low"] > 0.9
    assert found["labels/gradient"]["low"] > 0.8


def test_with_both_jobs_all_is_asked_and_completion_is_held_against_the_columns(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = ran(reported(capsys, "label.yaml --partner feature.yaml --known-labels 5"))
    assert set(found) == ON_FEATURES | ON_CLASSES
    assert "10 labels known" in found["labels/norm"]["note"]
    assert "columns" in found["labels/completion"]["note"]
    other = ran(reported(capsys, "feature.yaml --partner label.yaml --known-labels 5"))
    assert other["labels/gradient"]["value"] == found["labels/gradient"]["value"]


def test_without_a_record_nothing_is_run(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    plain = read_job("label.yaml")
    (plain.folder / "traffic").rename("elsewhere")
    try:
        record = reported(capsys, "label.yaml", LEFT_OUT_EXIT)
    finally:
        Path("elsewhere").rename(plain.folder / "traffic")
    assert all(
        "record_traffic_mb" in one["reason"] for one in record["findings"] if one["name"] in ON_CLASSES
    )


def test_a_run_that_is_not_there_or_of_another_file_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    job = read_job("feature.yaml")
    before = Path("feature.csv").read_text()
    try:
        Path("feature.csv").write_text(before.replace("p000,", "p000,9"))
        record = reported(capsys, "feature.yaml", 4)
    finally:
        Path("feature.csv").write_text(before)
    assert all("has changed" in one["reason"] for one in record["findings"])
    moved = replace(job, out=Path("nowhere"))
    align.write(moved, align.read(job, read_table(job)))
    job_file("moved.yaml", {"path": "feature.csv"}, out="nowhere")
    record = reported(capsys, "moved.yaml", 4)
    assert all("no finished run" in one["reason"] for one in record["findings"])


def test_two_jobs_of_one_party_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    record = reported(capsys, "label.yaml --partner label.yaml", 3)
    assert all("both parties' jobs" in one["reason"] for one in record["findings"])
