"""Tunnels by name: strengths that keep to a budget, budgets of rows, and what others' laws promise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.audit.attacks.epsilon import judge
from transom.audit.draws import Draws
from transom.config import from_plain
from transom.errors import LedgerSpentError, MisconfiguredError, NeverError
from transom.link.mechanisms import Clipping, DChi, Gaussian, Laplace, Nothing, clipped
from transom.link.message import Step
from transom.link.r3elu import R3elu, R3eluDp
from transom.link.tunnel import Tunnel
from transom.link.tunnels import Budget, TunnelSettings, most_releases
from transom.privacy.account import ResponseEvent, compose
from transom.privacy.guarantee import price, released
from transom.privacy.ledger import Ledger
from transom.privacy.stream import Stream

SECRET = bytes(range(32))
PROVED = ("gaussian", "laplace", "d_chi", "r3elu-dp")


def settings(kind: str, epsilon: float | None = 20.0, **fields: Any) -> TunnelSettings:
    found: TunnelSettings = from_plain(
        TunnelSettings,
        {"kind": kind, "clip": 1.0, "epsilon": epsilon, **fields},
        "a test",
        error=MisconfiguredError,
    )
    return found


@pytest.mark.parametrize("kind", PROVED)
@pytest.mark.parametrize(("epsilon", "releases"), [(0.5, 3), (20.0, 11), (300.0, 2)])
def test_a_strength_keeps_to_the_budget_and_wastes_little(kind: str, epsilon: float, releases: int) -> None:
    chosen = settings(kind, epsilon, spare=2)
    mechanism = chosen.mechanism(releases, signed=False)
    spent = price(mechanism.guarantee(releases + 2), chosen.delta)
    assert 0.99 * epsilon < spent <= epsilon
    budget = chosen.budget(mechanism, 4)
    assert budget.most == releases + 2


@pytest.mark.parametrize("kind", PROVED)
def test_the_ledger_prices_both_directions_and_all_epochs(kind: str, tmp_path: Any) -> None:
    """What goes forth and what comes back, retries included: one charge a release adds up to the composed
    price, and the one that would pass the cap is refused."""
    mechanism = settings(kind, 6.0, spare=0).mechanism(8, signed=kind == "r3elu-dp")
    one = released(mechanism.guarantee(1))
    with Ledger(tmp_path / "ledger", 6.0, delta=1e-6) as ledger:
        for epoch in range(4):
            for direction in ("forward", "backward"):
                spent = ledger.charge("record", one)
                assert spent <= 6.0, (epoch, direction)
        assert spent == pytest.approx(price(mechanism.guarantee(8), 1e-6), rel=1e-3)
        ledger.charge_many([("record", one)])  # a thousandth of room may hold one more, never two
        with pytest.raises(LedgerSpentError):
            ledger.charge("record", one)


@pytest.mark.parametrize("kind", ["none", "clipping", "r3elu"])
def test_what_promises_nothing_says_so_and_has_no_price(kind: str) -> None:
    chosen = TunnelSettings(kind, None if kind == "none" else 1.0, 5.0 if kind == "r3elu" else None)  # type: ignore[arg-type]
    mechanism = chosen.mechanism(4, signed=False)
    guarantee = mechanism.guarantee(4)
    assert guarantee.kind == "empirical"
    with pytest.raises(NeverError):
        price(guarantee, 1e-6)
    assert chosen.budget(mechanism, 3).most == math.inf


def test_the_paper_s_epsilon_is_divided_by_the_releases() -> None:
    made = settings("r3elu", 12.0, spare=0).mechanism(4, signed=True)
    assert isinstance(made, R3elu)
    assert (made.epsilon, made.signed) == (3.0, True)


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"kind": "gaussian"}, "gaussian wants one of epsilon, sigma and mu"),
        ({"kind": "gaussian", "epsilon": 1.0, "clip": None}, "gaussian wants clip"),
        ({"kind": "none"}, "none has no clip"),
        ({"kind": "clipping", "epsilon": 1.0}, "clipping has no epsilon"),
        ({"kind": "gaussian", "epsilon": 0.0}, "epsilon"),
        ({"kind": "gaussian", "epsilon": -3.0}, "epsilon"),
        ({"kind": "gaussian", "epsilon": 1.0, "delta": 0.0}, "no epsilon at delta 0"),
        ({"kind": "gaussian", "epsilon": 1.0, "sigma": 1.0}, "gaussian wants one of epsilon, sigma and mu"),
        ({"kind": "d_chi", "epsilon": 1.0, "mu": 1.0}, "sigma and mu are of gaussian, not of d_chi"),
        ({"kind": "laplace", "epsilon": 1.0, "keep": 3}, "keep and response are of r3elu-dp"),
        ({"kind": "laplace", "epsilon": 1.0, "learns": True}, "learns and signed are of r3elu"),
        ({"kind": "d_chi", "epsilon": 1.0, "signed": True}, "learns and signed are of r3elu"),
        ({"kind": "r3elu-dp", "epsilon": 1.0, "signed": True, "response": 1.0}, "needs noise"),
        ({"kind": "r3elu-dp", "epsilon": 1.0, "keep": 0}, "keep"),
        ({"kind": "other", "epsilon": 1.0}, "kind"),
    ],
)
def test_bad_settings_are_told(fields: dict[str, Any], what: str) -> None:
    with pytest.raises(MisconfiguredError, match=what):
        from_plain(TunnelSettings, {"clip": 1.0, **fields}, "a test", error=MisconfiguredError)


def test_an_epsilon_that_no_strength_has_is_refused() -> None:
    with pytest.raises(MisconfiguredError, match="no strength has 1000001 releases"):
        settings("gaussian", 1e-9).mechanism(10**6, signed=False)


def test_a_budget_counts_by_row() -> None:
    budget = Budget(np.zeros(5, np.int64), 2)
    budget.spend(np.array([0, 1]))
    budget.spend(np.array([1, 2]))
    assert budget.affords(np.array([0, 2, 4]))
    assert not budget.affords(np.array([0, 1]))
    assert budget.affords(np.array([], dtype=np.int64))


@given(st.floats(0.01, 5), st.integers(1, 50))
def test_most_releases_is_the_most(epsilon: float, count: int) -> None:
    mechanism = Laplace(1.0, 2.0 / epsilon)
    most = most_releases(mechanism, epsilon * count, 0.0)
    assert abs(most - count) <= 1  # by the last bits of a product
    assert price(mechanism.guarantee(max(most, 1))) <= epsilon * count or most == 0


# Laws of others


def test_laplace_noise_has_its_law_and_rows_are_clipped_in_l1() -> None:
    x_BD = torch.zeros(400, 50, dtype=torch.float64)
    noise = Laplace(1.0, 0.5).privatise(x_BD, Stream(SECRET, "l")).reshape(-1).numpy()
    assert stats.kstest(noise, stats.laplace(0, 0.5).cdf).pvalue > 1e-3
    rows = torch.randn(200, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5
    assert clipped(rows, 1.0, 1).abs().sum(1).max() <= 1.0


@pytest.mark.parametrize("mechanism", [Laplace(1.0, 2.0), R3eluDp(1.0, 1.0, 2)], ids=["laplace", "r3elu-dp"])
def test_the_distinguisher_does_not_break_the_price(mechanism: Any) -> None:
    rows = (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
    draws = [
        mechanism.privatise(row.double().expand(40_000, -1), Stream(SECRET, str(n))).numpy()
        for n, row in enumerate(rows)
    ]
    assert not judge(Draws(*draws), epsilon=price(mechanism.guarantee(1)), alpha=1e-4).rejected


def test_d_chi_s_price_is_that_of_the_diameter() -> None:
    assert price(DChi(2.0, 0.5).guarantee(3)) == pytest.approx(3 * 0.5 * 4.0)


def test_clipping_adds_nothing() -> None:
    row = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64)
    told = Clipping(1.0).privatise(row, Stream(SECRET, "c"))
    assert told[0].tolist() == pytest.approx([0.6, 0.8])
    assert torch.equal(told[1], row[1])


# Many responses together


@pytest.mark.parametrize(("epsilon", "count"), [(0.1, 400), (0.5, 30), (2.0, 5), (3.0, 1)])
def test_responses_compose_below_their_sum_and_above_the_truth(epsilon: float, count: int) -> None:
    """Against the exact law of so many randomised responses: the number of true ones is binomial."""
    delta, odds = 1e-5, 1 / (1 + math.exp(-epsilon))
    found = compose([ResponseEvent(epsilon=epsilon, count=count)], delta)
    hits = np.arange(count + 1)
    loss = (2 * hits - count) * epsilon
    chance = stats.binom(count, odds).pmf(hits)

    def spent(bound: float) -> float:
        return float((chance * -np.expm1(np.minimum(bound - loss, 0.0))).sum())

    assert spent(found) <= delta
    assert found <= count * epsilon * (1 + 1e-12)
    if count > 100:
        assert found < 0.8 * count * epsilon
    assert spent(found - 0.02 * count * epsilon - 1e-3) > delta or found == 0


def test_responses_add_up_without_a_delta() -> None:
    events = [ResponseEvent(epsilon=0.1, count=3), ResponseEvent(epsilon=0.25)]
    assert compose(events, 0.0) == pytest.approx(0.55)


# A tunnel that learns


@pytest.mark.parametrize("mechanism", [R3elu(50.0, 1.0, learns=True), R3eluDp(50.0, 1.0, 2, learns=True)])
def test_a_tunnel_learns_what_matters(mechanism: Any) -> None:
    """Only the third value moves the loss: soon it has the budget, and may leave."""
    tunnel = Tunnel(mechanism, Nothing(), SECRET, "run")
    draw = torch.Generator().manual_seed(0)
    for batch in range(30):
        x = torch.rand(16, 4, generator=draw).requires_grad_()
        step = Step(0, batch, "forward")
        told = tunnel(x, step)
        if isinstance(mechanism, R3eluDp) and batch == 0:
            assert not told[:, 2:].any()
        (told * torch.tensor([0.0, 1e-3, 5.0, 0.0])).sum().backward()
    learnt = tunnel.importance["forward"]
    assert max(range(4), key=lambda place: learnt[place]) == 2
    assert told[:, 2].any()
    assert tunnel.importance["backward"] == ()


def test_what_a_tunnel_learnt_goes_on_after_a_restart() -> None:
    """The same importance, the same label: the same bytes."""
    mechanism = R3eluDp(5.0, 1.0, 1, learns=True)
    x, step = torch.rand(4, 3), Step(0, 7, "forward")
    first, second = (Tunnel(mechanism, Nothing(), SECRET, "run") for _ in range(2))
    first.importance["forward"] = second.importance["forward"] = (0.0, 1.0, 0.5)
    told = first.release(x, step)
    assert torch.equal(second.release(x, step), told)
    assert not told[:, [0, 2]].any()
    second.learn(Step(0, 9, "forward"), torch.ones(4, 3))  # not asked: teaches nothing
    assert second.importance["forward"] == (0.0, 1.0, 0.5)
    second.learn(step, torch.full((4, 3), math.nan))
    assert second.importance["forward"] == (0.0, 1.0, 0.5)


def test_gaussian_is_as_before() -> None:
    assert price(Gaussian(1.0, 4.0).guarantee(4), 1e-6) > price(Gaussian(1.0, 4.0).guarantee(3), 1e-6)
