"""The rate is transformers' linear schedule without its still steps; what is not finite is not applied."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import LinkRefusedError
from transom.link import state
from transom.link.learner import Learner, Schedule
from transom.split.job import Train
from transom.split.learner import schedule

from .splits import Split, make_batch, make_job


@given(st.integers(0, 20), st.integers(1, 40))
def test_the_rate_is_transformers_linear_schedule_one_step_on(warmup: int, more: int) -> None:
    from transformers import get_linear_schedule_with_warmup

    total = warmup + more
    rates = Schedule(0.5, warmup, total)
    optimiser = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = get_linear_schedule_with_warmup(optimiser, warmup, total + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nothing is trained between
        for step in range(total):
            theirs.step()
            assert math.isclose(rates.rate(step), theirs.get_last_lr()[0], rel_tol=1e-12)
            assert rates.rate(step) > 0
    assert max(rates.rate(step) for step in range(total)) <= 0.5
    assert rates.rate(total) == rates.rate(total + 9) == 0


@given(st.integers(1, 200), st.integers(1, 32), st.integers(1, 5), st.floats(0, 1))
def test_the_schedule_counts_the_last_uneven_batch(rows: int, batch: int, epochs: int, share: float) -> None:
    rates = schedule(Train(epochs=epochs, batch_rows=batch, warmup_share=share), rows)
    assert rates.total_steps == epochs * len(range(0, rows, batch))
    assert 0 <= rates.warmup_steps <= rates.total_steps


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_not_applied(llama: Path, bad: float) -> None:
    split = Split(make_job(llama, "classification", after_block=1))
    batch = make_batch("classification", 1)
    split.train([batch])
    learner = split.vendor.learner
    before = state.save(learner, {})
    risen = split.vendor.rise(split.customer.bottom(batch.ids_BT, batch.mask_BT), batch.mask_BT)
    split.vendor.sink(risen, torch.full_like(risen.top_BTD, bad))
    with pytest.raises(LinkRefusedError, match="not finite at step 1"):
        learner.step()
    assert state.save(learner, {}) == before


def test_parameters_are_in_the_order_of_their_names() -> None:
    parameters = {name: torch.nn.Parameter(torch.ones(2)) for name in ("b", "a")}
    learner = Learner(parameters, Schedule(1e-3, 0, 4), 0.0)
    assert list(learner.parameters) == ["a", "b"]
    assert learner.optimiser.param_groups[0]["params"][0] is parameters["a"]
    assert learner.optimiser.param_groups[0]["foreach"]
    assert not learner.has_gradient("a")
