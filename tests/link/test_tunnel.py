"""What leaves through a tunnel: its noise, its labels, its gradients, and what it promises."""

from __future__ import annotations

import copy
import io
import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from transom.errors import LinkRefusedError, MisconfiguredError, NeverError
from transom.link.mechanisms import Gaussian, Nothing, clipped
from transom.link.message import Step
from transom.link.tunnel import Tunnel
from transom.privacy.account import LaplaceEvent, gaussian_epsilon
from transom.privacy.guarantee import Guarantee, price
from transom.privacy.stream import Stream, step_label

SECRET = bytes(range(32))
STEP = Step(0, 0, "forward")
NOISY = Gaussian(clip=1.0, sigma=0.5)


def tunnel(forward: Any = NOISY, backward: Any = NOISY, secret: bytes = SECRET, run: str = "run") -> Tunnel:
    return Tunnel(forward, backward, secret, run)


def rows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def noise(step: Step, values: int = 20_000) -> torch.Tensor:
    """What a tunnel adds to nothing."""
    return tunnel().release(torch.zeros(100, values // 100), step).reshape(-1)


def test_the_noise_has_the_stated_law() -> None:
    """Its deviation within four standard errors, its shape by Kolmogorov and Smirnov; also with values."""
    drawn = noise(STEP)
    assert abs(drawn.std() / NOISY.sigma - 1) < 4 / math.sqrt(2 * len(drawn))
    assert stats.kstest(drawn.numpy() / NOISY.sigma, "norm").pvalue > 1e-3
    x = rows(40, 10, 25) / 100
    added = tunnel().release(x, STEP) - x
    assert stats.kstest(added.reshape(-1).numpy() / NOISY.sigma, "norm").pvalue > 1e-3


def test_noises_of_different_labels_are_independent() -> None:
    steps = [
        STEP,
        replace(STEP, epoch=1),
        replace(STEP, batch=1),
        replace(STEP, direction="backward"),
        replace(STEP, attempt=1),
        replace(STEP, topic="test"),
    ]
    drawn = torch.stack([noise(step) for step in steps])
    correlations = torch.corrcoef(drawn) - torch.eye(len(steps))
    assert correlations.abs().max() < 5 / math.sqrt(drawn.shape[1])
    zeros = torch.zeros(100, 200)
    others = [tunnel(run="other"), tunnel(secret=bytes(32))]
    assert all(not torch.equal(other.release(zeros, STEP).reshape(-1), drawn[0]) for other in others)


def test_a_step_that_is_computed_again_leaves_as_the_same_bytes() -> None:
    x, one = rows(4, 5), tunnel()
    first = one(x, STEP)
    assert torch.equal(one(x.clone(), STEP), first)
    assert torch.equal(tunnel()(x, STEP), first)  # after a restart
    stream = Stream(SECRET, step_label("run", 0, 0, "forward"))
    expected = clipped(x.double(), 1.0) + 0.5 * torch.from_numpy(stream.normal((4, 5)))
    assert torch.equal(first, expected.float())


@pytest.mark.parametrize("mechanism", [NOISY, Nothing()])
def test_a_label_is_not_used_for_another_input(mechanism: Any) -> None:
    one, x = tunnel(mechanism, mechanism), rows(4, 5)
    one(x, STEP)
    others = [x + 1, x * (1 + 1e-6), x.reshape(2, 10), x.double(), -x, x.T, x[:3]]
    for attempt, other in enumerate(others, 1):
        with pytest.raises(LinkRefusedError, match="noise/run/0/0/forward was released already"):
            one(other, STEP)
        one(other, replace(STEP, attempt=attempt))
    one(x, STEP)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transom.link.tunnel._REMEMBERED", 3)
    one = tunnel()
    for batch in range(20):
        one(rows(1, 2), replace(STEP, batch=batch))
        assert len(one._released) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_nothing_is_the_identity_and_its_gradients_are_exact(dtype: torch.dtype) -> None:
    x = rows(3, 4, 5).to(dtype).requires_grad_()
    released = tunnel(Nothing(), Nothing())(x, STEP)
    assert released.dtype == dtype
    assert torch.equal(released, x)
    assert released.data_ptr() != x.data_ptr()
    (released**3).sum().backward()
    with_tunnel, x.grad = x.grad, None
    (x**3).sum().backward()
    assert with_tunnel is not None
    assert torch.equal(with_tunnel, x.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_is_privatised_under_a_label_of_its_own(dtype: torch.dtype) -> None:
    """The forward mechanism does not touch it; the backward one adds the noise of direction `backward`."""
    x, weights = rows(6, 4).to(dtype).requires_grad_(), rows(6, 4, seed=2).to(dtype)
    released = tunnel(NOISY, Gaussian(clip=0.1, sigma=0.2))(x, STEP)
    assert released.dtype == dtype
    (released * weights).sum().backward()
    stream = Stream(SECRET, step_label("run", 0, 0, "backward"))
    added = 0.2 * torch.from_numpy(stream.normal((6, 4)))
    assert x.grad is not None
    assert torch.equal(x.grad, (clipped(weights.double(), 0.1) + added).to(dtype))


def test_one_party_privatises_what_goes_forth_and_the_other_what_comes_back() -> None:
    """Two tunnels around a message give each mechanism its turn once."""
    x = rows(4, 3).requires_grad_()
    features, labels = tunnel(NOISY, Nothing()), tunnel(Nothing(), NOISY, secret=bytes(32))
    sent = features(x, STEP)
    arrived = sent.detach().requires_grad_()
    (labels(arrived, STEP) ** 2).sum().backward()
    assert arrived.grad is not None
    sent.backward(arrived.grad)
    assert torch.equal(x.grad, arrived.grad)  # type: ignore[arg-type]
    assert torch.equal(
        arrived.grad,
        tunnel(secret=bytes(32)).release(2 * arrived.detach(), replace(STEP, direction="backward")),
    )


def test_a_gradient_comes_back_once_a_label() -> None:
    x, one = rows(4, 3).requires_grad_(), tunnel()
    released = one(x, STEP)
    loss = (released**2).sum()
    loss.backward(retain_graph=True)
    loss.backward(retain_graph=True)  # the same gradient again is the same release
    with pytest.raises(LinkRefusedError, match="backward was released already"):
        (3 * loss).backward()


def test_it_works_without_gradients_and_in_a_model() -> None:
    x = rows(4, 3)
    with torch.no_grad():
        quiet = tunnel()(x.clone().requires_grad_(), STEP)
    assert not quiet.requires_grad
    assert torch.equal(tunnel()(x, STEP), quiet)
    one = tunnel(NOISY, Nothing())
    assert dict(one.state_dict()) == {}
    assert repr(one) == "Tunnel(forward=Gaussian(clip=1.0, sigma=0.5), backward=Nothing())"
    assert one(torch.zeros(0, 3), STEP).shape == (0, 3)
    assert one(torch.zeros(5), replace(STEP, batch=1)).shape == (5,)


def test_a_model_with_a_tunnel_is_neither_copied_nor_saved_whole() -> None:
    """The copy would release other rows under the same labels; the file would hold the secret."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), tunnel())
    for copied in (copy.deepcopy, copy.copy, lambda model: torch.save(model, io.BytesIO())):
        with pytest.raises(MisconfiguredError, match="neither copied nor pickled"):
            copied(model[1])
    with pytest.raises(MisconfiguredError, match="neither copied nor pickled"):
        copy.deepcopy(model)


@given(
    st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=40),
    st.floats(1e-6, 1e6),
    st.sampled_from([1.0, 1e-300, 1e-8]),
)
def test_a_clipped_row_is_within_the_clip(values: list[float], clip: float, scale: float) -> None:
    """By exact sums of exact squares; rows that are clearly shorter are as they were."""
    x_1D = torch.tensor([values], dtype=torch.float64) * scale
    y_1D = clipped(x_1D, clip)
    assert sum(Fraction(value) ** 2 for value in y_1D[0].tolist()) <= Fraction(clip) ** 2
    if math.hypot(*x_1D[0].tolist()) < clip * (1 - 1e-12):
        assert torch.equal(y_1D, x_1D)


@pytest.mark.parametrize("width", [1, 3, 1000, 30_000])
def test_long_rows_are_scaled_to_the_clip_and_keep_their_direction(width: int) -> None:
    x_BD = rows(20, width).double() * 1e3
    y_BD = clipped(x_BD, 0.3)
    for x_D, y_D in zip(x_BD, y_BD, strict=True):
        assert math.fsum(value**2 for value in y_D.tolist()) <= 0.3**2
        assert math.hypot(*y_D.tolist()) == pytest.approx(0.3, rel=1e-10)
        assert torch.nn.functional.cosine_similarity(x_D, y_D, dim=0) == pytest.approx(1.0, abs=1e-12)


@given(st.integers(1, 10_000), st.floats(0.01, 100.0), st.floats(0.5, 50.0), st.sampled_from([1e-5, 1e-8]))
def test_the_price_is_that_of_one_gaussian(releases: int, clip: float, factor: float, delta: float) -> None:
    """E releases of rows clipped to S with deviation sigma: mu = sqrt(E) * 2 S / sigma."""
    guarantee = Gaussian(clip=clip, sigma=clip * factor).guarantee(releases)
    mu = math.sqrt(releases) * 2 / factor
    assert price(guarantee, delta) == pytest.approx(gaussian_epsilon(mu, delta), rel=1e-9)
    assert guarantee.kind == "approximate-dp"
    assert str(releases) in guarantee.unit


def test_the_promise_holds_for_the_farthest_rows() -> None:
    """Of two opposite long rows the releases are told apart as often as two Gaussians at distance 2 S are."""
    far = torch.full((20_000, 1), 1e6)
    one, other = (tunnel(secret=bytes([n] * 32)).release(far * sign, STEP) for n, sign in ((1, 1), (2, -1)))
    assert float(one.mean()) == pytest.approx(NOISY.clip, abs=0.02)
    assert float(other.mean()) == pytest.approx(-NOISY.clip, abs=0.02)
    told = 0.5 * float((one > 0).double().mean() + (other <= 0).double().mean())
    mu = 2 * NOISY.clip / NOISY.sigma
    assert told == pytest.approx(stats.norm.cdf(mu / 2), abs=0.005)


def test_nothing_promises_nothing() -> None:
    guarantee = Nothing().guarantee(5)
    assert guarantee.kind == "empirical"
    assert "nothing is protected" in guarantee.assumptions[0]
    with pytest.raises(NeverError):
        price(guarantee, 1e-6)


@dataclass(frozen=True)
class Rounded:
    """A mechanism of a user's own: the tunnel needs no change for it."""

    def privatise(self, x_BD: torch.Tensor, stream: Stream) -> torch.Tensor:
        assert x_BD.dtype == torch.float64
        assert x_BD.ndim == 2
        return x_BD.round() + torch.from_numpy(stream.signs(x_BD.numel())).reshape(x_BD.shape)

    def guarantee(self, releases: int) -> Guarantee:
        return Guarantee(
            kind="approximate-dp",
            unit="a row",
            adjacency="any",
            events=(LaplaceEvent(noise=2.0, count=releases),),
        )


def test_any_mechanism_fits() -> None:
    released = tunnel(Rounded(), Nothing())(rows(4, 2, 3), STEP)
    assert released.shape == (4, 2, 3)
    assert torch.equal(released, released.round())


@pytest.mark.parametrize(
    ("clip", "sigma"),
    [
        *((clip, 1.0) for clip in (0.0, -1.0, math.nan, math.inf)),
        *((1.0, sigma) for sigma in (0.0, -1.0, math.nan, math.inf, 1e-7)),
        (1e-200, 1e-200),
    ],
)
def test_noise_that_is_none_is_refused(clip: float, sigma: float) -> None:
    with pytest.raises(MisconfiguredError):
        Gaussian(clip=clip, sigma=sigma)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_do_not_leave(bad: float) -> None:
    x = rows(3, 4)
    x[1, 2] = bad
    one = tunnel(NOISY, NOISY)
    with pytest.raises(LinkRefusedError, match="step train/0/0/forward/0 are not finite"):
        one(x, STEP)
    y = rows(3, 4).requires_grad_()
    with pytest.raises(LinkRefusedError, match="backward/0 are not finite"):
        (one(y, STEP) * x).sum().backward()


def test_what_is_no_batch_of_floats_is_refused() -> None:
    one = tunnel()
    for x in (torch.tensor(1.0), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises(MisconfiguredError, match="rows of floats"):
            one(x, STEP)
    with pytest.raises(MisconfiguredError, match="goes forward"):
        one(rows(2, 2), replace(STEP, direction="backward"))
    with pytest.raises(MisconfiguredError, match="must have 32"):
        tunnel(secret=b"short")
    with pytest.raises(MisconfiguredError, match="run's name"):
        tunnel(run="a/b")
