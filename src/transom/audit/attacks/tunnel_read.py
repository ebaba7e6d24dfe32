"""Property inference and data reconstruction: what a partner reads of rows in what left of them.

Both are regressions from all that was seen of a row, in every epoch, learnt on rows that the attacker knows:
to a property that is no task's label, and to the row itself. Kernel and strength are chosen by leave-one-out
errors, so that of releases that tell nothing the mean is read.

Threat model: see `tunnel_view`; the attacker has the very noise that was sent on the rows that it knows.
Does not protect anything; a network that is trained for longer may read a little more.
Source: Melis et al. 2019, S&P (property inference); He et al. 2019, ACSAC (reconstruction); Rifkin and
Lippert 2007 (leave-one-out errors of kernel regression); Newcombe 2006 (interval of the area).

Shapes: N rows, K known ones, O others.
"""

from __future__ import annotations

import numpy as np

from transom.audit.attacks.membership import area, area_interval
from transom.audit.attacks.tunnel_view import Aux, Hidden, Tunnelled, gap, likeness
from transom.audit.attacks.vertical_view import others, regress, told
from transom.report.finding import Bound, Finding, measured, not_run

PROPERTY, RECONSTRUCTION, AREA = "property", "reconstruction", "property AUC"
FEWEST = 50  # known rows


def attacks(metric: str) -> tuple[Bound, ...]:
    """Both; `metric` is what likeness is measured by."""
    return Bound(PROPERTY, AREA, infer), Bound(RECONSTRUCTION, metric, reconstruct)


def infer(target: Tunnelled, knowledge: Aux, data: Hidden, budget_s: float) -> Finding:
    """Whether rows have the property."""
    short = _short(target, knowledge, data)
    if not short and data.property_N is None:
        short = "no property was named; give --property COLUMN"
    if short or data.property_N is None:
        return not_run(PROPERTY, AREA, short)
    has_N, rows_O = data.property_N, others(knowledge.rows_K, len(target.seen))
    for rows, which in ((knowledge.rows_K, "known"), (rows_O, "other")):
        if has_N[rows].all() or not has_N[rows].any():
            return not_run(PROPERTY, AREA, f"all {which} rows are alike in the property")
    known_K1 = has_N[knowledge.rows_K, None].astype(np.float64)
    guess_O = regress(told(target.seen), knowledge.rows_K, known_K1)[rows_O, 0]
    inside, outside = guess_O[has_N[rows_O]], guess_O[~has_N[rows_O]]
    value = area(inside, outside)
    within = area_interval(inside, outside)
    note = f"{data.property_is}; {len(knowledge.rows_K)} rows are known"
    return measured(PROPERTY, AREA, value, within, baseline=0.5, n=len(rows_O), note=note)


def reconstruct(target: Tunnelled, knowledge: Aux, data: Hidden, budget_s: float) -> Finding:
    """The rows themselves."""
    short = _short(target, knowledge, data)
    if short or data.values_NF is None:
        return not_run(RECONSTRUCTION, data.metric, short)
    known_KF = data.values_NF[knowledge.rows_K].astype(np.float64)
    rows_O = others(knowledge.rows_K, len(target.seen))
    guess_OF = regress(told(target.seen), knowledge.rows_K, known_KF)[rows_O]
    return likeness(
        RECONSTRUCTION, data, rows_O, guess_OF, known_KF.mean(0), f"{len(known_KF)} rows are known"
    )


def _short(target: Tunnelled, knowledge: Aux, data: Hidden) -> str:
    if len(knowledge.rows_K) < FEWEST:
        return f"{len(knowledge.rows_K)} rows are known, and {FEWEST} are wanted; raise --known"
    return gap(target.seen, knowledge, data)
