"""Output laws of noisy selection: probabilities from scores and a temperature, by closed form or quadrature.

These are the real-valued laws; what a mechanism samples, and what its epsilon is computed from, are the
integers rounded from them. At a temperature T the worst-case epsilon is T for scores of sensitivity 1.

Threat model: none; public arithmetic on public scores. Does not protect anything by itself.
Source: McKenna and Sheldon 2020, algorithm 1 (permute-and-flip); Ding et al. 2021, arXiv 2105.07260 (its
equality with report noisy max under exponential noise); McSherry and Talwar 2007 (exponential mechanism);
Dwork and Roth 2014, section 3.3 (report noisy max under Laplace noise).

Legend: X inputs, Y outputs, Q quadrature nodes, S segments between sorted scores, N nodes of all segments.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from transom.privacy.channel import Floats

_SMALLEST = 1e-300  # keeps an underflow from reading as "excluded from the support"


def exponential(scores_XY: Floats, temperature: float) -> Floats:
    """P(y|x) proportional to exp(temperature * score / 2)."""
    p_XY: Floats = np.exp(temperature / 2 * (scores_XY - scores_XY.max(axis=1, keepdims=True)))
    return _positive(p_XY / p_XY.sum(axis=1, keepdims=True))


def permute_and_flip(scores_XY: Floats, temperature: float) -> Floats:
    """P(i) = p_i * integral over t in [0, 1] of prod over j != i of (1 - t p_j).

    Here p_j = exp(temperature (s_j - s_max) / 2). The integrand is a polynomial of degree Y - 1 with
    non-negative values, for which Gauss-Legendre quadrature with ceil(Y / 2) nodes is exact; every term is
    non-negative, so nothing cancels.
    """
    p_XY: Floats = np.exp(temperature / 2 * (scores_XY - scores_XY.max(axis=1, keepdims=True)))
    nodes_Q, weights_Q = _legendre((scores_XY.shape[1] + 1) // 2)
    factors_QXY = 1.0 - nodes_Q[:, None, None] * p_XY
    products_QX = factors_QXY.prod(axis=2) * weights_Q[:, None]
    return _positive(p_XY * (products_QX[:, :, None] / factors_QXY).sum(axis=0))


def laplace_argmax(scores_XY: Floats, temperature: float) -> Floats:
    """P(i) that score i plus Laplace noise of scale 2 / temperature is the largest.

    In units of the scale: P(i) = integral of f(z - s_i) prod over j != i of F(z - s_j). Between two
    neighbouring scores the integrand is smooth, so 16 Gauss-Legendre nodes a segment suffice at any
    temperature in use; below all scores it is Y exp(Y z) up to a constant, and above them a polynomial in
    exp(-z) of degree Y - 1: both are integrated in closed form or exactly. The rounded integers are the
    mechanism, so that what quadrature leaves (below 1e-6 for temperatures up to 20, see the tests) costs fit
    to the Laplace law, never privacy.
    """
    size = scores_XY.shape[1]
    s_XY = temperature / 2 * (scores_XY - scores_XY.max(axis=1, keepdims=True))
    edges_XS = np.sort(s_XY, axis=1)
    below_X = np.exp(size * edges_XS[:, 0] - s_XY.sum(axis=1) - size * math.log(2.0)) / size
    inner_Q, inner_weights_Q = _legendre(16)
    widths_XS = np.diff(edges_XS, axis=1)
    z_XN = (edges_XS[:, :-1, None] + widths_XS[:, :, None] * inner_Q).reshape(len(s_XY), -1)
    dz_XN = (widths_XS[:, :, None] * inner_weights_Q).reshape(len(s_XY), -1)
    # Above the largest score (0 after the shift), with v = exp(-z): dz = dv / v, v in [0, 1].
    outer_Q, outer_weights_Q = _legendre((size + 1) // 2)
    z_XN = np.concatenate([z_XN, np.broadcast_to(-np.log(outer_Q), (len(s_XY), len(outer_Q)))], axis=1)
    dz_XN = np.concatenate(
        [dz_XN, np.broadcast_to(outer_weights_Q / outer_Q, (len(s_XY), len(outer_Q)))], axis=1
    )
    gap_XNY = z_XN[:, :, None] - s_XY[:, None, :]
    density_XNY = 0.5 * np.exp(-np.abs(gap_XNY))
    below_XNY = np.where(gap_XNY < 0, density_XNY, 1.0 - density_XNY)
    all_XN = below_XNY.prod(axis=2) * dz_XN
    p_XY = below_X[:, None] + np.einsum("xn,xny->xy", all_XN, density_XNY / below_XNY)
    return _positive(p_XY)


def _positive(p_XY: Floats) -> Floats:
    return np.asarray(np.maximum(p_XY, _SMALLEST), dtype=np.float64)


@lru_cache(maxsize=64)
def _legendre(nodes: int) -> tuple[Floats, Floats]:
    """Gauss-Legendre nodes and weights on [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, w / 2
