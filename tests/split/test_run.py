"""A whole run equals the centralised one, goes on from where it was stopped, and can be used afterwards."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.data.rows import read_rows as read_table
from transom.errors import CheckpointError, LinkError, LinkRefusedError, MisconfiguredError
from transom.link.memory import together
from transom.link.told import Told
from transom.split import run
from transom.split.job import Adapter, Noise, SplitJob
from transom.split.party import customer, vendor

from .runs import Heard, central_run, run_job, states_of, weights_of

KINDS = [("bert", "classification"), ("llama", "classification"), ("llama", "causal")]
WAYS = [(0, False, 1), (2, True, 2)]  # after_block, return_gradient, micro_batches


@pytest.mark.parametrize("layout", ["vendor", "customer"])
@pytest.mark.parametrize(("after_block", "return_gradient", "parts"), WAYS)
@pytest.mark.parametrize(("model", "task"), KINDS)
def test_a_run_equals_the_centralised_one_and_predicts_as_it_ended(
    request: Any, tmp_path: Path, model: str, task: str, after_block: int, return_gradient: bool, parts: int,
    layout: str,
) -> None:  # fmt: skip
    job = run_job(
        request.getfixturevalue(model), task, tmp_path, train={"micro_batches": parts},
        after_block=after_block, return_gradient=return_gradient, layout=layout,
    )  # fmt: skip
    heard = Heard()
    run.simulate(job, heard)
    wanted, central = central_run(job)
    assert heard.losses == pytest.approx(wanted.losses, abs=1e-5)
    assert [one["loss"] for one in heard.evaluations] == pytest.approx(
        [one["loss"] for one in wanted.evaluations], abs=1e-5
    )
    weights, bound = weights_of(job), 1e-5 if parts == 1 else 1e-3  # AdamW swells the rounding of tiny sums
    for name, value in central.weights(weights).items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=bound)
    if parts == 1:
        assert_predicts_the_end(job, heard)


def assert_predicts_the_end(job: SplitJob, heard: Heard) -> None:
    assert job.data is not None
    assert job.data.evaluate is not None
    found = run.predict_here(job, None)
    assert found.metrics() == pytest.approx(heard.evaluations[-1], rel=1e-6)
    texts = [row["text"] for row in read_table(job.data.evaluate)]
    again = run.predict_here(job, texts)
    assert again.rows() == found.rows()  # without noise
    assert len(found.rows()) == len(texts)


class StoppedError(Exception):
    """A run that is stopped from outside."""


def stop_at(step: int, kind: str = "step") -> Any:
    def tell(told: Told) -> None:
        if told.kind == kind and told.step == step:
            raise StoppedError

    return tell


@pytest.mark.parametrize("layout", ["vendor", "customer"])
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    bert: Path, tmp_path: Path, layout: str
) -> None:
    changes: dict[str, Any] = {"after_block": 1, "return_gradient": True, "layout": layout}
    job = run_job(bert, "classification", tmp_path, **changes)
    calm, heard = replace(job, out=tmp_path / "calm"), Heard()
    run.simulate(calm, heard)
    for step, kind in ((1, "step"), (5, "evaluated"), (9, "step"), (10, "done")):
        with pytest.raises(StoppedError):
            run.simulate(job, stop_at(step, kind))
    again = Heard()
    end = run.simulate(job, again)
    assert states_of(job) == states_of(calm)
    assert [dict(point.metrics) for point in end.side.now.history] == heard.evaluations
    assert not again.losses  # nothing was left to do but to take leave


@pytest.mark.parametrize("changes", [{}, {"after_block": 1, "return_gradient": True, "layout": "customer"}])
def test_noise_is_that_of_the_first_time_after_a_stop_and_when_it_is_used(
    bert: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    noise = Noise(kind="gaussian", clip=4.0, sigma=0.5)
    job = run_job(bert, "classification", tmp_path, noise=noise, **changes)
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(1))
    calm = replace(job, out=tmp_path / "calm")
    shutil.copytree(job.out, calm.out)  # another would have another secret
    heard, again = Heard(), Heard()
    run.simulate(calm, heard)
    for step in (4, 7):
        with pytest.raises(StoppedError):
            run.simulate(job, stop_at(step))
    run.simulate(job, again)
    assert states_of(job) == states_of(calm)
    assert run.predict_here(job, None).metrics() == pytest.approx(again.evaluations[-1], rel=1e-6)
    report = json.loads((job.out / "customer" / "report.json").read_text())
    assert report["noise"]["guarantee"]["kind"] == "approximate-dp"
    assert report["noise"]["releases_of_a_row_at_most"] == (3 if changes else 1)
    other = replace(job, out=tmp_path / "other")
    run.simulate(other, Heard())
    assert states_of(other) != states_of(job)


@pytest.mark.parametrize("other", [{"eta": 20.0}, {"eta": 50.0, "denoise": True}])
def test_no_run_goes_on_with_other_noise_not_even_from_before_its_first_checkpoint(
    bert: Path, tmp_path: Path, other: dict[str, Any]
) -> None:
    """The secret is the run's: noise of one direction and two lengths would cancel out."""
    job = run_job(bert, "classification", tmp_path, noise=Noise(kind="d_chi", eta=50.0))
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(1))  # of the 3 after which a checkpoint is due
    with pytest.raises(CheckpointError, match="the noise kept of the run is not this job's"):
        run.simulate(replace(job, noise=Noise(kind="d_chi", **other)), Heard())
    run.simulate(job, Heard())


@pytest.mark.parametrize(("wire", "bound"), [("bf16", 0.05), ("fp8", 0.3), ("int8", 0.3)])
def test_every_wire_type_trains(llama: Path, tmp_path: Path, wire: Any, bound: float) -> None:
    job = run_job(llama, "classification", tmp_path, layout="customer", wire=wire)
    heard, plain = Heard(), Heard()
    bytes_of = []
    for one, told in ((job, heard), (replace(job, wire="fp32", out=tmp_path / "plain"), plain)):
        run.simulate(one, told)
        bytes_of.append(json.loads((one.out / "customer" / "report.json").read_text())["link"]["bytes"])
    assert heard.losses == pytest.approx(plain.losses, abs=bound)
    assert heard.losses != plain.losses
    assert bytes_of[0] < 0.8 * bytes_of[1]


def test_it_ends_early_once_nothing_is_gained(bert: Path, tmp_path: Path) -> None:
    train = {"epochs": 9, "evaluate_every_steps": 2, "patience": 2, "learning_rate": 0.5}
    job = run_job(bert, "classification", tmp_path, train=train)
    end = run.simulate(job, Heard())
    losses = [point.metrics["loss"] for point in end.side.now.history]
    assert end.side.steps < end.side.rates.total_steps
    assert min(losses[-2:]) >= min(losses[:-2])
    report = json.loads((job.out / "customer" / "report.json").read_text())
    assert [point["metrics"]["loss"] for point in report["history"]] == losses


def test_without_rows_to_evaluate_the_training_is_measured(llama: Path, tmp_path: Path) -> None:
    job = run_job(llama, "causal", tmp_path, layout="customer", labels_in_the_clear=False)
    assert job.data is not None
    job = replace(job, data=replace(job.data, evaluate=None))
    heard = Heard()
    end = run.simulate(job, heard)
    assert [point.train_loss for point in end.side.now.history] == [one["loss"] for one in heard.evaluations]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ("bad", "good", "so")}, "label 1"),
        ({"adapter": Adapter(r=2)}, "adapter.r"),
        ({"after_block": 1}, "after_block"),
        ({"wire": "bf16"}, "wire"),
        ({"layout": "customer"}, "layout"),
    ],
)
def test_terms_that_differ_are_told_before_anything_is_trained(
    bert: Path, tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    job = run_job(bert, "classification", tmp_path)
    other = replace(job, out=tmp_path / "other", **changes)
    assert_refused(job, other, told)


def test_another_model_is_told(bert: Path, tmp_path: Path) -> None:
    from transom.checkpoint.tiny import tiny_bert

    job = run_job(bert, "classification", tmp_path)
    assert_refused(
        job, replace(job, model=str(tiny_bert(tmp_path / "b", seed=1)), out=tmp_path / "o"), "front"
    )


def assert_refused(job: SplitJob, other: SplitJob, told: str) -> None:
    heard = Heard()
    with closing(vendor(other, heard)) as seller, closing(customer(job, heard)) as buyer:
        with pytest.raises(LinkRefusedError, match=told) as refused:
            together(lambda one: run.tune(seller, one), lambda one: run.tune(buyer, one))
        name = next(name for name in buyer.terms if name == told)
        for party in (seller, buyer):
            assert party.terms[name] in str(refused.value)
    assert not heard.losses


@pytest.mark.parametrize("changes", [{"seed": 6}, {"epochs": 3}])
def test_a_run_is_not_gone_on_with_as_another(bert: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    job = run_job(bert, "classification", tmp_path)
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(4))
    other = replace(job, train=replace(job.train, **changes))
    with pytest.raises(CheckpointError, match="train"):
        run.simulate(other, Heard())
    assert job.data is not None
    job.data.train.write_text(job.data.train.read_text() + "a dog,good\n")
    with pytest.raises(CheckpointError, match="rows was"):
        run.simulate(job, Heard())


@pytest.mark.parametrize("role", ["vendor", "customer"])
def test_a_party_that_lost_its_record_is_told(bert: Path, tmp_path: Path, role: str) -> None:
    job = run_job(bert, "classification", tmp_path, train={"checkpoint_every_steps": 1})
    with pytest.raises(StoppedError):
        run.simulate(job, stop_at(4))
    shutil.rmtree(job.out / role)
    with pytest.raises(LinkError, match="record"):
        run.simulate(job, Heard())


def test_what_cannot_be_is_told_before_a_step(bert: Path, tmp_path: Path) -> None:
    job = run_job(bert, "classification", tmp_path)
    assert job.data is not None
    for wrong, told in (
        (replace(job, data=None), "names no rows"),
        (replace(job, data=replace(job.data, max_tokens=4096)), "the model takes 128"),
        (replace(job, train=replace(job.train, batch_rows=40, micro_batches=30)), "window to 120"),
    ):
        with pytest.raises(MisconfiguredError, match=told):
            run.simulate(wrong, Heard())
    with pytest.raises(MisconfiguredError, match="no link"), run.way(job):
        pass
    with pytest.raises(CheckpointError, match="train first"):
        run.predict_here(job, None)


def test_of_two_that_fail_the_first_is_told() -> None:
    def first(broker: Any) -> None:
        raise MisconfiguredError("the first")

    def second(broker: Any) -> None:
        while True:
            broker.take(0.05)
            broker.publish(b"x", timeout_s=0.05)

    with pytest.raises(MisconfiguredError, match="the first"):
        run.together(first, second)
    with pytest.raises(MisconfiguredError, match="the first"):
        run.together(second, first)
    assert issubclass(LinkRefusedError, LinkError)
