"""Keys: every P_i times every Q_j is the identity, well conditioned, and nobody's labels coincide."""

from itertools import product

import numpy as np
import pytest
import torch

from transom.errors import MisconfiguredError
from transom.obfuscation.keys import PRESETS, Settings, Space, preset, token_map

SECRET = bytes(range(32))
LABELS = (
    "embedding",
    "head",
    *(f"layers.{i}.{name}" for i in range(6) for name in ("attention", "feedforward")),
)


@pytest.mark.parametrize(("d", "h"), [(48, 16), (64, 2), (40, 0), (16, 64)])
def test_every_key_meets_every_inverse(d: int, h: int) -> None:
    space = Space(SECRET, d, Settings(h=h))
    keys = [space.key(label) for label in LABELS]
    inverses = [space.inverse(label) for label in LABELS]
    worst = max(float((p @ q - torch.eye(d)).abs().max()) for p, q in product(keys, inverses))
    assert worst < 1e-10
    assert keys[0].shape == (d, space.width) == (d, d + 2 * h)
    assert keys[0].dtype == torch.float64


def test_labels_have_keys_of_their_own_and_any_process_the_same() -> None:
    space, again = Space(SECRET, 48, Settings(h=16)), Space(SECRET, 48, Settings(h=16))
    assert torch.equal(space.key("a"), again.key("a"))
    assert torch.equal(space.inverse("a"), again.inverse("a"))
    assert torch.linalg.matrix_rank(space.key("a") - space.key("b")) == 8
    assert torch.linalg.matrix_rank(space.inverse("a") - space.inverse("b")) == 8
    other = Space(bytes(32), 48, Settings(h=16))
    assert not torch.allclose(
        space.key("a") @ other.inverse("a"), torch.eye(48, dtype=torch.float64), atol=0.1
    )


def test_key_is_the_shared_base_plus_orthogonal_rows() -> None:
    """What calibration rests on: |xP|^2 = |x base|^2 + |x G|^2."""
    space = Space(SECRET, 48, Settings(h=16, null_scale=1.0))
    x_d = torch.randn(48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = (x_d @ space.shared()).square().sum() + (x_d @ space.mixing("a")).square().sum()
    assert float((x_d @ space.key("a")).square().sum()) == pytest.approx(float(parts), rel=1e-12)


def test_null_space_scale_and_condition() -> None:
    """d^-1/2 keeps a condition number of about 2.7, the default a little less; unit variance ruins it."""
    d, h = 256, 64
    condition = {
        scale: float(torch.linalg.cond(Space(SECRET, d, Settings(h=h, null_scale=scale)).key("a")))
        for scale in (0.125, 1.0, d**0.5)
    }
    assert condition[0.125] <= condition[1.0]
    assert condition[1.0] == pytest.approx(2.7, abs=0.3)
    assert condition[d**0.5] > 10 * condition[1.0]


def test_orthogonal_keys_without_lambda_and_width() -> None:
    key = Space(SECRET, 40, Settings(h=0, lam=0.0)).key("a")
    torch.testing.assert_close(key @ key.T, torch.eye(40, dtype=torch.float64), atol=1e-12, rtol=0)


def test_in_single_precision_as_the_tensor_it_meets() -> None:
    space = Space(SECRET, 48, Settings(h=16))
    like = torch.empty(0)
    assert space.key("a", like).dtype == torch.float32
    torch.testing.assert_close(space.key("a", like).double(), space.key("a"), atol=1e-6, rtol=0)
    torch.testing.assert_close(space.inverse("a", like).double(), space.inverse("a"), atol=1e-6, rtol=0)


def test_a_space_kept_in_single_precision_has_keys_of_its_own_precision() -> None:
    space = Space(SECRET, 48, Settings(h=16), dtype=torch.float32)
    exact = Space(SECRET, 48, Settings(h=16))
    assert space.key("a").dtype == space.inverse("b").dtype == torch.float32
    assert float((space.key("a").double() - exact.key("a")).abs().max()) < 1e-6
    assert float((space.key("a") @ space.inverse("b") - torch.eye(48)).abs().max()) < 1e-5


def test_the_token_map_is_a_permutation_of_its_own_secret() -> None:
    tau_V = token_map(SECRET, 1000)
    assert sorted(tau_V.tolist()) == list(range(1000))
    assert np.array_equal(tau_V, token_map(SECRET, 1000))
    assert (tau_V == token_map(bytes(32), 1000)).sum() < 10


def test_presets() -> None:
    assert preset("paper") == Settings()
    exact = preset("exact", h=18)
    assert (exact.alpha_e, exact.alpha_h, exact.block_permutation, exact.h, exact.lam) == (
        0,
        0,
        False,
        18,
        0.3,
    )
    assert set(PRESETS) == {"paper", "exact", "balanced"}
    with pytest.raises(MisconfiguredError, match="balanced"):
        preset("strong")


@pytest.mark.parametrize(
    "changes",
    [
        {"h": 3},
        {"h": -2},
        {"lam": 0.9},
        {"lam": float("nan")},
        {"alpha_e": -1.0},
        {"beta": 0.5},
        {"gamma": float("inf")},
    ],
)
def test_settings_refuse(changes: dict[str, float]) -> None:
    with pytest.raises(MisconfiguredError, match=next(iter(changes))):
        Settings(**changes)


def test_settings_report_all_problems_at_once() -> None:
    with pytest.raises(MisconfiguredError) as error:
        Settings(h=3, lam=0.9, beta=0.0)
    assert all(name in str(error.value) for name in ("h is 3", "lam is 0.9", "beta is 0.0"))
