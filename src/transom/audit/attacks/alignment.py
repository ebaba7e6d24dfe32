"""Alignment without correspondences: two clouds of embeddings, whitened, turned into one another by ICA.

The obfuscated embedding is the public one (with noise), its rows permuted and its space mapped by a matrix.
Whitening leaves a rotation; independent component analysis finds the same axes in both clouds, up to order
and sign, wherever the cloud is not Gaussian. Axes are assigned by the quantiles of their coordinates, with
known tokens (if any) as further coordinates. Then Procrustes: the rows that are named most surely give the
rotation again, a few times over.

Threat model: the host, with the public base model; it stands on the embedding alone, so re-growing layers
does not stop it. Seeded when `Knowledge.known` is not empty.
Does not reach Gaussian clouds, and stops at what the budget allows.
Source: Hyvarinen 1999 (FastICA); Grave, Joulin and Berthet 2019, "Unsupervised Alignment of Embeddings with
Wasserstein Procrustes", for the alternation.

Shapes: V vocabulary, D width of the base, S sampled ids, A anchor rows, K known pairs, Q quantiles.
"""

from __future__ import annotations

import time

import numpy as np

from transom.audit.attacks.column_first import anchors
from transom.audit.attacks.matching import Floats, Ints, nearest, quantiles
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, misfit, scored
from transom.audit.finding import Finding, not_run

NAME = "alignment"
_QUANTILES, _ROUNDS, _STEPS, _TOLERANCE = 199, 6, 200, 1e-5


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly; four fifths of the budget go to the two component analyses."""
    started = time.monotonic()
    if gap := misfit(NAME, target, knowledge):
        return gap
    width = knowledge.base.embedding_VD.shape[1]
    if target.weights.embedding_VD.shape[1] < width:
        return not_run(NAME, METRIC, "the target's embedding is narrower than the public one")
    known_KP = np.array(list(knowledge.known.items()), dtype=np.int64).reshape(-1, 2)
    target_VD = components(whiten(target.weights.embedding_VD, width), until=started + 0.4 * budget_s)
    base_VD = components(whiten(knowledge.base.embedding_VD, width), until=started + 0.8 * budget_s)
    cut_short = time.monotonic() > started + 0.8 * budget_s
    target_VD = target_VD @ _axes(target_VD, base_VD, known_KP)
    rows_A = anchors(data.obfuscated_S, len(base_VD))
    target_VD = _procrustes(target_VD, base_VD, rows_A, until=started + budget_s)
    guess_S = nearest(target_VD[data.obfuscated_S], base_VD)[0]
    note = f"{len(known_KP)} known pairs" + ("; components cut short by the budget" if cut_short else "")
    return scored(NAME, guess_S, data, candidates=len(base_VD), started=started, note=note)


def whiten(cloud_VD: Floats, width: int) -> Floats:
    """[V, width]: centred, on its leading directions, each of variance 1."""
    centred_VD = cloud_VD - cloud_VD.mean(axis=0)
    covariance_DD = (centred_VD.T @ centred_VD / np.float32(len(cloud_VD))).astype(np.float64)
    variances_D, directions_DD = np.linalg.eigh(covariance_DD)
    scale_D = np.sqrt(np.maximum(variances_D[-width:], 1e-12 * variances_D[-1]))
    white_VD: Floats = centred_VD @ (directions_DD[:, -width:] / scale_D).astype(np.float32)
    return white_VD


def components(white_VD: Floats, *, until: float) -> Floats:
    """[V, D]: the cloud on its independent components (symmetric FastICA, contrast tanh)."""
    width = white_VD.shape[1]
    turn_DD = np.linalg.qr(np.random.default_rng(5).standard_normal((width, width)))[0].astype(np.float32)
    for _ in range(_STEPS):
        bent_VD = np.tanh(white_VD @ turn_DD)
        slope_D = 1 - (bent_VD**2).mean(axis=0)
        left, _, right = np.linalg.svd(white_VD.T @ bent_VD / np.float32(len(white_VD)) - turn_DD * slope_D)
        change = 1 - np.abs(np.einsum("dc,dc->c", left @ right, turn_DD)).min()
        turn_DD = left @ right
        if change < _TOLERANCE or time.monotonic() > until:
            break
    return white_VD @ turn_DD


def _axes(target_VD: Floats, base_VD: Floats, known_KP: Ints) -> Floats:
    """[D, D] signed permutation that brings the target's axes to the public ones."""
    from scipy.optimize import linear_sum_assignment

    base_DQ = _describe(base_VD, known_KP[:, 1])
    costs = []
    for sign in (1, -1):
        side_DQ = _describe(np.float32(sign) * target_VD, known_KP[:, 0])
        squares = (side_DQ**2).sum(1)[:, None] + (base_DQ**2).sum(1)[None]
        costs.append(squares - 2 * side_DQ @ base_DQ.T)
    rows, columns = linear_sum_assignment(np.minimum(*costs))
    turn_DD = np.zeros((len(base_DQ), len(base_DQ)), dtype=np.float32)
    turn_DD[rows, columns] = np.where(costs[0] <= costs[1], 1, -1)[rows, columns]
    return turn_DD


def _describe(cloud_VD: Floats, known_K: Ints) -> Floats:
    """[D, Q + K]: an axis by its quantiles, and by its values at known tokens (each worth twenty of them)."""
    by_axis_DV = np.ascontiguousarray(cloud_VD.T)
    return np.hstack([quantiles(by_axis_DV, _QUANTILES), np.float32(np.sqrt(20)) * by_axis_DV[:, known_K]])


def _procrustes(target_VD: Floats, base_VD: Floats, rows_A: Ints, *, until: float) -> Floats:
    """The target's cloud, turned onto the public one by the rotation that its surest rows ask for."""
    for _ in range(_ROUNDS):
        if time.monotonic() > until:
            break
        guess_A, margin_A = nearest(target_VD[rows_A], base_VD)
        sure = np.argsort(-margin_A)[: max(64, len(rows_A) // 2)]
        left, _, right = np.linalg.svd(target_VD[rows_A[sure]].T @ base_VD[guess_A[sure]])
        target_VD = target_VD @ (left @ right)
    return target_VD
