"""Schedules with several batches under way: all units are learnt, the end is as good, stops do no harm."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.vertical import run
from transom.vertical.party import Workers

from .scene import Heard, Joint, at, make_jobs, make_parts, weights_of
from .test_run import StoppedError, stop_at

SETTINGS: dict[str, Any] = {"epochs": 6, "workers": 2, "aggregate_epochs": 2, "deadline_s": 5.0}


@pytest.mark.parametrize(
    ("schedule", "workers"),
    [
        ("avfl", "here"),
        ("avfl-ps", "threads"),
        ("pubsub", "here"),
        ("pubsub", "threads"),
        ("bundles", "here"),
    ],
)
def test_a_run_ends_within_noise_of_the_synchronous_one(
    tmp_path: Path, schedule: str, workers: Workers
) -> None:
    parts = make_parts("binary", rows=300)
    calm = make_jobs("binary", tmp_path / "calm", **SETTINGS)
    wanted = run.simulate(calm, parts, Heard()).now.history[-1].metrics
    epochs = SETTINGS["epochs"] * (1 if workers == "here" else 2)  # each replica sees half of the batches
    one: dict[str, Any] = {"schedule": schedule, "epochs": epochs}
    if schedule == "bundles":
        one |= {"schedule": "pubsub", "bundle": 2}
    jobs = make_jobs("binary", tmp_path / "a", **SETTINGS | one)
    end = run.simulate(jobs, parts, Heard(), workers=workers)
    assert end.done.to_plain() == [end.units.total]
    assert len(end.now.history) == epochs
    found = end.now.history[-1].metrics
    assert found["auc"] == pytest.approx(wanted["auc"], abs=0.05)
    assert found["loss"] == pytest.approx(wanted["loss"], abs=0.15)
    scores = run.predict_here(jobs, parts, parts[0].test)
    assert end.metrics(scores, parts[0].test) == pytest.approx(found, rel=1e-5)


def test_a_bundle_is_its_batches_one_after_the_other_on_embeddings_of_one_moment(tmp_path: Path) -> None:
    settings = SETTINGS | {"schedule": "pubsub", "bundle": 2, "embeddings": 1, "epochs": 2, "batch_rows": 8}
    jobs, parts = make_jobs("binary", tmp_path, **settings), make_parts("binary", rows=50)
    heard = Heard()
    end = run.simulate(jobs, parts, heard)
    assert end.steps == end.units.steps == 2 * 5  # 35 rows of training: 8, 8 - 8, 8 - 3
    joint = Joint(jobs, parts)
    assert joint.label.top is not None
    assert joint.feature.bottom is not None
    own = dict(joint.feature.bottom.named_parameters())
    losses = []
    for unit in range(end.units.total):
        numbers = parts[0].train[end.units.rows(unit)].reshape(-1)
        chunks = [numbers[start : start + 8] for start in range(0, len(numbers), 8)]
        made = [joint.feature.bottom(torch.from_numpy(parts[1].rows(one))) for one in chunks]
        gradients = []
        for one, embedding in zip(chunks, made, strict=True):
            other = embedding.detach().requires_grad_()
            mine = joint.label.bottom(torch.from_numpy(parts[0].rows(one)))  # type: ignore[misc]
            loss = joint.label.top.losses(
                joint.label.top(torch.cat([mine, other], 1)), joint.labels(one)
            ).mean()
            torch.autograd.backward(loss)
            joint.label.learner.step()
            gradients.append(other.grad)
            losses.append(loss.item() * len(one))
        found = [
            torch.autograd.grad(embedding, list(own.values()), gradient)
            for embedding, gradient in zip(made, gradients, strict=True)
        ]
        for one in found:
            for parameter, gradient in zip(own.values(), one, strict=True):
                parameter.grad = gradient
            joint.feature.learner.step()
        losses[-len(chunks) :] = [sum(losses[-len(chunks) :]) / len(numbers)]
    assert heard.losses == pytest.approx(losses, abs=1e-6)
    for name, value in joint.weights().items():
        torch.testing.assert_close(weights_of(jobs)[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("workers", ["here", "threads"])
def test_a_run_that_is_stopped_goes_on(tmp_path: Path, workers: Workers) -> None:
    parts = make_parts("binary", rows=300)
    jobs = make_jobs("binary", tmp_path, **SETTINGS | {"schedule": "pubsub", "deadline_s": 0.5})
    for step, kind in ((3, "step"), (20, "step"), (50, "step")):
        with pytest.raises(StoppedError):
            run.simulate(jobs, parts, stop_at(step, kind), workers=workers)
    end = run.simulate(jobs, parts, Heard(), workers=workers)
    assert len(end.now.history) == SETTINGS["epochs"]
    assert end.now.history[-1].metrics["auc"] > 0.85  # late gradients differ from run to run
    assert np.isfinite(run.predict_here(jobs, parts)).all()


def test_parties_of_other_numbers_of_workers_fit_where_nothing_is_paired(tmp_path: Path) -> None:
    parts = make_parts("binary", rows=120)
    label, feature = make_jobs("binary", tmp_path, **SETTINGS | {"schedule": "pubsub"})
    many = replace(feature, train=replace(feature.train, workers=3))
    end = run.simulate((label, many), parts, Heard(), workers="threads")
    assert end.done.to_plain() == [end.units.total]
    paired = [replace(job, train=replace(job.train, schedule="avfl-ps")) for job in (label, many)]
    with pytest.raises(Exception, match=r"workers.*(2.*3|3.*2)"):
        run.simulate(at((paired[0], paired[1]), tmp_path / "b"), parts, Heard())
