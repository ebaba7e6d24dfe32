"""The integers are the mechanism: their sums, their epsilon, their attacker and their sampler."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from transom.errors import MisconfiguredError
from transom.privacy import channel as ch
from transom.privacy.channel import Channel

TOTAL = 2**64

tables = st.integers(2, 6).flatmap(
    lambda width: st.lists(
        st.lists(st.floats(0, 1e3).map(lambda v: v if v > 1e-200 else 0.0), min_size=width, max_size=width),
        min_size=1,
        max_size=5,
    )
)


def ints(channel):
    return [[int(w) for w in row] for row in channel.weights_XY]


@given(tables)
def test_rounding_keeps_sums_supports_and_values(rows):
    p = np.array(rows)
    if np.any((p > 0).sum(axis=1) < 2):
        with pytest.raises(MisconfiguredError):
            Channel.from_probabilities(p)
        return
    for given_row, row in zip(rows, ints(Channel.from_probabilities(p)), strict=True):
        assert sum(row) == TOTAL
        assert [w >= 1 for w in row] == [v > 0 for v in given_row]
        for v, w in zip(given_row, row, strict=True):
            assert abs(w / TOTAL - v / sum(given_row)) < 1e-14


@pytest.mark.parametrize("tiny", [1e-19, 1e-30, 1e-300])
def test_a_possible_output_never_vanishes(tiny):
    row = ints(Channel.from_probabilities(np.array([[1.0, tiny, tiny]])))[0]
    assert sum(row) == TOTAL
    assert min(row) >= 1


@given(st.lists(st.lists(st.integers(1, 2**40), min_size=3, max_size=3), min_size=2, max_size=4))
def test_exact_epsilon_bounds_the_rational_ratio_from_above_and_tightly(rows):
    channel = Channel.from_probabilities(np.array(rows, dtype=np.float64))
    epsilon = ch.exact_epsilon(channel)
    table = ints(channel)
    worst = max(Fraction(x[y], z[y]) for x, z in product(table, table) for y in range(3))
    with localcontext(prec=60):
        claimed, truth = Decimal(epsilon).exp(), Decimal(worst.numerator) / Decimal(worst.denominator)
        assert truth <= claimed <= truth * (1 + Decimal("1e-12"))
    assert (epsilon == 0) == (worst == 1)


def test_different_supports_have_infinite_epsilon():
    assert (
        ch.exact_epsilon(Channel.from_probabilities(np.array([[0.5, 0.5, 0], [0.4, 0.4, 0.2]]))) == math.inf
    )
    both_exclude = Channel.from_probabilities(np.array([[0.5, 0.5, 0], [0.25, 0.75, 0]]))
    assert ch.exact_epsilon(both_exclude) == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "weights",
    [
        np.full((2, 2), 2**63 - 1, dtype=np.uint64),
        np.zeros((2, 2), dtype=np.uint64),
        np.full((2, 4), 2**63, dtype=np.uint64),  # sums to 2 * 2**64, which also wraps to 0
        np.full((2, 2), 0.5),
        np.full(2, 2**63, dtype=np.uint64),
    ],
)
def test_a_table_that_is_no_channel_is_refused(weights):
    with pytest.raises(MisconfiguredError):
        Channel(weights)


@pytest.mark.parametrize("p", [[[1.0]], [[0.5, math.nan]], [[0.5, math.inf]], [[-0.1, 1.1]], [[0.0, 0.0]]])
def test_probabilities_that_are_none_are_refused(p):
    with pytest.raises(MisconfiguredError):
        Channel.from_probabilities(np.array(p))


def test_a_channel_cannot_be_altered():
    channel = Channel.from_probabilities(np.ones((2, 2)))
    with pytest.raises(ValueError, match="read-only"):
        channel.weights_XY[0, 0] = 0


def test_bayes_is_the_best_of_all_guessing_rules():
    rng = np.random.default_rng(0)
    channel = Channel.from_probabilities(rng.random((3, 4)))
    prior = np.array([0.2, 0.5, 0.3])
    rules = product(range(3), repeat=4)
    p = channel.p_XY
    success = {rule: sum(prior[x] * p[x, y] for y, x in enumerate(rule)) for rule in rules}
    attack = ch.bayes(channel, 7 * prior)
    assert attack.success == pytest.approx(max(success.values()), abs=1e-12)
    assert tuple(attack.guess_Y) == max(success, key=success.get)
    assert attack.chance == 0.5


def test_bayes_sits_at_chance_on_a_constant_channel_and_at_one_on_the_identity():
    prior = np.array([1.0, 2.0, 3.0])
    constant = Channel.from_probabilities(np.tile([0.2, 0.3, 0.5], (3, 1)))
    assert ch.bayes(constant, prior).success == pytest.approx(ch.bayes(constant, prior).chance)
    identity = Channel.from_probabilities(np.eye(3) + 1e-12)
    assert ch.bayes(identity, prior).success == pytest.approx(1)


@pytest.mark.parametrize("prior", [[1.0], [1.0, -1.0], [0.0, 0.0], [1.0, math.nan]])
def test_a_prior_that_is_none_is_refused(prior):
    with pytest.raises(MisconfiguredError):
        ch.bayes(Channel.from_probabilities(np.ones((2, 2))), np.array(prior))


def test_summaries_of_known_channels():
    uniform, prior = Channel.from_probabilities(np.ones((4, 4))), np.ones(4)
    assert ch.outputs_used(uniform, prior) == pytest.approx(4)
    assert ch.keep_rate(uniform, prior) == pytest.approx(0.25)
    assert ch.expected_utility(uniform, np.eye(4), prior) == pytest.approx(0.25)
    hub = Channel.from_probabilities(np.tile([1.0, 1e-18, 1e-18], (3, 1)))
    assert ch.outputs_used(hub, np.ones(3)) == pytest.approx(1)
    assert ch.keep_rate(hub, np.array([1.0, 0, 0])) == pytest.approx(1)


def chi_square_p(counts, probabilities):
    expected = probabilities * counts.sum()
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1)


def test_the_sampler_follows_the_table():
    channel = Channel.from_probabilities(np.random.default_rng(1).random((3, 7)) + 0.01)
    inputs = np.repeat(np.arange(3), 100_000)
    outputs = ch.sample(channel, inputs)
    for x in range(3):
        counts = np.bincount(outputs[inputs == x], minlength=7)
        assert chi_square_p(counts, channel.p_XY[x]) > 1e-6


def test_excluded_outputs_are_never_drawn():
    channel = Channel.from_probabilities(np.array([[0, 1, 0, 1, 0.0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 1]]))
    inputs = np.repeat(np.arange(3), 20_000)
    drawn = np.zeros((3, 5), dtype=bool)
    drawn[inputs, ch.sample(channel, inputs)] = True
    assert np.array_equal(drawn, channel.weights_XY > 0)


@pytest.mark.parametrize(
    ("word", "expected"), [(0, 0), (2**62 - 1, 0), (2**62, 2), (TOTAL - 2, 2), (TOTAL - 1, 3)]
)
def test_the_search_is_exact_at_the_edges(monkeypatch, word, expected):
    weights = np.array([[2**62, 0, TOTAL - 1 - 2**62, 1, 0]], dtype=np.uint64)
    monkeypatch.setattr(ch.os, "urandom", lambda size: int(word).to_bytes(8, "little") * (size // 8))
    assert list(ch.sample(Channel(weights), np.zeros(3, dtype=np.int64))) == [expected] * 3


def test_an_input_outside_the_table_is_refused():
    channel = Channel.from_probabilities(np.ones((2, 2)))
    for bad in (-1, 2):
        with pytest.raises(MisconfiguredError):
            ch.sample(channel, np.array([bad]))
    assert len(ch.sample(channel, np.array([], dtype=np.int64))) == 0
