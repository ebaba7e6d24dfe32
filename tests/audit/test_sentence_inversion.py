"""Inversion of sentence embeddings: read where they are bare, at chance where they hold nothing."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.audit.attacks import bag, sentence_inversion
from transom.audit.attacks.bigrams import Bigrams
from transom.audit.attacks.rows import Noise, Truth
from transom.audit.attacks.sentence_inversion import Edit, Hunt, edited, invert
from transom.audit.attacks.sentences import Encoder, Public, Sentences, encoder_of, f1, overlap, score
from transom.checkpoint import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.errors import MisconfiguredError
from transom.report.finding import Finding

Texts = tuple[tuple[int, ...], ...]


def texts(count: int, seed: int) -> Texts:
    draw = np.random.default_rng(seed)
    words = np.arange(10, 60)
    return tuple(tuple(draw.choice(words, draw.integers(3, 6), replace=False).tolist()) for _ in range(count))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    """As in trained encoders, words still show in the mean of the states."""
    folder = tiny_bert(tmp_path_factory.mktemp("bert") / "model", hidden_size=96, num_hidden_layers=1)
    made = encoder_of(load(folder))
    made.model.embeddings.word_embeddings.weight.data *= 3
    return made


@pytest.fixture(scope="module")
def public(encoder: Encoder) -> Public:
    return Public(encoder, texts(1200, seed=1))


def findings(target: Sentences, public: Public, data: Truth, budget_s: float = 280.0) -> list[Finding]:
    return [one.attack(target, public, data, budget_s) for one in sentence_inversion.attacks()]


def test_bare_embeddings_are_read_and_better_than_by_their_words(public: Public) -> None:
    plain = texts(24, seed=2)
    target = Sentences(public.encoder.embed(plain))
    words, searched = findings(target, public, Truth(plain, decode=lambda ids: " ".join(map(str, ids))))
    assert words.above_chance
    assert words.value > 0.5  # 0.67 on average
    assert searched.value is not None
    assert searched.value > 0.85  # 0.93 or 0.98, by the order in which a processor adds
    assert searched.low > words.value
    assert "24 of 24 sentences" in searched.note
    assert len(searched.examples) == 10


def chance_of(guesses: Texts) -> float:
    """F1 of guesses that know nothing of `texts`, which draw 3 to 5 of 50 words evenly, 4 in the mean."""
    guessed = float(np.mean([len(set(guess) & set(range(10, 60))) for guess in guesses]))
    named = float(np.mean([len(set(guess)) for guess in guesses]))
    return 2 * (guessed * 4 / 50) / (named + 4)


def without_content(count: int, seed: int) -> torch.Tensor:
    """A perfect defence: directions drawn evenly."""
    return torch.nn.functional.normalize(
        torch.randn(count, 96, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def test_words_of_embeddings_that_hold_nothing_are_read_at_chance(public: Public, covers: Any) -> None:
    trained = bag.train(public.encoder, public.texts, 60.0)
    read = trained.read(trained.log_odds(without_content(4000, seed=0)))
    found = [
        score("x", read[20 * run : 20 * run + 20], Truth(texts(20, seed=100 + run)), note="")
        for run in range(200)
    ]
    values = np.array([one.value for one in found])
    assert values.mean() == pytest.approx(chance_of(read), abs=4 * values.std() / np.sqrt(200))
    assert covers([(one.low, one.high) for one in found], chance_of(read))
    assert np.mean([one.low <= one.baseline <= one.high for one in found]) > 0.92


def test_a_search_for_embeddings_that_hold_nothing_ends_at_chance(
    public: Public, covers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it found is then held against 200 draws of the sentences: the search knew of none of them."""
    monkeypatch.setattr(sentence_inversion, "LEAST_S", 0.3)
    read: list[Texts] = []

    def spy(name: str, guesses: Texts, *rest: Any, **more: Any) -> Finding:
        read.append(guesses)
        return score(name, guesses, *rest, **more)

    monkeypatch.setattr(sentence_inversion, "score", spy)
    target = Sentences(without_content(12, seed=1))
    _, searched = findings(target, public, Truth(texts(12, seed=3)), budget_s=7.0)
    assert searched.low <= searched.baseline <= searched.high
    assert len(read[-1]) >= 2
    truths = (Truth(texts(len(read[-1]), seed=400 + run)) for run in range(200))
    found = [score("x", read[-1], truth, note="") for truth in truths]
    chance = chance_of(read[-1])
    assert np.mean([one.value for one in found]) == pytest.approx(chance, abs=0.02)
    assert covers([(one.low, one.high) for one in found], chance)


@pytest.mark.parametrize("noise", [Noise(), Noise("gaussian", 0.05), Noise("gaussian", 0.1)])
def test_intervals_cover_what_the_words_of_embeddings_give(public: Public, covers: Any, noise: Noise) -> None:
    """Away from chance: a population of 1,500 sentences is read once, so the truth is exact."""
    trained, plain = bag.train(public.encoder, public.texts, 60.0), texts(1500, seed=20)
    values = noise.protect(public.encoder.embed(plain), torch.Generator().manual_seed(2))
    read = trained.read(trained.log_odds(values))
    assert population_covered(read, plain, covers) == pytest.approx(0.57, abs=0.17)


@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_intervals_cover_what_a_search_gives(covers: Any, kept: float) -> None:
    """The scorer that the search ends in, on simulated readings, for a search takes seconds a sentence.

    Some sentences are read whole and others hardly, as searches end; what is not read is a wrong word.
    """
    plain, draw = texts(3000, seed=21), np.random.default_rng(7)
    rates = draw.beta(kept, 1 - kept, len(plain))
    read = tuple(
        tuple(word if draw.random() < rate else int(draw.integers(10, 60)) for word in text)
        for text, rate in zip(plain, rates, strict=True)
    )
    assert population_covered(read, plain, covers) == pytest.approx(kept, abs=0.1)


def population_covered(read: Texts, plain: Texts, covers: Any) -> float:
    """The F1 of a whole population, held by the intervals of samples of 20 sentences."""
    truth = f1(overlap(read, plain))
    draw, found = np.random.default_rng(8), []
    for _ in range(300):
        some = draw.integers(0, len(plain), 20)
        sample = Truth(tuple(plain[i] for i in some))
        found.append(score("x", tuple(read[i] for i in some), sample, note=""))
    assert covers([(one.low, one.high) for one in found], truth)
    return truth


def test_noise_that_drowns_the_embedding_leaves_the_language_to_decide(public: Public) -> None:
    """The weight of the language grows with the variance, so the text found is a likely one."""
    plain = texts(2, seed=4)
    noise = Noise("gaussian", 0.5)
    values = noise.protect(public.encoder.embed(plain), torch.Generator().manual_seed(1))
    trained = bag.train(public.encoder, public.texts, 5.0)
    language = Bigrams.of(((*text, 3) for text in public.texts), 173)
    log_odds = trained.log_odds(values)
    quiet, loud = (
        invert(
            Sentences(values, law), public, trained, log_odds, trained.read(log_odds), time.monotonic() + 2
        )
        for law in (Noise(), noise)
    )
    assert sum(map(language.log_of, loud[0])) > sum(map(language.log_of, quiet[0]))


def test_an_embedding_is_the_mean_of_the_last_states(encoder: Encoder) -> None:
    several = texts(5, seed=5)
    together = encoder.embed(several)
    for text, row in zip(several, together, strict=True):
        with torch.no_grad():
            states = encoder.model(torch.tensor([[2, *text, 3]])).last_hidden_state[0]
        torch.testing.assert_close(row, torch.nn.functional.normalize(states.mean(0), dim=0))


def test_the_slope_is_the_change_of_the_likeness(encoder: Encoder) -> None:
    text, goal = texts(1, seed=6)[0], encoder.embed(texts(1, seed=7))[0]
    slope, rows = encoder.pull(text, goal)
    assert slope.shape == rows.shape == (len(text), 96)
    step = torch.zeros_like(encoder.table_VE)
    step[text[1]] = 1e-3 * slope[1] / slope[1].norm()
    before = float(encoder.embed((text,))[0] @ goal)
    encoder.model.embeddings.word_embeddings.weight.data += step
    after = float(encoder.embed((text,))[0] @ goal)
    encoder.model.embeddings.word_embeddings.weight.data -= step
    assert after - before == pytest.approx(1e-3 * float(slope[1].norm()), rel=0.05)


def test_several_edits_are_made_at_once_where_they_were_meant() -> None:
    draw = np.random.default_rng(8)
    for _ in range(50):
        text = tuple(draw.integers(0, 100, 12).tolist())
        places = sorted(draw.choice(np.arange(0, 12, 2), 3, replace=False).tolist())
        edits = [Edit("replace", places[0], 500), Edit("delete", places[1]), Edit("insert", places[2], 501)]
        wanted = list(text)
        wanted[places[0]] = 500
        wanted.insert(places[2], 501)
        del wanted[places[1]]
        assert edited(text, edits) == edited(text, edits[::-1]) == tuple(wanted)


def test_a_search_never_ends_below_its_start(public: Public) -> None:
    plain = texts(1, seed=9)
    trained = bag.train(public.encoder, public.texts, 5.0)
    goal = public.encoder.embed(plain)
    language = Bigrams.of(public.texts, 173)
    start = trained.read(trained.log_odds(goal))[0]
    hunt = Hunt(public, trained, language, goal[0], trained.log_odds(goal)[0], 5e-4)
    found = hunt.run(start, time.monotonic() + 1)
    first = next(iter(hunt.scores))
    assert set(first) == set(start)
    assert hunt.scores[found] == max(hunt.scores.values()) >= hunt.scores[first]
    assert (10,) * 127 not in hunt.scores


def test_a_text_of_one_word_that_is_worth_little_is_searched_like_others(public: Public) -> None:
    """Its only word can be left out, which gives no text and so no score to compare."""
    trained = bag.train(public.encoder, public.texts, 5.0)
    goal = public.encoder.embed(texts(1, seed=9))
    language = Bigrams.of(public.texts, 173)
    hunt = Hunt(public, trained, language, goal[0], trained.log_odds(goal)[0], 100.0)
    hunt.run((10,), time.monotonic() + 1)
    assert hunt.scores[(10,)] < -1.0
    assert () not in hunt.scores


def test_a_spent_budget_leaves_the_words_only(public: Public) -> None:
    plain = texts(4, seed=10)
    words, searched = findings(Sentences(public.encoder.embed(plain)), public, Truth(plain), budget_s=-1.0)
    assert words.status == "run"
    assert "no time" in searched.reason


def test_f1_counts_each_word_of_a_sentence_once() -> None:
    found = score("x", ((1, 1, 2), (4,)), Truth(((1, 2, 2, 3), (5,))), note="")
    assert found.value == pytest.approx(2 * 2 / (3 + 4))
    assert "precision 0.67, recall 0.50" in found.note
    assert found.baseline == pytest.approx(2 * 2 / 2 / (3 + 4))


def test_texts_of_pairs_have_probabilities_that_sum_to_one() -> None:
    language = Bigrams.of(((0, 1), (0, 2), (2, 2)), 4)
    for before in (0, 3, language.start_id):
        assert np.exp(language.row(before)).sum() == pytest.approx(1.0)
        assert language.log(before, 2) == pytest.approx(float(language.row(before)[2]), rel=1e-5)
    assert language.log_of((0, 1)) == pytest.approx(language.log(4, 0) + language.log(0, 1))


@pytest.mark.parametrize(
    ("values", "plain", "own", "reason"),
    [
        (torch.zeros(1, 7), ((1,),), 9, "the encoder makes"),
        (torch.zeros(96), ((1,),), 9, "the encoder makes"),
        (torch.zeros(0, 96), (), 9, "0 embeddings"),
        (torch.zeros(2, 96), ((1,),), 9, "2 embeddings"),
        (torch.full((1, 96), float("inf")), ((1,),), 9, "finite"),
        (torch.zeros(1, 96), ((1,),), 0, "no text"),
    ],
)
def test_what_does_not_fit_is_not_run(
    encoder: Encoder, values: torch.Tensor, plain: Texts, own: int, reason: str
) -> None:
    for found in findings(Sentences(values), Public(encoder, texts(own, 11)), Truth(plain)):
        assert found.status == "not run"
        assert reason in found.reason


def test_only_a_bert_is_an_encoder(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError):
        encoder_of(load(tiny_llama(tmp_path / "llama")))
