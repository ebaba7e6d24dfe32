"""Attacks on split tuning: they read what is bare, and noise that swamps all leaves chance."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from transom.audit.attacks import (
    split_attribute,
    split_gradient,
    split_inverter,
    split_labels,
    split_nearest,
    split_next,
)
from transom.audit.attacks.rows import Noise
from transom.audit.attacks.split_view import Law, Private, Public, Seen, but, cut_up, observe, read, states_of
from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama

WIDTH = 32
Texts = tuple[tuple[int, ...], ...]


@pytest.fixture(scope="module", params=["bert", "llama"])
def model(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Random, with an embedding as wide as its blocks' output, as in trained models."""
    folder = tmp_path_factory.mktemp(request.param) / "model"
    made = load(tiny_bert(folder) if request.param == "bert" else tiny_llama(folder)).model
    made.get_input_embeddings().weight.data *= 5
    return made


def language(count: int, seed: int) -> tuple[Texts, tuple[int, ...]]:
    """Texts of 4 to 8 ids, each followed by one of its own two favourites, and of which kind the text is:
    the kinds share no ids."""
    follow = np.random.default_rng(0).integers(0, 25, (25, 2))
    draw = np.random.default_rng(seed)
    texts, kinds = [], []
    for _ in range(count):
        kind, ids = int(draw.integers(2)), [int(draw.integers(25))]
        while len(ids) < draw.integers(4, 9):
            ids.append(int(follow[ids[-1], draw.integers(2)]))
        texts.append(tuple(10 + 25 * kind + token for token in ids))
        kinds.append(kind)
    return tuple(texts), tuple(kinds)


PLAIN, KINDS = language(40, seed=1)
OWN, OWN_KINDS = language(400, seed=2)
DATA = Private(PLAIN, KINDS, decode=lambda ids: " ".join(map(str, ids)))
SWAMPED = Law(Noise("norm", 1e4))


def public(model: Any, after_block: int) -> Public:
    return Public(model, after_block, OWN, OWN_KINDS)


def seen(knowledge: Public, law: Law, texts: Texts = PLAIN, views: int = 1) -> Seen:
    return observe(knowledge.front, texts, law, torch.Generator().manual_seed(3), views)


def inverted(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Any:
    return split_inverter.attack(target, knowledge, data, budget_s, steps=60)


def rebuilt(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Any:
    return split_gradient.attack(target, knowledge, data, budget_s, learn=60, steps=20)


ON_TOKENS = [split_nearest.attack, inverted, rebuilt]


@pytest.mark.parametrize("attack", ON_TOKENS)
@pytest.mark.parametrize("after_block", [0, 1])
def test_bare_states_are_read_and_swamped_ones_at_chance(model: Any, attack: Any, after_block: int) -> None:
    knowledge = public(model, after_block)
    bare = attack(seen(knowledge, Law()), knowledge, DATA, 60.0)
    assert bare.value > 0.8, bare
    assert bare.above_chance
    assert len(bare.examples) == 10
    swamped = attack(seen(knowledge, SWAMPED), knowledge, DATA, 60.0)
    assert not swamped.above_chance, swamped
    assert swamped.value < 0.15
