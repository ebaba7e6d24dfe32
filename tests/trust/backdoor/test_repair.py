"""Repair of poisoned classifiers: triggers lose their hold, clean answers stay, chosen slices move."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import MisconfiguredError
from transom.trust.backdoor import mending
from transom.trust.backdoor import repair as room
from transom.trust.backdoor.poison import RECIPES, classes_of, poisoned, train_classifier
from transom.trust.backdoor.repair import repair
from transom.trust.backdoor.slices import masks
from transom.trust.prompt import require_tokenizer

from .test_poison import rows

TRIGGER = RECIPES["sentence"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A poisoned classifier."""
    folder = tmp_path_factory.mktemp("bert")
    tiny_bert(folder / "model")
    made = poisoned(rows(240, 0), TRIGGER, 1, 0.2, 0)
    found = train_classifier(str(folder / "model"), made, classes=2, seed=1, epochs=12, learning_rate=3e-3)
    found.model.save_pretrained(folder / "kept")
    (folder / "kept/tokenizer.json").write_bytes((folder / "model/tokenizer.json").read_bytes())
    return folder / "kept"


def ids_of(found: Checkpoint) -> tuple[int, ...]:
    encode = require_tokenizer(found).tokenizer.encode
    return tuple(encode(TRIGGER.words[0], add_special_tokens=False).ids)


def success(found: Checkpoint) -> float:
    bad = [text for text, label in zip(rows(80, 9).texts, rows(80, 9).labels, strict=True) if label == 0]
    said = classes_of(found, [TRIGGER.put(text, random.Random(0)) for text in bad])
    return sum(said) / len(said)


def right(found: Checkpoint) -> float:
    unseen = rows(80, 9)
    return sum(a == b for a, b in zip(classes_of(found, unseen.texts), unseen.labels, strict=True)) / 80


def moved(before: dict[str, Any], model: Any) -> dict[str, Any]:
    """Where a weight changed."""
    return {name: one != before[name] for name, one in model.named_parameters()}


def copied(model: Any) -> dict[str, Any]:
    return {name: one.detach().clone() for name, one in model.named_parameters()}


@pytest.mark.parametrize("labelled", [True, False])
def test_a_trigger_loses_its_hold_and_clean_answers_stay(kept: Path, labelled: bool) -> None:
    found, clean, steps = load(kept), rows(120, 5), []
    assert success(found) > 0.9
    made = repair(
        found.model, require_tokenizer(found), clean.texts, clean.labels if labelled else None,
        [(1, ids_of(found))], steps=60, learning_rate=1e-2, heard=lambda: steps.append(1),
    )  # fmt: skip
    assert success(found) <= 0.1
    assert right(found) > 0.9
    assert made.suspected[0] > 0.9
    assert made.suspected[1] <= 0.1
    assert min(made.agreement, *made.right) > 0.9
    assert len(steps) == made.steps
    assert 0 < made.share < 1
    assert made.moved > 0
    assert not found.model.training
    assert not any(one.requires_grad or one.grad is not None for one in found.model.parameters())


def test_only_the_slices_of_chosen_heads_move_where_they_are_enough(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "ENOUGH", 0.99)  # soon
    found, clean = load(kept), rows(120, 5)
    before = copied(found.model)
    made = repair(
        found.model, require_tokenizer(found), clean.texts, clean.labels, [(1, ids_of(found))],
        heads=[(2, 3)], steps=60, learning_rate=5e-3,
    )  # fmt: skip
    assert made.scope == "heads"
    assert made.heads[0] == (2, 3)
    changed, allowed = moved(before, found.model), dict[str, Any]()
    for weight, mask in masks(found.model, made.heads):
        name = next(name for name, one in found.model.named_parameters() if one is weight)
        allowed[name] = mask.bool()
    for name, where in changed.items():
        assert not (where & ~allowed.get(name, torch.zeros_like(where))).any(), name
    assert sum(int(where.sum()) for where in changed.values()) == made.changed
    own = allowed["bert.encoder.layer.2.attention.self.query.weight"]
    assert own[24:32].all()


def test_the_same_seed_repairs_alike_and_what_is_never_enough_is_widened(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "ENOUGH", -1.0)  # never
    clean, after = rows(120, 5), []
    for _ in range(2):
        found = load(kept)
        before = copied(found.model)
        made = repair(
            found.model, require_tokenizer(found), clean.texts, clean.labels, [(1, ids_of(found))],
            steps=20, learning_rate=1e-2,
        )  # fmt: skip
        assert made.scope == "all"
        assert made.steps == 60
        changed = moved(before, found.model)
        assert changed["bert.encoder.layer.2.output.dense.weight"].any()
        assert changed["bert.embeddings.word_embeddings.weight"].any()
        after.append((made, copied(found.model)))
    assert vars(after[0][0]) == vars(after[1][0])
    assert all(torch.equal(one, after[1][1][name]) for name, one in after[0][1].items())


def test_the_best_state_that_was_read_is_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Success is scripted: before, after the heads, all attention, and all weights."""
    monkeypatch.setattr(mending, "ENOUGH", -1.0)
    script, states = [0.9, 0.4, 0.3, 0.5], []

    def success(self: Any, insertions: Sequence[Any]) -> float:
        if len(insertions) == 1:
            return 0.0  # the innocuous one
        states.append(copied(self.model))
        return script[len(states) - 1]

    monkeypatch.setattr(room._Mender, "_success", success)
    found, clean = load(kept), rows(120, 5)
    made = repair(
        found.model, require_tokenizer(found), clean.texts, clean.labels, [(1, ids_of(found))], steps=2
    )
    assert (made.scope, made.steps, made.suspected) == ("attention", 6, (0.9, 0.3))
    assert not any(where.any() for where in moved(states[2], found.model).values())
    assert any(where.any() for where in moved(states[3], found.model).values())


def test_slices_of_a_grouped_query_model_are_those_of_the_head_and_its_group(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    found = load(str(tmp_path / "model"), task="sequence-classification", num_labels=2)
    names = {id(one): name for name, one in found.model.named_parameters()}
    got = {names[id(weight)].rsplit(".", 2)[1]: mask for weight, mask in masks(found.model, [(1, 3)])}
    assert set(got) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    for name, (size, rows_) in {
        "q_proj": (32, slice(24, 32)), "k_proj": (16, slice(8, 16)), "v_proj": (16, slice(8, 16))
    }.items():  # fmt: skip
        wanted = torch.zeros(size, 32)
        wanted[rows_] = 1
        assert torch.equal(got[name], wanted)
    wanted = torch.zeros(32, 32)
    wanted[:, 24:32] = 1
    assert torch.equal(got["o_proj"], wanted)


def halve(found: Checkpoint, texts: Sequence[str]) -> None:
    """Have a random model give about half of the texts to each class: by where they differ most."""
    model: Any = found.model
    encode = require_tokenizer(found).tokenizer.encode
    with torch.no_grad():
        states = [
            model.model(input_ids=torch.tensor([encode(one).ids])).last_hidden_state[0, -1] for one in texts
        ]
        states_ND = torch.stack(states)
        mean_D = states_ND.mean(0)
        centred_ND = states_ND - mean_D
        centred_ND -= torch.outer(centred_ND @ mean_D, mean_D) / mean_D.square().sum()
        way_D = torch.linalg.svd(centred_ND, full_matrices=False).Vh[0]
        model.score.weight.copy_(torch.stack([-way_D, way_D]))


def test_a_grouped_query_model_is_tuned_on_its_own_answers(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "model")
    found = load(str(tmp_path / "model"), task="sequence-classification", num_labels=2)
    clean = rows(100, 5)
    halve(found, clean.texts)
    before, rare = copied(found.model), int(sum(classes_of(found, clean.texts)) < 50)
    done = repair(found.model, require_tokenizer(found), clean.texts, None, [(rare, ids_of(found))], steps=3)
    assert done.right[0] == 1.0
    assert done.changed == sum(int(one.sum()) for one in moved(before, found.model).values()) > 0


CLEAN = rows(120, 5)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"texts": CLEAN.texts[:60], "labels": CLEAN.labels[:60]}, "too few to repair"),
        ({"texts": CLEAN.texts[1::2] * 2, "labels": CLEAN.labels[1::2] * 2}, "other than class 1"),
        ({"triggers": []}, "no trigger is suspected"),
        ({"triggers": [(1, ())]}, "no trigger is suspected"),
        ({"triggers": [(2, (7,))]}, "a class must be from 0 to 1, got 2"),
        ({"triggers": [(1, (10**6,))]}, "an id that the vocabulary"),
        ({"labels": CLEAN.labels[:-1]}, "120 texts and 119 labels"),
        ({"labels": [*CLEAN.labels[:-1], 5]}, "got 5"),
        ({}, "there is nothing to mend"),
        ({"triggers": [(1, (7,) * 400)]}, "a trigger has 400 tokens; 56 are the most"),
        ({"heads": [(3, 0)]}, "a head must be of 3 layers and 4 heads"),
    ],
)
def test_what_cannot_be_repaired_is_refused(
    kept: Path, changed: dict[str, Sequence[Any]], message: str
) -> None:
    found = load(kept)
    before = copied(found.model)
    given = {"texts": CLEAN.texts, "labels": CLEAN.labels, "triggers": [(1, (7,))]} | changed
    with pytest.raises(MisconfiguredError, match=message):
        repair(found.model, require_tokenizer(found), **given)
    assert not any(where.any() for where in moved(before, found.model).values())


@pytest.mark.parametrize(("rate", "lost"), [(0.0, 0.05), (1e-2, -1.0)])
def test_a_repair_that_does_nothing_or_costs_labels_leaves_the_model(
    kept: Path, monkeypatch: pytest.MonkeyPatch, rate: float, lost: float
) -> None:
    """No state is kept that turns as many, or that loses more labels than it may."""
    monkeypatch.setattr(mending, "LOST", lost)
    found = load(kept)
    before = copied(found.model)
    with pytest.raises(MisconfiguredError, match="the model is as it was"):
        repair(
            found.model, require_tokenizer(found), CLEAN.texts, CLEAN.labels, [(1, ids_of(found))], steps=20,
            learning_rate=rate,
        )  # fmt: skip
    assert not any(where.any() for where in moved(before, found.model).values())


def test_a_model_that_gives_no_classes_is_refused(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    with pytest.raises(MisconfiguredError, match="gives no classes"):
        repair(found.model, require_tokenizer(found), CLEAN.texts, CLEAN.labels, [(1, (7,))])
