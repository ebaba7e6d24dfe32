"""Label inference: a feature party reads labels in the gradients that come back, and in its own embeddings.

The gradient of a row is a probability less the truth, times what the top makes of it: `labels/norm` takes
longer ones within a batch for the rarer class, `labels/direction` the side of the batch's main direction that
fewer rows are on, with directions of batches turned alike; both know no label but which class is rarer, or a
few that turn them the right way. `labels/classifier` learns from both scores what they are of a few rows with
known labels; `labels/gradient` clusters directions around these, of any number of classes.
`labels/completion` completes the model: it learns from the trained embeddings and the known labels.
Labels that are numbers are read by `labels/value`, a regression on gradients.

Threat model: see `vertical_view`; the feature party knows a few labels. It has its embeddings without noise;
where the label party audits alone, they are read as it received them, which tells less. Noise on embeddings
does not hide labels in gradients. Does not protect anything.
Source: Li et al. 2022, arXiv 2102.08504 (norm and direction); Fu et al. 2022, USENIX Security 22, 1397-1414
(model completion); Newcombe 2006 (interval of the area).

Shapes: E epochs, N rows, W width, K classes, D numbers of a row in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from transom.audit.attacks.membership import area, area_interval
from transom.audit.attacks.split_labels import cluster
from transom.audit.attacks.split_view import named
from transom.audit.attacks.vertical_inversion import FEWEST, VARIANCE, variance
from transom.audit.attacks.vertical_view import Exchanged, Known, Seen, Truth, misfit, others, regress, told
from transom.report.finding import Bound, Finding, measured, not_run
from transom.report.statistics import Floats, Ints

AREA, LABELS = "label AUC", "labels"
_TINY = 1e-30
_GROUPS = 10  # of epochs, at most
_LATE = 4  # the last quarter of the epochs has embeddings that are trained
_ROUNDS = 10  # in which batches are turned alike

Score = Callable[[Seen], Floats]
Found = Callable[[Exchanged, Known, Any], Finding]


def attacks() -> tuple[Bound, ...]:
    """Norm, direction, both of them, clusters, completion, values."""
    return (
        _bound("labels/norm", AREA, _scored("labels/norm", norms)),
        _bound("labels/direction", AREA, _scored("labels/direction", directions)),
        _bound("labels/classifier", LABELS, _classified),
        _bound("labels/gradient", LABELS, _clustered),
        _bound("labels/completion", LABELS, _completed, "embeddings"),
        _bound("labels/value", VARIANCE, _regressed),
    )


def _bound(name: str, metric: str, found: Found, what: str = "gradients") -> Bound:
    """An attack that is not run where what it needs is missing."""

    def run(target: Exchanged, knowledge: Known, data: Truth, budget_s: float) -> Finding:
        labels_N, seen = data.labels_N, getattr(target, what)
        gap = "" if labels_N is None else _wanting(metric, knowledge, labels_N)
        gap = misfit(seen, knowledge.labelled_K, labels_N, what, "label") or gap
        return not_run(name, metric, gap) if gap else found(target, knowledge, labels_N)

    return Bound(name, metric, run)


def _wanting(metric: str, knowledge: Known, labels_N: Any) -> str:
    """What the labels or those that are known lack for a metric."""
    numbers, classes = labels_N.dtype.kind == "f", len(np.unique(labels_N))
    if numbers != (metric == VARIANCE):
        return f"labels are {'numbers' if numbers else 'classes'}"
    if numbers:
        return (
            ""
            if len(knowledge.labels) >= FEWEST
            else f"{len(knowledge.labels)} labels are known; it needs {FEWEST}"
        )
    if metric == AREA:
        return "" if classes == 2 else f"{classes} classes; an area needs two"
    known = len(set(knowledge.labels.values()))
    return "" if known == classes > 1 else f"labels of {known} classes of {classes} are known; it needs all"


def _scored(name: str, score: Score) -> Found:
    def found(target: Exchanged, knowledge: Known, labels_N: Ints) -> Finding:
        score_N, rest_R = (
            _turned(score(target.gradients), knowledge),
            others(knowledge.labelled_K, len(labels_N)),
        )
        no_R, yes_R = (score_N[rest_R][labels_N[rest_R] == one] for one in np.unique(labels_N))
        if not len(yes_R) or not len(no_R):
            return not_run(name, AREA, "all rows that are not known are of one class")
        around, note = area_interval(yes_R, no_R), f"{len(knowledge.labels)} labels known, for the side alone"
        return measured(name, AREA, area(yes_R, no_R), around, baseline=0.5, n=len(rest_R), note=note)

    return found


def norms(seen: Seen) -> Floats:
    """How much longer a row's gradient is than its batch's median [N], as a logarithm, the mean of epochs."""
    lengths_EN = np.log(np.linalg.norm(seen.views_ENW.astype(np.float64), axis=2) + _TINY)
    found_EN = np.zeros_like(lengths_EN)
    for epoch, batch in _batches(seen):
        found_EN[epoch, batch] = lengths_EN[epoch, batch] - np.median(lengths_EN[epoch, batch])
    mean_N: Floats = found_EN.mean(0)
    return mean_N


def directions(seen: Seen) -> Floats:
    """How far a row's gradient points the main way of its batch [N], the mean of epochs.

    Each batch's main direction is turned to that of the batch before, for weights change little between
    them, and then until its rows agree with what other epochs say of them.
    """
    unit_ENW, found_EN = _units(seen), np.zeros(seen.batches_EN.shape)
    before_W, batches = np.zeros(unit_ENW.shape[2]), _batches(seen)
    for epoch, batch in batches:
        _, axes_WW = np.linalg.eigh(unit_ENW[epoch, batch].T @ unit_ENW[epoch, batch])
        main_W = axes_WW[:, -1] if axes_WW[:, -1] @ before_W >= 0 else -axes_WW[:, -1]
        found_EN[epoch, batch] = unit_ENW[epoch, batch] @ main_W
        before_W = 0.5 * before_W + main_W
    for _ in range(_ROUNDS):
        sum_N = found_EN.sum(0)
        for epoch, batch in batches:
            own_B = found_EN[epoch, batch].copy()
            if own_B @ (sum_N[batch] - own_B) < 0:
                found_EN[epoch, batch] = -own_B
                sum_N[batch] -= 2 * own_B
    score_N: Floats = found_EN.mean(0)
    return score_N if (score_N > 0).mean() <= 0.5 else -score_N


def _classified(target: Exchanged, knowledge: Known, labels_N: Ints) -> Finding:
    """Share of labels named by what norm and direction are of the rows that are known."""
    scores_N2 = np.stack([norms(target.gradients), directions(target.gradients)], axis=1)
    return _named("labels/classifier", _headed(_levelled(scores_N2), knowledge), knowledge, labels_N)


def _levelled(x_ND: Floats) -> Floats:
    """With columns of mean 0 and deviation 1."""
    found_ND: Floats = (x_ND - x_ND.mean(0)) / np.maximum(x_ND.std(0), _TINY)
    return found_ND


def _clustered(target: Exchanged, knowledge: Known, labels_N: Ints) -> Finding:
    """Share of labels named by the cluster that a row's directions are in."""
    import torch

    unit_ENW = _units(target.gradients)
    parts = np.array_split(unit_ENW, min(_GROUPS, len(unit_ENW)))
    unit_ND = torch.from_numpy(np.concatenate([part_ENW.mean(0) for part_ENW in parts], axis=1)).float()
    known = {row: int(label) for row, label in knowledge.labels.items()}
    guess_N = cluster(torch.nn.functional.normalize(unit_ND, dim=1), known)
    return _named("labels/gradient", guess_N, knowledge, labels_N)


def _completed(target: Exchanged, knowledge: Known, labels_N: Ints) -> Finding:
    """Share of labels named by a head on the embeddings. Where the feature party's columns are at hand,
    guessing is what the same head does on those: what is above that, the training gave away."""
    seen = target.embeddings
    late = replace(seen, views_ENW=seen.views_ENW[-max(1, len(seen.views_ENW) // _LATE) :])
    found = _named("labels/completion", _headed(told(late), knowledge), knowledge, labels_N)
    columns_NF = knowledge.columns_NF
    if columns_NF is None:
        return found
    alone = _named("labels/completion", _headed(_levelled(columns_NF), knowledge), knowledge, labels_N)
    note = f"{found.note}; guessing knows the feature party's columns"
    return replace(found, baseline=max(found.baseline or 0.0, alone.value or 0.0), note=note)


def _regressed(target: Exchanged, knowledge: Known, labels_N: Floats) -> Finding:
    """Share of the variance of labels that are numbers, explained by a regression on gradients."""
    rows_K, truth_N1 = knowledge.labelled_K, labels_N[:, None].astype(np.float64)
    guess_N1 = regress(told(target.gradients), rows_K, truth_N1[rows_K])
    return variance("labels/value", guess_N1, truth_N1, rows_K, ("label",))


def _headed(x_ND: Floats, knowledge: Known) -> Ints:
    """The label [N] that a regression on the known ones gives."""
    labels_K = np.array(list(knowledge.labels.values()), dtype=np.int64)
    classes = np.unique(labels_K)
    scores_NC = regress(x_ND, knowledge.labelled_K, (labels_K[:, None] == classes).astype(np.float64))
    return np.asarray(classes[scores_NC.argmax(1)])


def _named(name: str, guess_N: Ints, knowledge: Known, labels_N: Ints) -> Finding:
    rest_R = others(knowledge.labelled_K, len(labels_N))
    note = f"{len(knowledge.labels)} labels known, {len(set(knowledge.labels.values()))} classes"
    return named(name, LABELS, guess_N[rest_R], labels_N[rest_R], note=note)


def _turned(score_N: Floats, knowledge: Known) -> Floats:
    """With class 1 above: by the known labels where there are some of both, else the rarer class is above."""
    known = {label: [score_N[row] for row, of in knowledge.labels.items() if of == label] for label in (0, 1)}
    if known[0] and known[1]:
        return score_N if np.mean(known[1]) >= np.mean(known[0]) else -score_N
    return score_N if knowledge.rarer == 1 else -score_N


def _units(seen: Seen) -> Floats:
    """Directions [E, N, W]; of no gradient, none."""
    views_ENW = seen.views_ENW.astype(np.float64)
    unit_ENW: Floats = views_ENW / (np.linalg.norm(views_ENW, axis=2, keepdims=True) + _TINY)
    return unit_ENW


def _batches(seen: Seen) -> list[tuple[int, Ints]]:
    """(epoch, rows) of each batch, in the order of their numbers."""
    found = []
    for epoch, batch_N in enumerate(seen.batches_EN):
        order_N = np.argsort(batch_N, kind="stable")
        _, first = np.unique(batch_N[order_N], return_index=True)
        found += [(epoch, rows) for rows in np.split(order_N, first[1:])]
    return found
