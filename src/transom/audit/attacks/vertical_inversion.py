"""Embedding inversion: a label party that knows some people's columns reads the others' in their embeddings.

A regression from what an embedding tells to the columns is learnt from the rows that are known, on embeddings
with the very noise that was sent; the law of the noise says which directions are worth looking at.
`inversion/values` counts values that are named within a tenth of the column's deviation, `inversion/variance`
the variance that the guesses explain.

Threat model: see `vertical_view`; the label party knows all columns of a few rows. Its own columns and labels
are not used. Does not protect anything; a model of the bottom's own kind may read more.
Source: He et al. 2019, ACSAC (inversion at the cut of a model); Luo et al. 2021, arXiv 2010.10152 (feature
inference in vertical learning); Cochran 1977, Sampling Techniques, section 6.3 (interval of a ratio).

Shapes: N rows, K known rows, R others, F columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from transom.audit.attacks.vertical_view import Exchanged, Known, Truth, misfit, others, regress, told
from transom.report.finding import Bound, Finding, clustered, measured, not_run
from transom.report.statistics import Floats, Ints

Judge = Callable[[str, Floats, Floats, Ints, Sequence[str]], Finding]

VALUES, VARIANCE = "values named", "variance explained"
FEWEST = 10  # known rows
_TOLERANCE = 0.1  # of a column's deviation
_FEW = 20  # different values of a column, up to which a guess is one of them
_Z = 1.96  # deviations that hold 95 %


def attacks() -> tuple[Bound, ...]:
    """Two findings from one regression."""
    made: list[tuple[Exchanged, Known, Floats]] = []

    def guesses(target: Exchanged, knowledge: Known, values_NF: Floats) -> Floats:
        if not made or made[0][0] is not target or made[0][1] is not knowledge:
            rows_K = knowledge.rows_K
            made[:] = [(target, knowledge, regress(told(target.embeddings), rows_K, values_NF[rows_K]))]
        return made[0][2]

    def bound(name: str, metric: str, judge: Judge) -> Bound:
        def run(target: Exchanged, knowledge: Known, data: Truth, budget_s: float) -> Finding:
            rows_K, values_NF = knowledge.rows_K, data.values_NF
            gap = misfit(target.embeddings, rows_K, values_NF, "embeddings", "feature")
            if gap or len(rows_K) < FEWEST or values_NF is None:
                return not_run(name, metric, gap or f"{len(rows_K)} rows are known; it needs {FEWEST}")
            return judge(name, guesses(target, knowledge, values_NF), values_NF, rows_K, data.names)

        return Bound(name, metric, run)

    return bound("inversion/values", VALUES, values), bound("inversion/variance", VARIANCE, variance)


def values(name: str, guess_NF: Floats, truth_NF: Floats, rows_K: Ints, names: Sequence[str] = ()) -> Finding:
    """Share of the other rows' values that are named; guessing names one value of each column for all."""
    known_KF, rows_R = truth_NF[rows_K], others(rows_K, len(truth_NF))
    truth_RF, reach_F = truth_NF[rows_R], _TOLERANCE * truth_NF.std(0)
    columns = range(truth_RF.shape[1])
    snapped_RF = np.stack([_snapped(guess_NF[rows_R, one], known_KF[:, one]) for one in columns], axis=1)
    modes_F = np.array([_likeliest(known_KF[:, one], float(reach_F[one])) for one in columns])
    alone_3F = np.stack([modes_F, known_KF.mean(0), np.median(known_KF, 0)])
    hit_RF = np.abs(snapped_RF - truth_RF) <= reach_F
    baseline = float((np.abs(alone_3F[:, None] - truth_RF) <= reach_F).mean(1).max(0).mean())
    note = f"{len(rows_K)} rows known; {_most(hit_RF.mean(0), names)}"
    sizes = [truth_RF.shape[1]] * len(rows_R)
    return clustered(name, VALUES, hit_RF.ravel(), sizes, baseline=baseline, note=note)


def variance(
    name: str, guess_NF: Floats, truth_NF: Floats, rows_K: Ints, names: Sequence[str] = ()
) -> Finding:
    """Share of the other rows' variance that the guesses explain: see `explained`."""
    rows_R, mean_F = others(rows_K, len(truth_NF)), truth_NF[rows_K].mean(0)
    note = f"{len(rows_K)} rows known"
    return explained(name, guess_NF[rows_R], truth_NF[rows_R], mean_F, note, names)


def explained(
    name: str, guess_RF: Floats, truth_RF: Floats, mean_F: Floats, note: str, names: Sequence[str] = ()
) -> Finding:
    """Share of the rows' variance that the guesses explain, the mean over columns, with the interval of a
    mean of ratios (linearised); what is less than none is none. Guessing the mean explains none. A column
    that is constant in these rows has nothing to explain, and does not count."""
    differs_F = (truth_RF != truth_RF[:1]).any(0)
    if not differs_F.any():
        return not_run(name, VARIANCE, "every column is constant in the rows that are scored")
    left_RF = ((guess_RF - truth_RF) ** 2)[:, differs_F]
    all_RF = ((truth_RF - mean_F) ** 2)[:, differs_F]
    all_F = all_RF.sum(0)
    share_F = 1 - left_RF.sum(0) / all_F
    away_R = ((left_RF - (1 - share_F) * all_RF) / all_F).mean(1)
    reach = _Z * float((away_R**2).sum()) ** 0.5
    share = float(share_F.mean())
    value, low, high = (min(1.0, max(0.0, one)) for one in (share, share - reach, share + reach))
    left = [names[int(place)] for place in np.flatnonzero(differs_F)] if names else ()
    note = f"{note}; {_most(share_F, left)}"
    return measured(name, VARIANCE, value, (low, high), baseline=0.0, n=len(truth_RF), note=note)


def _most(share_F: Floats, names: Sequence[str]) -> str:
    """Of which column most is read, in words."""
    place = int(share_F.argmax())
    name = repr(names[place]) if names else f"number {place}"
    return f"most of column {name}: {100 * max(0.0, float(share_F[place])):.0f} %"


def _snapped(guess_R: Floats, known_K: Floats) -> Floats:
    """The nearest of a column's values where it has few."""
    values_V = np.unique(known_K)
    if len(values_V) > _FEW:
        return guess_R
    nearest_R: Floats = values_V[np.abs(guess_R[:, None] - values_V).argmin(1)]
    return nearest_R


def _likeliest(known_K: Floats, reach: float) -> float:
    """The number that most known values lie around."""
    sorted_K = np.sort(known_K)
    last_K = np.searchsorted(sorted_K, sorted_K + 2 * reach, side="right") - 1
    first = int((last_K - np.arange(len(sorted_K))).argmax())
    return float((sorted_K[first] + sorted_K[last_K[first]]) / 2)
