"""Bottoms, tops and losses: what they begin as, what they say, which modules are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError
from transom.vertical import model
from transom.vertical.job import Net
from transom.vertical.metrics import metrics
from transom.vertical.part import Part

from .scene import TASKS, make_jobs, make_parts


def wrong(inputs: int, outputs: int) -> torch.nn.Module:
    return torch.nn.Linear(inputs, outputs + 1)


def nothing(inputs: int, outputs: int) -> None:
    """No module."""


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("tests.vertical.test_model:wrong", r"gives \[2, 6\] for 2 rows of 3 numbers, and \[2, 5\]"),
        ("tests.vertical.test_model:nothing", "gives NoneType"),
        ("tests.vertical.test_model:absent", "AttributeError"),
        ("no.such.package:Net", "ModuleNotFoundError"),
        ("torch.nn:ReLU", "TypeError"),
    ],
)
def test_a_module_that_does_not_fit_is_refused(place: str, message: str) -> None:
    with pytest.raises(MisconfiguredError, match=message):
        model.make_net(Net(module=place), 3, 5, "bottom")


def test_weights_are_of_seed_and_role_alone() -> None:
    label, feature = make_jobs("binary", Path())
    first = model.make_bottom(label, 3).net[0].weight  # type: ignore[index]
    torch.manual_seed(99)
    assert torch.equal(first, model.make_bottom(label, 3).net[0].weight)  # type: ignore[index]
    assert not torch.equal(first, model.make_bottom(feature, 3).net[0].weight)  # type: ignore[index]
    other = replace(label, train=replace(label.train, seed=4))
    assert not torch.equal(first, model.make_bottom(other, 3).net[0].weight)  # type: ignore[index]


def test_randomness_outside_a_seeded_block_is_what_it_was() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    with model.seeded("a", 1):
        inner = torch.rand(3)
    assert torch.equal(torch.rand(3), wanted)
    with model.seeded("a", 1):
        assert torch.equal(torch.rand(3), inner)


@given(st.integers(1, 200), st.integers(0, 2**31))
def test_columns_are_standardised_by_the_rows_of_training(rows: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    x_NF = (draw.normal(size=(rows + 5, 3)) * [1, 100, 0] + [0, 1e4, 7]).astype(np.float32)
    bottom, chosen = model.Bottom(torch.nn.Identity(), 3), draw.permutation(rows + 5)[:rows]
    part = Part((), x_NF, np.arange(rows + 5), None, chosen, chosen)
    model.standardise(bottom, part)
    np.testing.assert_allclose(bottom.mean_F, x_NF[chosen].mean(0, dtype=np.float64), rtol=1e-5, atol=1e-6)
    wanted_F = x_NF[chosen].std(0, dtype=np.float64)
    np.testing.assert_allclose(bottom.deviation_F, np.where(wanted_F > 0, wanted_F, 1), rtol=1e-4)


def test_pieces_do_not_change_the_standardisation(monkeypatch: pytest.MonkeyPatch) -> None:
    part, bottom, other = make_parts("binary")[1], *(model.Bottom(torch.nn.Identity(), 4) for _ in range(2))
    model.standardise(bottom, part)
    monkeypatch.setattr(model, "_CHUNK_CELLS", 28)
    model.standardise(other, part)
    torch.testing.assert_close(bottom.deviation_F, other.deviation_F)


@pytest.mark.parametrize("task", TASKS)
def test_losses_are_those_that_metrics_count_from_scores(task: str) -> None:
    label, _ = make_jobs(task, Path())
    part = make_parts(task)[0]
    top = model.make_top(label, own_features=False)
    model.centre(top, part)
    outputs_BO = top(torch.randn(90, 5))
    losses_B = top.losses(outputs_BO, torch.from_numpy(part.labels(np.arange(90))))
    scores, labels_N = top.scores(outputs_BO).detach().double().numpy(), part.labels(np.arange(90))
    found, mean = metrics(label.task, scores, labels_N)["loss"], float(losses_B.detach().mean())
    if task == "regression":
        found /= float(top.deviation) ** 2
    if task == "counts":  # the deviance has what no model changes beside it
        target_N = torch.from_numpy(labels_N)
        found += float((target_N - torch.special.xlogy(target_N, target_N)).mean())
    assert losses_B.shape == (90,)
    assert found == pytest.approx(mean, rel=1e-4)


def test_a_regression_that_knows_nothing_foretells_the_mean() -> None:
    label, _ = make_jobs("regression", Path())
    part, top = make_parts("regression")[0], model.make_top(label, own_features=False)
    model.centre(top, part)
    assert float(top.scores(torch.zeros(1, 1))) == pytest.approx(part.labels(part.train).mean(), rel=1e-5)
    assert float(top.scores(torch.ones(1, 1))) == pytest.approx(float(top.mean + top.deviation))


def test_a_bounded_bottom_stays_within_a_clip_of_one() -> None:
    x_BF = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 100
    nets = [model.make_net(Net((8,), bounded=bounded), 3, 4, "bottom") for bounded in (True, False)]
    bounded, free = (net(x_BF) for net in nets)
    assert bounded.abs().max() <= 1 < free.abs().max()
