"""The distinguisher catches broken mechanisms on words and vectors; sound ones no more often than it says."""

import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, norm

from transom.audit.attacks import epsilon
from transom.audit.attacks.epsilon import (
    Claim,
    Inputs,
    distinguish,
    epsilon_lower,
    judge,
    learned_event,
    most_certified,
)
from transom.audit.draws import Draws
from transom.errors import MisconfiguredError
from transom.privacy import laws
from transom.privacy.channel import Channel, exact_epsilon, sample
from transom.privacy.mechanisms import em, krr, random_in_group, rnm

SIZE = 20
EPSILON = 1.0
SCORES = np.random.default_rng(0).random((SIZE, SIZE))
GENERATOR = np.random.default_rng(5)
START = GENERATOR.bit_generator.state


@pytest.fixture(autouse=True)
def same_numbers_in_every_run():
    GENERATOR.bit_generator.state = START


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


def most_alarms(runs, rate):
    """How many `runs` at `rate` exceed once in a thousand; twice the rate nearly always does."""
    most = binom.ppf(0.999, runs, rate)
    assert binom.cdf(most, runs, 2 * rate) < 0.01
    return most


@pytest.mark.parametrize(("alpha", "runs"), [(0.05, 1000), (0.4, 150)])
@pytest.mark.parametrize("make", [rnm, krr, random_in_group])
def test_false_alarms_stay_below_the_stated_rate(make, alpha, runs):
    """At its exact epsilon, between its worst inputs, where a sound mechanism is easiest to accuse."""
    channel = make(SCORES, EPSILON)
    pair, claim = worst_pair(channel), exact_epsilon(channel)
    alarms = 0
    for _ in range(runs):
        a, b = (GENERATOR.choice(SIZE, 400, p=channel.p_XY[x]) for x in pair)
        alarms += judge(Draws(a, b), epsilon=claim, alpha=alpha).rejected
    assert alarms <= most_alarms(runs, alpha)


@pytest.mark.parametrize(("alpha", "runs"), [(0.05, 2000), (0.4, 300)])
def test_false_alarms_come_near_the_rate_where_one_bound_decides_in_each_direction(alpha, runs):
    """Each input is given away with probability delta, and never taken for the other.

    The upper bounds, of events that never happen, cannot fail; the two lower ones do at alpha / 4 each.
    """
    delta, alarms = 0.05, 0
    for _ in range(runs):
        leaks = GENERATOR.random((2, 20_000)) < delta
        drawn = Draws(np.where(leaks[0], 1, 0), np.where(leaks[1], 2, 0))
        alarms += judge(drawn, epsilon=0.0, delta=delta, alpha=alpha).rejected
    assert alpha / 8 * runs < alarms <= most_alarms(runs, alpha / 2)


def test_the_lower_bound_is_below_the_truth_and_near_it():
    channel = krr(SCORES, EPSILON)
    finding = check(channel, (0, 1), samples=20_000, alpha=1e-6)
    assert 0.3 < finding.epsilon_lower <= 1
    assert finding.event == f"1 of {SIZE} outputs"
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


@pytest.mark.parametrize(("trials", "p"), [(50, 0.3), (400, 0.02), (1000, 0.5)])
def test_each_bound_fails_as_often_as_it_may_and_no_more(trials, p):
    """Exactly, by summing the binomial law; each is read out where the other is known in closed form."""
    alpha, counts = 0.05, np.arange(trials + 1)
    law = binom.pmf(counts, trials, p)
    none, every = np.zeros_like(counts), np.full_like(counts, trials)
    lower = np.exp(epsilon_lower(counts, none, trials, delta=0.0, alpha=alpha)) * (1 - alpha ** (1 / trials))
    upper = alpha ** (1 / trials) / np.exp(epsilon_lower(every, counts, trials, delta=0.0, alpha=alpha))
    assert alpha / 2 < law[lower > p].sum() <= alpha
    assert alpha / 2 < law[upper < p].sum() <= alpha


def test_the_learned_event_is_the_best_set():
    likelier, other = np.repeat([0, 1, 2], [500, 480, 20]), np.repeat([0, 1, 2], [10, 12, 978])
    event = learned_event(likelier, other, delta=0.0, alpha=0.01)
    assert event.contains(np.arange(4)).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"samples": 3},
        {"alpha": 0.0},
        {"alpha": 1.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"epsilon": math.inf},
        {"delta": 1.0},
        {"epsilon": 4.0, "samples": 100},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings):
    with pytest.raises(MisconfiguredError):
        distinguish(lambda x: x, 0, 1, **{"epsilon": 1.0, **settings})


WIDTH, DELTA = 4, 1e-5
SIGMA = 3.731  # the least Gaussian noise for (1, 1e-5) at sensitivity 1 (Balle and Wang 2018), rounded up
A_D, B_D = np.zeros(WIDTH), np.eye(WIDTH)[3]


def gaussian(centre_D, count, sigma):
    return centre_D + GENERATOR.normal(0, sigma, (count, WIDTH))


def laplace(centre_D, count, scale):
    return centre_D + GENERATOR.laplace(0, scale, (count, WIDTH))


def multivariate_laplace(centre_D, count, scale):
    """Density falling with the distance: what metric privacy adds to an embedding."""
    way_ND = GENERATOR.normal(size=(count, WIDTH))
    way_ND /= np.linalg.norm(way_ND, axis=1, keepdims=True)
    return centre_D + GENERATOR.gamma(WIDTH, scale, (count, 1)) * way_ND


def judged(noise, scale, *, a_D=A_D, b_D=B_D, count=20_000, **claim):
    drawn = Draws(noise(a_D, count, scale), noise(b_D, count, scale))
    return judge(drawn, **{"epsilon": 1.0, "alpha": 1e-4} | claim)


def test_gaussian_noise_is_tight():
    """The constant above is what the name says: its delta at epsilon 1 is 1e-5, and hardly less."""
    shift = 1 / SIGMA
    delta = norm.cdf(shift / 2 - 1 / shift) - math.e * norm.cdf(-shift / 2 - 1 / shift)
    assert 0.97 * DELTA < delta <= DELTA


@pytest.mark.parametrize(
    ("noise", "scale", "claim"),
    [
        (laplace, 1.0, {}),
        (multivariate_laplace, 1.0, {}),
        (gaussian, SIGMA, {"delta": DELTA, "count": 120_000}),
    ],
)
def test_half_the_noise_on_vectors_is_caught(noise, scale, claim):
    assert judged(noise, scale / 2, **claim).rejected
    assert not judged(noise, scale, **claim).rejected


def test_forgotten_clipping_is_caught():
    """Inputs of norm 3 that the noise for norm 1 should have been clipped to."""
    far_D = 3 * B_D
    assert judged(gaussian, SIGMA, b_D=far_D, delta=DELTA, count=60_000).rejected
    clipped_D = far_D / np.linalg.norm(far_D)
    assert not judged(gaussian, SIGMA, b_D=clipped_D, delta=DELTA, count=60_000).rejected


@pytest.mark.parametrize(
    ("b_ND", "name"),
    [
        (lambda x_ND: 2 * x_ND, "norm"),
        (lambda x_ND: np.where(GENERATOR.random((len(x_ND), 1)) < 0.2, np.nan, x_ND), "finite"),
        (lambda x_ND: np.where(GENERATOR.random(x_ND.shape) < 0.05, 50 * x_ND, x_ND), "norm|coordinate"),
        (lambda x_ND: x_ND + 0.9, "difference"),
    ],
)
def test_each_kind_of_difference_has_a_score_that_shows_it(b_ND, name):
    a_ND = GENERATOR.normal(size=(6000, WIDTH))
    finding = judge(Draws(a_ND, b_ND(GENERATOR.normal(size=(6000, WIDTH)))), epsilon=1.0, alpha=1e-3)
    assert finding.rejected
    assert re.search(name, finding.event)


@pytest.mark.parametrize(("noise", "scale", "claim"), [(laplace, 1.0, {}), (gaussian, 0.8, {"delta": 0.3})])
def test_false_alarms_on_vectors_stay_below_the_stated_rate(noise, scale, claim):
    """At the claim that is just true along the one coordinate that differs."""
    alpha, runs = 0.4, 100
    claimed = exact_gaussian(scale, claim["delta"]) if claim else 1.0
    alarms = 0
    for _ in range(runs):
        alarms += judged(noise, scale, count=1000, **claim | {"epsilon": claimed, "alpha": alpha}).rejected
    assert alarms <= most_alarms(runs, alpha)


def exact_gaussian(sigma, delta):
    """Epsilon of Gaussian noise at sensitivity 1 (Balle and Wang 2018, theorem 8)."""
    shift = 1 / sigma
    grid = np.linspace(0, 20, 20_001)
    spent = norm.cdf(shift / 2 - grid / shift) - np.exp(grid) * norm.cdf(-shift / 2 - grid / shift)
    return float(grid[np.argmax(spent <= delta)])


@pytest.mark.parametrize("wild", [1e300, -1e308, np.inf, np.nan])
def test_wild_floats_are_outputs_like_others(wild):
    a_ND, b_ND = GENERATOR.normal(size=(2, 1000, 3))
    a_ND[::2, 1] = wild
    assert judge(Draws(a_ND, b_ND), epsilon=1.0).rejected
    assert not judge(Draws(np.full((900, 2), wild), np.full((900, 2), wild)), epsilon=1.0).rejected


def test_a_single_float_is_a_vector():
    noisy = lambda x: x + GENERATOR.laplace(0, 0.25)  # noqa: E731
    assert distinguish(noisy, 0.0, 1.0, epsilon=1.0, samples=4000).rejected


def found(monkeypatch, place, claimed, samples, only=None):
    """The attack's finding; with `only` as if the budget had allowed so many draws of a coin."""
    monkeypatch.chdir(Path(__file__).parent)
    if only is not None:
        coin = Draws(*(GENERATOR.random((2, only)) < [[0.25], [0.75]]).astype(np.int64))
        monkeypatch.setattr(epsilon, "draw", lambda *_: coin)
    return epsilon.attack(Claim(f"mechanisms:{place}", claimed), None, Inputs("a", "b", samples), 60.0)


def test_outputs_that_never_repeat_show_nothing_and_pass_no_gate(monkeypatch):
    said = r"outputs almost never repeat \(0 of 2000 had been seen before\).*return a coarser value"
    with pytest.raises(MisconfiguredError, match=said):
        found(monkeypatch, "never_twice", 1.0, 2000)
    assert "repeat" not in found(monkeypatch, "coin", 1.2, 2000).note
    assert "repeat" not in found(monkeypatch, "vector_of_one", 1.2, 2000).note


def test_too_few_draws_for_the_budget_are_counted(monkeypatch):
    most = most_certified(300, 0.0, 0.01)
    note = found(monkeypatch, "coin", 1.2, 20_000, only=300).note
    assert note.endswith(f"the budget allowed 300 of 20000 draws, which certify {most:.3g} at most")
    assert "budget" not in found(monkeypatch, "coin", 1.2, 300, only=300).note
    with pytest.raises(MisconfiguredError, match=r"300 of 20000 draws, .* at most; raise --budget"):
        found(monkeypatch, "coin", most, 20_000, only=300)
