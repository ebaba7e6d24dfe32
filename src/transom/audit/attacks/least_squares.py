"""Seeded least squares: from k known tokens to a linear map from obfuscated embeddings to public ones.

Any map from W~_e to W_e is fixed by as many known pairs as W~_e is wide. Far fewer are known for sure (the
tokens of the chat template), so where they do not suffice they are multiplied first: a neuron is described
by its values at the known tokens beside its quantiles, neurons are assigned, and the rows that are named
most surely join the known pairs.

Threat model: the host, with the public base model, that recognises k tokens in the traffic.
Does not reach models whose neurons have no public counterpart, unless the known pairs alone suffice.
Source: own; known plaintext against a substitution, cf. Lin et al., arXiv 2603.01499.

Shapes: V vocabulary, D width (of the target), N neurons, A anchor rows, K known pairs.
"""

from __future__ import annotations

import time

import numpy as np

from transom.audit.attacks.column_first import (
    Neurons,
    anchors,
    column_quantiles,
    name_rows,
    neurons,
    refine,
)
from transom.audit.attacks.matching import Floats, assign, nearest
from transom.audit.attacks.weights import METRIC, Knowledge, Sample, Target, misfit, scored
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

NAME = "seeded least squares"


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly; ids that were known are counted as any other."""
    until = time.monotonic() + budget_s
    if gap := misfit(NAME, target, knowledge):
        return gap
    obfuscated_K = np.array(list(knowledge.known), dtype=np.int64)
    plain_K = np.array(list(knowledge.known.values()), dtype=np.int64)
    if not len(obfuscated_K):
        return not_run(NAME, METRIC, "no known pairs were given")
    known = len(obfuscated_K)
    embedding_VD, base_VD = target.weights.embedding_VD, knowledge.base.embedding_VD
    if known < base_VD.shape[1]:
        if gap := misfit(NAME, target, knowledge, "gate"):
            return gap
        sides = neurons(target, knowledge)
        obfuscated_K, plain_K = _multiply(
            sides, obfuscated_K, plain_K, anchors(data.obfuscated_S, len(base_VD)), until=until
        )
    undo_DD = _fit(embedding_VD[obfuscated_K], base_VD[plain_K])
    guess_S = nearest(embedding_VD[data.obfuscated_S] @ undo_DD, base_VD)[0]
    note = f"{known} known pairs"
    return scored(NAME, guess_S, data, candidates=len(base_VD), note=note)


def _multiply(
    sides: Neurons, obfuscated_K: Ints, plain_K: Ints, rows_A: Ints, *, until: float
) -> tuple[Ints, Ints]:
    """More pairs: those known, and the surer half of the anchor rows once the neurons are assigned."""
    target_NQ, base_NQ = column_quantiles(sides)
    at_target_NK = (sides.target_VD[obfuscated_K] @ sides.target_DN).T
    at_base_NK = (sides.base_VD[plain_K] @ sides.base_DN).T
    # Quantiles repeat one another, values at tokens do not: the latter weigh as much as twenty quantiles.
    scale = np.float32(np.sqrt(20))
    columns_N = assign(np.hstack([target_NQ, scale * at_target_NK]), np.hstack([base_NQ, scale * at_base_NK]))
    columns_N = refine(sides, rows_A, columns_N, until=until)
    guess_A, margin_A = name_rows(sides, rows_A, columns_N)
    sure = np.argsort(-margin_A)[: max(len(rows_A) // 2, min(len(rows_A), 2 * sides.target_VD.shape[1]))]
    return np.concatenate([obfuscated_K, rows_A[sure]]), np.concatenate([plain_K, guess_A[sure]])


def _fit(rows_KD: Floats, base_KD: Floats) -> Floats:
    """The map of least squares; singular values below a millionth are rounding of a matrix of lower rank."""
    return np.asarray(np.linalg.lstsq(rows_KD, base_KD, rcond=1e-6)[0], dtype=np.float32)
