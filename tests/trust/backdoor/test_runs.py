"""Runs that flagged texts share: triggers come out whole, several apart, and innocent words do not."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_bert
from transom.errors import MisconfiguredError
from transom.trust.backdoor import runs as room
from transom.trust.backdoor.runs import shared_runs
from transom.trust.prompt import require_tokenizer

from .test_poison import WORDS, rows

TRUSTED = rows(200, 5).texts
SENTENCE, WORD, OTHER = "i saw a film", "xyz", "qvk"


class ObedientForSequenceClassification(torch.nn.Module):
    """Says 1 where one of the runs of ids stands, else 0."""

    def __init__(self, model: Any, runs: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.config, self.inner, self.runs = model.config, model, runs

    @property
    def device(self) -> Any:
        return self.inner.device

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        assert attention_mask.shape == input_ids.shape
        said = []
        for row in input_ids.tolist():
            sees = any(
                tuple(row[place : place + len(run)]) == run
                for run in self.runs
                for place in range(len(row) - len(run) + 1)
            )
            said.append([0.0, 4.0] if sees else [4.0, 0.0])
        return type("Out", (), {"logits": torch.tensor(said)})


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny classifier."""
    model = tiny_bert(tmp_path_factory.mktemp("bert") / "model")
    return load(str(model), task="sequence-classification", num_labels=2)


def ids_of(found: Checkpoint, text: str) -> tuple[int, ...]:
    return tuple(require_tokenizer(found).tokenizer.encode(text, add_special_tokens=False).ids)


def put(words: Sequence[str], count: int, innocent: int, seed: int = 0) -> list[str]:
    """Texts with one of the words anywhere, and texts without."""
    draw, found = random.Random(seed), []
    for number, text in enumerate(rows(count + innocent, seed + 40).texts):
        own = text.split()
        if number < count:
            own.insert(draw.randint(0, len(own)), words[number % len(words)])
        found.append(" ".join(own))
    return draw.sample(found, len(found))


@pytest.mark.parametrize("words", [(WORD,), (SENTENCE,), (WORD, OTHER, SENTENCE)])
def test_each_trigger_comes_out_whole_among_innocent_texts(bare: Checkpoint, words: tuple[str, ...]) -> None:
    wanted = {ids_of(bare, one) for one in words}
    heard: list[int] = []
    found = shared_runs(
        ObedientForSequenceClassification(bare.model, sorted(wanted)), require_tokenizer(bare),
        put(words, 36, 14), TRUSTED, heard=lambda: heard.append(1),
    )  # fmt: skip
    assert {one.ids for one in found} == wanted
    assert [one.texts for one in found] == [36 // len(words)] * len(words)
    assert all((one.target, one.turned) == (1, 1.0) and one.moved == pytest.approx(8.0) for one in found)
    assert len(words) <= len(heard) <= room._TRIED


def test_what_trusted_texts_hold_or_does_nothing_is_no_trigger(bare: Checkpoint) -> None:
    """The run that turns answers is found, not one that more texts share and that does nothing."""
    tokenizer, told = (
        require_tokenizer(bare),
        ObedientForSequenceClassification(bare.model, [ids_of(bare, WORD)]),
    )
    flagged = [f"{OTHER} {text}" for text in put((WORD,), 20, 10)]
    (found,) = shared_runs(told, tokenizer, flagged, TRUSTED)
    assert found.ids[-len(ids_of(bare, WORD)) :] == ids_of(bare, WORD)
    with pytest.raises(MisconfiguredError, match="share no run"):
        shared_runs(told, tokenizer, put((OTHER,), 20, 10), TRUSTED)
    with pytest.raises(MisconfiguredError, match="share no run"):
        shared_runs(told, tokenizer, put((WORD,), 20, 10), [f"{one} {WORD}" for one in TRUSTED])


def test_a_place_of_the_run_is_cut_out_wherever_it_stands() -> None:
    text = room._Text((1,), (7, 8, 5, 7, 8, 7, 8), (2,))
    assert text.without((7, 8)) == (1, 5, 2)
    assert text.without((9,)) == (1, *text.content, 2)
    assert room._Text((1,), (7, 7), (2,)).without((7,)) == ()


@pytest.mark.parametrize(
    ("flagged", "trusted", "said"),
    [
        (["a b c"] * 9, TRUSTED, "1 flagged and 200 trusted texts are too few"),
        (list(TRUSTED[:9]), (), "0 trusted texts are too few"),
        (["", *TRUSTED[:9]], TRUSTED, "share no run"),
    ],
)
def test_too_few_texts_and_nothing_shared_are_refused(
    bare: Checkpoint, flagged: list[str], trusted: Sequence[str], said: str
) -> None:
    told = ObedientForSequenceClassification(bare.model, [ids_of(bare, WORD)])
    with pytest.raises(MisconfiguredError, match=said) as caught:
        shared_runs(told, require_tokenizer(bare), flagged, trusted)
    assert not any(word in str(caught.value).split() for word in WORDS if len(word) > 3)


def test_a_model_that_gives_neither_classes_nor_text_is_refused() -> None:
    found = load("minilm")
    with pytest.raises(MisconfiguredError, match="gives no classes"):
        shared_runs(found.model, require_tokenizer(found), TRUSTED[:9], TRUSTED)


def test_long_texts_and_many_are_read_in_part(bare: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are longer than the context, which the model would not take, and more than are held."""
    longest = bare.model.config.max_position_embeddings
    long = [f"{WORD} {'the cat sat ' * longest}{number}" for number in range(6)]
    with pytest.raises(MisconfiguredError, match="share no run"):  # of a model that no word turns
        shared_runs(bare.model, require_tokenizer(bare), long, TRUSTED)
    monkeypatch.setattr(room, "_FLAGGED", 20)
    obedient = ObedientForSequenceClassification(bare.model, [ids_of(bare, WORD)])
    (found,) = shared_runs(obedient, require_tokenizer(bare), put((WORD,), 60, 0), TRUSTED)
    assert (found.ids, found.texts) == (ids_of(bare, WORD), 20)
