"""Attacks on sanitised words read an undefended text, and know no more than chance of a perfect defence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from transom.audit.attacks import bayes
from transom.audit.attacks.word_text import (
    Token,
    drawn,
    observe,
    own_sentences,
    prior_of,
    sanitised,
    spelled,
    whole_sentences,
    with_unseen,
    without_overlap,
)
from transom.audit.attacks.words import WordData, blind, read_channel, scored
from transom.errors import MisconfiguredError
from transom.privacy.mechanisms import build
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer

HUGE = 30.0


def test_bayes_reads_what_is_hardly_noised(world):
    target, knowledge, data = world.attacked(world.mechanism("krr", HUGE), world.sentences(60, seed=2))
    found = bayes.attack(target, knowledge, data, 1.0)
    assert found.low > 0.9
    assert found.above_chance
    assert found.n == 600


def test_bayes_is_at_chance_where_outputs_say_nothing(world):
    mechanism = world.mechanism("random-in-group", 0.0)
    target, knowledge, data = world.attacked(mechanism, world.sentences(200, seed=3))
    found = bayes.attack(target, knowledge, data, 1.0)
    assert found.value == found.baseline
    assert target.channel.optimum == pytest.approx(target.channel.chance)
    assert found.value == pytest.approx(target.channel.chance, abs=0.06)  # over four standard errors


@pytest.mark.parametrize("name", ["rnm", "krr", "custext+"])
def test_the_measured_share_is_the_exact_optimum_and_intervals_cover_it(world, covers, name):
    """On text drawn from the prior itself, sentence after sentence."""
    mechanism = world.mechanism(name, 2.0)
    rng = np.random.default_rng(4)
    template, knowledge, _ = world.attacked(mechanism, world.sentences(5, seed=4))
    found = []
    for _ in range(100):
        words = rng.choice(len(world.words), (40, 8), p=knowledge.prior_V).tolist()
        plain = tuple(tuple(Token("drawn", world.words[w], w) for w in row) for row in words)
        target = replace(template, seen=sanitised(plain, mechanism, world.words))
        found.append(bayes.attack(target, knowledge, WordData(plain), 1.0))
    optimum = target.channel.optimum
    assert covers([(one.low, one.high) for one in found], optimum)
    assert np.mean([one.value for one in found]) == pytest.approx(optimum, abs=0.012)


def test_no_context_free_guess_beats_bayes(world):
    target, knowledge, data = world.attacked(world.mechanism("rnm", 3.0), world.sentences(300, seed=5))
    best = bayes.attack(target, knowledge, data, 1.0).value
    kept = scored("kept", target, data, [t.text for t in drawn(target.seen)]).value
    assert best >= max(kept, scored("blind", target, data, blind(target)).value) - 0.01


def distances(keep: float, sensitive_share: float):
    """SANTEXT+ over forty words on a line; the first half is frequent."""
    vectors_VE = np.arange(40.0)[:, None]
    return build(
        "santext+",
        vectors_VE,
        2.0,
        frequency_V=np.linspace(1, 0.1, 40),
        keep=keep,
        sensitive_share=sensitive_share,
    )


def test_a_column_over_a_vocabulary_is_that_of_the_integers():
    mechanism, prior_V = distances(0.8, 0.5), np.linspace(2, 1, 40) / 60
    channel = read_channel([f"w{i}" for i in range(40)], mechanism, [25, 39], prior_V)
    for output in (25, 39):
        words_K, likelihood_K = channel.likelihood(output)
        assert sorted(words_K) == list(range(40))
        for word, likelihood in zip(words_K, likelihood_K, strict=True):
            outputs, weights = mechanism.row(int(word))
            expected = weights[outputs == output][0] / 2.0**64
            assert likelihood == pytest.approx(expected, rel=1e-9)


def test_only_the_best_candidates_are_kept(monkeypatch):
    from transom.audit.attacks import words

    mechanism, prior_V = distances(0.8, 0.5), np.linspace(2, 1, 40) / 60
    names = [f"w{i}" for i in range(40)]
    whole = read_channel(names, mechanism, [30], prior_V).columns[30]
    monkeypatch.setattr(words, "MAX_CANDIDATES", 7)
    monkeypatch.setattr(words, "_BLOCK_ROWS", 10)
    few = read_channel(names, mechanism, [30], prior_V).columns[30]
    joint = dict(zip(whole.words_K.tolist(), prior_V[whole.words_K] * whole.likelihood_K, strict=True))
    assert set(few.words_K.tolist()) == set(sorted(joint, key=joint.get, reverse=True)[:7])


def test_the_optimum_leaves_out_what_is_visibly_kept():
    """Where every frequent word is kept with certainty but for a hair, the rest is as if it were alone."""
    mechanism, even_V = distances(1 - 1e-12, 0.5), np.full(40, 1 / 40)
    channel = read_channel([str(i) for i in range(40)], mechanism, [30], even_V)
    alone_V = np.where(np.arange(40) < 20, 0.0, 1 / 20)
    assert channel.optimum == pytest.approx(mechanism.bayes(alone_V).success, abs=1e-6)
    assert channel.chance == pytest.approx(1 / 20, abs=1e-6)
    assert channel.columns[30].unseen_K[0] >= 20


def test_text_becomes_tokens_as_the_policy_treats_it():
    policy = load_policy()
    lines = ["the Film in 1999 is superb !", " ", "i saw it"]
    seen, plain = observe(Sanitizer(policy, None, 30.0), lines)
    own = own_sentences(policy, lines)
    assert len(seen) == len(plain) == len(own) == 2
    kinds = [token.kind for token in seen[0]]
    assert kinds == [token.kind for token in plain[0]] == [token.kind for token in own[0]]
    assert plain[0][3].text == "1999"
    assert seen[0][3].text == own[0][3].text == "[DATE_1]"
    assert own[0][-2] == plain[0][-2] == Token("drawn", "superb", policy.word_ids["superb"])
    assert seen[0][0] == Token("passed", "the")
    assert all(policy.words[token.word] == token.text for token in drawn(seen))


def test_the_prior_counts_the_text_and_keeps_every_word_possible():
    text = ((*tuple(Token("drawn", "a", 0) for _ in range(9)), Token("passed", ",")),)
    prior_V = prior_of(text, np.array([0.0, 1.0, 0.0, 0.0]))
    assert prior_V.sum() == pytest.approx(1.0)
    assert prior_V[0] > 0.85
    assert prior_V[1] > prior_V[2] == prior_V[3] > 0


def test_unseen_words_get_what_words_seen_once_have():
    share_V = with_unseen(np.array([8, 1, 1, 0, 0, 0]), np.array([0.5, 0.1, 0.1, 0.2, 0.1, 0.0]))
    assert share_V.sum() == pytest.approx(1.0)
    assert share_V[3:].sum() == pytest.approx(3 / 11)  # two words of ten were met once
    assert share_V[3] == pytest.approx(2 * share_V[4], rel=0.02)
    assert share_V[4] > share_V[5] > 0
    assert share_V[:3] == pytest.approx(np.array([0.8, 0.1, 0.1]) * 8 / 11)


def test_attacked_sentences_are_taken_out_of_the_attackers_text():
    def sentence(text):
        return tuple(Token("passed", word) for word in text.split())

    attacked = (sentence("a b c d e f g h i j"), sentence("short one"))
    own = tuple(
        map(sentence, ["short one", "short one here", "x b c d e f g h i y", "x b c d e f g h y", "new"])
    )
    assert without_overlap(own, attacked) == (own[1], own[3], own[4])


def test_parts_of_longer_sentences_are_left_out():
    def sentence(text):
        return tuple(Token("passed", word) for word in text.split())

    text = tuple(map(sentence, ["b c", "a b c d", "c b", "a b c d", "x"]))
    assert set(whole_sentences(text)) == {text[1], text[2], text[4]}
    assert len(whole_sentences(text)) == 3


def test_placeholders_lose_their_number():
    assert spelled(Token("placeholder", "[TERM_12]")) == "[TERM]"
    assert spelled(Token("passed", "a_b")) == "a_b"


def test_a_word_that_is_visibly_kept_counts_as_passed():
    mechanism = distances(0.9, 0.5)
    plain = ((tuple(Token("drawn", f"w{i}", i) for i in range(40))),) * 50
    seen = sanitised(plain, mechanism, [f"w{i}" for i in range(40)])
    for one, other in zip(seen, plain, strict=True):
        for after, before in zip(one, other, strict=True):
            assert after.kind == "drawn" or after.text == before.text
            assert (after.word >= 20) == (after.kind == "drawn")
    kept = sum(token.kind == "passed" for sentence in seen for token in sentence)
    assert 800 < kept < 980  # nine tenths of the 1,000 frequent ones


def test_what_does_not_belong_together_is_refused(world):
    target, knowledge, data = world.attacked(world.mechanism("krr", 1.0), world.sentences(5, seed=6))
    with pytest.raises(MisconfiguredError, match="token by token"):
        bayes.attack(target, knowledge, WordData(data.plain[:-1]), 1.0)
    with pytest.raises(MisconfiguredError, match="guesses"):
        scored("few", target, data, ["x"])
    with pytest.raises(MisconfiguredError, match="was not seen"):
        target.channel.likelihood(10**6)
    with pytest.raises(MisconfiguredError, match="repeats"):
        replace(target, repeats_RN=np.zeros((2, 3), dtype=np.int64))
    nothing = replace(target, seen=((Token("passed", ","),),))
    with pytest.raises(MisconfiguredError, match="drawn"):
        bayes.attack(nothing, knowledge, WordData(nothing.seen), 1.0)
    with pytest.raises(MisconfiguredError, match="cannot be read"):
        read_channel(world.words, NoKnownLaw(), [0], np.ones(40))


class NoKnownLaw:
    """A mechanism that is neither on groups nor on distances."""

    def bayes(self, prior_V, pass_share=0.0):
        raise AssertionError


def test_examples_show_whole_sentences_and_stay_out_of_the_repr(world):
    target, knowledge, data = world.attacked(world.mechanism("krr", HUGE), world.sentences(20, seed=7))
    found = bayes.attack(target, knowledge, data, 1.0)
    assert len(found.examples) == 10
    assert found.examples[0].original == " ".join(token.text for token in data.plain[0])
    assert found.examples[0].recovered == found.examples[0].original
    assert found.examples[0].original not in repr(found) + repr(target) + repr(data) + repr(knowledge)
