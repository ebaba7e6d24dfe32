"""In-group mechanisms keep their claims by their own integers, follow their laws, are sampled as stated."""

import dataclasses
import math
import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import chi2, chi2_contingency

from transom.errors import MisconfiguredError
from transom.privacy import laws
from transom.privacy import mechanisms as mech
from transom.privacy import partition as partition_module
from transom.privacy.channel import bayes, exact_epsilon, expected_utility, keep_rate, outputs_used, sample
from transom.privacy.partition import LARGEST_GROUP, Partition

SIZE = 8
UNIFORM = np.ones(SIZE) / SIZE
CALIBRATED = ("rnm", "rnm-laplace", "em")
CLAIMS = [(name, epsilon) for name in mech.IN_GROUP for epsilon in (0.0, 1e-4, 0.1, 1.0, 3.0, 8.0, 14.0)]


def similarities(seed, size=SIZE, coherence=0.5):
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(size, 50)) * coherence + rng.normal(size=50)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.clip((1 + v @ v.T) / 2, 0, 1)


def partition(sizes=(3, 20, 2, 8), seed=0):
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
    scores = [np.round(255 * similarities(rng.integers(2**31), k)).astype(np.uint8).ravel() for k in sizes]
    return Partition(starts, np.concatenate(scores))


HOSTILE = {
    "random": np.random.default_rng(0).random((SIZE, SIZE)),
    "worst case": np.vstack([np.eye(SIZE)[:1], 1 - np.eye(SIZE)[:1], np.zeros((SIZE - 2, SIZE))]),
    "constant": np.full((SIZE, SIZE), 0.3),
    "similar": similarities(3),
}


@pytest.mark.parametrize("scores", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize(("name", "epsilon"), CLAIMS)
def test_the_integers_keep_the_claim(name, epsilon, scores):
    channel = mech.IN_GROUP[name](scores, epsilon)
    assert exact_epsilon(channel) <= epsilon
    assert channel.weights_XY.min() >= 1
    assert all(sum(int(w) for w in row) == 2**64 for row in channel.weights_XY)


@pytest.mark.parametrize("epsilon", [0.01, 0.5, 2.0, 8.0])
@pytest.mark.parametrize("name", CALIBRATED)
def test_calibration_spends_the_budget(name, epsilon):
    for scores in (HOSTILE["random"], HOSTILE["similar"], np.eye(SIZE), similarities(1, 2)):
        assert epsilon - 1e-4 < exact_epsilon(mech.IN_GROUP[name](scores, epsilon)) <= epsilon


@pytest.mark.parametrize("name", mech.IN_GROUP)
def test_epsilon_zero_is_uniform_and_tells_nothing(name):
    channel = mech.IN_GROUP[name](HOSTILE["random"], 0.0)
    assert exact_epsilon(channel) == 0
    assert bayes(channel, UNIFORM).success == pytest.approx(1 / SIZE)


def enumerate_permute_and_flip(scores, temperature):
    """Walk every order of the candidates, flipping one coin each, as the algorithm is written down."""
    p = np.exp(temperature / 2 * (scores - scores.max()))
    out = np.zeros(len(scores))
    orders = list(permutations(range(len(scores))))
    for order in orders:
        reached = 1 / len(orders)
        for candidate in order:
            out[candidate] += reached * p[candidate]
            reached *= 1 - p[candidate]
    return out


@pytest.mark.parametrize("size", [2, 3, 4, 6])
@pytest.mark.parametrize("temperature", [0.0, 1.0, 7.0, 40.0])
def test_permute_and_flip_equals_its_enumeration(size, temperature):
    scores = np.random.default_rng(size).random(size)
    closed = laws.permute_and_flip(scores[None], temperature)[0]
    np.testing.assert_allclose(closed, enumerate_permute_and_flip(scores, temperature), atol=1e-13)


def test_permute_and_flip_of_three_scores():
    p = laws.permute_and_flip(np.array([[0.0, 1.0, 2.0]]), 2.0)[0]
    np.testing.assert_allclose(p, [0.059, 0.176, 0.765], atol=5e-4)


def test_permute_and_flip_agrees_with_opendp():
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.linf_distance(T=float)
    theirs = dp.m.make_noisy_max(*space, dp.max_divergence(), scale=1.0)
    assert theirs.map(1.0) == 2.0  # the same epsilon as temperature 2 has at sensitivity 1
    drawn = np.bincount([theirs([0.0, 1.0, 2.0]) for _ in range(20_000)], minlength=3)
    expected = 20_000 * laws.permute_and_flip(np.array([[0.0, 1.0, 2.0]]), 2.0)[0]
    assert chi2.sf(((drawn - expected) ** 2 / expected).sum(), 2) > 1e-6
    channel = mech.Channel.from_probabilities(expected[None])
    ours = np.bincount(sample(channel, np.zeros(20_000, dtype=np.int64)), minlength=3)
    assert chi2_contingency(np.array([drawn, ours])).pvalue > 1e-6


def laplace_by_adaptive_quadrature(scores, temperature, i):
    s = temperature / 2 * scores
    density = lambda z: 0.5 * math.exp(-abs(z))  # noqa: E731
    below = lambda z: 0.5 * math.exp(z) if z < 0 else 1 - 0.5 * math.exp(-z)  # noqa: E731
    others = np.delete(s, i)
    value, _ = quad(
        lambda z: density(z - s[i]) * math.prod(below(z - other) for other in others),
        s.min() - 40,
        s.max() + 40,
        points=sorted(s),
        limit=500,
        epsabs=1e-11,
    )
    return value


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_laplace_selection_equals_adaptive_quadrature(temperature):
    for scores in (np.random.default_rng(0).random(6), np.array([0.0, 0, 0, 1]), np.array([0.0, 1, 1, 1])):
        law = laws.laplace_argmax(scores[None], temperature)[0]
        expected = [laplace_by_adaptive_quadrature(scores, temperature, i) for i in range(len(scores))]
        np.testing.assert_allclose(law, expected, atol=1e-6)


@pytest.mark.parametrize("law", [laws.permute_and_flip, laws.laplace_argmax, laws.exponential])
def test_the_largest_group_takes_little_memory(law):
    scores = similarities(0, LARGEST_GROUP)
    tracemalloc.start()
    p = law(scores, 4.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_allclose(p.sum(axis=1), 1.0, atol=1e-6)
    assert peak < 64 * 2**20


@pytest.mark.parametrize("law", [laws.permute_and_flip, laws.laplace_argmax, laws.exponential])
def test_the_hottest_law_is_finite_and_takes_the_largest_score(law):
    p = law(np.array([[0.0, 0.25, 0.5, 1.0]]), 2 * mech._HOTTEST)
    assert np.isfinite(p).all()
    assert (p > 0).all()
    assert p[0, 3] / p.sum() == pytest.approx(1.0)


def test_a_group_beyond_the_bound_is_refused_before_any_work():
    size = LARGEST_GROUP + 1
    with pytest.raises(MisconfiguredError, match=f"at most {LARGEST_GROUP} words, the largest has {size}"):
        Partition(np.array([0, size], dtype=np.int32), np.zeros(size**2, dtype=np.uint8))
    for name in mech.IN_GROUP:
        with pytest.raises(MisconfiguredError, match=f"at most {LARGEST_GROUP} words"):
            mech.IN_GROUP[name](np.eye(size), 1.0)


def test_permute_and_flip_is_never_worse_than_the_exponential_mechanism():
    for seed in range(20):
        scores = np.random.default_rng(seed).random((6, 6))
        gain = laws.permute_and_flip(scores, 3.0) - laws.exponential(scores, 3.0)
        assert np.all((gain * scores).sum(axis=1) >= -1e-12)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.0, 3.0])
def test_optimal_beats_every_other_at_its_objective(epsilon):
    for scores in (HOSTILE["random"], HOSTILE["similar"]):
        best = expected_utility(mech.optimal(scores, epsilon), scores, UNIFORM)
        for name in ("rnm", "rnm-laplace", "em", "krr", "random-in-group"):
            assert best >= expected_utility(mech.IN_GROUP[name](scores, epsilon), scores, UNIFORM) - 1e-8


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
def test_krr_has_the_best_keep_rate(epsilon):
    best = keep_rate(mech.krr(HOSTILE["random"], epsilon), UNIFORM)
    assert best == pytest.approx(math.exp(epsilon) / (math.exp(epsilon) + SIZE - 1), abs=1e-8)
    assert keep_rate(mech.optimal(np.eye(SIZE), epsilon), UNIFORM) == pytest.approx(best, abs=1e-8)
    for name in CALIBRATED:
        assert keep_rate(mech.IN_GROUP[name](HOSTILE["similar"], epsilon), UNIFORM) <= best + 1e-9


def test_optimal_serves_the_prior_and_the_keep_rate_asked_for():
    scores = HOSTILE["similar"]
    prior = np.arange(1.0, SIZE + 1)
    for_prior, for_uniform = mech.optimal(scores, 1.0, prior_K=prior), mech.optimal(scores, 1.0)
    assert expected_utility(for_prior, scores, prior) >= expected_utility(for_uniform, scores, prior) - 1e-9
    free, held = mech.optimal(scores, 1.0), mech.optimal(scores, 1.0, min_keep_rate=0.25)
    assert keep_rate(free, UNIFORM) < 0.249 < 0.25 - 1e-6 < keep_rate(held, UNIFORM)
    assert outputs_used(held, UNIFORM) > outputs_used(free, UNIFORM)
    with pytest.raises(MisconfiguredError, match="largest keep-rate"):
        mech.optimal(scores, 1.0, min_keep_rate=0.5)


@pytest.mark.parametrize("epsilon", [-1.0, 1e-9, 41.0, math.nan, math.inf])
@pytest.mark.parametrize("name", ["rnm", "optimal", "krr"])
def test_an_epsilon_out_of_reach_is_refused(name, epsilon):
    with pytest.raises(MisconfiguredError, match="epsilon"):
        mech.partitioned(name, partition(), epsilon)


@pytest.mark.parametrize(
    "scores", [np.ones((2, 3)), np.ones((1, 1)), [[2.0, 0], [0, 1]], [[math.nan, 0], [0, 1]]]
)
def test_scores_that_break_the_sensitivity_are_refused(scores):
    with pytest.raises(MisconfiguredError):
        mech.rnm(np.array(scores), 1.0)


# --- over a whole partition ---


@pytest.mark.parametrize("name", [*mech.IN_GROUP, "custext+"])
def test_a_partitioned_mechanism_keeps_its_claim_in_every_group(name):
    built = mech.build(name, partition(), 2.0)
    claim = built.guarantee().epsilon
    assert claim == (0.0 if name == "random-in-group" else 2.0)
    assert built.exact_epsilon() <= claim + 1e-15
    for word in range(built.partition.words):
        ids, weights = built.row(word)
        assert word in ids
        assert len(set(built.partition.group_V[ids])) == 1
        assert sum(int(w) for w in weights) == 2**64


@pytest.mark.parametrize("name", [*mech.IN_GROUP, "custext+"])
def test_the_partitioned_sampler_follows_its_rows(name):
    built = mech.build(name, partition(), 1.5)
    words = np.random.default_rng(0).permutation(np.repeat(np.arange(built.partition.words), 3000))
    outputs = built.sample(words)
    statistic = freedom = 0.0
    for word in range(built.partition.words):
        ids, weights = built.row(word)
        counts = np.bincount(outputs[words == word], minlength=built.partition.words)
        assert counts[ids].sum() == 3000  # never leaves the group
        expected = 3000 * (weights / 2.0**64)
        used = expected > 1  # `optimal` gives most outputs almost nothing
        assert counts[ids][~used].sum() <= 20
        statistic += (((counts[ids] - expected) ** 2 / expected)[used]).sum()
        freedom += used.sum() - 1
    assert chi2.sf(statistic, max(1, freedom)) > 1e-6


@pytest.mark.parametrize("entries", [1, 30_000])
@pytest.mark.parametrize("name", [*mech.IN_GROUP, "custext+"])
def test_tables_made_together_are_those_made_one_by_one(name, entries, monkeypatch):
    monkeypatch.setattr(partition_module, "_ENTRIES", entries)
    space = partition((8, 3, 20, 3, 2, 8, 20, 8, 3), seed=5)
    alone, made = mech.build(name, space, 2.5), []
    together = dataclasses.replace(alone, make=lambda s: made.append(len(s)) or alone.make(s))
    kept = together.channel(5)
    together.prepare_all()
    assert together.channel(5) is kept  # what was made before stays
    for group in range(space.groups):
        assert np.array_equal(together.channel(group).weights_XY, alone.channel(group).weights_XY)
    together.prepare_all()
    together.sample(np.arange(space.words))
    assert sum(made) == space.groups  # and nothing is made twice


@pytest.mark.parametrize("law", [laws.permute_and_flip, laws.laplace_argmax, laws.exponential])
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_a_law_is_the_same_in_any_company(law, size, groups, seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 256, (groups, size, size)) / 255
    temperature = rng.uniform(0, 30, (groups, 1, 1))
    together = law(scores, temperature)
    for group in range(groups):
        assert np.array_equal(together[group], law(scores[group], float(temperature[group, 0, 0])))


def test_one_draw_is_independent_of_the_next():
    built = mech.build("rnm", partition((4, 4)), 1.0)
    outputs = built.sample(np.zeros(80_000, dtype=np.int64))
    pairs = np.zeros((4, 4))
    np.add.at(pairs, (outputs[::2], outputs[1::2]), 1)
    assert chi2_contingency(pairs).pvalue > 1e-6


def test_bayes_over_a_partition_is_the_sum_over_its_groups():
    built = mech.build("rnm", partition(), 1.0)
    words = built.partition.words
    prior = np.random.default_rng(0).random(words)
    prior /= prior.sum()
    joint = np.zeros((words, words))
    for word in range(words):
        ids, weights = built.row(word)
        joint[word, ids] = prior[word] * (weights / 2.0**64)
    attack = built.bayes(prior)
    assert attack.success == pytest.approx(joint.max(axis=0).sum())
    assert np.array_equal(attack.guess_Y, joint.argmax(axis=0))
    groups = np.split(prior, built.partition.starts_G1[1:-1])
    assert attack.chance == pytest.approx(sum(group.max() for group in groups))
    mixed = built.bayes(prior, pass_share=0.5)
    assert (mixed.success, mixed.chance) == pytest.approx((0.5 + attack.success / 2, 0.5 + attack.chance / 2))


def test_the_attacker_as_simulated_succeeds_as_computed():
    built = mech.build("rnm", partition(), 3.0)
    prior = np.random.default_rng(0).random(built.partition.words)
    attack = built.bayes(prior)
    secret = np.random.default_rng(1).choice(len(prior), size=100_000, p=prior / prior.sum())
    hits = (attack.guess_Y[built.sample(secret)] == secret).mean()
    assert hits == pytest.approx(attack.success, abs=5 * math.sqrt(0.25 / 100_000))


def test_a_higher_budget_recovers_more_and_random_recovers_nothing():
    prior = np.ones(partition().words)
    rates = [mech.build("rnm", partition(), e).bayes(prior).success for e in (0.5, 2.0, 6.0)]
    assert rates == sorted(rates)
    random = mech.build("random-in-group", partition(), 6.0).bayes(prior)
    assert random.success == pytest.approx(random.chance)


def test_bad_partitions_names_and_words_are_refused():
    two = np.array([0, 2], dtype=np.int32)
    for starts, scores in (
        (np.array([0, 1, 3], dtype=np.int32), np.zeros(5, dtype=np.uint8)),  # a group of one word
        (np.array([1, 3], dtype=np.int32), np.zeros(4, dtype=np.uint8)),
        (np.array([0], dtype=np.int32), np.zeros(0, dtype=np.uint8)),
        (two, np.zeros(5, dtype=np.uint8)),
        (two, np.zeros(4)),
    ):
        with pytest.raises(MisconfiguredError):
            Partition(starts, scores)
    with pytest.raises(MisconfiguredError, match="choose from"):
        mech.build("gumbel", partition(), 1.0)
    with pytest.raises(MisconfiguredError, match="Partition"):
        mech.build("rnm", np.ones((3, 2)), 1.0)
    with pytest.raises(MisconfiguredError, match="vectors"):
        mech.build("tem", partition(), 1.0, gamma=1.0)
    built = mech.build("rnm", partition(), 1.0)
    for bad in (-1, built.partition.words):
        with pytest.raises(MisconfiguredError):
            built.sample(np.array([bad]))
    with pytest.raises(MisconfiguredError, match="pass_share"):
        built.bayes(np.ones(built.partition.words), pass_share=1.5)
