"""Neurons first: name the neurons from weights that carry no noise, then read both tables of the vocabulary.

In W~_down W~_gate the keys cancel, and no noise was ever added: what is left is the public product, rows and
columns permuted and rows rescaled. The sorted magnitudes of its rows name every neuron. Once these are known,
(W_e + N) and (W_h + M) are read exactly, and naming a token is decoding a Gaussian channel with two looks.
No attack on the tables can do better.

Threat model: the host, with the public base model and no traffic. Adaptive: not an attack of the paper.
Does not reach a layer whose neurons have no public counterpart (re-grown), nor tables under so much noise
that the model is of no use either.
Source: own; maximum likelihood for the decoding.

Shapes: V vocabulary, D width of the base, W of the target, N neurons, S sampled ids, C a block of candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks.matching import Floats, assign, quantiles, unit
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, Weights, misfit, part, scored
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

NAME = "neurons first"
_QUANTILES, _BLOCK = 199, 8192
_MOST = 16_384  # neurons whose products are held
Covariance = NDArray[np.float64]


@dataclass(frozen=True)
class Neurons:
    """One layer's neurons found: the target's place of each public neuron, and the scale of its output."""

    places_N: Ints
    scale_N: Floats


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids that both tables together name rightly, by the neurons of layer 0.

    `budget_s` is not used: two products, two matchings and one decoding.
    """
    if gap := misfit(NAME, target, knowledge, "gate", "down"):
        return gap
    base = knowledge.base
    if (count := part(base, 0, "gate").shape[1]) > _MOST:
        return not_run(NAME, METRIC, f"its layer has {count} neurons, more than the {_MOST} that are tried")
    found = neurons(target.weights, base, 0, 0)
    looks = tables(target.weights, base, found, 0)
    clean = (base.embedding_VD, base.head_DV.T)
    noise = [_excess(look_VD, table_VD) for look_VD, table_VD in zip(looks, clean, strict=True)]
    guess_S = decode([look_VD[data.obfuscated_S] for look_VD in looks], clean, noise)
    return scored(NAME, guess_S, data, candidates=base.vocabulary, note="layer 0")


def neurons(target: Weights, base: Weights, layer: int, reader: int) -> Neurons:
    """Neurons of `layer` by its down matrix times the gate of layer `reader`, free of noise.

    Rows are brought to length 1 and signs dropped, because each neuron's output has an unknown scale.
    """
    there_NN, here_NN = (part(side, layer, "down") @ part(side, reader, "gate") for side in (target, base))
    unit_there, unit_here = unit(there_NN), unit(here_NN)
    places_N = assign(_sorted(unit_there), _sorted(unit_here))
    columns_N = assign(_sorted(unit_there.T), _sorted(unit_here.T))
    aligned_NN = there_NN[places_N][:, columns_N]
    scale_N = np.einsum("nm,nm->n", aligned_NN, here_NN) / np.einsum("nm,nm->n", here_NN, here_NN)
    return Neurons(places_N, np.where(scale_N == 0, 1, scale_N).astype(np.float32))


def tables(
    target: Weights, base: Weights, found: Neurons, layer: int, rows_S: Ints | slice = slice(None)
) -> tuple[Floats, Floats]:
    """(W_e + N, W_h + M) [S, D] of obfuscated ids, as far as the neurons of `layer` are right."""
    gate_WN, gate_DN = (part(side, layer, "gate") for side in (target, base))
    down_NW, down_ND = (part(side, layer, "down") for side in (target, base))
    undo_WD = gate_WN[:, found.places_N] @ np.linalg.pinv(gate_DN)
    written_DW = np.linalg.pinv(down_ND) @ (down_NW[found.places_N] / found.scale_N[:, None])
    return target.embedding_VD[rows_S] @ undo_WD, (written_DW @ target.head_DV[:, rows_S]).T


def decode(looks: Sequence[Floats], clean: Sequence[Floats], noise: Sequence[Covariance]) -> Ints:
    """Plain ids [S] by maximum likelihood: rows [S, D] seen, tables [V, D] without noise, and the noise.

    Several looks at the same tokens (embedding and head, two uploads) count together.
    """
    sides = []
    for look_SD, table_VD, covariance_DD in zip(looks, clean, noise, strict=True):
        metric_DD, mean_D = _inverse_root(covariance_DD, table_VD), table_VD.mean(0)
        sides.append(((look_SD - mean_D) @ metric_DD, table_VD, mean_D, metric_DD))
    best_S, guess_S = np.full(len(looks[0]), np.inf, np.float32), np.zeros(len(looks[0]), np.int64)
    for start in range(0, len(clean[0]), _BLOCK):
        away_SC = np.zeros((1, 1), np.float32)
        for rows_SD, table_VD, mean_D, metric_DD in sides:
            block_CD = (table_VD[start : start + _BLOCK] - mean_D) @ metric_DD
            away_SC = away_SC + np.einsum("cd,cd->c", block_CD, block_CD) / 2 - rows_SD @ block_CD.T
        nearer_S = away_SC.min(1) < best_S
        guess_S[nearer_S] = start + away_SC.argmin(1)[nearer_S]
        best_S = np.minimum(best_S, away_SC.min(1))
    return guess_S


def _sorted(rows_NM: Floats) -> Floats:
    """Quantiles of each row's magnitudes, each quantile in units of its spread over rows."""
    found_NQ = quantiles(np.abs(np.ascontiguousarray(rows_NM)), _QUANTILES)
    return np.asarray(found_NQ / (found_NQ.std(0) + 1e-12), dtype=np.float32)


def _excess(look_VD: Floats, table_VD: Floats) -> Covariance:
    """The noise's covariance, drawn coordinate by coordinate: what rows that were read vary more than public
    ones. Products of coordinates would tell a shape too, and blur it on a small vocabulary."""
    more_D = look_VD.var(0, dtype=np.float64) - table_VD.var(0, dtype=np.float64)
    return np.diag(np.maximum(more_D, 0.0))


def _inverse_root(covariance_DD: Covariance, table_VD: Floats) -> Floats:
    """Sigma^-1/2, never finer than a hundredth of the table's own spread (rounding, wrong neurons)."""
    floor = (1e-2 * float(table_VD.std())) ** 2
    values_D, vectors_DD = np.linalg.eigh(covariance_DD)
    return np.asarray((vectors_DD / np.sqrt(values_D + floor)) @ vectors_DD.T, dtype=np.float32)
