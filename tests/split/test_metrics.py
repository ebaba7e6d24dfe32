"""Tallies are the losses that torch means over all rows at once; a training ends when nothing is gained."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from transom.link.learner import is_over
from transom.split.metrics import IGNORED, Tally, count_targets, targets, text_labels

LOSSES = st.lists(st.one_of(st.floats(0, 9), st.just(math.nan)), max_size=8)


@pytest.mark.parametrize("seed", range(3))
def test_a_language_models_targets_are_those_of_transformers(seed: int) -> None:
    from transformers.loss.loss_utils import ForCausalLMLoss

    generator = torch.Generator().manual_seed(seed)
    mask_BT = (torch.arange(6)[None] < torch.tensor([6, 4, 1])[:, None]).long()
    ids_BT = torch.randint(0, 9, (3, 6), generator=generator)
    logits_BTV = torch.randn(3, 6, 9, generator=generator)
    labels_BT = text_labels(ids_BT, mask_BT)
    assert torch.equal(labels_BT, ids_BT.masked_fill(mask_BT == 0, IGNORED))
    scores, wanted = targets("causal", logits_BTV, labels_BT)
    ours = cross_entropy(scores, wanted, ignore_index=IGNORED, reduction="sum") / count_targets(
        "causal", labels_BT
    )
    torch.testing.assert_close(ours, ForCausalLMLoss(logits_BTV, labels_BT, 9))


def test_a_token_after_padding_is_no_target() -> None:
    mask_BT = torch.tensor([[0, 0, 1, 1, 1]])
    labels_BT = text_labels(torch.arange(5)[None], mask_BT)
    assert labels_BT.tolist() == [[IGNORED, IGNORED, IGNORED, 3, 4]]
    assert count_targets("causal", labels_BT) == 2


def test_metrics_are_per_target() -> None:
    tally = sum((Tally(1.0, 1, 2), Tally(3.0, 1, 2)), Tally())
    assert tally.metrics("causal") == {"loss": 1.0, "accuracy": 0.5, "perplexity": math.e}
    assert "perplexity" not in tally.metrics("classification")
    assert all(math.isnan(value) for value in Tally().metrics("causal").values())
    assert math.isfinite(Tally(1e9, 0, 1).metrics("causal")["perplexity"])


@given(LOSSES, st.integers(1, 4))
def test_it_is_over_when_so_many_evaluations_gained_nothing(losses: list[float], patience: int) -> None:
    best, since = math.inf, 0
    for loss in losses:
        best, since = (loss, 0) if loss < best else (best, since + 1)
    assert is_over(losses, patience) == (since >= patience and len(losses) > patience)
    assert not is_over(losses, None)
