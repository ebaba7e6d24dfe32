"""The distinguisher catches five broken word mechanisms and accuses sound ones no more often than it says."""

import math
import os
from collections import Counter

import numpy as np
import pytest
from scipy.stats import binom

from transom.audit.attacks.epsilon import distinguish, epsilon_lower, learned_event
from transom.errors import MisconfiguredError
from transom.privacy import laws
from transom.privacy.channel import Channel, exact_epsilon, sample
from transom.privacy.mechanisms import em, krr, random_in_group, rnm

SIZE = 20
EPSILON = 1.0
SCORES = np.random.default_rng(0).random((SIZE, SIZE))


def worst_pair(channel):
    """The two inputs between which the table's epsilon is attained."""
    log_p = np.log(channel.p_XY)
    ratio = (log_p[:, None] - log_p[None]).max(axis=2)
    return np.unravel_index(ratio.argmax(), ratio.shape)


def stream(channel, *inputs):
    """A mechanism on one word, drawn ahead in one go for the inputs that will be asked for."""
    ready = {int(x): iter(sample(channel, np.full(30_000, x)).tolist()) for x in inputs}
    return lambda x: next(ready[int(x)])


def check(channel, pair, **settings):
    return distinguish(stream(channel, *pair), *pair, epsilon=EPSILON, **settings)


@pytest.mark.parametrize("make", [rnm, em, krr])
def test_half_the_noise_is_caught(make):
    broken = make(SCORES, 2 * EPSILON)
    finding = check(broken, worst_pair(broken))
    assert finding.rejected
    assert EPSILON < finding.epsilon_lower <= exact_epsilon(broken)


def test_sensitivity_one_where_it_is_two_is_caught():
    """Raw cosines span two units: noise for one unit doubles epsilon."""
    cosines = np.where(np.arange(SIZE) == 0, [[1.0], [-1.0]], [[-1.0], [1.0]])
    broken = Channel.from_probabilities(laws.permute_and_flip(cosines, EPSILON))
    assert exact_epsilon(broken) > 1.5 * EPSILON
    assert check(broken, (0, 1)).rejected
    sound = Channel.from_probabilities(laws.permute_and_flip((1 + cosines) / 2, EPSILON))
    assert not check(sound, (0, 1), alpha=1e-6).rejected


def test_candidates_that_depend_on_the_input_are_caught():
    nearest = np.argsort(-SCORES, axis=1)[:, :5]
    p = np.zeros((SIZE, SIZE))
    np.put_along_axis(p, nearest, 0.2, axis=1)
    broken = Channel.from_probabilities(p)
    assert exact_epsilon(broken) == math.inf
    assert check(broken, (0, 1)).rejected


CUMULATIVE = np.cumsum(rnm(SCORES, EPSILON).p_XY, axis=1)


def uniform():
    return int.from_bytes(os.urandom(7), "little") / 2**56


def draw(word, random):
    return min(int(np.searchsorted(CUMULATIVE[word], random, side="right")), SIZE - 1)


def two_words(words):
    return tuple(draw(word, uniform()) for word in words)


def two_words_fixed_seed(words):
    """The seed is unknown to the attacker, but each word starts from it again."""
    seed = uniform()
    return tuple(draw(word, seed) for word in words)


def two_words_memo_by_word(words):
    memo = {word: draw(word, uniform()) for word in words}
    return tuple(memo[word] for word in words)


@pytest.mark.parametrize("broken", [two_words_fixed_seed, two_words_memo_by_word])
def test_shared_draws_are_caught_on_two_words_and_only_there(broken):
    on_two = distinguish(broken, (0, 0), (0, 1), epsilon=EPSILON, samples=8000)
    assert on_two.rejected
    on_one = distinguish(broken, (0,), (1,), epsilon=EPSILON, samples=8000, alpha=1e-6)
    assert not on_one.rejected
    assert not distinguish(two_words, (0, 0), (0, 1), epsilon=EPSILON, samples=8000, alpha=1e-6).rejected


@pytest.mark.parametrize("alpha", [0.05, 0.4])
@pytest.mark.parametrize("make", [rnm, krr, random_in_group])
def test_false_alarms_stay_below_the_stated_rate(make, alpha):
    """At its exact epsilon, between its worst inputs, where a sound mechanism is easiest to accuse."""
    channel = make(SCORES, EPSILON)
    pair, runs = worst_pair(channel), 120
    claim = exact_epsilon(channel)
    alarms = 0
    for _ in range(runs):
        mechanism = stream(channel, *pair)
        alarms += distinguish(mechanism, *pair, epsilon=claim, samples=400, alpha=alpha).rejected
    assert alarms <= binom.ppf(1 - 1e-6, runs, alpha)


def test_the_lower_bound_is_below_the_truth_and_near_it():
    channel = krr(SCORES, EPSILON)
    finding = check(channel, (0, 1), samples=20_000, alpha=1e-6)
    assert 0.3 < finding.epsilon_lower <= 1
    assert finding.event_size == 1
    assert finding.hits[0] > finding.hits[1]
    assert finding.trials == 10_000


def test_delta_is_granted():
    """An output that gives the input away with probability 0.05: infinite epsilon, but delta 0.05."""
    leaky = lambda x: x if uniform() < 0.05 else "nothing"  # noqa: E731
    assert distinguish(leaky, "a", "b", epsilon=EPSILON, samples=8000).rejected
    assert not distinguish(leaky, "a", "b", epsilon=EPSILON, delta=0.05, samples=8000, alpha=1e-6).rejected
    assert distinguish(leaky, "a", "b", epsilon=EPSILON, delta=0.01, samples=8000).rejected


def test_both_directions_are_tried():
    """`b` sometimes says so and `a` never does: only events that are likelier on `b` tell."""
    one_sided = lambda x: "b" if x == "b" and uniform() < 0.1 else "nothing"  # noqa: E731
    for a, b, direction in (("a", "b", "b"), ("b", "a", "a")):
        finding = distinguish(one_sided, a, b, epsilon=EPSILON, samples=4000)
        assert finding.rejected
        assert finding.direction == direction


@pytest.mark.parametrize(("trials", "p"), [(50, 0.3), (400, 0.02)])
def test_the_bounds_cover(trials, p):
    """Exact coverage by summing the binomial law over all pairs of counts, at equal true probabilities."""
    counts = np.arange(trials + 1)
    law = binom.pmf(counts, trials, p)
    hits, other = np.meshgrid(counts, counts, indexing="ij")
    claimed = epsilon_lower(hits.ravel(), other.ravel(), trials, delta=0.0, alpha=0.05)
    wrong = (np.outer(law, law).ravel() * (claimed > 0)).sum()
    assert wrong <= 0.1


def test_the_learned_event_is_the_best_set():
    event = learned_event(Counter(x=500, y=480, z=20), Counter(x=10, y=12, z=978), delta=0.0, alpha=0.01)
    assert event == {"x", "y"}


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 3},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"delta": 1.0},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(MisconfiguredError):
        distinguish(lambda x: x, 0, 1, **{"epsilon": 1.0, **settings})
