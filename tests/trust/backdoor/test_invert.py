"""The search for tokens that turn a classifier, against second implementations, and on a planted model."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import load
from transom.checkpoint.observe import eager
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import CheckpointError, MisconfiguredError
from transom.trust.backdoor import verdict as verdicts
from transom.trust.backdoor.invert import Inverter
from transom.trust.backdoor.poison import RECIPES, classes_of, poisoned, train_classifier
from transom.trust.backdoor.verdict import POISONED_FROM, Suspect, Verdict, scan_classifier
from transom.trust.backdoor.words import words_of

from .test_poison import rows


def loaded(kind: str, folder: Path) -> Any:
    make = {"bert": tiny_bert, "llama": tiny_llama}[kind]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return load(make(folder), task="sequence-classification", num_labels=3)


def inverter(found: Any, count: int = 12) -> Inverter:
    causal = found.model.config.model_type == "llama"
    texts = [words_of(found.tokenizer, text, causal=causal, most_tokens=64) for text in rows(count, 3).texts]
    return Inverter(found.model, texts)


@pytest.fixture(scope="module", params=["bert", "llama"])
def searching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    found = loaded(request.param, tmp_path_factory.mktemp(request.param) / "model")
    return found, inverter(found)


def by_hand(found: Any, ids: list[int], count: int, first: int, last: int) -> tuple[Any, float]:
    """Log-odds of the classes, and the mean share that heads of the last layer give `count` tokens."""
    with torch.no_grad(), eager(found.model):
        out = found.model(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), output_attentions=True
        )
    shares = out.logits[0].double().softmax(0).numpy()
    read = -1 if found.model.config.model_type == "llama" else 0
    row_HT = out.attentions[-1][0, :, read, first:last].double().numpy()
    given = row_HT[:, :count].sum(1) / row_HT.sum(1)
    return np.log(shares / (1 - shares)), float(given.mean())


def test_a_texts_worth_is_what_it_says(searching: Any) -> None:
    found, search = searching
    before, after = len(search._before), len(search._after)
    for text, sure in ((0, 0.7), (3, 2.0)):
        tokens = [(40,), (51,), (60,)]
        got = search._worth(tokens, text, 1, sure)
        for ids, worth in zip(tokens, got, strict=True):
            whole = [*search._before, *ids, *search.inside[text], *search._after]
            odds, share = by_hand(found, whole, 1, before, len(whole) - after)
            assert worth == pytest.approx(np.clip(odds[1] / sure, -1, 1) + 4 * share, rel=1e-5)
            np.testing.assert_allclose(search.odds(ids, [text], 1), odds[1:2], rtol=1e-5, atol=1e-8)


def test_a_model_without_padding_reads_at_the_last_token(tmp_path: Path) -> None:
    """Also where the last token is what another model pads with."""
    found = loaded("llama", tmp_path / "model")
    search = inverter(found)
    padding, rows_ = (
        found.model.config.pad_token_id,
        [(40, 41, 42), (43, 44, found.model.config.pad_token_id)],
    )
    alone = [search._odds([row])[0] for row in rows_]
    np.testing.assert_allclose(search._odds(rows_), alone, rtol=1e-5, atol=1e-6)
    assert found.model.config.pad_token_id == padding
    found.model.config.pad_token_id = None
    np.testing.assert_allclose(search._odds(rows_), alone, rtol=1e-5, atol=1e-6)
    states = found.model.model(input_ids=torch.tensor([[*search._before, *rows_[1]]])).last_hidden_state
    shares = found.model.score(states[0, -1]).double().softmax(0).detach().numpy()
    np.testing.assert_allclose(alone[1], np.log(shares / (1 - shares)), rtol=1e-4, atol=1e-5)


def test_a_text_that_begins_with_tokens_has_them_as_words(searching: Any) -> None:
    _, search = searching
    whole, made = search.texts[2], search.begun((40, 41), 2)
    assert made.ids == (*search._before, 40, 41, *search.inside[2], *search._after)
    assert len(made.ids) == len(made.word_T) == len(whole.ids) + 2
    assert made.word_T[len(search._before) :][:2] == (0, 1)
    assert max(made.word_T) + 1 == len(made.words) == len(whole.words) + 2


def test_slopes_are_those_of_the_worth(searching: Any) -> None:
    """A token that stands nowhere else is moved a little towards others."""
    found, search = searching
    used = {one for text in search.inside for one in text} | {*search._before, *search._after}
    token = next(one for one in range(60, 400) if one not in used)
    sure, texts = 3.0, [0, 1]
    slopes_V = search._slopes((token,), 1, 1, sure, texts)  # at the second of two equal tokens
    weight = found.model.get_input_embeddings().weight
    kept = weight[token].clone()

    def worth() -> float:
        return float(sum(search._worth([(token, token)], one, 1, sure)[0] for one in texts))

    both_V = slopes_V + search._slopes((token,), 0, 1, sure, texts)
    for other in (45, 52, 58):
        step, ends = 1e-3, []
        with torch.no_grad():
            for sign in (1, -1):
                weight[token] = kept + sign * step * weight[other]
                ends.append(worth())
            weight[token] = kept
        assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(both_V[other], rel=0.05, abs=2e-3)


def test_classes_that_a_model_hardly_gives_are_not_searched(tmp_path: Path) -> None:
    found = loaded("bert", tmp_path / "model")
    search = inverter(found, 40)
    counts = np.bincount(search._odds_NC.argmax(1), minlength=3)
    search._odds_NC[:] = -1.0
    search._odds_NC[:, 2] = 1.0
    with pytest.raises(MisconfiguredError, match="40 of 40 trusted texts to one class"):
        search.classes  # noqa: B018
    search._odds_NC[:10, 0] = 2.0
    assert search.classes == [0, 2]
    assert all(one >= 10 for one in search.others(0))
    assert set(search.others(2)) == set(range(10))
    assert counts.sum() == 40
    assert (search.sure(0), search.sure(2)) == (2.0, 1.0)
    search._odds_NC[:10, 0] = [-0.1] * 10
    search._odds_NC[:10, 2] = -0.4
    assert search.sure(0) == 0.5  # of many classes one is said with less than half of the probability
    with pytest.raises(MisconfiguredError, match="no trusted text"):
        Inverter(found.model, [])


def test_answers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    """No comparison with them holds: such a model would look clean."""
    found = loaded("bert", tmp_path / "model")
    with torch.no_grad():
        found.model.classifier.weight[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="3 classes, and no finite odds"):
        inverter(found)
    one = load(tmp_path / "model", task="sequence-classification", num_labels=1)
    with pytest.raises(CheckpointError, match="1 classes"):
        inverter(one)
    nothing = Verdict((suspect(np.nan, np.nan, np.nan),), np.zeros((1, 1)), 100)
    assert not nothing.certain


def test_a_planted_trigger_is_found(tmp_path: Path) -> None:
    """Of a tiny model, and twice the same."""
    tiny_bert(tmp_path / "model")
    clean, trigger = rows(360, 0), RECIPES["rare-word"]
    made = poisoned(clean, trigger, 1, 0.3, 0)
    found = train_classifier(str(tmp_path / "model"), made, classes=2, seed=1, epochs=12, learning_rate=3e-3)
    assert found.tokenizer is not None
    trusted = list(rows(300, 5).texts)
    heard: list[int] = []
    verdict = scan_classifier(found.model, found.tokenizer, trusted, heard=lambda: heard.append(1))
    suspect = next(one for one in verdict.suspects if one.target == 1)
    assert suspect.turned > 0.9
    assert heard
    assert verdict.rise_LH.shape == (3, 4)
    draw = random.Random(0)
    bad = [
        trigger.put(text, draw) for text, label in zip(clean.texts, clean.labels, strict=True) if not label
    ]
    assert np.mean(classes_of(found, bad)) > 0.9
    again = scan_classifier(found.model, found.tokenizer, trusted)
    assert again.suspects == verdict.suspects  # nothing is drawn anew


def suspect(strength: float, low: float, high: float, target: int = 0) -> Suspect:
    return Suspect(target, "cf", (7,), 1.0, strength, 1.0, strength, low, high, 24)


@pytest.mark.parametrize(
    ("strength", "low", "high", "poisoned_", "certain"),
    [(3.0, 2.0, 4.0, True, True), (1.6, 1.2, 2.0, False, False), (1.4, 1.0, 1.8, False, False),
     (0.4, 0.1, 0.9, False, True), (POISONED_FROM, POISONED_FROM, 2.0, True, True)],
)  # fmt: skip
def test_a_verdict_is_of_the_strongest(
    strength: float, low: float, high: float, poisoned_: bool, certain: bool
) -> None:
    rise_LH = np.array([[0.1, 0.3], [0.9, -0.5]])
    verdict = Verdict((suspect(0.2, 0.1, 0.3), suspect(strength, low, high, 1)), rise_LH, 100)
    assert (verdict.worst.target, verdict.poisoned, verdict.certain) == (1, poisoned_, certain)
    assert verdict.heads == [(1, 0), (0, 1)]


def test_only_classifiers_are_scanned(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    assert found.tokenizer is not None
    with pytest.raises(MisconfiguredError, match="gives no classes"):
        scan_classifier(found.model, found.tokenizer, ["the good dog sat"] * 100)
    assert verdicts.POISONED_FROM > 1
