"""`transom audit split`: the run's own noise, spared tokens apart, gradients at the top, what is not run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.audit.split_case import case
from transom.checkpoint.cut import three
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.cli import main
from transom.cli.app import App
from transom.cli.audit_split import ATTACKS, CONTRIBUTING, split
from transom.errors import CheckpointError
from transom.split import folder
from transom.split.job import SplitJob, read_job
from transom.split.parts import load_model
from transom.split.privatise import make_privatiser
from transom.split.rows import read_rows

from ..split.runs import write_rows

SECRET = bytes(range(32))
TOKENS = ("eia/nearest", "eia/inverter", "bisr")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"classification": tiny_bert(root / "bert"), "causal": tiny_llama(root / "llama")}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, group = App(), App()
    root.callback()(lambda: None)
    group.callback()(lambda: None)
    group.command()(split)
    root.add_typer(group, name="audit")
    monkeypatch.setattr(main, "app", root)
    monkeypatch.chdir(tmp_path)
    write_rows(Path("train.csv"), 60, 1)
    write_rows(Path("public.csv"), 300, 2)
    lines = Path("public.csv").read_text().split("\n")[1:-1]
    Path("public.txt").write_text("\n".join(line.split(",")[0] for line in lines))


def make_job(
    models: dict[str, Path], noise: dict[str, Any], task: str = "classification", **changes: Any
) -> SplitJob:
    plain = {
        "name": "audited",
        "model": str(models[task]),
        "task": task,
        "labels": ["bad", "so", "good"] if task == "classification" else [],
        "noise": noise,
        "data": {"train": "train.csv", "max_tokens": 32},
    } | changes
    Path("job.yaml").write_text(json.dumps(plain))  # JSON is YAML
    return read_job("job.yaml")


def reported(capsys: pytest.CaptureFixture[str], line: str = "", code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main.run(f"audit split job.yaml --json {line}".split()) == code
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def by_name(record: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {", ".join(filter(None, (one["name"], one["setting"]))): one for one in record["findings"]}


def leave(job: SplitJob) -> None:
    """What a run of the job leaves of its noise."""
    found = load_model(job)
    assert job.data is not None
    assert found.tokenizer is not None
    rows = read_rows(job.data, "train", job.labels, job.task, found.tokenizer)
    made = make_privatiser(job, three(found.model, job.after_block)[0], rows, SECRET, "run")
    folder.keep_noise(folder.folder_of(job, "customer"), made)


def test_bare_states_are_read_and_the_gate_shuts(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    make_job(models, {"kind": "none"})
    record = reported(capsys, "--public public.csv --limit 20 --budget 0.1 --gate 0.9 --html page.html", 20)
    found = by_name(record)
    assert list(found) == [one.NAME for one in ATTACKS]
    assert all(found[name]["value"] > 0.95 for name in TOKENS)
    assert found["aia/pooled"]["status"] == "run"
    assert "customer" in found["labels/gradient"]["reason"]
    assert record["target"]["noise"] == "drawn here"
    assert Path("page.html").stat().st_mode & 0o077 == 0


def test_noise_hides_and_spared_tokens_are_scored_apart(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A factor at which what is spared is bare, and the rest is hidden."""
    make_job(models, {"kind": "d_chi", "eta": 5.0, "contributing": 0.3, "spare": 1e5})
    record = reported(
        capsys, "--public public.txt --limit 40 --budget 0.3 --attack eia/nearest --attack aia/read"
    )
    found = by_name(record)
    every, apart = found["eia/nearest"], found[f"eia/nearest, {CONTRIBUTING}"]
    assert apart["value"] > 0.99
    assert 0 < apart["n"] < every["n"]
    hidden = every["n"] - apart["n"]
    assert (every["value"] * every["n"] - apart["value"] * apart["n"]) / hidden < 0.5
    assert "each with its attribute" in found["aia/read"]["reason"]
    assert record["target"]["eta"] == 5.0


@pytest.mark.parametrize("kind", ["clipping", "gaussian", "laplace", "d_chi", "r3elu", "r3elu-dp"])
def test_a_tunnel_is_attacked_by_its_law(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """Strong, it leaves no word to read; weak, nearly every word that its width does not take away."""
    line = "--public public.csv --limit 20 --budget 0.3 --attack eia/nearest --attack eia/inverter"
    found = {}
    for epsilon in (2.0, 1e6):
        clip = 0.3 if kind.startswith("r3elu") else 3.0  # of a value, and of a row
        tunnel = {"kind": kind, "clip": clip, "epsilon": epsilon}
        if kind == "clipping":
            del tunnel["epsilon"]
        if kind == "r3elu-dp":
            tunnel["keep"] = 32
        make_job(models, {}, tunnel=tunnel)
        record = reported(capsys, line)
        assert record["target"]["law"] == kind
        found[epsilon] = by_name(record)["eia/inverter"]["value"]
    assert found[1e6] > 0.9
    assert (found[2.0] > 0.9) if kind == "clipping" else (found[2.0] < 0.4)


@pytest.mark.parametrize("epochs", [1, 9])
def test_gradients_are_seen_once_an_epoch_through_their_tunnel(models: dict[str, Path], epochs: int) -> None:
    """An attacker has the mean of all epochs, and is told how far it is off."""
    tunnel = {"kind": "gaussian", "clip": 1.0, "sigma": 40.0}
    train = {"epochs": epochs}
    job = make_job(models, {}, layout="customer", gradient_tunnel=tunnel, train=train)
    target = case(job, Path("public.csv"), 48, 2).target
    read_BD = torch.stack([one[0] for one in target.top_gradients])  # where the head reads
    assert target.gradient_noise == pytest.approx(40 / 16 / epochs**0.5, rel=0.05)  # of 16 rows' mean loss
    assert float(read_BD.std()) == pytest.approx(target.gradient_noise, rel=0.1)
    assert not any(one[1:].any() for one in target.top_gradients)


def test_the_customers_gradients_give_labels_and_next_tokens_away(
    models: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    swamped = {"kind": "d_chi", "eta": 1e-3}
    make_job(models, swamped, layout="customer")
    line = "--limit 40 --budget 0.3 --attack labels/gradient --attack eia/nearest"
    found = by_name(reported(capsys, f"{line} --public public.csv"))
    assert found["labels/gradient"]["value"] > 0.9
    assert found["eia/nearest"]["value"] < 0.3
    make_job(models, swamped, "causal", layout="customer")
    found = by_name(reported(capsys, "--public public.txt --limit 10 --budget 0.08"))
    assert found["next tokens/gradient"]["value"] > 0.9
    assert found["eia/nearest"]["value"] < 0.3 < found["bisr"]["value"]


@pytest.mark.parametrize(
    "noise", [{"kind": "gaussian", "clip": 0.1, "sigma": 0.01}, {"kind": "d_chi", "eta": 300.0}]
)
@pytest.mark.parametrize("after_block", [0, 1])
def test_states_are_those_that_left(models: dict[str, Path], noise: dict[str, Any], after_block: int) -> None:
    """The noise is the run's, row by row, and the attacker's law is that of what left."""
    job = make_job(models, noise, after_block=after_block)
    leave(job)
    first, again = (case(job, Path("public.txt"), limit=30) for _ in range(2))
    assert first.told["noise"] == "of the run"
    assert all(map(torch.equal, first.target.states, again.target.states))
    law = first.target.law
    clean = law.noise.clipped(torch.cat(_clean(job, first.data.texts)))
    added = torch.cat(first.target.means) - clean
    drawn = law.add(torch.zeros_like(clean), torch.Generator().manual_seed(0))
    assert float(added.std()) == pytest.approx(float(drawn.std()), rel=0.05)


def _clean(job: SplitJob, texts: Any) -> Any:
    from transom.audit.attacks.split_view import states_of

    return states_of(three(load_model(job).model.requires_grad_(False), job.after_block)[0], texts)


def test_a_trained_front_is_seen_once_an_epoch_and_audited_texts_are_not_public(
    models: dict[str, Path],
) -> None:
    job = make_job(
        models, {"kind": "d_chi", "eta": 10.0}, after_block=1, return_gradient=True, train={"epochs": 4}
    )
    made = case(job, Path("train.csv"), limit=30)
    assert made.target.views == 4
    assert not torch.equal(*made.target.states[0][:2])
    assert not set(made.knowledge.texts) & set(made.data.texts)
    assert len(made.knowledge.texts) == len(made.knowledge.attributes)
    assert sorted(made.knowledge.known.values()) == [0, 0, 1, 1, 2, 2]


def test_the_law_bends_and_spares_as_the_noise_does(models: dict[str, Path]) -> None:
    noise = {"kind": "d_chi", "eta": 10.0, "contributing": 0.2, "spare": 3.0, "inside": 0.25, "directions": 4}
    job = make_job(models, noise | {"public": "public.txt"})
    made = case(job, Path("public.txt"))
    law = made.target.law
    assert law.shape_DD is not None
    assert law.spare_V is not None
    assert made.contributing is not None
    assert set(law.spare_V.tolist()) == {1.0, 3.0}
    assert sorted(torch.linalg.eigvalsh(law.shape_DD).round(decimals=4).tolist())[:5] == [0.25] * 4 + [1.0]


def test_noise_of_another_job_is_refused(models: dict[str, Path]) -> None:
    job = make_job(models, {"kind": "d_chi", "eta": 10.0})
    leave(job)
    with pytest.raises(CheckpointError, match="not this job's"):
        case(replace(job, noise=replace(job.noise, eta=11.0)), Path("public.txt"))
