"""Column-first vocabulary matching: undo the permutation of the neurons, then read the tokens row by row.

In Y = W~_e W~_gate the keys cancel (P Q = I); what hides the tokens is noise on the embedding, a
permutation of the columns (neurons) and tau on the rows. A column's distribution over the vocabulary does
not depend on tau, so its quantiles name its neuron among the public columns. Rows are then matched by
cosine, and the surest of them give better columns.

Threat model: the host, with the public base model and no traffic. Adaptive: not an attack of the paper.
Does not reach models whose neurons have no public counterpart (re-grown layers).
Source: own; the quantities are those of Lin et al., arXiv 2603.01499, section on vocabulary matching.

Shapes: V vocabulary, D width, N neurons, S sampled ids, A anchor rows, Q quantiles.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from transom.audit.attacks.matching import Floats, assign, nearest, product_quantiles, unit, with_others
from transom.audit.attacks.weights import Knowledge, Sample, Target, misfit, part, scored
from transom.report.finding import Finding
from transom.report.statistics import Ints

NAME = "column-first VMA"
_QUANTILES, _ANCHORS, _ROUNDS = 199, 2048, 4


@dataclass(frozen=True)
class Neurons:
    """One layer's products: the target's side, and the public one."""

    target_VD: Floats
    target_DN: Floats
    base_VD: Floats
    base_DN: Floats


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly from the gate of the first layer."""
    until = time.monotonic() + budget_s
    if gap := misfit(NAME, target, knowledge, "gate"):
        return gap
    sides = neurons(target, knowledge)
    columns_N = assign(*column_quantiles(sides))
    rows = anchors(data.obfuscated_S, target.weights.vocabulary)
    columns_N = refine(sides, rows, columns_N, until=until)
    guess_S = name_rows(sides, data.obfuscated_S, columns_N)[0]
    return scored(NAME, guess_S, data, candidates=knowledge.base.vocabulary, note="layer 0")


def neurons(target: Target, knowledge: Knowledge) -> Neurons:
    """Both sides of the first layer's gate; `misfit` has shown that there is one."""
    there, here = target.weights, knowledge.base
    gates = part(there, 0, "gate"), part(here, 0, "gate")
    return Neurons(there.embedding_VD, gates[0], here.embedding_VD, gates[1])


def column_quantiles(sides: Neurons) -> tuple[Floats, Floats]:
    """[N, Q] of the target's columns, and of the public ones under as much noise as the target shows."""
    noisy_VD = sides.base_VD + noise_like(sides)
    return (
        product_quantiles(sides.target_DN.T, sides.target_VD.T, _QUANTILES),
        product_quantiles(sides.base_DN.T, noisy_VD.T, _QUANTILES),
    )


def noise_like(sides: Neurons) -> Floats:
    """[V, D] Gaussian noise of the level by which the target's products vary more than the public ones."""
    excess = _power(sides.target_VD, sides.target_DN) - _power(sides.base_VD, sides.base_DN)
    level = np.sqrt(max(0.0, excess) / float((sides.base_DN.astype(np.float64) ** 2).sum()))
    # Below a thousandth of the embedding it is rounding, and no noise is then the better model.
    if level < 1e-3 * float(sides.base_VD.std()):
        return np.zeros_like(sides.base_VD)
    drawn_VD = np.random.default_rng(0).standard_normal(sides.base_VD.shape, dtype=np.float32)
    return np.asarray(np.float32(level) * drawn_VD)


def _power(left_VD: Floats, right_DN: Floats) -> float:
    """Mean over rows of |row of left @ right|^2, from the two Gram matrices."""
    left_DD = (left_VD.T @ left_VD).astype(np.float64)
    return float((left_DD * (right_DN @ right_DN.T)).sum()) / len(left_VD)


def anchors(ids_S: Ints, vocabulary: int) -> Ints:
    """The sampled obfuscated ids and further ones, 2,048 in all."""
    return with_others(ids_S, vocabulary, _ANCHORS)


def refine(sides: Neurons, rows_A: Ints, columns_N: Ints, *, until: float) -> Ints:
    """Columns again from the rows that were named most surely, until they stay or time is up."""
    products_AN = sides.target_VD[rows_A] @ sides.target_DN
    base_VN = unit(sides.base_VD @ sides.base_DN)
    for _ in range(_ROUNDS):
        if time.monotonic() > until:
            break
        guess_A, margin_A = nearest(unit(products_AN[:, columns_N]), base_VN)
        sure = np.argsort(-margin_A)[: max(32, len(rows_A) // 4)]
        public_AN = sides.base_VD[guess_A[sure]] @ sides.base_DN
        better_N = assign(unit(products_AN[sure].T), unit(public_AN.T))
        if (better_N == columns_N).all():
            break
        columns_N = better_N
    return columns_N


def name_rows(sides: Neurons, rows_A: Ints, columns_N: Ints) -> tuple[Ints, Floats]:
    """(plain ids [A], margins [A]) by the nearest embedding, the columns undone by least squares."""
    undo_ND = np.linalg.pinv(sides.base_DN)
    products_AN = sides.target_VD[rows_A] @ sides.target_DN[:, columns_N]
    return nearest(products_AN @ undo_ND, sides.base_VD @ (sides.base_DN @ undo_ND))
