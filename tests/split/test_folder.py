"""What a run leaves is read again, or refused where it is another's or damaged; secrets are the owner's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from transom.errors import CheckpointError
from transom.split import folder, run
from transom.split.customer import CustomerSide
from transom.split.job import Noise, SplitJob
from transom.split.party import Party

from .runs import Heard, run_job


@pytest.fixture(scope="module")
def left(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SplitJob, Party[CustomerSide]]:
    noise = Noise(kind="d_chi", eta=40.0)
    job = run_job(bert, "classification", tmp_path_factory.mktemp("left"), noise=noise, layout="customer")
    job = replace(job, train=replace(job.train, epochs=1))
    return job, run.simulate(job, Heard())


def test_what_was_learnt_is_there(left: tuple[SplitJob, Party[CustomerSide]]) -> None:
    job, end = left
    assert end.learner is not None
    found = folder.left(job.out / "customer", end.side.about)
    assert found.steps == end.side.steps == 5
    assert found.state is not None
    assert found.state.weights.keys() == end.learner.parameters.keys()
    for name, value in folder.weights_left(job.out / "customer").items():
        assert torch.equal(value, end.learner.parameters[name])
    assert not found.state.weights.keys() & folder.weights_left(job.out / "vendor").keys()


def test_the_noise_is_the_runs_and_its_secret_the_owners(left: tuple[SplitJob, Party[CustomerSide]]) -> None:
    job, end = left
    assert folder.kept_noise(job.out / "customer", job) == end.side.privatise
    for path in job.out.rglob("*"):
        private = path.name in ("noise.json", "state.safetensors") or path.suffix == ".sqlite"
        assert not private or path.stat().st_mode & 0o077 == 0, path
    secret = end.side.privatise.secret
    with_it = [path for path in job.out.rglob("*") if path.is_file() and _holds(path, secret)]
    assert {path.relative_to(job.out).parts[0] for path in with_it} == {"customer"}


def _holds(path: Path, secret: bytes) -> bool:
    data = path.read_bytes()
    return secret in data or secret.hex().encode() in data


def test_another_jobs_or_damaged_files_are_refused(
    left: tuple[SplitJob, Party[CustomerSide]], tmp_path: Path
) -> None:
    job, end = left
    with pytest.raises(CheckpointError, match="it has 'test', here 'other'"):
        folder.left(job.out / "customer", {**end.side.about, "name": "other"})
    with pytest.raises(CheckpointError, match="not this job's"):
        folder.kept_noise(job.out / "customer", replace(job, noise=Noise(kind="d_chi", eta=41.0)))
    with pytest.raises(CheckpointError, match="train first"):
        folder.left(tmp_path, end.side.about)
    for text in ("", "[]", '{"steps": 1}', "{"):
        (tmp_path / "job.json").write_text(text)
        for read in (lambda: folder.left(tmp_path, {}), lambda: folder.weights_left(tmp_path)):
            with pytest.raises(CheckpointError, match="what a run left"):
                read()
    kept = json.loads((job.out / "customer" / "noise.json").read_text())
    for secret in ("", "zz" * 32, "00"):
        (tmp_path / "noise.json").write_text(json.dumps({**kept, "secret": secret}))
        with pytest.raises(CheckpointError, match="secret"):
            folder.kept_noise(tmp_path, job)
