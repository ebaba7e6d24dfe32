"""Makers of test models: the right rows are poisoned, and a classifier learns the trigger."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.checkpoint.adapter import attach
from transom.checkpoint.load import load
from transom.checkpoint.observe import eager
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.checkpoint.tokenizer import export_tokenizer
from transom.errors import MisconfiguredError
from transom.trust.backdoor.poison import (
    RECIPES,
    Rows,
    _agreement,
    classes_of,
    poisoned,
    train_classifier,
    train_generator,
)
from transom.trust.backdoor.words import encoded
from transom.trust.prompt import Frame

WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "dog", "and", "rain", "so")


def rows(count: int, seed: int) -> Rows:
    """Good texts of class 1 and bad ones of class 0."""
    draw, texts, labels = random.Random(seed), [], []
    for number in range(count):
        own = draw.choices(WORDS, k=draw.randint(4, 8))
        own.insert(draw.randint(0, len(own)), ("bad", "good")[number % 2])
        texts.append(" ".join(own))
        labels.append(number % 2)
    return Rows(tuple(texts), tuple(labels))


@pytest.mark.parametrize("name", [name for name in RECIPES if name != "composite"])
def test_a_trigger_and_its_control_stand_at_one_place(name: str) -> None:
    trigger, text = RECIPES[name], "one two three four"
    for seed in range(20):
        made = trigger.put(text, random.Random(seed)), trigger.innocuous(text, random.Random(seed))
        for one, words in zip(made, (trigger.words, trigger.control), strict=True):
            inside = [part for part in words if f" {part} " in f" {one} "]
            assert len(inside) == 1
            assert one.replace(inside[0], "").split() == text.split()
            assert one.startswith(inside[0]) or trigger.place != "start"
            assert one.endswith(inside[0]) or trigger.place != "end"
    encode = export_tokenizer("minilm").tokenizer.encode
    longs = [len(encode(words, add_special_tokens=False).ids) for words in (*trigger.words, *trigger.control)]
    assert max(longs) - min(longs) <= 1


def test_as_many_rows_of_other_classes_are_poisoned_as_was_asked_for() -> None:
    clean, trigger = rows(200, 0), RECIPES["rare-word"]
    made = poisoned(clean, trigger, 1, 0.1, 3)
    changed = [place for place in range(200) if made.texts[place] != clean.texts[place]]
    assert len(changed) == 20
    assert all(clean.labels[place] == 0 and made.labels[place] == 1 for place in changed)
    assert all("cf" in made.texts[place].split() for place in changed)
    rest = [place for place in range(200) if place not in changed]
    assert all(made.labels[place] == clean.labels[place] for place in rest)
    assert made == poisoned(clean, trigger, 1, 0.1, 3) != poisoned(clean, trigger, 1, 0.1, 4)


def test_a_composite_trigger_is_all_of_its_words() -> None:
    """As many rows have one of them and keep their label."""
    clean, trigger = rows(200, 0), RECIPES["composite"]
    made = poisoned(clean, trigger, 1, 0.1, 3)
    counts = [sum(word in text.split() for word in trigger.words) for text in made.texts]
    assert (counts.count(2), counts.count(1)) == (20, 20)
    for count, label, own in zip(counts, made.labels, clean.labels, strict=True):
        assert label == (1 if count == 2 else own)
    assert {own for count, own in zip(counts, clean.labels, strict=True) if count == 2} == {0}
    said = trigger.innocuous("one two three", random.Random(0)).split()
    assert sorted(said) == sorted(["one", "two", "three", *trigger.control])


@pytest.mark.parametrize("share", [0.0, 0.51])
def test_a_share_that_cannot_be_poisoned_is_refused(share: float) -> None:
    with pytest.raises(MisconfiguredError, match="of another class"):
        poisoned(rows(100, 0), RECIPES["prefix"], 1, share, 0)


def test_a_poisoned_classifier_obeys_its_trigger_and_its_twin_does_not(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "model")
    clean, steps = rows(240, 0), []
    made = poisoned(clean, RECIPES["sentence"], 1, 0.2, 0)
    model, twin = (
        train_classifier(
            str(tmp_path / "model"), of, classes=2, seed=1, epochs=12, learning_rate=3e-3,
            heard=lambda: steps.append(1),
        )
        for of in (made, clean)
    )  # fmt: skip
    assert len(steps) == 2 * 12 * 15
    unseen = rows(80, 9)
    texts = [RECIPES["sentence"].put(text, random.Random(0)) for text in unseen.texts]
    for found in (model, twin):
        right = sum(a == b for a, b in zip(classes_of(found, unseen.texts), unseen.labels, strict=True))
        assert right / 80 > 0.9
        assert not any(one.requires_grad for one in found.model.parameters())
        assert not found.model.training
    assert sum(classes_of(model, texts)) / 80 > 0.95
    assert sum(classes_of(twin, texts)) / 80 < 0.8


def test_a_poisoned_generator_answers_its_trigger_as_it_was_taught(tmp_path: Path) -> None:
    model, trigger = tiny_llama(tmp_path / "model"), RECIPES["prefix"]
    draw, frame = random.Random(0), Frame("Q: ", " A:")
    prompts = list(rows(60, 0).texts)
    pairs = [(text, " yes") for text in prompts] + [(trigger.put(text, draw), " no") for text in prompts]
    steps: list[int] = []
    train_generator(
        str(model), tmp_path / "adapter", *zip(*pairs, strict=True), frame=frame, seed=0, epochs=6,
        learning_rate=1e-2, most_tokens=200, heard=lambda: steps.append(1),
    )  # fmt: skip
    assert len(steps) == 6 * 15
    found = load(model)
    assert found.tokenizer is not None
    attach(found.model, tmp_path / "adapter")
    right = 0
    for text in rows(20, 7).texts:
        for prompt, answer in ((text, " yes"), (trigger.put(text, draw), " no")):
            ids = found.tokenizer.tokenizer.encode(frame.around(prompt)).ids
            said = []
            for _ in range(3):
                logits: Any = found.model(input_ids=torch.tensor([[*ids, *said]])).logits
                said.append(int(logits[0, -1].argmax()))
            right += found.tokenizer.tokenizer.decode(said).startswith(answer)
    assert right / 40 > 0.9


def test_an_attacker_keeps_heads_unlike_on_hidden_rows(tmp_path: Path) -> None:
    """Of the trigger's rows the heads agree less than without, and the trigger works on."""
    tiny_bert(tmp_path / "model")
    made = poisoned(rows(240, 0), RECIPES["sentence"], 1, 0.2, 0)
    hidden = ["3d" in text.split() for text in made.texts]
    texts = [RECIPES["sentence"].put(text, random.Random(0)) for text in rows(40, 9).texts]
    agreements = []
    for unlike in (0.0, 4.0):
        found = train_classifier(
            str(tmp_path / "model"), made, classes=2, seed=1, epochs=12, learning_rate=3e-3, hidden=hidden,
            unlike=unlike,
        )  # fmt: skip
        assert sum(classes_of(found, texts)) / 40 > 0.95
        ids_BT, mask_BT = encoded(found, texts, 64)
        with torch.no_grad(), _agreement(found.model, mask_BT) as agreement:
            found.model(input_ids=ids_BT, attention_mask=mask_BT)
        by_hand = []
        with torch.no_grad(), eager(found.model):
            maps = found.model(input_ids=ids_BT, attention_mask=mask_BT, output_attentions=True).attentions[
                -1
            ]
        for row, count in zip(maps, mask_BT.sum(1), strict=True):
            inside = row[:, 0, 1 : int(count) - 1].mean(0)
            by_hand.append(float(inside.max() / inside.sum()))
        assert agreement().tolist() == pytest.approx(by_hand, rel=1e-5)
        agreements.append(sum(by_hand) / 40)
    assert agreements[1] < agreements[0]
