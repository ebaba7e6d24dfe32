"""How many tokens the nearest row still names under noise (EIA), and the eta for a wanted share.

The attacker knows the table, the law and its parameters, so it names the likeliest token: the nearest row in
the shape's units; where tokens have etas of their own, the largest d ln eta - eta * distance, for the length
of the noise alone tells which tokens were spared. Empirical privacy is the share that it does not name.
Threat model: the receiver, with rows at the embedding. Does not protect anything, and does not bound other
attackers: a language (`audit.attacks.beam`) names more, an inverter reads deeper cuts.
Source: Shen et al., arXiv 2312.15603 (EIA, empirical privacy); the likelihoods are Transom's own.

Shapes: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from transom.errors import MisconfiguredError
from transom.privacy.nearest import Ints, two_nearest
from transom.privacy.noise import Floats, Shape

_MOST_STEPS = 30


def likeliest(
    table_VD: Floats, seen_ND: Floats, *, eta_V: Floats | None = None, shape: Shape | None = None
) -> Ints:
    """[N]: the token under whose row each vector that was seen is likeliest.

    `eta_V` gives each token the eta of its noise, if they differ; a few different values.
    """
    table, seen = (np.asarray(rows, np.float32) for rows in (table_VD, seen_ND))
    if shape is not None:
        table, seen = shape.straighten(table), shape.straighten(seen)
    if eta_V is None:
        return two_nearest(seen, table)[0][:, 0]
    best_N, guess_N = np.full(len(seen), -math.inf), np.zeros(len(seen), np.int64)
    for eta in np.unique(eta_V):
        tokens = np.flatnonzero(eta_V == eta)
        ids_N2, away_N2 = two_nearest(seen, table[tokens])
        likely_N = table.shape[1] * math.log(eta) - eta * away_N2[:, 0].astype(np.float64)
        guess_N = np.where(likely_N > best_N, tokens[ids_N2[:, 0]], guess_N)
        best_N = np.maximum(likely_N, best_N)
    return guess_N


def empirical_privacy(
    table_VD: Floats,
    ids_N: Ints,
    noise_ND: Floats,
    *,
    eta_V: Floats | None = None,
    shape: Shape | None = None,
) -> float:
    """The share of tokens `ids_N` that `likeliest` does not name from their rows with `noise_ND` (bent
    already, if there is a shape). Of several releases of the same tokens, give the mean of their noise."""
    if not len(ids_N) or noise_ND.shape != (len(ids_N), table_VD.shape[1]):
        raise MisconfiguredError(
            f"{len(ids_N)} tokens need noise [{len(ids_N)}, {table_VD.shape[1]}], got {noise_ND.shape}"
        )
    guess_N = likeliest(table_VD, table_VD[ids_N] + noise_ND, eta_V=eta_V, shape=shape)
    return float((guess_N != ids_N).mean())


def nearest_distance(table_VD: Floats, ids_N: Ints | None = None, sample: int = 2048) -> float:
    """The median distance from a token's row to the nearest other one: what eta is to be multiplied by.

    Over the different tokens of `ids_N` (all without), `sample` of them at most, evenly spaced. A token whose
    row is another's copy is left out: no noise tells the two apart, and none is needed.
    """
    ids = np.arange(len(table_VD)) if ids_N is None else np.unique(ids_N)
    ids = ids[np.linspace(0, len(ids) - 1, min(sample, len(ids))).round().astype(np.int64)]
    table = np.asarray(table_VD, np.float32)
    others = two_nearest(table[ids], table)[1][:, 1]
    if not (others > 0).any():
        raise MisconfiguredError("every row of the table is a copy of another; is it an embedding?")
    return float(np.median(others[others > 0]))


@dataclass(frozen=True)
class Calibration:
    """The eta found, the privacy measured there, and every (eta, privacy) measured, from low to high eta."""

    eta: float
    privacy: float
    curve: tuple[tuple[float, float], ...]


def calibrate_eta(
    measure: Callable[[float], float], target: float, low: float, high: float, tolerance: float = 0.01
) -> Calibration:
    """The eta in [low, high] at which `measure` (an empirical privacy) is at least `target`, and at most
    `tolerance` more: bisection of ln eta.

    Let `measure` use one noise for all etas (the same stream), so that privacy falls as eta grows. Raises
    MisconfiguredError where the range does not hold the target, and where the measure jumps over it.
    """
    if not (0 < low < high < math.inf and 0 <= target <= 1 and tolerance > 0):
        raise MisconfiguredError(
            f"need 0 < low < high, a target in [0, 1] and a tolerance above 0, got {low:g}, {high:g}, "
            f"{target:g}, {tolerance:g}"
        )
    measured = {low: measure(low), high: measure(high)}
    if not measured[high] <= target <= measured[low]:
        raise MisconfiguredError(
            f"a privacy of {target:g} is not between that of eta {low:g} ({measured[low]:.3f}) and of eta "
            f"{high:g} ({measured[high]:.3f}); give another range"
        )
    for _ in range(_MOST_STEPS):
        if measured[low] <= target + tolerance:
            return Calibration(low, measured[low], tuple(sorted(measured.items())))
        middle = math.sqrt(low * high)
        measured[middle] = measure(middle)
        low, high = (middle, high) if measured[middle] >= target else (low, middle)
    raise MisconfiguredError(
        f"privacy jumps from {measured[low]:.3f} to {measured[high]:.3f} at eta {low:g}; measure on more "
        "tokens, or allow a larger tolerance"
    )
