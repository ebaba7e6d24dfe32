"""Alignment without correspondences: two clouds of embeddings, each brought to axes that it defines itself.

The obfuscated embedding is the public one (with noise), its rows permuted and its space mapped by a matrix.
Whitening leaves a rotation. The covariance of the whitened rows, each weighted with its squared length, is
turned along with the cloud and does not see the order of rows: its eigenvectors are the same axes in both
clouds. Noise mixes axes of close eigenvalues, so rows are first named by the few axes that stand out; then
the rows that are named most surely give the rotation (Procrustes), and so on in turn.

Threat model: the host, with the public base model; it stands on the embedding alone, so re-growing layers
does not stop it. Seeded when `Knowledge.known` is not empty.
Does not reach clouds whose outstanding axes drown in noise, and stops at what the budget allows.
Source: Cardoso 1989, "Source separation using higher order moments" (the weighted covariance); Grave, Joulin
and Berthet 2019, "Unsupervised Alignment of Embeddings with Wasserstein Procrustes", for the alternation.

Shapes: V vocabulary, D width of the base, S sampled ids, A anchor rows, K known pairs, Q quantiles,
R some rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks.matching import Floats, assigned, nearest, quantiles, with_others
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, misfit, scored
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

NAME = "alignment"
_QUANTILES, _ANCHORS, _ROUNDS = 199, 4096, 12
_STARTS = (32, 10, 100)  # axes that name the rows first; each start is a try of its own
_ALIKE, _ROWS = 1e-2, 12288  # eigenvalues of one cloud in two bases agree; rows that tell levels apart
_NOISE = (0.0, 0.05, 0.1, 0.18, 0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)  # in units of the embedding's spread


@dataclass(frozen=True)
class Cloud:
    """Rows [V, D] on the cloud's own axes, by rising eigenvalue [D], and the map [D, D] from given rows.

    A row r of what was given stands at (r - centre) @ into.
    """

    rows_VD: Floats
    eigenvalues_D: NDArray[np.float64]
    centre_D: Floats
    into_DD: Floats


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly, by the start whose rotation fits best."""
    until = time.monotonic() + budget_s
    if gap := misfit(NAME, target, knowledge):
        return gap
    base_VD = knowledge.base.embedding_VD
    vocabulary, width = base_VD.shape
    if target.weights.embedding_VD.shape[1] < width:
        return not_run(NAME, METRIC, "the target's embedding is narrower than the public one")
    cloud = own_axes(target.weights.embedding_VD, width)
    level, public = _as_noisy(target.weights.embedding_VD, cloud, base_VD)
    known_KP = np.array(list(knowledge.known.items()), dtype=np.int64).reshape(-1, 2)
    turned_VD = cloud.rows_VD @ _axes(cloud.rows_VD, public.rows_VD, known_KP)
    clean_VD = np.asarray((base_VD - public.centre_D) @ public.into_DD, dtype=np.float32)
    # Noise is alike in all directions of the public embedding, so distances are taken there.
    back_DD = np.asarray(np.linalg.inv(public.into_DD), dtype=np.float32)
    rows_A = with_others(data.obfuscated_S, vocabulary, _ANCHORS)
    best_fit, best_DD, tries = -1.0, np.eye(width, dtype=np.float32), 0
    for axes in dict.fromkeys(min(axes, width) for axes in _STARTS):
        fit, turn_DD = _procrustes(turned_VD[rows_A], clean_VD, back_DD, axes, until=until)
        tries += 1
        if fit > best_fit:
            best_fit, best_DD = fit, turn_DD
        if time.monotonic() > until or best_fit > 0.9:
            break
    cut_short = time.monotonic() > until
    rows_SD = np.asarray(turned_VD[data.obfuscated_S] @ best_DD @ back_DD, dtype=np.float32)
    guess_S = nearest(rows_SD, np.asarray(clean_VD @ back_DD, dtype=np.float32))[0]
    note = f"{len(known_KP)} known pairs, {tries} starts, noise taken for {level:g}, fit {best_fit:.2f}"
    note += "; cut short by the budget" if cut_short else ""
    return scored(NAME, guess_S, data, candidates=vocabulary, note=note)


def own_axes(given_VW: Floats, width: int) -> Cloud:
    """The cloud [V, W] on its `width` leading directions, whitened, on the axes of its fourth moments."""
    centre_W = given_VW.mean(axis=0)
    white_VD = centred_VW = given_VW - centre_W
    into_WD = np.eye(len(centre_W), dtype=np.float32)
    for _ in range(2):  # single precision leaves faint directions off by a few percent; once more mends them
        into_WD = into_WD @ _whitening(white_VD, width)
        white_VD = centred_VW @ into_WD
    weights_V = np.einsum("vd,vd->v", white_VD, white_VD) / np.float32(width * len(white_VD))
    eigenvalues_D, turn_DD = np.linalg.eigh(((white_VD.T * weights_V) @ white_VD).astype(np.float64))
    turn_DD = turn_DD.astype(np.float32)
    return Cloud(white_VD @ turn_DD, eigenvalues_D, centre_W, into_WD @ turn_DD)


def _whitening(centred_VW: Floats, width: int) -> Floats:
    """[W, width]: onto the leading directions, each scaled to variance 1."""
    covariance_WW = (centred_VW.T @ centred_VW / np.float32(len(centred_VW))).astype(np.float64)
    variances_W, directions_WW = np.linalg.eigh(covariance_WW)
    scale_D = np.sqrt(np.maximum(variances_W[-width:], 1e-12 * variances_W[-1]))
    return np.asarray(directions_WW[:, -width:] / scale_D, dtype=np.float32)


def _as_noisy(given_VW: Floats, cloud: Cloud, base_VD: Floats) -> tuple[float, Cloud]:
    """(level, public cloud under that noise): of rising levels the one whose eigenvalues agree best.

    Levels are compared on some thousands of rows of each side, and not at all where the whole clouds agree.
    """
    width = base_VD.shape[1]
    public = own_axes(base_VD, width)
    if np.abs(public.eigenvalues_D - cloud.eigenvalues_D).max() < _ALIKE:
        return 0.0, public
    draw = np.random.default_rng(0)
    noise_VD = draw.standard_normal(base_VD.shape, dtype=np.float32) * base_VD.std()
    one_R, other_R = (draw.permutation(len(base_VD))[:_ROWS] for _ in range(2))
    seen_D = own_axes(given_VW[one_R], width).eigenvalues_D
    best_level, best_gap = 0.0, np.inf
    for level in _NOISE:
        noisy_RD = base_VD[other_R] + np.float32(level) * noise_VD[other_R]
        gap = float(((own_axes(noisy_RD, width).eigenvalues_D - seen_D) ** 2).sum())
        if gap > best_gap:
            break
        best_level, best_gap = level, gap
    return best_level, own_axes(base_VD + np.float32(best_level) * noise_VD, width)


def _axes(target_VD: Floats, base_VD: Floats, known_KP: Ints) -> Floats:
    """[D, D] signed permutation that brings the target's axes to the public ones."""
    base_DQ = _describe(base_VD, known_KP[:, 1])
    costs = []
    for sign in (1, -1):
        side_DQ = _describe(np.float32(sign) * target_VD, known_KP[:, 0])
        squares = (side_DQ**2).sum(1)[:, None] + (base_DQ**2).sum(1)[None]
        costs.append(squares - 2 * side_DQ @ base_DQ.T)
    rows, columns = np.arange(len(base_DQ)), assigned(np.minimum(*costs))
    turn_DD = np.zeros((len(base_DQ), len(base_DQ)), dtype=np.float32)
    turn_DD[rows, columns] = np.where(costs[0] <= costs[1], 1, -1)[rows, columns]
    return turn_DD


def _describe(cloud_VD: Floats, known_K: Ints) -> Floats:
    """[D, Q + K]: an axis by its quantiles, and by its values at known tokens (each worth twenty of them)."""
    by_axis_DV = np.ascontiguousarray(cloud_VD.T)
    return np.hstack([quantiles(by_axis_DV, _QUANTILES), np.float32(np.sqrt(20)) * by_axis_DV[:, known_K]])


def _procrustes(
    rows_AD: Floats, clean_VD: Floats, back_DD: Floats, axes: int, *, until: float
) -> tuple[float, Floats]:
    """(correlation of the surest rows with their names, rotation [D, D]) after naming and turning in turn.

    The first names go by the last `axes` axes alone, later ones by distance in the public embedding.
    """
    fit, turn_DD = 0.0, np.eye(rows_AD.shape[1], dtype=np.float32)
    public_VD: Floats = clean_VD @ back_DD
    before_A = np.full(len(rows_AD), -1)
    for number in range(_ROUNDS):
        if number == 0:
            guess_A, margin_A = nearest(rows_AD[:, -axes:], clean_VD[:, -axes:])
        else:
            placed_AD = np.asarray(rows_AD @ turn_DD @ back_DD, dtype=np.float32)
            guess_A, margin_A = nearest(placed_AD, public_VD)
        sure = np.argsort(-margin_A)[: max(min(64, len(rows_AD)), len(rows_AD) // 2)]
        left_AD, right_AD = rows_AD[sure], clean_VD[guess_A[sure]]
        left, strengths, right = np.linalg.svd(left_AD.T @ right_AD)
        turn_DD = np.asarray(left @ right, dtype=np.float32)
        fit = float(strengths.sum() / (np.linalg.norm(left_AD) * np.linalg.norm(right_AD)))
        if time.monotonic() > until or (guess_A == before_A).mean() > 0.99:
            break
        before_A = guess_A
    return fit, turn_DD
