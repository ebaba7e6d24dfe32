"""NN: name each obfuscated embedding row after the nearest row of the public embedding.

Threat model: see `weights`. The simplest attacker there is: it believes that rows are comparable as they
stand. A wider target (d + 2h) is compared on its first d coordinates.
Does not protect anything; against a change of basis it reads nothing, which `alignment` puts right.
Source: arXiv 2603.01499, the nearest-neighbour attack.

Shapes: S sampled ids, V vocabulary, D width.
"""

from __future__ import annotations

from typing import Literal

from transom.audit.attacks.matching import nearest, unit
from transom.audit.attacks.weights import Knowledge, Sample, Target, misfit, scored
from transom.report.finding import Finding

Distance = Literal["cosine", "euclid"]


def attack(
    target: Target, knowledge: Knowledge, data: Sample, budget_s: float, *, distance: Distance = "cosine"
) -> Finding:
    """Share of the sample whose nearest public row is its own. `budget_s` is not used: one product."""
    name = f"nn/{distance}"
    if gap := misfit(name, target, knowledge):
        return gap
    rows_SD, base_VD = target.weights.embedding_VD[data.obfuscated_S], knowledge.base.embedding_VD
    width = min(rows_SD.shape[1], base_VD.shape[1])
    rows_SD, base_VD = rows_SD[:, :width], base_VD[:, :width]
    if distance == "cosine":
        rows_SD, base_VD = unit(rows_SD), unit(base_VD)
    guess_S, _ = nearest(rows_SD, base_VD)
    return scored(name, guess_S, data, candidates=len(base_VD))
