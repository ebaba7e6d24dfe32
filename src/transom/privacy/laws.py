"""Output laws of noisy selection: probabilities from scores and a temperature, by closed form or quadrature.

These are the real-valued laws; what a mechanism samples, and what its epsilon is computed from, are the
integers rounded from them. At a temperature T the worst-case epsilon is T for scores of sensitivity 1.

Threat model: none; public arithmetic on public scores. Does not protect anything by itself.
Source: McKenna and Sheldon 2020, algorithm 1 (permute-and-flip); Ding et al. 2021, arXiv 2105.07260 (its
equality with report noisy max under exponential noise); McSherry and Talwar 2007 (exponential mechanism);
Dwork and Roth 2014, section 3.3 (report noisy max under Laplace noise).

Legend: X inputs, Y outputs, Q quadrature nodes, S segments between sorted scores, N nodes of all segments.
Scores may have leading axes, written as `...`: each row is a law of its own, and `temperature` broadcasts.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from transom.privacy.channel import Floats

_SMALLEST = 1e-300  # keeps an underflow from reading as "excluded from the support"
_FAR = 700.0  # further below the largest score a node's weight underflows; exp(_FAR) does not overflow
_ENTRIES = 2**19  # of one array of the Laplace quadrature: 4 MiB, whatever the size of the group


def exponential(scores_XY: Floats, temperature: float | Floats) -> Floats:
    """P(y|x) proportional to exp(temperature * score / 2), [..., X, Y]."""
    p_XY: Floats = np.exp(temperature / 2 * (scores_XY - scores_XY.max(axis=-1, keepdims=True)))
    return _positive(p_XY / p_XY.sum(axis=-1, keepdims=True))


def permute_and_flip(scores_XY: Floats, temperature: float | Floats) -> Floats:
    """P(i) = p_i * integral over t in [0, 1] of prod over j != i of (1 - t p_j), [..., X, Y].

    Here p_j = exp(temperature (s_j - s_max) / 2). The integrand is a polynomial of degree Y - 1 with
    non-negative values, for which Gauss-Legendre quadrature with ceil(Y / 2) nodes is exact; every term is
    non-negative, so nothing cancels.
    """
    p_XY: Floats = np.exp(temperature / 2 * (scores_XY - scores_XY.max(axis=-1, keepdims=True)))
    nodes_Q, weights_Q = _legendre((scores_XY.shape[-1] + 1) // 2)
    factors_QXY = 1.0 - nodes_Q[:, None, None] * p_XY[..., None, :, :]
    products_QX = factors_QXY.prod(axis=-1) * weights_Q[:, None]
    return _positive(p_XY * (products_QX[..., None] / factors_QXY).sum(axis=-3))


def laplace_argmax(scores_XY: Floats, temperature: float | Floats) -> Floats:
    """P(i) that score i plus Laplace noise of scale 2 / temperature is the largest, [..., X, Y].

    In units of the scale: P(i) = integral of f(z - s_i) prod over j != i of F(z - s_j). Between two
    neighbouring scores the integrand is smooth, so 16 Gauss-Legendre nodes a segment suffice at any
    temperature in use; below all scores it is Y exp(Y z) up to a constant, and above them a polynomial in
    exp(-z) of degree Y - 1: both are integrated in closed form or exactly. The rounded integers are the
    mechanism, so that what quadrature leaves (below 1e-6 for temperatures up to 20, see the tests) costs fit
    to the Laplace law, never privacy.
    """
    shifted: Floats = temperature / 2 * (scores_XY - scores_XY.max(axis=-1, keepdims=True))
    size = shifted.shape[-1]
    s_XY = shifted.reshape(-1, size)
    step = max(1, _ENTRIES // (17 * size**2))  # a row has fewer than 17 * size nodes
    chunks = [_laplace_rows(s_XY[first : first + step]) for first in range(0, len(s_XY), step)]
    return _positive(np.concatenate(chunks).reshape(shifted.shape))


def _laplace_rows(s_XY: Floats) -> Floats:
    """The Laplace law of rows of scores whose largest is 0, in units of the noise's scale."""
    size = s_XY.shape[1]
    edges_XS = np.sort(s_XY, axis=1)
    below_X = np.exp(size * edges_XS[:, 0] - s_XY.sum(axis=1) - size * math.log(2.0)) / size
    inner_Q, inner_weights_Q = _legendre(16)
    widths_XS = np.diff(edges_XS, axis=1)
    z_XSQ = edges_XS[:, :-1, None] + widths_XS[:, :, None] * inner_Q
    # Scores above a node give F(z - s) = exp(z - s) / 2: one exponential for all of them together.
    above_S = np.arange(size - 1, 0, -1)
    sums_XS = np.cumsum(edges_XS[:, :0:-1], axis=1)[:, ::-1]
    higher_XSQ = np.exp(above_S[:, None] * z_XSQ - sums_XS[:, :, None])
    z_XN, higher_XN = z_XSQ.reshape(len(s_XY), -1), higher_XSQ.reshape(len(s_XY), -1)
    dz_XN = (widths_XS[:, :, None] * inner_weights_Q).reshape(len(s_XY), -1) * higher_XN
    # Above the largest score, with v = exp(-z): dz = dv / v, v in [0, 1].
    outer_Q, outer_weights_Q = _legendre((size + 1) // 2)
    outer = (len(s_XY), len(outer_Q))
    v_XN = np.concatenate([np.exp(np.minimum(-z_XN, _FAR)), np.broadcast_to(outer_Q, outer)], axis=1)
    dz_XN = np.concatenate([dz_XN, np.broadcast_to(outer_weights_Q / outer_Q, outer)], axis=1)
    # f(z - s) below the node is exp(s - z) / 2; above it f / F is 1, as it is at 1 / 2.
    density_XNY = np.minimum(0.5 * v_XN[:, :, None] * np.exp(s_XY)[:, None, :], 0.5)
    below_XNY = 1.0 - density_XNY
    all_XN = below_XNY.prod(axis=2) * dz_XN
    p_X1Y: Floats = below_X[:, None, None] + all_XN[:, None, :] @ (density_XNY / below_XNY)
    return p_X1Y[:, 0]


def _positive(p_XY: Floats) -> Floats:
    return np.asarray(np.maximum(p_XY, _SMALLEST), dtype=np.float64)


@lru_cache(maxsize=64)
def _legendre(nodes: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2
