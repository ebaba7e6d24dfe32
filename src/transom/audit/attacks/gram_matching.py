"""Seeded Gram matching: from a few known tokens to all others by W~_e W~_h alone, where no layer is read.

The keys cancel in W~_e W~_h, so that its entries are those of the public product under tau. Known tokens give
features of all others (what follows them, what they follow); the surest names double the known ones, round
after round. Last, a linear map between the tables is fitted on the surest half.

Threat model: the host, with the public base model, that recognises a few tokens in the traffic (those of the
chat template). It stands whatever is done to the layers. Adaptive: not an attack of the paper.
Does not reach tables under so much noise that the known tokens tell no other apart.
Source: own; known plaintext, and names that percolate from it, cf. Yartseva and Grossglauser 2013, "On the
performance of percolation graph matching".

Shapes: V vocabulary, D width of the base, W of the target, R rows to name, A known tokens, F features,
C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from math import inf

import numpy as np

from transom.audit.attacks.matching import Floats, nearest, with_others
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, Weights, misfit, scored
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

NAME = "Gram matching"
Features = Callable[[Ints], Floats]  # of every row, by known tokens [A]: [R, F]
_RIDGE = 1e-3
_DOUBLINGS, _ANCHORS, _ROWS = 9, 256, 1024


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly; ids that were known are counted as any other."""
    until = time.monotonic() + budget_s
    if gap := misfit(NAME, target, knowledge):
        return gap
    if not knowledge.known:
        return not_run(NAME, METRIC, "no known pairs were given")
    rows_R = with_others(data.obfuscated_S, target.weights.vocabulary, _ROWS)
    guess_R = named(target.weights, knowledge.base, rows_R, knowledge.known, until=until)
    guess_S, note = guess_R[: len(data.obfuscated_S)], f"{len(knowledge.known)} known pairs"
    return scored(NAME, guess_S, data, candidates=knowledge.base.vocabulary, note=note)


def named(
    target: Weights, base: Weights, rows_R: Ints, known: Mapping[int, int], *, until: float = inf
) -> Ints:
    """Plain ids [R] of obfuscated ids from the two tables alone."""
    everything = np.arange(base.vocabulary)
    raw_RW, base_raw_VD = _tables(target, rows_R), _tables(base, everything)
    features, base_features = _products(target, rows_R), _products(base, everything)
    return percolate(features, base_features, raw_RW, base_raw_VD, rows_R, everything, known, until=until)


def _tables(weights: Weights, rows: Ints) -> Floats:
    """Each token's rows of embedding and head beside each other."""
    return np.hstack([weights.embedding_VD[rows], weights.head_DV[:, rows].T])


def _products(weights: Weights, rows: Ints) -> Features:
    """Each token's entries of W_e W_h with the known tokens, as input and as output."""

    def of(anchors_A: Ints) -> Floats:
        as_input = weights.embedding_VD[rows] @ weights.head_DV[:, anchors_A]
        as_output = (weights.embedding_VD[anchors_A] @ weights.head_DV[:, rows]).T
        return np.hstack([as_input, as_output])

    return of


def percolate(
    features: Features,
    base_features: Features,
    raw_RW: Floats,
    base_raw_CD: Floats,
    rows_R: Ints,
    candidates_C: Ints,
    known: Mapping[int, int],
    *,
    until: float = inf,
) -> Ints:
    """Plain ids [R] of the obfuscated `rows_R` among `candidates_C`, from a few known pairs.

    The raw tables are what a linear map takes to each other once enough rows are named. No round begins
    after `until`.
    """
    seeds, names = np.array(list(known)), np.array(list(known.values()))
    obfuscated, plain = seeds, names
    for _ in range(_DOUBLINGS):
        here, there = base_features(plain), features(obfuscated)
        scale_F = here.std(0) + np.float32(1e-9)
        guess_R, margin_R = nearest(there / scale_F, here / scale_F)
        if len(plain) >= min(_ANCHORS, len(rows_R) // 2) or time.monotonic() > until:
            break
        sure = _distinct(guess_R, margin_R)[: 2 * len(plain)]
        sure = sure[~np.isin(rows_R[sure], seeds) & ~np.isin(candidates_C[guess_R[sure]], names)]
        obfuscated = np.concatenate([seeds, rows_R[sure]]).astype(np.int64)
        plain = np.concatenate([names, candidates_C[guess_R[sure]]]).astype(np.int64)
    for _ in range(2):
        if time.monotonic() > until:
            break
        sure = _distinct(guess_R, margin_R)[: max(64, len(rows_R) // 2)]
        guess_R, margin_R = _regress(raw_RW, base_raw_CD, sure, guess_R)
    return candidates_C[guess_R]


def _distinct(guess_R: Ints, margin_R: Floats) -> Ints:
    """Rows in falling order of margin, each plain id once."""
    order = np.argsort(-margin_R, kind="stable")
    first = np.unique(guess_R[order], return_index=True)[1]
    return order[np.sort(first)]


def _regress(raw_RW: Floats, base_CD: Floats, sure: Ints, guess_R: Ints) -> tuple[Ints, Floats]:
    """Ridge regression from the surest rows to their public rows; then nearest in units of the residual."""
    mean_W, mean_D = raw_RW[sure].mean(0), base_CD[guess_R[sure]].mean(0)
    x, y = raw_RW[sure] - mean_W, base_CD[guess_R[sure]] - mean_D
    gram_WW = (x.T @ x).astype(np.float64)
    gram_WW += np.eye(len(gram_WW)) * (_RIDGE * np.trace(gram_WW) / len(gram_WW) + 1e-9)
    undo_WD = np.linalg.solve(gram_WW, x.T @ y).astype(np.float32)
    spread_D = (y - x @ undo_WD).std(0) + np.float32(1e-2) * y.std(0) + np.float32(1e-9)
    return nearest(((raw_RW - mean_W) @ undo_WD) / spread_D, (base_CD - mean_D) / spread_D)
