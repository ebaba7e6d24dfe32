"""The trigram model is a distribution, its sums over readings are exact, and context adds what it can add."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from transom.audit.attacks import bayes, contextual
from transom.audit.attacks.contextual import guesses, learned
from transom.audit.attacks.language import END, OWN_POWER, START, Place, Trigrams, posteriors
from transom.audit.attacks.word_text import Token, sanitised
from transom.audit.attacks.words import WordData, scored

HUGE = 30.0


def sentence(text):
    return tuple(Token("passed", word) for word in text.split())


@pytest.fixture(scope="module")
def model():
    text = tuple(map(sentence, ["a b c", "a b d", "b c a b", "c c a", "d a b c"]))
    return Trigrams.of(text, ["a", "b", "c", "d", "e"], np.array([0.3, 0.3, 0.2, 0.1, 0.1]))


def test_every_context_has_a_distribution(model):
    every = np.arange(len(model.ids))
    first, second = np.array([model.ids[w] for w in ("a", "e", START)]), every
    total_JK = model.probabilities(first, second, every).sum(axis=2)
    assert total_JK == pytest.approx(np.ones_like(total_JK))


def test_a_seen_triple_is_likelier_and_an_unseen_word_possible(model):
    a, b, c, d, e = (np.array([model.ids[w]]) for w in "abcde")
    assert model.probabilities(a, b, c) > model.probabilities(a, b, d) > model.probabilities(a, b, e) > 0
    assert model.number(Token("passed", "never met")) == model.ids["<unk>"]


@pytest.mark.parametrize("weight", [0.0, 0.4, 1.0])
def test_posteriors_are_those_of_all_readings_summed(model, weight):
    rng = np.random.default_rng(0)
    places = [Place(rng.permutation(5)[:k], rng.random(k) + 0.01) for k in (2, 3, 1, 3)]
    joint = np.zeros([len(place.words_K) for place in places])
    for reading in product(*(range(len(place.words_K)) for place in places)):
        words = [place.words_K[k] for place, k in zip(places, reading, strict=True)]
        chain = [np.array([w]) for w in (model.ids[START], model.ids[START], *words, model.ids[END])]
        steps = [model.probabilities(*chain[i - 2 : i + 1]).item() ** weight for i in range(2, len(chain))]
        own = [model.frequency_V[w] ** max(1 - weight, OWN_POWER) for w in words]
        seen = [place.likelihood_K[k] for place, k in zip(places, reading, strict=True)]
        joint[reading] = np.prod(steps) * np.prod(own) * np.prod(seen)
    found = posteriors(model, places, weight)
    for axis, posterior_K in enumerate(found):
        others = tuple(i for i in range(len(places)) if i != axis)
        assert posterior_K == pytest.approx(joint.sum(axis=others) / joint.sum())


def test_contextual_reads_what_is_hardly_noised(world):
    found = contextual.attack(*world.attacked(world.mechanism("krr", HUGE), world.sentences(60, seed=2)), 60)
    assert found.low > 0.9
    assert found.above_chance


def test_contextual_without_information_is_its_attacker_without_the_outputs(world):
    """Words of one sentence are independent here, so that there is no context either."""
    world = replace(world, own=world.sentences(600, seed=1, context=False))
    plain = world.sentences(300, seed=3, context=False)
    mechanism = world.mechanism("random-in-group", 0.0)
    target, knowledge, data = world.attacked(mechanism, plain)
    found = contextual.attack(target, knowledge, data, 60.0)
    assert found.value == found.baseline
    assert found.value == pytest.approx(0.3, abs=0.04)  # the likeliest place of a group; over four errors


def test_context_adds_to_bayes(world):
    target, knowledge, data = world.attacked(world.mechanism("rnm", 2.0), world.sentences(300, seed=5))
    with_context = contextual.attack(target, knowledge, data, 60.0)
    assert with_context.value > bayes.attack(target, knowledge, data, 1.0).value + 0.03  # 0.1 is expected
    assert with_context.low > max(with_context.baseline, target.channel.chance)


def test_its_interval_covers_what_a_population_of_sentences_gives(world, covers):
    """A population of 800 sentences is read once, so the truth is exact; samples are drawn from it."""
    mechanism = world.mechanism("rnm", 2.0)
    target, knowledge, _ = world.attacked(mechanism, world.sentences(60, seed=6))
    mind = learned(target.channel, knowledge, np.inf)
    plain = world.sentences(800, seed=100)
    seen = sanitised(plain, mechanism, world.words)
    named = np.array(guesses(mind, seen)).reshape(len(plain), -1)
    said = np.array([[token.text for token in one if token.kind == "drawn"] for one in plain])
    truth = float((named == said).mean())
    draw, found = np.random.default_rng(0), []
    for _ in range(300):
        some = draw.integers(0, len(plain), 25)
        part = replace(target, seen=tuple(seen[i] for i in some))
        data = WordData(tuple(plain[i] for i in some))
        found.append(scored("contextual", part, data, named[some].ravel().tolist()))
    assert 0.4 < truth < 0.8
    assert covers([(one.low, one.high) for one in found], truth)
    whole = contextual.attack(part, knowledge, data, np.inf)
    assert (whole.value, whole.low, whole.high) == (found[-1].value, found[-1].low, found[-1].high)


def test_little_text_or_time_is_not_run(world):
    target, knowledge, data = world.attacked(world.mechanism("rnm", 2.0), world.sentences(5, seed=7))
    late = contextual.attack(target, knowledge, data, 0.0)
    assert late.status == "not run"
    assert "--budget" in late.reason
    poor = contextual.attack(target, replace(knowledge, text=knowledge.text[:3]), data, 60.0)
    assert poor.status == "not run"
    assert "got 3" in poor.reason
