"""Noise on vectors before they leave: d_chi's, the Gaussian's and a shaped one; what each promises.

d_chi makes x + l v of a row x: one length l from Gamma(d, 1 / eta) and one direction v, uniform, a row. Its
density falls as exp(-eta |n|), so what is seen is at most exp(eta |x - y|) times likelier for x than for y;
the mean length is d / eta. A shape keeps noise at full strength where the public model and task do not look,
and takes some of it away where they do; an attacker who knows it measures distances in the shape's units.

Threat model: the receiver knows table, law, shape and clip, and keeps all that it gets.
Does not protect: at the eta at which a model still learns, d_chi's bound between the two tokens nearest to
each other is e^50 and more, which bounds nothing; such a guarantee is `empirical`, measured by attacks
(`privacy.empirical`, `transom audit`). A row that is released again costs again, and the mean of its releases
has less noise (MiniLM, eta 50: one release hides 0.90 of tokens, the mean of three 0.31): draw once for what
does not change, and not once an epoch. Noise is float64: in float32 its low bits tell the row, as the
distinguisher sees, so add it by `noised`; what is left of that is not counted.
Source: Chatzikokolakis et al. 2013 (metric privacy); Qu et al. 2021, arXiv 2102.01502 (d_chi on tokens); Shen
et al., arXiv 2312.15603; Balle and Wang 2018 (Gaussian); Mironov 2012 (low bits); the shape is Transom's own.

Shapes: N rows (tokens, or texts where each is one), D width, R directions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError
from transom.privacy import account
from transom.privacy.guarantee import Guarantee
from transom.privacy.stream import Stream

Floats = NDArray[Any]  # float32 or float64

MOST_METRIC = 10.0  # eta times the distance of nearest tokens: odds of e^10 = 22,000 are no protection
_RIDGE = 0.01  # of a direction's mean variance
_LEAST_SHARE = 0.01  # of what a direction tells: below it a sample's covariance is not to be trusted
TOKEN, TEXT = "one token's vector", "one text's row"
_OF_A_TOKEN = (
    "a row depends on its own token alone, as at the embedding; after a block each token moves every row of "
    "its text, and their costs add up",
)
_ASSUMPTIONS = (
    "table, clip and shape are public and independent of the text",
    "each release has a label of its own under a secret that stays with its sender",
    "epsilon is that of the real-valued law; the rounding of floats is not counted",
)


def d_chi(stream: Stream, n: int, d: int, eta: float | Floats) -> NDArray[np.float64]:
    """Noise [n, d] of the density exp(-eta |noise|), up to a constant; `eta` is one number or one a row [n].

    The same stream gives the same noise at any eta but for its length, which falls as 1 / eta. Raises
    MisconfiguredError unless d is 2 or more and each eta positive and finite.
    """
    from scipy.special import gammaincinv

    if d < 2:
        raise MisconfiguredError(f"d_chi noise is for vectors of width 2 and more, got {d}")
    eta_N = np.broadcast_to(np.asarray(eta, np.float64), (n,))
    if not np.all((eta_N > 0) & np.isfinite(eta_N)):
        raise MisconfiguredError(f"eta must be positive and finite, got {eta_N.min():g} to {eta_N.max():g}")
    length_N = gammaincinv(float(d), stream.uniform(n)) / eta_N
    normal_ND = stream.normal32((n, d))
    norm_N = np.sqrt(np.einsum("nd,nd->n", normal_ND, normal_ND, dtype=np.float64))
    noise_ND: NDArray[np.float64] = normal_ND * (length_N / norm_N)[:, None]
    return noise_ND


def gaussian(stream: Stream, n: int, d: int, sigma: float) -> NDArray[np.float64]:
    """Noise [n, d], coordinates from N(0, sigma^2), independent; float64, tails end at 8.6 sigma."""
    _positive("sigma", sigma)
    return stream.normal((n, d)) * sigma


def noised(rows_ND: Floats, noise_ND: NDArray[np.float64]) -> Floats:
    """Rows and noise added in float64, then rounded once to the rows' type."""
    if noise_ND.dtype != np.float64 or noise_ND.shape != rows_ND.shape:
        raise MisconfiguredError(
            f"rows {rows_ND.shape} need noise of their shape in float64, got {noise_ND.shape} in "
            f"{noise_ND.dtype}"
        )
    return np.add(rows_ND, noise_ND, dtype=np.float64).astype(rows_ND.dtype, copy=False)


def clipped(rows_ND: Floats, clip: float) -> Floats:
    """The rows, those longer than `clip` shortened to it; the type stays. Raises MisconfiguredError."""
    _positive("clip", clip)
    lengths_N1 = np.linalg.norm(rows_ND, axis=1, keepdims=True)
    return np.asarray(rows_ND * np.minimum(1.0, clip / np.maximum(lengths_N1, 1e-30)), rows_ND.dtype)


@dataclass(frozen=True, eq=False)
class Shape:
    """Noise at full strength outside the span of `basis_DR`, at `inside` of it within.

    Covariance s I becomes s (I - (1 - inside^2) B B'). Raises MisconfiguredError unless the basis is
    orthonormal and 0 < inside <= 1: without any noise within, the span alone would name most tokens.
    """

    basis_DR: Floats
    inside: float

    def __post_init__(self) -> None:
        basis = self.basis_DR
        if basis.ndim != 2 or not 0 < basis.shape[1] <= basis.shape[0]:
            raise MisconfiguredError(f"a basis is [width, directions], got shape {basis.shape}")
        error = np.abs(basis.T @ basis - np.eye(basis.shape[1])).max()
        if not error < 1e-4:
            raise MisconfiguredError(f"the basis is not orthonormal, by {error:.3g}; take used_directions()")
        if not 0 < self.inside <= 1:
            raise MisconfiguredError(f"inside must be above 0 and at most 1, got {self.inside:g}")

    def bend(self, noise_ND: Floats) -> Floats:
        """The noise [N, D] with its part in the span scaled by `inside`."""
        return self._scaled(noise_ND, self.inside)

    def straighten(self, rows_ND: Floats) -> Floats:
        """The rows in the units in which shaped noise is plain again: where an attacker measures."""
        return self._scaled(rows_ND, 1 / self.inside)

    def _scaled(self, rows_ND: Floats, factor: float) -> Floats:
        basis_DR = self.basis_DR.astype(rows_ND.dtype, copy=False)
        return np.asarray(rows_ND + (rows_ND @ basis_DR) @ basis_DR.T * rows_ND.dtype.type(factor - 1))


@dataclass(frozen=True, eq=False)
class Narrow:
    """What of rows passes: their part in the span of orthonormal `basis_DR`, around `center_D`. The receiver
    knows both: rows in the span tell of it."""

    center_D: Floats
    basis_DR: Floats

    def coordinates(self, rows_ND: Floats) -> Floats:
        """[N, R], of the rows' type."""
        told_NR = (rows_ND - self.center_D.astype(rows_ND.dtype)) @ self.basis_DR.astype(rows_ND.dtype)
        return np.asarray(told_NR)

    def rows(self, told_NR: Floats) -> Floats:
        """The rows [N, D] that have these coordinates and lie in the span: what the next block can read."""
        made_ND = told_NR @ self.basis_DR.astype(told_NR.dtype).T
        return np.asarray(made_ND + self.center_D.astype(told_NR.dtype))


def used_directions(states_ND: Floats, rank: int, gradients_ND: Floats | None = None) -> NDArray[np.float64]:
    """An orthonormal basis [D, rank] of the directions that a public model and task use.

    `states_ND` are what crosses the cut for public text: without gradients their leading principal
    components. `gradients_ND`, of a public task's loss by the states, say what noise costs: n along v moves
    the loss by g.v |n|. What a direction tells of its token, under noise as strong as a mean direction's
    variance m, is s / (s + m), s its variance. Taken are the directions of the largest E[(g.v)^2] for what
    they tell. Raises MisconfiguredError for a rank or arrays that do not fit.
    """
    width = _checked(states_ND, rank)
    covariance_DD = np.cov(states_ND, rowvar=False, dtype=np.float64)
    variance_D, axes_DD = np.linalg.eigh(covariance_DD)
    if gradients_ND is None:
        return np.asarray(axes_DD[:, ::-1][:, :rank])
    if _checked(gradients_ND, rank) != width:
        raise MisconfiguredError(f"gradients are {gradients_ND.shape[1]} wide, states {width}")
    variance_D = np.maximum(variance_D, 0.0)
    told_D = np.maximum(variance_D / (variance_D + max(variance_D.mean(), 1e-30)), _LEAST_SHARE)
    to_told_DD = axes_DD / np.sqrt(told_D)
    moved_ND = gradients_ND.astype(np.float64) @ to_told_DD
    _, best_DD = np.linalg.eigh(moved_ND.T @ moved_ND)
    return np.linalg.qr(to_told_DD @ best_DD[:, ::-1][:, :rank])[0]


def task_directions(means_BD: Floats, labels_B: NDArray[np.int64], rank: int) -> NDArray[np.float64]:
    """An orthonormal basis [D, rank] of the directions that tell the classes of public texts, best first.

    `means_BD` are the mean states of the texts. A direction is the weights of a linear classifier (ridge
    regression on each class), the next ones those of a classifier on what the former leave. Raises
    MisconfiguredError for arrays that do not fit, one class alone, and a rank beyond the width.
    Source: Ravfogel et al. 2020, arXiv 2004.07667 (iterative projection).
    """
    width = _checked(means_BD, rank)
    kinds_C, class_B = np.unique(labels_B, return_inverse=True)
    if len(labels_B) != len(means_BD) or len(kinds_C) < 2:
        raise MisconfiguredError(
            f"directions of a task need two classes and a label a text, got {len(kinds_C)} classes, "
            f"{len(labels_B)} labels and {len(means_BD)} texts"
        )
    left_BD = means_BD.astype(np.float64)
    left_BD -= left_BD.mean(axis=0)
    wanted_BC = np.eye(len(kinds_C))[class_B][:, 1:]  # the first class is what the others are not
    wanted_BC -= wanted_BC.mean(axis=0)
    ridge_DD = np.eye(width) * _RIDGE * max(np.square(left_BD).sum() / width, 1e-30)
    basis_DR = np.zeros((width, 0))
    while basis_DR.shape[1] < rank:
        weights_DC = np.linalg.solve(left_BD.T @ left_BD + ridge_DD, left_BD.T @ wanted_BC)
        weights_DC -= basis_DR @ (basis_DR.T @ weights_DC)
        found_DC = np.linalg.qr(weights_DC)[0]
        basis_DR = np.linalg.qr(np.hstack([basis_DR, found_DC]))[0]
        left_BD -= (left_BD @ basis_DR) @ basis_DR.T
    return basis_DR[:, :rank]


def d_chi_guarantee(
    eta: float,
    nearest: float,
    *,
    clip: float | None = None,
    inside: float = 1.0,
    releases: int = 1,
    spared: str = "",
    unit: str = TOKEN,
    between: str = "",
) -> Guarantee:
    """What d_chi promises of one row, which holds `unit`, that is released so often.

    `nearest` is `empirical.nearest_distance`'s, of the table as it is clipped.

    Metric privacy at eta / inside for a unit of distance and a release, with the diameter where rows were
    clipped. `empirical` instead where that bounds nothing even between nearest tokens (MOST_METRIC), and
    where some tokens were `spared`, which says how these were chosen: their noise has another law.
    """
    for name, value in (("eta", eta), ("nearest", nearest), ("inside", inside)):
        _positive(name, value)
    if clip is not None:
        _positive("clip", clip)
    if releases < 1:
        raise MisconfiguredError(f"a row is released at least once, got {releases}")
    epsilon = math.nextafter(eta / inside * releases, math.inf)
    between = between or ("two nearest tokens" if unit == TOKEN else "two nearest rows")
    told = f"eta {eta:g}, released {releases} times: {epsilon * nearest:.3g} between {between}"
    if spared or not epsilon * nearest <= MOST_METRIC:
        why = "tokens with less noise are told by its length" if spared else "d_chi's bound is void there"
        return Guarantee(
            kind="empirical",
            unit=unit,
            adjacency=f"texts that differ in {unit}",
            assumptions=(f"{told}; {why}, and attacks measure what is left", *_ASSUMPTIONS[:2]),
            discloses=(f"that a token is among those with less noise: {spared}",) if spared else (),
            source="Shen et al., arXiv 2312.15603",
        )
    return Guarantee(
        kind="metric-dp",
        unit=f"{unit}, times the Euclidean distance of the two",
        adjacency=f"texts that differ in {unit}" + (", clipped" if clip else ""),
        epsilon=epsilon,
        diameter=2 * clip if clip else None,
        assumptions=(told, *_assumed(unit)),
        source="Chatzikokolakis et al. 2013; Qu et al. 2021, arXiv 2102.01502",
    )


def gaussian_guarantee(
    sigma: float, clip: float, *, inside: float = 1.0, releases: int = 1, unit: str = TOKEN
) -> Guarantee:
    """What N(0, sigma^2) on rows clipped to `clip` promises: the events that `guarantee.price` prices.

    `unit` is what one clipped row holds. A shape costs what its weakest direction does.
    """
    _positive("inside", inside)
    event = account.gaussian(sigma=sigma * inside, clip=clip, neighbours="replace-one", count=releases)
    return Guarantee(
        kind="approximate-dp",
        unit=unit,
        adjacency=f"texts that differ in {unit}",
        events=(event,),
        assumptions=_assumed(unit),
        source="Balle and Wang 2018, theorem 8; Dong, Roth and Su 2022, corollary 3.3",
    )


def _assumed(unit: str) -> tuple[str, ...]:
    return (*(_OF_A_TOKEN if unit == TOKEN else ()), *_ASSUMPTIONS)


def _checked(rows_ND: Floats, rank: int) -> int:
    """The width of rows that a basis can be taken of."""
    if rows_ND.ndim != 2 or len(rows_ND) < 2 or not 1 <= rank <= rows_ND.shape[1]:
        raise MisconfiguredError(
            f"directions need two rows [N, D] or more and a rank of 1 to D, got shape {rows_ND.shape}, {rank}"
        )
    if not np.isfinite(rows_ND).all():
        raise MisconfiguredError("states or gradients hold values that are not finite")
    return int(rows_ND.shape[1])


def _positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise MisconfiguredError(f"{name} must be positive and finite, got {value}")
