"""What is expected of a token's row, given its noisy one: the mean of the table's rows, each by its odds.

Whoever gets d_chi's rows knows table and law, and so may put in place of each what it most likely was, as the
mean over all tokens. It is post-processing: it uses nothing private, costs no privacy, and a model that was
trained on plain rows learns much better from it than from rows whose noise is several times their length.
Threat model: table, law and prior are public. Does not protect anything: it is what an attacker does first,
with the same prior, and what noise hides has to be measured against that one.
Source: Bayes' rule for the law of `noise.d_chi`; that denoising is free: Balle and Wang 2018.

Shapes: N rows (tokens), V vocabulary, D width.
"""

from __future__ import annotations

import numpy as np

from transom.errors import MisconfiguredError
from transom.privacy.noise import Floats, Shape

_BLOCK = 1024


def expected_rows(
    seen_ND: Floats,
    table_VD: Floats,
    eta: float | Floats,
    *,
    prior_V: Floats | None = None,
    shape: Shape | None = None,
) -> Floats:
    """The expected rows [N, D], in float32, of rows seen under d_chi's noise.

    `eta` is one number or each token's [V]; `prior_V` says how often each token comes (a count or a share;
    all alike without), of public texts. Raises MisconfiguredError for values that do not fit.
    """
    eta_V = np.broadcast_to(np.asarray(eta, np.float64), (len(table_VD),))
    prior_V = np.ones(len(table_VD)) if prior_V is None else np.asarray(prior_V, np.float64)
    fits = prior_V.shape == eta_V.shape and np.isfinite(prior_V).all() and np.isfinite(eta_V).all()
    if not (fits and (eta_V > 0).all() and (prior_V >= 0).all() and prior_V.any()):
        raise MisconfiguredError(
            f"{len(table_VD)} tokens need an eta above 0 and a prior of 0 or more each, not all 0, got "
            f"{eta_V.shape} and {prior_V.shape}"
        )
    may = np.flatnonzero(prior_V > 0)
    known_VD = (
        table_VD if len(may) == len(table_VD) else table_VD[may]
    )  # a copy of all costs more than the rest
    table, seen = (np.asarray(rows, np.float32) for rows in (known_VD, seen_ND))
    at, near = (table, seen) if shape is None else (shape.straighten(table), shape.straighten(seen))
    eta_V = eta_V[may].astype(np.float32)
    odds_V = (np.log(prior_V[may]) + table.shape[1] * np.log(eta_V)).astype(np.float32)
    squares_V = np.einsum("vd,vd->v", at, at)
    found = np.empty_like(seen)
    for start in range(0, len(seen), _BLOCK):
        block = near[start : start + _BLOCK]
        away_NV = squares_V - 2 * block @ at.T + np.einsum("nd,nd->n", block, block)[:, None]
        odds_NV = odds_V - eta_V * np.sqrt(np.maximum(away_NV, 0))
        share_NV = np.exp(odds_NV - odds_NV.max(axis=1, keepdims=True))
        found[start : start + _BLOCK] = share_NV @ table / share_NV.sum(axis=1, keepdims=True)
    return found
