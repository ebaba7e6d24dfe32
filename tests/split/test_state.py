"""A state goes to bytes and back bit for bit, and nothing else is taken for one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes

from transom.errors import CheckpointError
from transom.link import state
from transom.link.learner import Learner

from .splits import Split, make_batch, make_job

ABOUT = {"job": "test", "party": "vendor"}


def assert_same_bits(one: Split, other: Split) -> None:
    for ours, theirs in zip(one.learners, other.learners, strict=True):
        assert state.save(ours, ABOUT) == state.save(theirs, ABOUT)
        assert ours.steps == theirs.steps
        for name, value in ours.parameters.items():
            assert torch.equal(value, theirs.parameters[name])
            kept = [one.optimiser.state[one.parameters[name]] for one in (ours, theirs)]
            assert kept[0].keys() == kept[1].keys() == {"step", "exp_avg", "exp_avg_sq"}
            assert all(torch.equal(kept[0][what], kept[1][what]) for what in kept[0])


@pytest.mark.parametrize(
    ("model", "task", "layout"),
    [
        ("bert", "classification", "customer"),
        ("llama", "classification", "vendor"),
        ("llama", "causal", "customer"),
    ],
)
def test_six_steps_are_three_and_three_more_in_fresh_objects(
    request: Any, model: str, task: str, layout: str
) -> None:
    job = make_job(request.getfixturevalue(model), task, layout=layout, after_block=1, return_gradient=True)
    batches = [make_batch(task, 20 + number) for number in range(6)]
    whole = Split(job)
    whole.train(batches)
    first = Split(job)
    first.train(batches[:3])
    stored = [state.save(one, ABOUT) for one in first.learners]
    second = Split(job)
    second.backward(batches[0])  # what was under way when it was read is forgotten
    for one, data in zip(second.learners, stored, strict=True):
        state.restore(one, data, ABOUT)
    assert not second.gradients
    assert_same_bits(first, second)
    second.train(batches[3:])
    assert_same_bits(whole, second)


def make_learner(folder: Path, steps: int) -> Learner:
    split = Split(make_job(folder, "classification", after_block=2))
    split.train([make_batch("classification", number) for number in range(steps)])
    return split.vendor.learner


@pytest.fixture(scope="module")
def stored(llama: Path) -> tuple[bytes, bytes]:
    """States after no step and after two."""
    return tuple(state.save(make_learner(llama, steps), ABOUT) for steps in (0, 2))  # type: ignore[return-value]


def test_a_state_without_a_step_is_one_too(llama: Path, stored: tuple[bytes, bytes]) -> None:
    learner = make_learner(llama, 1)
    state.restore(learner, stored[0], ABOUT)
    assert learner.steps == 0
    assert state.save(make_learner(llama, 0), ABOUT) == stored[0]


def test_weights_alone_are_put_to_use(llama: Path, stored: tuple[bytes, bytes]) -> None:
    learner = make_learner(llama, 0)
    found = state.read(stored[1], ABOUT)
    state.put_weights(learner, found)
    assert learner.steps == 0
    assert found.steps == 2
    assert all(torch.equal(value, found.weights[name]) for name, value in learner.parameters.items())


def refused(learner: Learner, data: bytes, about: dict[str, str], message: str) -> None:
    before = state.save(learner, ABOUT)
    with pytest.raises(CheckpointError, match=message):
        state.restore(learner, data, about)
    assert state.save(learner, ABOUT) == before


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_half_a_state_or_other_bytes_are_refused(llama: Path, stored: tuple[bytes, bytes], data: Any) -> None:
    whole = stored[1]
    length = data.draw(st.integers(0, len(whole) - 1))
    broken = data.draw(st.sampled_from([whole[:length], whole[:length] + bytes(len(whole) - length - 1)]))
    with pytest.raises(CheckpointError):
        state.read(broken, ABOUT)
    with pytest.raises(CheckpointError):
        state.read(data.draw(st.binary(max_size=200)), ABOUT)


def test_a_foreign_state_is_refused_with_both_values(llama: Path, stored: tuple[bytes, bytes]) -> None:
    learner = make_learner(llama, 1)
    refused(learner, stored[1], ABOUT | {"party": "customer"}, "party: it has 'vendor', here 'customer'")
    refused(learner, stored[1], {"job": "test"}, "party: it has 'vendor', here None")


def rewritten(data: bytes, tensors: dict[str, torch.Tensor], **head: Any) -> bytes:
    size = int.from_bytes(data[:8], "little")
    found = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["transom"])
    return to_bytes(tensors, {"transom": json.dumps(found | head)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("weight/score.weight"), "score"),
        (lambda one: one.pop("exp_avg/score.weight"), "score"),
        (lambda one: one.pop("step/score.weight"), "counts"),
        (lambda one: one.update({"weight/other": torch.zeros(2)}), "other"),
        (lambda one: one.update({"other/score.weight": torch.zeros(2)}), "not known"),
        (lambda one: one.update({"weight/score.weight": torch.zeros(3, 31)}), "score"),
        (lambda one: one.update({"weight/score.weight": torch.zeros(3, 32).half()}), "score"),
        (
            lambda one: one.update({"weight/score.weight": torch.zeros(3, 32).to(torch.float8_e4m3fn)}),
            "score",
        ),
        (lambda one: one["exp_avg/score.weight"].fill_(float("nan")), "finite"),
        (lambda one: one["exp_avg_sq/score.weight"].fill_(-1.0), "below zero"),
        (lambda one: one["step/score.weight"].fill_(3.0), "counts"),
        (lambda one: one["step/score.weight"].fill_(1.5), "counts"),
        (lambda one: one.update({"step/score.weight": torch.ones(1)}), "counts"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    llama: Path, stored: tuple[bytes, bytes], change: Any, message: str
) -> None:
    tensors = from_bytes(stored[1])
    change(tensors)
    refused(make_learner(llama, 1), rewritten(stored[1], tensors), ABOUT, message)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"steps": -1}, "head"),
        ({"steps": True}, "head"),
        ({"steps": 2**24}, "head"),
        ({"steps": 0}, "no steps"),
        ({"about": ["job"]}, "head"),
        ({"format": "split-state/2"}, "split-state/1"),
        ({"optimiser": "AdamW, fused"}, "foreach"),
    ],
)
def test_a_head_that_is_not_ours_is_refused(
    llama: Path, stored: tuple[bytes, bytes], head: dict[str, Any], message: str
) -> None:
    data = rewritten(stored[1], from_bytes(stored[1]), **head)
    refused(make_learner(llama, 1), data, ABOUT, message)
