"""Membership inference on a fine-tuned adapter: which texts was it trained on?

A text is scored by how much more the adapted model likes it than the base model does (the mean log-likelihood
of its tokens), which calibrates for texts that any model likes; `min_k` scores by the least likely tokens of
the adapted model alone. Reported are the true-positive rate at a false-positive rate of 1 % and the area
under the curve. The threshold comes from the non-members, who are a sample too: the interval of the rate
takes the two thresholds between which the one of exactly 1 % lies with 97.5 %, and Clopper and Pearson's
interval with 97.5 % at each, so that both errors together stay within 5 %. Its lower end is 0 below 437
non-members: fewer cannot show that a threshold's false-positive rate is at most 1 %.

Threat model: the attacker has the base model, the adapter and candidate texts, and knows non-members like
the members. Does not protect anything; members that differ from non-members in kind (topic, date) are told
apart without any training, so both files must come from one source.
Source: Carlini et al. 2022, arXiv 2112.03570 (rate at a low false-positive rate); Watson et al. 2022,
arXiv 2111.08440 (calibration by a reference model); Shi et al. 2024, arXiv 2310.16789 (Min-K %); Newcombe
2006, Statistics in Medicine 25:559 (interval of the area, method 5).

Shapes: M members, N non-members, T tokens, D in, O out, R rank.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from transom.audit.batches import padded
from transom.checkpoint.adapter import Adapter, applied, read_adapter
from transom.report.finding import Bound, Finding, measured, not_run
from transom.report.statistics import CONFIDENCE, Floats, interval

Texts = Sequence[tuple[int, ...]]

METRIC = "members found at 1 % false alarms"
AREA = "AUC"
_FALSE_ALARMS = 0.01
_MIN_K = 0.2  # share of a text's tokens that `min-k` looks at
_BLOCK = 16  # texts run side by side
_PASS = 1.8  # shares of the budget that the pass through the models may take
_TAIL = (1 - CONFIDENCE) / 4  # two thresholds and two shares


@dataclass(frozen=True)
class Base:
    """What the attacker brings: the base model (causal), and the id that stands before a text."""

    model: Any
    start_id: int


@dataclass(frozen=True)
class Candidates:
    """The data: ids of texts that were in training, and of texts that were not; none empty."""

    members: Texts
    others: Texts


@dataclass(frozen=True)
class Scores:
    """How much each candidate looks like a member, and how many candidates there were."""

    members_M: Floats
    others_N: Floats
    total: int


def attacks() -> tuple[Bound, ...]:
    """Four findings, rate and area for each of two scores, from one pass through the two models.

    The first to run makes that pass, for which it takes the time of two: no fewer are ever chosen. Candidates
    that it does not reach are left out.
    """
    heard: list[dict[str, Scores]] = []

    def bound(score: str, metric: str) -> Bound:
        name = f"membership/{score}"

        def attack(target: Adapter | Path, knowledge: Base, data: Candidates, budget_s: float) -> Finding:
            if not heard:
                heard.append(listen(target, knowledge, data, _PASS * budget_s))
            return judged(name, metric, heard[0][score])

        return Bound(name, metric, attack)

    return tuple(bound(score, metric) for score in ("ratio", "min-k") for metric in (METRIC, AREA))


def listen(target: Adapter | Path, knowledge: Base, data: Candidates, budget_s: float) -> dict[str, Scores]:
    """Both scores of the candidates that `budget_s` reaches, members and others in turn.

    `target` is an adapter or its folder. Raises CheckpointError, NotYetError.
    """
    stop, model = time.monotonic() + budget_s, knowledge.model
    adapter = target if isinstance(target, Adapter) else read_adapter(target)
    turns = zip_longest(data.others, data.members)
    queue = [(member, text) for turn in turns for member, text in enumerate(turn) if text is not None]
    found: dict[str, tuple[list[float], list[float]]] = {"ratio": ([], []), "min-k": ([], [])}
    for start in range(0, len(queue), _BLOCK):
        if time.monotonic() > stop:
            break
        block = queue[start : start + _BLOCK]
        texts = [text for _, text in block]
        plain = token_logs(model, texts, knowledge.start_id)
        with applied(model, adapter):
            tuned = token_logs(model, texts, knowledge.start_id)
        for (member, _), before, after in zip(block, plain, tuned, strict=True):
            found["ratio"][member].append(after.mean() - before.mean())
            found["min-k"][member].append(np.sort(after)[: max(1, round(_MIN_K * len(after)))].mean())
    return {name: Scores(np.array(yes), np.array(no), len(queue)) for name, (no, yes) in found.items()}


def token_logs(model: Any, texts: Texts, start_id: int) -> list[Floats]:
    """log P of each token of each text, given those before it and the start token."""
    import torch

    ids_BT, _ = padded([(start_id, *text) for text in texts], start_id)
    with torch.inference_mode():
        logits_BTV = model(ids_BT[:, :-1], use_cache=False).logits.float()
        logs_BT = logits_BTV.gather(2, ids_BT[:, 1:, None])[..., 0] - logits_BTV.logsumexp(-1)
    return [row[: len(text)] for row, text in zip(logs_BT.double().numpy(), texts, strict=True)]


def judged(name: str, metric: str, scores: Scores) -> Finding:
    """The finding of `metric`; "not run" with fewer than two candidates of a kind."""
    members_M, others_N = scores.members_M, scores.others_N
    if min(len(members_M), len(others_N)) < 2:
        reached = f"{len(members_M)} members and {len(others_N)} others"
        return not_run(name, metric, f"{reached} were reached; it takes two of each, and a budget for them")
    if not np.isfinite([*members_M, *others_N]).all():
        return not_run(name, metric, "the models' scores are not finite")
    n = len(members_M) + len(others_N)
    note = f"{len(members_M)} members, {len(others_N)} others, of {scores.total} texts"
    if metric == AREA:
        value, around = area(members_M, others_N), area_interval(members_M, others_N)
        return measured(name, metric, value, around, baseline=0.5, n=n, note=note)
    above = threshold(others_N)
    alarms = int((others_N > above).sum())
    least, most = interval(alarms, len(others_N))
    return measured(
        name,
        metric,
        float((members_M > above).mean()),
        rate_interval(members_M, others_N),
        baseline=_FALSE_ALARMS,
        n=n,
        note=f"{note}; {alarms} false alarms, a rate of {100 * least:.1f} to {100 * most:.1f} %",
    )


def threshold(others_N: Floats) -> float:
    """The score that at most one in a hundred of the others exceeds."""
    return float(np.sort(others_N)[-1 - int(_FALSE_ALARMS * len(others_N))])


def rate_interval(members_M: Floats, others_N: Floats) -> tuple[float, float]:
    """Interval of the share of members above the score that a hundredth of *all* others exceeds.

    The false-positive rate of the sample's (j+1)-th largest score follows Beta(j + 1, N - j).
    """
    from scipy.stats import beta

    falling_N, order_N = np.sort(others_N)[::-1], np.arange(len(others_N))
    below_N = beta.cdf(_FALSE_ALARMS, order_N + 1, len(others_N) - order_N)  # P(rate <= 1 %)
    sure_N = np.flatnonzero(below_N >= 1 - _TAIL)
    strict = falling_N[sure_N[-1]] if len(sure_N) else np.inf
    lax_N = np.flatnonzero(below_N <= _TAIL)
    lax = falling_N[lax_N[0]] if len(lax_N) else -np.inf
    few, many = int((members_M > strict).sum()), int((members_M >= lax).sum())
    confidence = 1 - 2 * _TAIL
    return interval(few, len(members_M), confidence)[0], interval(many, len(members_M), confidence)[1]


def area(members_M: Floats, others_N: Floats) -> float:
    """P(a member scores above another text), ties counted half."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([members_M, others_N]))[: len(members_M)]
    pairs = len(members_M) * len(others_N)
    return float((ranks.sum() - len(members_M) * (len(members_M) + 1) / 2) / pairs)


def area_interval(members_M: Floats, others_N: Floats) -> tuple[float, float]:
    """Newcombe's interval (method 5): the areas whose own variance allows the one seen. It does not
    collapse where members and others are apart, as DeLong's and the bootstrap do."""
    seen = area(members_M, others_N)
    low = _lowest_area(seen, len(members_M), len(others_N))
    return low, 1 - _lowest_area(1 - seen, len(members_M), len(others_N))


def _lowest_area(seen: float, m: int, n: int) -> float:
    from scipy.optimize import brentq
    from scipy.stats import norm

    z, half = norm.ppf(1 - (1 - CONFIDENCE) / 2), (m + n) / 2 - 1

    def excess(a: float) -> float:
        spread = 1 + half * (1 - a) / (2 - a) + half * a / (1 + a)
        return float(seen - a - z * np.sqrt(a * (1 - a) * spread / (m * n)))

    if seen <= 0:
        return 0.0
    return float(brentq(excess, 0.0, seen - 1e-9))
