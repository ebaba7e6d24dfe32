"""Gate-IA: name neurons by one invariant of their column, in rank order, and read tokens in bands of it.

The root mean square of a column of W~_e W~_gate over the vocabulary depends neither on tau nor on the keys.
Columns sorted by it are in the public order up to small swaps, which averages over bands of neighbouring
columns forgive; a token is then its row of bands, compared by cosine.

Threat model: the host, with the public base model and no traffic.
Does not survive noise that reorders columns by more than a band: there column-first matching is the attack.
Source: Lin et al., arXiv 2603.01499, name the attack after invariants of the gate; our reading of it.

Shapes: V vocabulary, D width, N neurons, W bands.
"""

from __future__ import annotations

import numpy as np

from transom.audit.attacks.column_first import neurons
from transom.audit.attacks.matching import Floats, nearest, unit
from transom.audit.attacks.weights import Knowledge, Sample, Target, misfit, scored
from transom.report.finding import Finding

NAME = "Gate-IA"
_WIDTH = 4  # columns a band


def attack(target: Target, knowledge: Knowledge, data: Sample, budget_s: float = 600.0) -> Finding:
    """The share of sampled ids named rightly; takes seconds, so `budget_s` is not consulted."""
    if gap := misfit(NAME, target, knowledge, "gate"):
        return gap
    sides = neurons(target, knowledge)
    banded_DW = _bands(sides.target_VD, sides.target_DN)
    public_DW = _bands(sides.base_VD, sides.base_DN)
    rows_SW = unit(sides.target_VD[data.obfuscated_S] @ banded_DW)
    guess_S = nearest(rows_SW, unit(sides.base_VD @ public_DW))[0]
    return scored(NAME, guess_S, data, candidates=knowledge.base.vocabulary)


def _bands(embedding_VD: Floats, gate_DN: Floats) -> Floats:
    """[D, W]: the gate's columns summed over bands, in the order of their power over the vocabulary."""
    gram_DD = embedding_VD.T @ embedding_VD
    power_N = np.einsum("dn,dn->n", gate_DN, gram_DD @ gate_DN)
    ordered_DN = gate_DN[:, np.argsort(power_N)]
    starts = np.arange(0, gate_DN.shape[1], _WIDTH)
    return np.asarray(np.add.reduceat(ordered_DN, starts, axis=1), dtype=np.float32)
