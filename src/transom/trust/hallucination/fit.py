"""Fit a detector of made-up answers on answers of which it is known.

Everything is chosen by cross-validation, in which answers to one question (or, without one, equal answers)
stay together: how much each probe is held back, and what is made of all of them, which learns from series of
probes that did not see the answer. The line is drawn where at most the share `rate` of true answers, held out
alike, is above it, so that it holds for answers of the same kind.
Threat model: see the room. Does not protect: labels that are wrong teach what is wrong.
Source: Wolpert 1992 (stacking); Platt 1999.

Shapes: N answers, S steps, F numbers of a family, K families, Q = 5 K.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transom.errors import MisconfiguredError, extra
from transom.report.statistics import auc
from transom.trust.hallucination.combine import STRENGTHS, Kind, combiner, linear
from transom.trust.hallucination.detector import SELECTIONS, About, Detector, Probe, selected
from transom.trust.hallucination.states import Floats, States

FEWEST = 20  # of each class
_FOLDS = 5
_HELD_BACK = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A detector, the risk of each answer by what did not see it [N], and for each family the AUROC of each
    selection, alike."""

    detector: Detector
    risk_N: Floats
    auroc: dict[str, tuple[float, ...]]


def fit(
    states: Sequence[States],
    made_up: Sequence[bool],
    groups: Sequence[str],
    *,
    model: str,
    kind: Kind = "logistic",
    rate: float = 0.1,
    seed: int = 0,
    families: Sequence[str] | None = None,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Fitted:
    """`groups` tells which answers stay together; `heard` is called after each family. Raises
    MisconfiguredError (too few of a class, a rate that they cannot tell) and MissingExtraError."""
    labels_N = np.array(made_up, int)
    fewest = int(min(labels_N.sum(), len(labels_N) - labels_N.sum())) if len(labels_N) else 0
    if fewest < FEWEST:
        raise MisconfiguredError(
            f"{fewest} answers of one kind are too few; give {FEWEST} or more that are made up, and "
            "as many that are not"
        )
    if not rate >= 1 / (1 + (labels_N == 0).sum()):
        raise MisconfiguredError(
            f"a false-positive rate of {rate:g} cannot be told by {(labels_N == 0).sum()} true answers"
        )
    folds = folds_of(labels_N, groups, seed)
    names = list(families or states[0].families)
    probes, parts, auroc = {}, [], {}
    for name in names:
        xs = [one.families[name] for one in states]
        strength, chosen_N5 = _held_out(xs, labels_N, folds)
        probes[name] = Probe(*probe_of(xs, labels_N, strength))
        parts.append(chosen_N5)
        auroc[name] = tuple(auc(chosen_N5[:, place], labels_N) for place in range(len(SELECTIONS)))
        heard()
    chosen_NQ = np.concatenate(parts, axis=1)
    strength, log_odds_N = _combined(kind, chosen_NQ, labels_N, folds, seed)
    slope, shift = _platt(log_odds_N, labels_N)
    risk_N = 1 / (1 + np.exp(-(slope * log_odds_N + shift)))
    about = About(
        "transom-hallucination-1", model, kind, tuple(names), line_of(risk_N[labels_N == 0], rate), rate,
        len(labels_N), int(labels_N.sum()),
    )  # fmt: skip
    made = combiner(kind, chosen_NQ, labels_N, strength, seed)
    return Fitted(Detector(about, probes, made, chosen_NQ.mean(0), slope, shift), risk_N, auroc)


def folds_of(labels_N: Any, groups: Sequence[str], seed: int, folds: int = _FOLDS) -> list[Any]:
    """The places of each fold, with whole groups, and as many of each class as can be."""
    with extra("hallucination", "scikit-learn"):
        from sklearn.model_selection import StratifiedGroupKFold
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [held for _, held in split.split(labels_N, labels_N, groups)]


def line_of(risk_N: Floats, rate: float) -> float:
    """The risk that at most this share of true answers reaches, of the same kind as these."""
    above = int(rate * (len(risk_N) + 1))
    ordered = np.sort(risk_N)[::-1]
    return float(np.nextafter(ordered[above - 1], 2.0)) if above <= len(ordered) else 0.0


def probe_of(xs: Sequence[Floats], labels: Any, strength: float) -> tuple[Floats, float]:
    """Fitted on the mean and the last step of each answer that has a step."""
    own = [place for place, x_SF in enumerate(xs) if len(x_SF)]
    x_MF = np.array([part for place in own for part in (xs[place].mean(0), xs[place][-1])], np.float64)
    weight_F, bias_1 = linear(x_MF, np.repeat(np.asarray(labels)[own], 2), strength)
    return weight_F, float(bias_1[0])


def _held_out(xs: Sequence[Floats], labels_N: Any, folds: Sequence[Any]) -> tuple[float, Floats]:
    """How much a family's probe is held back, and what is selected of each answer's series [N, 5]."""
    tried: list[tuple[float, float, Floats]] = []
    for strength in _HELD_BACK:
        chosen_N5 = np.zeros((len(xs), len(SELECTIONS)))
        for held in folds:
            rest = np.setdiff1d(np.arange(len(xs)), held)
            probe = Probe(*probe_of([xs[one] for one in rest], labels_N[rest], strength))
            for one in held:
                if len(xs[one]):
                    chosen_N5[one] = selected(probe.series(xs[one]))
        worth = max(auc(chosen_N5[:, place], labels_N) for place in range(len(SELECTIONS)))
        tried.append((worth, strength, chosen_N5))
    return max(tried, key=lambda one: one[0])[1:]


def _combined(
    kind: Kind, chosen_NQ: Floats, labels_N: Any, folds: Sequence[Any], seed: int
) -> tuple[float, Floats]:
    """How much the combiner is held back, and the log-odds of each answer by one that did not see it [N]."""
    tried: list[tuple[float, float, Floats]] = []
    for strength in STRENGTHS if kind == "logistic" else STRENGTHS[:1]:
        log_odds_N = np.zeros(len(labels_N))
        for held in folds:
            rest = np.setdiff1d(np.arange(len(labels_N)), held)
            made = combiner(kind, chosen_NQ[rest], labels_N[rest], strength, seed)
            log_odds_N[held] = made.log_odds(chosen_NQ[held])
        tried.append((auc(log_odds_N, labels_N), strength, log_odds_N))
    return max(tried, key=lambda one: one[0])[1:]


def _platt(log_odds_N: Floats, labels_N: Any) -> tuple[float, float]:
    """Slope and shift, with Platt's targets; a slope below zero would turn all round, and is none."""
    weight_1, bias_1 = linear(log_odds_N[:, None], labels_N, 1e3)
    return max(float(weight_1[0]), 1e-3), float(bias_1[0])


def groups_of(examples: Sequence[Any]) -> list[str]:
    """The question of each, or without one the answer."""
    return [one.question.strip().lower() or one.answer.strip().lower() for one in examples]
