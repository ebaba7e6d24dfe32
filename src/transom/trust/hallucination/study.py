"""What in a model's states tells made-up answers from true ones: a study of one or several sets.

Of each set the answers to one question in three are held out. Told of these, with intervals by answer: AUROC
of the detector, how far its risks are from the shares that come true (ECE of five parts of equal size, and
the curve), AUROC of each family by selection and of each stage's states, what is left without a kind of
families, the risk along the answer, what single heads tell, the baselines (the length; the best number of the
states that nothing was fitted to; answers' shares of the training set), the same detector on other sets, and,
of statements that can be negated, on their negations.
Threat model: see the room. Does not protect: what holds for these sets need not for others; the table of
transfers and the row of negations say so.
Source: Hanley and McNeil 1982 (AUROC); Naeini et al. 2015 (ECE); Levinstein and Herrmann 2023 (negations).

Shapes: N answers, Q numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from transom.errors import MisconfiguredError
from transom.report.statistics import auc, auc_interval
from transom.trust.hallucination.combine import Kind
from transom.trust.hallucination.detector import SELECTIONS, Detector, Probe, selected
from transom.trust.hallucination.fit import fit, folds_of, groups_of, probe_of, stacked
from transom.trust.hallucination.looks import LOOKS
from transom.trust.hallucination.score import cut
from transom.trust.hallucination.states import LOGITS, Example, Floats, States

GROUPS = {
    "activation": ("hidden", "mlp"),
    "attention": (*LOOKS, "laplacian", "rauq"),
    "logits": ("logits", "lens"),
}
STAGES = ("understanding", "query")
PARTS = 5
_STAGE_STRENGTH = 1e-2
_HELD_OUT = 3  # one fold of so many
_ALONG = (0.1, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True, eq=False)
class Set:
    """Answers of which it is known, with their states."""

    name: str
    examples: Sequence[Example]
    states: Sequence[States]

    @property
    def made_up(self) -> list[bool]:
        """Of each."""
        return [bool(one.made_up) for one in self.examples]

    def part(self, places: Sequence[int]) -> Set:
        """Of some."""
        return Set(self.name, [self.examples[one] for one in places], [self.states[one] for one in places])


@dataclass(frozen=True)
class Area:
    """An AUROC and its interval, which is None of too few answers."""

    value: float
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Studied:
    """A set. `families` by selection, in the order of `SELECTIONS`; `curve` has for each part the mean risk,
    the share that was made up, and how many answers; `along` the mean risks of made-up and of other answers
    when a share of them was said; `heads` the AUROC of each layer and head by its mean, where attention was
    looked at; `negated` is None where no statement could be."""

    name: str
    answers: tuple[int, int]
    made_up: tuple[int, int]
    area: Area
    ece: float
    curve: tuple[tuple[float, float, int], ...]
    along: tuple[tuple[float, float, float], ...]
    heads: dict[str, tuple[tuple[float, ...], ...]]
    families: dict[str, tuple[float, ...]]
    stages: dict[str, float]
    without: dict[str, float]
    baselines: dict[str, float]
    transfer: dict[str, float]
    negated: Area | None
    detector: Detector


def study(
    sets: Sequence[Set],
    *,
    model: str,
    kind: Kind = "logistic",
    heads: int = 1,
    negated: Callable[[Sequence[Example]], tuple[list[Example], list[States]]] | None = None,
    heard: Callable[[], None] = bool,  # type: ignore[assignment]
) -> list[Studied]:
    """Each set; `heads` is how many a layer has, `negated` reads the states of statements that were turned
    round, `heard` is called after each fit. Raises as `fit`."""
    parts = []
    check_sets(sets)
    for one in sets:
        held = folds_of(np.array(one.made_up, int), groups_of(one.examples), 0, _HELD_OUT)[0]
        rest = [place for place in range(len(one.examples)) if place not in set(held.tolist())]
        parts.append((one.part(rest), one.part(held.tolist())))
    detectors, probes = [], []
    for train, _ in parts:
        made = fit(train.states, train.made_up, groups_of(train.examples), model=model, kind=kind)
        detectors.append(made.detector)
        probes.append(made.probes)
        heard()
    found = []
    for (train, held_out), detector, own in zip(parts, detectors, probes, strict=True):
        labels_N = np.array(held_out.made_up, int)
        risk_N = risks(detector, held_out.states)
        transfer = {
            other[0].name: auc(scores(one, held_out.states), labels_N)
            for other, one in zip(parts, detectors, strict=True)
        }
        without, read = {}, list(train.states[0].families)
        for name, families in GROUPS.items():
            kept = [one for one in read if one.partition(".")[0] not in families]
            if 0 < len(kept) < len(read):
                groups = groups_of(train.examples)
                part = stacked(train.states, np.array(train.made_up, int), groups, kept, kind, 0, bool)
                without[name] = auc(np.array([part.log_odds(one) for one in held_out.states]), labels_N)
                heard()
        turned = negated(held_out.examples) if negated else ([], [])
        found.append(
            Studied(
                train.name, (len(train.states), len(labels_N)), (sum(train.made_up), int(labels_N.sum())),
                area(scores(detector, held_out.states), labels_N), ece(risk_N, labels_N),
                curve(risk_N, labels_N), along(detector, held_out, labels_N),
                _heads(held_out, labels_N, heads),
                _families(own, held_out, labels_N), _stages(train, held_out, labels_N), without,
                baselines(train, held_out), transfer, _negated(detector, *turned), detector,
            )
        )  # fmt: skip
    return found


def area(risk_N: Floats, labels_N: Floats) -> Area:
    """AUROC with its interval."""
    return Area(auc(risk_N, labels_N), auc_interval(risk_N, labels_N))


def risks(detector: Detector, states: Sequence[States]) -> Floats:
    """Of each answer [N]."""
    return np.array([detector.risk(detector.series(one)).risk for one in states])


def scores(detector: Detector, states: Sequence[States]) -> Floats:
    """The log-odds of each answer [N], by which answers are ordered: risks of another set may all be 0 or
    1."""
    return np.array([detector.risk(detector.series(one)).log_odds for one in states])


def curve(risk_N: Floats, labels_N: Floats) -> tuple[tuple[float, float, int], ...]:
    """Mean risk, share of what is made up, and answers, of parts of equal size, by risk."""
    parts = np.array_split(np.argsort(risk_N, kind="stable"), min(PARTS, len(risk_N)))
    return tuple((float(risk_N[one].mean()), float(labels_N[one].mean()), len(one)) for one in parts)


def along(detector: Detector, held_out: Set, labels_N: Floats) -> tuple[tuple[float, float, float], ...]:
    """Share said, mean risk of what is made up, and of the rest."""
    found = []
    for share in _ALONG:
        risk_N = np.array([_said(detector, one, share) for one in held_out.states])
        found.append((share, float(risk_N[labels_N == 1].mean()), float(risk_N[labels_N == 0].mean())))
    return tuple(found)


def _said(detector: Detector, states: States, share: float) -> float:
    steps = max(1, round(share * len(states.families["logits.own"])))
    return detector.risk(cut(detector.series(states), 0, steps)).risk


def _heads(held_out: Set, labels_N: Floats, heads: int) -> dict[str, tuple[tuple[float, ...], ...]]:
    found = {}
    for name in (*LOOKS, "laplacian"):
        own = [place for place, one in enumerate(held_out.states) if len(one.families.get(name, ()))]
        if own:
            mean_NM = np.array([held_out.states[place].families[name].mean(0) for place in own])
            areas = [auc(mean_N, labels_N[own]) for mean_N in mean_NM.T]
            found[name] = tuple(map(tuple, np.array(areas).reshape(-1, heads).tolist()))
    return found


def ece(risk_N: Floats, labels_N: Floats) -> float:
    """Expected calibration error over these parts."""
    total = sum(count for *_, count in curve(risk_N, labels_N))
    return sum(abs(risk - share) * count for risk, share, count in curve(risk_N, labels_N)) / total


def baselines(train: Set, held_out: Set) -> dict[str, float]:
    """AUROC of the length, of the share of what is made up (which is the same of all), and of the best single
    number, by which one and which way being chosen on what is learnt from."""
    labels_N, own_N = np.array(train.made_up, int), np.array(held_out.made_up, int)
    best, direction = best_single(train)
    chosen_N = direction * np.array([singles(one)[best] for one in held_out.states])
    found = {f"best single: {best}": auc(chosen_N, own_N)}
    lengths = [
        np.array([len(one.families["logits.own"]) for one in part.states]) for part in (train, held_out)
    ]
    way = 1.0 if auc(lengths[0], labels_N) >= 0.5 else -1.0
    return found | {"length": auc(way * lengths[1], own_N), "label prior": 0.5}


def best_single(train: Set) -> tuple[str, float]:
    """Which number tells most, and which way, 1 or -1."""
    labels_N, numbers = np.array(train.made_up, int), [singles(one) for one in train.states]
    told = {name: auc(np.array([one[name] for one in numbers]), labels_N) for name in numbers[0]}
    best = max(told, key=lambda name: abs(told[name] - 0.5))
    return best, 1.0 if told[best] >= 0.5 else -1.0


def singles(one: States) -> dict[str, float]:
    """Numbers of an answer's states that nothing is fitted to: of logits each selection and the sum, of the
    other families the mean over all that they have."""
    found = {}
    for name in LOGITS:
        series_S = one.families[f"logits.{name}"][:, 0].astype(np.float64)
        for selection, value in zip(SELECTIONS, selected(series_S), strict=True):
            found[f"{name}, {selection}"] = float(value)
        found[f"{name}, least"] = float(series_S.min())
        found[f"{name}, sum"] = float(series_S.sum())
    for name, x_SF in one.families.items():
        if not name.startswith(("hidden", "logits")) and len(x_SF):
            found[f"{name}, mean"] = float(x_SF.mean())
    return found


def negation(text: str) -> str | None:
    """A statement turned round, or None where it has no verb to put a `not` after.

    >>> negation("The sun is a star.")
    'The sun is not a star.'
    >>> negation("The sun is not a planet.")
    'The sun is a planet.'
    """
    found = re.search(r"\b(is|are|was|were|has|have|can|will)( not)?\b", text)
    if not found:
        return None
    verb, was = found.groups()
    return text[: found.start()] + (verb if was else f"{verb} not") + text[found.end() :]


def negations(examples: Sequence[Example]) -> list[Example]:
    """Of statements, which answer no question, those that can be, with the other label."""
    turned = [(one, negation(one.answer)) for one in examples if not one.question and not one.context]
    return [replace(one, answer=text, made_up=not one.made_up) for one, text in turned if text]


def _families(probes: Mapping[str, Probe], held_out: Set, labels_N: Floats) -> dict[str, tuple[float, ...]]:
    found = {}
    for name, probe in probes.items():
        own = [place for place, one in enumerate(held_out.states) if len(one.families[name])]
        chosen = np.array([selected(probe.series(held_out.states[one].families[name])) for one in own])
        found[name] = tuple(auc(chosen[:, place], labels_N[own]) for place in range(len(SELECTIONS)))
    return found


def _stages(train: Set, held_out: Set, labels_N: Floats) -> dict[str, float]:
    """Of the states over the context, over the question, and over the answer, alike."""
    found = {}
    for stage in (*STAGES, "generation"):
        parts = [[_stage(one, stage) for one in part.states] for part in (train, held_out)]
        if any(one is None for part in parts for one in part):
            continue
        weight_F, bias = probe_of([np.array([one]) for one in parts[0]], train.made_up, _STAGE_STRENGTH)
        scores = [float(Probe(weight_F, bias).series(np.array([one]))[0]) for one in parts[1]]
        found[stage] = auc(np.array(scores), labels_N)
    return found


def _stage(one: States, stage: str) -> Floats | None:
    if stage != "generation":
        return one.stages.get(stage)
    return np.concatenate([x_SF.mean(0) for name, x_SF in one.families.items() if name.startswith("hidden")])


def _negated(detector: Detector, examples: Sequence[Example], states: Sequence[States]) -> Area | None:
    labels_N = np.array([bool(one.made_up) for one in examples], int)
    if len(set(labels_N.tolist())) < 2:
        return None
    return area(scores(detector, states), labels_N)


def check_sets(sets: Sequence[Set]) -> None:
    """Raises MisconfiguredError for answers that stand in two sets: what transfers would be known already."""
    for place, one in enumerate(sets):
        for other in sets[place + 1 :]:
            if one.name == other.name:
                raise MisconfiguredError(f"two sets are called {one.name}; give files of other names")
            keys = [
                {(each.question.lower(), each.context.lower(), each.answer.lower()) for each in part.examples}
                for part in (one, other)
            ]
            if shared := len(keys[0] & keys[1]):
                raise MisconfiguredError(
                    f"{one.name} and {other.name} share {shared} answers; a transfer would be of what was "
                    "learnt"
                )
