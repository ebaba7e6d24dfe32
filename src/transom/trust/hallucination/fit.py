"""Fit a detector of made-up answers on answers of which it is known.

What is told of answers that were held out is of a fit that saw none of them: outer folds, inside which
everything is chosen by inner folds, how much each probe is held back, and what is made of all of them, which
learns from series of probes that did not see the answer. Answers to one question (or, without one, of one
context, or equal ones) stay together. The line is drawn where at most the share `rate` of true answers, held
out so, is above it, so that it holds for answers of the same kind.
Threat model: see the room. Does not protect: labels that are wrong teach what is wrong.
Source: Wolpert 1992 (stacking); Platt 1999.

Shapes: N answers, S steps, F numbers of a family, K families, Q = 5 K.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transom.errors import MisconfiguredError, extra
from transom.report.statistics import auc
from transom.trust.hallucination.combine import Combiner, Kind, combiner, linear
from transom.trust.hallucination.detector import (
    SELECTIONS,
    About,
    Detector,
    Probe,
    chosen_of,
    pruned,
    selected,
    series_of,
)
from transom.trust.hallucination.states import Example, Floats, States

FEWEST = 20  # of each class
_FOLDS, _INNER_FOLDS = 5, 5
_HELD_BACK = (1e-4, 1e-3, 1e-2, 1e-1)


@dataclass(frozen=True, eq=False)
class Fitted:
    """A detector, the risk of each answer by what did not see it [N], for each family the AUROC of each
    selection, alike, and the probes of all families, also of those that the detector has no use for."""

    detector: Detector
    risk_N: Floats
    auroc: dict[str, tuple[float, ...]]
    probes: dict[str, Probe]


def fit(
    states: Sequence[States],
    made_up: Sequence[bool],
    groups: Sequence[str],
    *,
    model: str,
    kind: Kind = "logistic",
    rate: float = 0.1,
    seed: int = 0,
    frame: tuple[str, str] = ("", ""),
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> Fitted:
    """`groups` tells which answers stay together, `frame` what stood around what was asked; `heard` is called
    after each family. Raises MisconfiguredError (too few of a class, a rate that they cannot tell) and
    MissingExtraError."""
    labels_N = np.array(made_up, int)
    true = int((labels_N == 0).sum())
    if (fewest := min(true, len(labels_N) - true)) < FEWEST:
        raise MisconfiguredError(
            f"{fewest} answers of one kind are too few; give {FEWEST} or more that are made up, and "
            "as many that are not"
        )
    if places_above(true, rate) < 1:
        raise MisconfiguredError(f"a false-positive rate of {rate:g} cannot be told by {true} true answers")
    names = tuple(states[0].families)
    log_odds_N = np.zeros(len(labels_N))
    for held in folds_of(labels_N, groups, seed):  # of which what is fitted on the rest has seen nothing
        rest = np.setdiff1d(np.arange(len(labels_N)), held)
        own = [groups[one] for one in rest]
        part = stacked([states[one] for one in rest], labels_N[rest], own, names, kind, seed, bool)
        log_odds_N[held] = [part.log_odds(states[one]) for one in held]
    whole = stacked(states, labels_N, groups, names, kind, seed, heard)
    slope, shift = _platt(log_odds_N, labels_N)
    risk_N = 1 / (1 + np.exp(-np.clip(slope * log_odds_N + shift, -500, 500)))
    about = About(
        "transom-hallucination-2", model, kind, names, line_of(risk_N[labels_N == 0], rate), rate,
        len(labels_N), int(labels_N.sum()), *frame,
    )  # fmt: skip
    made = Detector(about, whole.probes, whole.combiner, whole.usual_Q, slope, shift)
    return Fitted(pruned(made), risk_N, whole.auroc, whole.probes)


@dataclass(frozen=True, eq=False)
class Stacked:
    """Probes, what is made of them, and what of each family tells, held out; not calibrated."""

    probes: dict[str, Probe]
    combiner: Combiner
    usual_Q: Floats
    auroc: dict[str, tuple[float, ...]]

    def log_odds(self, states: States) -> float:
        """Of one answer."""
        series = series_of(self.probes, states)
        return float(self.combiner.log_odds(chosen_of(self.probes, series, self.usual_Q)[None])[0])


def stacked(
    states: Sequence[States], labels_N: Any, groups: Sequence[str], names: Sequence[str], kind: Kind,
    seed: int, heard: Callable[[], object],
) -> Stacked:  # fmt: skip
    """The parts of a detector, fitted on all that is given."""
    folds = folds_of(labels_N, groups, seed + 1, _INNER_FOLDS)
    probes, parts, auroc = {}, [], {}
    for name in names:
        xs = [one.families[name] for one in states]
        strength, chosen_N5 = _held_out(xs, labels_N, folds)
        probes[name] = Probe(*probe_of(xs, labels_N, strength))
        parts.append(chosen_N5)
        auroc[name] = tuple(auc(chosen_N5[:, place], labels_N) for place in range(len(SELECTIONS)))
        heard()
    chosen_NQ = np.concatenate(parts, axis=1)
    choice = [int(np.argmax(each)) + place * len(SELECTIONS) for place, each in enumerate(auroc.values())]
    made = combiner(kind, chosen_NQ, labels_N, choice, seed)
    return Stacked(probes, made, chosen_NQ.mean(0), auroc)


def folds_of(labels_N: Any, groups: Sequence[str], seed: int, folds: int = _FOLDS) -> list[Any]:
    """The places of each fold, with whole groups, and as many of each class as can be. Raises
    MisconfiguredError for fewer groups, or answers of a class, than folds."""
    with extra("hallucination", "scikit-learn"):
        from sklearn.model_selection import StratifiedGroupKFold
    counts = [len(set(groups)), *np.bincount(labels_N, minlength=2).tolist()]
    if min(counts) < folds:
        raise MisconfiguredError(
            f"answers to {counts[0]} questions, {counts[2]} of them made up and {counts[1]} not, are too few "
            f"to hold some out; give {folds} or more of each"
        )
    split = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [held for _, held in split.split(labels_N, labels_N, groups)]


def places_above(count: int, rate: float) -> int:
    """How many of so many true answers, and one more, may be above the line."""
    return int(rate * (count + 1) + 1e-9)


def line_of(risk_N: Floats, rate: float) -> float:
    """The risk above which at most this share of true answers is, of the same kind as these."""
    above = places_above(len(risk_N), rate)
    return float(np.sort(risk_N)[::-1][min(above, len(risk_N)) - 1])


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


def _platt(log_odds_N: Floats, labels_N: Any) -> tuple[float, float]:
    """Slope and shift; where the slope is not above zero, nothing is told but what is commoner."""
    weight_1, bias_1 = linear(log_odds_N[:, None], labels_N, 1e3)
    if weight_1[0] > 0:
        return float(weight_1[0]), float(bias_1[0])
    share = labels_N.mean()
    return 0.0, float(np.log(share / (1 - share)))


def groups_of(examples: Sequence[Example]) -> list[str]:
    """What was asked in each, or without a question what was to be read. Where all were asked a few things,
    as to summarise, what was to be read counts with it. Statements that answer nothing are of one group by
    their first two words, which name what most are about, so that no fold is judged by what another was told
    of the same person; where a fifth or more begin alike, as of a form, by all their words."""
    few = len({one.question.strip().lower() for one in examples}) < _FOLDS
    stated = [_words(one.answer) for one in examples if not _asked(one, few)]
    about = Counter(words[:2] for words in stated)
    forms = bool(about) and max(about.values()) * _FOLDS >= len(examples)
    found = []
    for one in examples:
        asked = _asked(one, few)
        found.append(asked or " ".join(_words(one.answer)[: None if forms else 2]))
    return found


def _asked(one: Example, few: bool) -> str:
    question, context = one.question.strip().lower(), one.context.strip().lower()
    return f"{question}\n{context}" if few and question and context else question or context


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split())
