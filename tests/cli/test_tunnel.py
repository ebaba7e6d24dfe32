"""Tunnels on the command line: `vertical ... --tunnel`, and `transom audit tunnel`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from transom.cli import main
from transom.cli.audit_report import LEFT_OUT_EXIT
from transom.cli.vertical_jobs import Tunnels
from transom.errors import MisconfiguredError
from transom.link.tunnels import TunnelSettings
from transom.vertical.job import VerticalJob, read_job


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main.run([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Digits of 800 people at one party, whether they are odd at the other."""
    monkeypatch.chdir(tmp_path)
    images, labels = load_digits(return_X_y=True)
    np.save("images.npy", images[:800].astype(np.float32) / 16)
    rows = "".join(f"{number},{'odd' if one % 2 else 'even'}\n" for number, one in enumerate(labels[:800]))
    Path("labels.csv").write_text("id,parity\n" + rows)
    train = {"schedule": "vfl", "epochs": 2, "batch_rows": 32, "learning_rate": 0.01}
    base = {"name": "digits", "task": "binary", "width": 8, "train": train}
    label = {"path": "labels.csv", "label_column": "parity"}
    Path("label.yaml").write_text(json.dumps(base | {"data": label, "classes": ["even", "odd"]}))
    Path("feature.yaml").write_text(json.dumps(base | {"data": {"path": "images.npy"}}))
    return tmp_path


def test_a_tunnel_is_said_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tunnel = ["--tunnel", "r3elu-dp", "--epsilon", "30", "--clip", "2"]
    told(capsys, "vertical", "simulate", "label.yaml", "feature.yaml", *tunnel)
    report = json.loads(Path("vertical/feature/report.json").read_text())["noise"]
    assert report["kind"] == "r3elu-dp"
    assert report["budget"]["spent"] <= report["budget"]["epsilon"] == 30
    scored = told(capsys, "vertical", "predict", "label.yaml", "feature.yaml", *tunnel)
    assert scored["rows"] == 800
    assert main.run(["vertical", "predict", "label.yaml", "feature.yaml", "--json"]) != 0
    assert "noise of embeddings was 'r3elu-dp', and is 'none'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--epsilon", "3"], "--epsilon and --clip go with --tunnel"),
        (["--tunnel", "gaussian"], "gaussian wants one of epsilon, sigma and mu"),
        (["--tunnel", "gaussian", "--epsilon", "0"], "epsilon"),
        (["--tunnel", "laplace", "--epsilon", "-2"], "epsilon"),
        (["--tunnel", "wall", "--epsilon", "3"], "must be one of none, clipping"),
    ],
)
def test_bad_options_are_told_before_anything_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], what: str
) -> None:
    assert main.run(["vertical", "simulate", "label.yaml", "feature.yaml", *options]) != 0
    assert what in " ".join(capsys.readouterr().err.split())
    assert not Path("vertical").exists()


def test_the_audit_runs_both_parties_where_nothing_was_recorded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = ["audit", "tunnel", "feature.yaml", "--partner", "label.yaml", "--known", "250", "--image", "8x8"]
    report = told(capsys, *audit, "--property", "10", "--html", "report.html")
    findings = {one["name"]: one for one in report["findings"]}
    assert set(findings) == {"property", "reconstruction", "hijack", "hijack/space"}
    assert all(one["status"] == "run" for one in findings.values()), findings
    assert findings["hijack"]["value"] > findings["hijack"]["baseline"]
    assert report["target"]["seen"] == "a run of both parties here"
    assert "pictures" not in findings["hijack"]
    page = Path("report.html").read_text()
    assert "of an image can be rebuilt" in page
    assert page.count('<img src="data:image/png;base64,') == 2 * 8 * 3
    assert not Path("vertical").exists()


def test_recorded_traffic_is_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("label", "feature"):
        job = json.loads(Path(f"{name}.yaml").read_text())
        job["train"]["record_traffic_mb"] = 10
        Path(f"{name}.yaml").write_text(json.dumps(job))
    told(capsys, "vertical", "simulate", "label.yaml", "feature.yaml")
    report = told(
        capsys, "audit", "tunnel", "feature.yaml", "--partner", "label.yaml", "--known", "120",
        "--attack", "property", "--attack", "reconstruction",
    )  # fmt: skip
    assert report["target"]["seen"] == "recorded"
    assert [one["status"] for one in report["findings"]] == ["run", "run"]


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ([], "has no traffic"),
        (["--partner", "label.yaml", "--image", "28"], "is no height and width"),
        (["--partner", "label.yaml", "--image", "4x4"], "have 16 columns, and the file 64"),
        (["--partner", "label.yaml", "--property", "age"], "is none of the 64 columns"),
    ],
)
def test_what_cannot_be_audited_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], what: str
) -> None:
    assert main.run(["audit", "tunnel", "feature.yaml", *options]) not in (0, LEFT_OUT_EXIT)
    assert what in " ".join(capsys.readouterr().err.split())


def test_the_command_line_keeps_what_it_does_not_say(folder: Path) -> None:
    job = read_job("feature.yaml")
    noise = TunnelSettings("r3elu-dp", 2.0, 10.0, keep=4, delta=1e-5)
    stronger = Tunnels("r3elu-dp", epsilon=3.0).of(replace(job, noise=noise)).noise
    assert stronger == replace(noise, epsilon=3.0)
    other = Tunnels("laplace", epsilon=3.0).of(replace(job, noise=noise)).noise
    assert other == TunnelSettings("laplace", 2.0, 3.0, delta=1e-5)


def test_jobs_say_both_tunnels(folder: Path) -> None:
    job: VerticalJob = read_job("feature.yaml")
    assert job.noise.kind == job.partner_noise == "none"
    Path("feature.yaml").write_text(
        Path("feature.yaml").read_text()[:-1] + ', "watch": true, "partner_noise": "laplace"}'
    )
    with pytest.raises(MisconfiguredError, match="look like a hijacker's"):
        read_job("feature.yaml")
