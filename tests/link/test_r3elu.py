"""R3eLU as printed and as proved: laws, the claim that fails, the proof, and what the distinguisher says."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.audit.attacks.epsilon import EpsilonFinding, judge
from transom.audit.draws import Draws
from transom.errors import MisconfiguredError
from transom.link.mechanisms import Mechanism
from transom.link.r3elu import R3elu, R3eluDp, budgets, importance
from transom.privacy.guarantee import price
from transom.privacy.stream import Stream

SECRET = bytes(range(32))


def released(mechanism: Mechanism, row: Any, count: int, label: str = "one") -> torch.Tensor:
    """The same row so many times."""
    x_BD = torch.tensor([row], dtype=torch.float64).expand(count, -1)
    return mechanism.privatise(x_BD, Stream(SECRET, label))


def verdict(mechanism: Mechanism, x: Any, y: Any, epsilon: float, count: int = 40_000) -> EpsilonFinding:
    draws = [released(mechanism, row, count, label).numpy() for row, label in ((x, "x"), (y, "y"))]
    return judge(Draws(*draws), epsilon=epsilon, alpha=1e-4)


# As proved


def law(a: float, noise: float, v: float, *, signed: bool) -> tuple[float, Any]:
    """What the docs say of a value: its chance to leave, and the law of what leaves before it is drawn back;
    the threshold is 1."""
    odds = math.exp(a) / (1 + math.exp(a))
    return (1 - odds) + (2 * odds - 1) * abs(v), stats.laplace(v, (2 if signed else 1) / noise)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("v", [-0.9, 0.0, 0.3, 1.0, 7.0])
def test_the_sampler_has_the_documented_law(v: float, signed: bool) -> None:
    mechanism = R3eluDp(3.0, 2.0, response=1 / 3, signed=signed, denoise=False)
    count = 40_000
    told = released(mechanism, [2 * v], count).numpy()[:, 0] / 2
    inside = min(max(v, -1.0 if signed else 0.0), 1.0)
    chance, noisy = law(1.0, 2.0, inside, signed=signed)
    low = -1.0 if signed else 0.0
    zero = 1 - chance + (0.0 if signed else chance * noisy.cdf(0.0))
    assert stats.binomtest(int((told == 0).sum()), count, zero).pvalue > 1e-4
    assert stats.binomtest(int((told == 1).sum()), count, chance * noisy.sf(1.0)).pvalue > 1e-4
    within = told[(told != 0) & (told > low) & (told < 1)]
    share = noisy.cdf(1.0) - noisy.cdf(low)
    assert stats.kstest(within, lambda t: (noisy.cdf(t) - noisy.cdf(low)) / share).pvalue > 1e-4


@given(st.floats(0.01, 20), st.floats(0.01, 20), st.floats(-1, 1), st.floats(-1, 1), st.booleans())
def test_no_outcome_is_likelier_than_the_budget_says(
    a: float, noise: float, v: float, w: float, signed: bool
) -> None:
    """The proof's inequality, for each outcome: dropped, and told any number."""
    v, w = (v, w) if signed else (abs(v), abs(w))
    (p_v, told_v), (p_w, told_w) = (law(a, noise, one, signed=signed) for one in (v, w))
    assert math.log((1 - p_v) / (1 - p_w)) <= a + 1e-9
    t = np.linspace(-30, 30, 601)
    loss = math.log(p_v / p_w) + told_v.logpdf(t) - told_w.logpdf(t)
    assert loss.max() <= a + noise + 1e-9


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("response", [0.3, 1.0])
@pytest.mark.parametrize("denoise", [False, True])
def test_the_distinguisher_does_not_break_what_is_proved(keep: int, response: float, denoise: bool) -> None:
    """On the rows that are furthest apart; and it does break a claim of less."""
    mechanism = R3eluDp(1.5, 1.0, keep, response, denoise=denoise)
    x, y = [1.0] * 4, [0.0] * 4
    epsilon = price(mechanism.guarantee(1))
    assert epsilon == pytest.approx(1.5)
    found = verdict(mechanism, x, y, epsilon)
    assert not found.rejected
    assert found.epsilon_lower > (0.5 if keep == 1 else 0.2)
    assert verdict(mechanism, x, y, 0.5 * found.epsilon_lower).rejected


def test_signed_values_keep_the_claim_too() -> None:
    mechanism = R3eluDp(2.0, 1.0, 2, 0.5, signed=True)
    for x, y in (([1.0, 1.0], [-1.0, -1.0]), ([1.0, 1.0], [0.0, 0.0])):
        assert not verdict(mechanism, x, y, 2.0).rejected


def test_values_that_may_not_leave_do_not() -> None:
    """Rows that differ in them alone leave as the same bytes."""
    mechanism = R3eluDp(1.0, 1.0, 2, importance=(0.0, 3.0, 1.0, 2.0))
    x, y = [0.1, 0.5, 0.9, 0.7], [0.8, 0.5, 0.2, 0.7]
    first, second = (released(mechanism, row, 50) for row in (x, y))
    assert torch.equal(first, second)
    assert not first[:, [0, 2]].any()
    assert first[:, [1, 3]].any()


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=12), st.integers(1, 12), st.floats(0.01, 100))
def test_budgets_add_up_and_follow_importance(weights: list[float], keep: int, epsilon: float) -> None:
    places, shares = budgets(weights, min(keep, len(weights)), epsilon)
    assert math.fsum(shares) == pytest.approx(epsilon)
    assert len(places) <= keep
    assert sorted(set(places)) == list(places)
    ranked = sorted(zip((weights[place] for place in places), shares, strict=True))
    assert all(one <= other * (1 + 1e-9) for (_, one), (_, other) in pairwise(ranked))


def test_the_cube_root_is_the_best_division() -> None:
    """Of a budget, for the sum of importance times the variance of Laplace noise: none of 2,000 is better."""
    weights = np.array([8.0, 1.0, 0.2])
    _, best = budgets(weights.tolist(), 3, 1.0)
    others = np.random.default_rng(0).dirichlet([1, 1, 1], 2000)
    assert (weights / np.array(best) ** 2).sum() <= (weights / others**2).sum(1).min()


def test_denoising_is_what_the_draws_let_expect() -> None:
    """Against the mean of uniform values that led to a told number; it lies nearer to them."""
    plain, wise = (R3eluDp(4.0, 1.0, denoise=denoise) for denoise in (False, True))
    v_N1 = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    told, expected = (one.privatise(v_N1, Stream(SECRET, "d"))[:, 0].numpy() for one in (plain, wise))
    v = v_N1[:, 0].numpy()
    for low, high in ((0.2, 0.25), (0.7, 0.75), (1.0, 1.0)):
        chosen = (told >= low) & (told <= high)
        error = v[chosen].std() / math.sqrt(chosen.sum())
        assert abs(v[chosen].mean() - expected[chosen].mean()) < 4 * error + 1e-3
    assert ((expected - v) ** 2).mean() < 0.8 * ((told - v) ** 2).mean()


def test_a_learnt_importance_is_priced_for_any() -> None:
    fixed = R3eluDp(3.0, 1.0, 3)
    learnt = R3eluDp(3.0, 1.0, 3, learns=True)
    assert [event.parameters()["epsilon"] for event in learnt.guarantee(1).events] == [pytest.approx(3.0)]
    assert price(learnt.guarantee(1)) == pytest.approx(price(fixed.guarantee(1)))
    small, many = R3eluDp(0.3, 1.0, 3), R3eluDp(0.3, 1.0, 3, learns=True)
    assert price(small.guarantee(200), 1e-6) < price(many.guarantee(200), 1e-6) < 60


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive"),
        ({"epsilon": -1.0}, "epsilon must be positive"),
        ({"epsilon": math.nan}, "epsilon must be positive"),
        ({"epsilon": math.inf}, "epsilon must be positive"),
        ({"clip": 0.0}, "the clip must be"),
        ({"clip": math.inf}, "the clip must be"),
        ({"keep": 0}, "at least one value"),
        ({"response": 0.0}, "the response's share"),
        ({"response": 1.5}, "the response's share"),
        ({"response": 1.0, "signed": True}, "lower the response"),
        ({"importance": (1.0, -1.0)}, "importance is of finite numbers"),
        ({"importance": (1.0, math.nan)}, "importance is of finite numbers"),
        ({"keep": 3, "importance": (1.0, 2.0)}, "rows have 2 values; 3 of 2 may leave"),
    ],
)
def test_what_no_mechanism_has_is_refused(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(MisconfiguredError, match=what):
        R3eluDp(**{"epsilon": 1.0, **fields})


def test_rows_that_are_too_narrow_or_of_another_width_are_refused() -> None:
    with pytest.raises(MisconfiguredError, match="rows have 2 values; 3 of them may leave"):
        released(R3eluDp(1.0, 1.0, 3), [0.1, 0.2], 1)
    with pytest.raises(MisconfiguredError, match="rows have 3 values; 1 of 2 may leave"):
        released(R3eluDp(1.0, 1.0, 1, importance=(1.0, 2.0)), [0.1, 0.2, 0.3], 1)
    with pytest.raises(MisconfiguredError, match="rows have 3 values, and importance 2"):
        released(R3elu(1.0, importance=(1.0, 2.0)), [0.1, 0.2, 0.3], 1)


# As printed


def test_the_printed_law() -> None:
    """Of the largest half, each with the chance of its size over the row's largest, and Laplace noise of
    2 K C / (epsilon / 2); of the others nothing."""
    row, epsilon, clip, count = [4.0, 0.1, 2.0, -3.0], 8.0, 3.0, 40_000
    told = released(R3elu(epsilon, clip), row, count).numpy()
    assert not told[:, [1, 3]].any()
    odds = 1 / (1 + math.exp(-epsilon / 2 / 2))
    for place, value, share in ((0, 3.0, 1.0), (2, 2.0, 2 / 3)):
        noisy = stats.laplace(value, 2 * 2 * clip / (epsilon / 2))
        chance = 0.5 + share * (odds - 0.5)
        seen = int((told[:, place] > 0).sum())
        assert stats.binomtest(seen, count, chance * noisy.sf(0.0)).pvalue > 1e-4


def test_signs_of_gradients_stay() -> None:
    told = released(R3elu(1e5, 3.0, signed=True), [4.0, 0.1, -2.0, 0.3], 2000)
    assert told[:, 0].mean() == pytest.approx(3.0, abs=0.2)
    assert told[:, 2].mean() == pytest.approx(-2.0 * (0.5 + 0.5 * 2 / 3), abs=0.2)


def test_the_printed_claim_fails() -> None:
    """Which values are the largest shows: a value that is not among them never leaves. The distinguisher
    rejects ten times the claim, while it does not reject the proved form on these rows."""
    x, y = [1.0, 0.9, 0.0, 0.0], [0.0, 0.0, 1.0, 0.9]
    found = verdict(R3elu(0.5, 1.0), x, y, 0.5)
    assert found.rejected
    assert found.epsilon_lower > 5.0
    assert not verdict(R3eluDp(0.5, 1.0, 4), x, y, 0.5).rejected


def test_at_the_paper_s_small_budgets_nothing_survives() -> None:
    """Epsilon 1, 64 values, the threshold 10: noise of scale 1,280 on values up to 10."""
    row = torch.rand(64, generator=torch.Generator().manual_seed(0)).mul(10).tolist()
    told = released(R3elu(1.0), row, 4000)
    assert told.max() > 5000
    largest = int(np.argmax(row))
    noise = told[:, largest].std()
    assert noise > 50 * 10


def test_importance_is_the_taylor_term() -> None:
    values, gradients = torch.tensor([[1.0, 2.0], [3.0, 0.0]]), torch.tensor([[2.0, 1.0], [1.0, 5.0]])
    assert importance(values, gradients).tolist() == [6.5, 2.0]


def test_importance_divides_the_printed_noise() -> None:
    """Three quarters of the budget to the first value: a third of the second one's noise."""
    told = released(R3elu(400.0, 1.0, kept=1.0, signed=True, importance=(3.0, 1.0)), [1.0, 1.0], 20_000)
    seen = [told[:, place][told[:, place] != 0] for place in (0, 1)]
    assert float(seen[1].std() / seen[0].std()) == pytest.approx(3.0, rel=0.1)
