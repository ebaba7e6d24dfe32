"""SANTEXT+, CUSTEXT+ and TEM follow their papers' laws, and what is reported of them is what they do."""

import math

import numpy as np
import pytest
from scipy.stats import chi2

from transom.errors import MisconfiguredError
from transom.privacy import relaxed
from transom.privacy.channel import Channel, bayes, exact_epsilon
from transom.privacy.mechanisms import build
from transom.privacy.partition import Partition

WORDS = 40
VECTORS = np.random.default_rng(0).normal(size=(WORDS, 5))
DISTANCES = np.linalg.norm(VECTORS[:, None] - VECTORS, axis=2)
FREQUENCY = 1.0 / np.arange(1, WORDS + 1)  # word 0 is the most frequent
SANTEXT = relaxed.santext_plus(VECTORS, 2.0, frequency_V=FREQUENCY, sensitive_share=1.0)
SANTEXT_PLUS = relaxed.santext_plus(VECTORS, 2.0, frequency_V=FREQUENCY)
TEM = relaxed.tem(VECTORS, 2.0, gamma=2.5)
ALL = {"santext": SANTEXT, "santext+": SANTEXT_PLUS, "tem": TEM}


def table(mechanism):
    p = np.zeros((WORDS, WORDS))
    for word in range(WORDS):
        ids, weights = mechanism.row(word)
        assert sum(int(w) for w in weights) == 2**64
        p[word, ids] = weights / 2.0**64
    return p


def softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def test_santext_is_the_exponential_of_distance():
    np.testing.assert_allclose(table(SANTEXT), softmax(-DISTANCES), atol=1e-14)


def test_santext_plus_keeps_frequent_words_and_draws_sensitive_ones():
    p, half = table(SANTEXT_PLUS), WORDS // 2
    drawn = softmax(-DISTANCES[:, half:])
    np.testing.assert_allclose(p[half:, half:], drawn[half:], atol=1e-14)
    np.testing.assert_allclose(p[:half, half:], 0.2 * drawn[:half], atol=1e-14)
    np.testing.assert_allclose(p[:half, :half], 0.8 * np.eye(half), atol=1e-14)


def test_tem_has_one_element_that_stands_for_the_rest():
    """The algorithm as published: words within gamma, and an element that draws uniformly from the rest."""
    epsilon, gamma = 2.0, 2.5
    expected = np.zeros((WORDS, WORDS))
    for word in range(WORDS):
        near = DISTANCES[word] <= gamma
        rest = int((~near).sum())
        assert 0 < rest < WORDS - 1
        scores = np.append(-DISTANCES[word, near], -gamma + 2 / epsilon * math.log(rest))
        p = softmax(epsilon / 2 * scores[None])[0]
        expected[word, near], expected[word, ~near] = p[:-1], p[-1] / rest
    np.testing.assert_allclose(table(TEM), expected, atol=1e-14)


@pytest.mark.parametrize("mechanism", [SANTEXT, TEM], ids=["santext", "tem"])
def test_metric_epsilon_bounds_every_pair_at_its_distance(mechanism):
    log_p = np.log(table(mechanism))
    ratio = np.abs(log_p[:, None] - log_p[None]).max(axis=2)
    assert np.all(ratio <= mechanism.guarantee().epsilon * DISTANCES + 1e-9)
    assert mechanism.guarantee().kind == "metric-dp"


@pytest.mark.parametrize("chunk_entries", [WORDS, 7 * WORDS, 2**20])
@pytest.mark.parametrize("mechanism", ALL.values(), ids=ALL)
def test_chunks_change_nothing(monkeypatch, mechanism, chunk_entries):
    monkeypatch.setattr(relaxed, "_CHUNK_ENTRIES", chunk_entries)
    p, prior = table(mechanism), np.random.default_rng(1).random(WORDS)
    whole = Channel.from_probabilities(p)
    ours, expected = mechanism.bayes(prior), bayes(whole, prior)
    assert ours.success == pytest.approx(expected.success, abs=1e-12)
    assert ours.chance == expected.chance
    assert np.array_equal(ours.guess_Y, expected.guess_Y)
    sanitised = Channel.from_probabilities(p[mechanism.sensitive_V])
    assert mechanism.exact_epsilon() == pytest.approx(exact_epsilon(sanitised), abs=1e-9)
    assert np.all(mechanism.sample(np.arange(WORDS)) < WORDS)


def test_no_epsilon_covers_the_words_that_santext_plus_keeps():
    assert math.isfinite(SANTEXT_PLUS.exact_epsilon())
    assert exact_epsilon(Channel.from_probabilities(table(SANTEXT_PLUS))) == math.inf
    assert SANTEXT_PLUS.guarantee().adjacency == "any two sensitive words"


@pytest.mark.parametrize("mechanism", ALL.values(), ids=ALL)
def test_the_sampler_follows_the_rows(mechanism):
    words = np.random.default_rng(2).permutation(np.repeat(np.arange(WORDS), 4000))
    outputs, p = mechanism.sample(words), table(mechanism)
    statistic = freedom = 0.0
    for word in range(WORDS):
        counts = np.bincount(outputs[words == word], minlength=WORDS)
        assert not counts[p[word] == 0].any()
        used = p[word] * 4000 > 1
        statistic += ((counts - 4000 * p[word])[used] ** 2 / (4000 * p[word])[used]).sum()
        freedom += used.sum() - 1
    # Cells expected below one are left out, which only loosens the degrees of freedom a little.
    assert chi2.sf(statistic, freedom) > 1e-6


def test_words_of_prior_zero_cost_and_count_nothing():
    prior = np.zeros(WORDS)
    prior[[3, 30]] = 1.0
    attack = TEM.bayes(prior)
    assert set(attack.guess_Y) <= {3, 30}
    assert 0.5 <= attack.success <= 1
    passed = TEM.bayes(prior, pass_share=0.4)
    assert passed.success == pytest.approx(0.4 + 0.6 * attack.success)
    assert passed.chance == pytest.approx(0.4 + 0.6 * 0.5)


def test_more_epsilon_recovers_more_and_none_at_all_recovers_chance():
    rates = [relaxed.tem(VECTORS, e, gamma=9.0).bayes(FREQUENCY).success for e in (1e-9, 1.0, 4.0, 20.0)]
    assert rates == sorted(rates)
    assert rates[0] == pytest.approx(TEM.bayes(FREQUENCY).chance, abs=1e-6)
    assert rates[-1] > 0.9


def test_an_enormous_epsilon_leaves_every_word_possible():
    sharp = relaxed.tem(VECTORS, 1e4, gamma=9.0)
    ids, weights = sharp.row(5)
    assert len(ids) == WORDS
    assert int(weights.min()) == 1
    assert 44 < sharp.exact_epsilon() < 45  # ln 2**64: the table's own floor


def test_custext_stretches_each_row_and_does_not_calibrate():
    scores = np.array([[255, 100, 150], [100, 255, 120], [150, 120, 255]], dtype=np.uint8)
    space = Partition(np.array([0, 3], dtype=np.int32), scores.ravel())
    built = build("custext+", space, 2.0)
    low = scores.min(axis=1, keepdims=True)
    stretched = (scores - low) / (255.0 - low)
    np.testing.assert_allclose(built.channel(0).p_XY, softmax(stretched), atol=1e-14)
    assert 0 < built.exact_epsilon() < 1.999
    assert built.guarantee().epsilon == 2.0
    flat = Partition(np.array([0, 2], dtype=np.int32), np.full(4, 9, dtype=np.uint8))
    assert build("custext+", flat, 2.0).exact_epsilon() == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: relaxed.tem(VECTORS, 1.0, gamma=0.0),
        lambda: relaxed.tem(VECTORS, -1.0, gamma=1.0),
        lambda: relaxed.tem(VECTORS, math.inf, gamma=1.0),
        lambda: relaxed.tem(np.full((3, 2), math.nan), 1.0, gamma=1.0),
        lambda: relaxed.tem(np.ones(3), 1.0, gamma=1.0),
        lambda: relaxed.santext_plus(VECTORS, 1.0, frequency_V=FREQUENCY[1:]),
        lambda: relaxed.santext_plus(VECTORS, 1.0, frequency_V=FREQUENCY, keep=1.0),
        lambda: relaxed.santext_plus(VECTORS, 1.0, frequency_V=FREQUENCY, sensitive_share=0.0),
        lambda: relaxed.custext_plus(
            Partition(np.array([0, 2], dtype=np.int32), np.ones(4, dtype=np.uint8)), 0.0
        ),
        lambda: TEM.bayes(np.ones(WORDS), pass_share=-0.1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(MisconfiguredError):
        make()
