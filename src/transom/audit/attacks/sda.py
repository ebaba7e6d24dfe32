"""SDA: read the traffic of a fixed permutation of ids as a substitution cipher and solve it.

The observed bigram counts are the prior's bigram counts under an unknown relabelling. Start from the match by
frequency, then alternate: every observed id gets the log likelihood of its neighbours' counts under every
candidate's neighbours in the prior (the mapping as it stands translates neighbours), and the assignment
problem over the commonest ids is solved anew; the set grows until it holds `HEAD_TYPES`. Rarer ids are then
assigned in blocks by falling frequency. Known template tokens are pinned.

Threat model: the host sees every id and owns public text; the nearer that text is to the traffic, the more it
reads. Does not protect anything, and misses ids that the prior does not hold.
Source: the metric and name, arXiv 2603.01499; hill climbing on bigrams, Jakobsen 1995, "A fast method for
cryptanalysis of substitution ciphers"; growing from seeds, Fishkind et al. 2019, "Seeded graph matching".

Shapes: V vocabulary, O observed ids in question, P candidate plain ids, A anchors (translated neighbours).
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks.matching import assigned
from transom.audit.attacks.tfma import token_finding
from transom.audit.attacks.traffic import Prior, Texts, Traffic, by_frequency, flat, stream
from transom.errors import MisconfiguredError
from transom.report.finding import Finding, measured, not_run
from transom.report.statistics import Floats, Ints, bleu4_of, bleu_counts, bleu_interval

if TYPE_CHECKING:
    from scipy.sparse import csr_array

Singles = NDArray[np.float32]

FIRST_TYPES, GROWTH, ROUNDS = 16, 1.6, 5
HEAD_TYPES, BLOCK_TYPES, ANCHORS = 2000, 1500, 2000
_SMOOTHING = 5.0  # pseudo-count of the background distribution of neighbours


class _Side:
    """One text source: ids by falling count, and who follows whom among them."""

    def __init__(self, texts: Texts, vocabulary: int) -> None:
        from scipy.sparse import csr_array

        order, counts_V = by_frequency(texts, vocabulary)
        self.ids: Ints = order[counts_V[order] > 0]
        self.count: Floats = counts_V[self.ids].astype(np.float64)
        place = np.full(vocabulary + 1, len(self.ids))  # the last place, for -1, is the edge of a text
        place[self.ids] = np.arange(len(self.ids))
        sequence, size = place[stream(texts)], len(self.ids) + 1
        pairs = (sequence[:-1], sequence[1:])
        self.after: csr_array = csr_array((np.ones(len(sequence) - 1, np.float32), pairs), shape=(size, size))
        self.before: csr_array = csr_array(self.after.T)

    def neighbours(self, rows: Ints, anchors: Ints) -> list[Singles]:
        """Counts [rows, A + 2] of the anchors, the edge and all others after, and before, each of `rows`."""
        columns = np.append(anchors, len(self.ids))
        return [self._counts(table, rows, columns) for table in (self.after, self.before)]

    def background(self, anchors: Ints) -> Singles:
        """How often [A + 2] the anchors, the edge and all others occur anywhere, as a distribution."""
        edges = self.after.sum(axis=0)[-1]
        known = np.append(self.count[anchors], edges)
        shares = np.append(known, max(self.count.sum() + edges - known.sum(), 1.0))
        return np.asarray(shares / shares.sum(), dtype=np.float32)

    def _counts(self, table: Any, rows: Ints, columns: Ints) -> Singles:
        known = table[rows][:, columns].toarray()
        others = self.count[rows] - known.sum(axis=1)
        return np.concatenate([known, others[:, None]], axis=1, dtype=np.float32)


def decipher(target: Traffic, knowledge: Prior, budget_s: float) -> Ints:
    """The guess [V]: guess[observed id] is a plain id, or -1 for ids left alone. Stops at `budget_s`.

    Raises MisconfiguredError for a prior without text.
    """
    if not knowledge.texts:
        raise MisconfiguredError("deciphering needs a prior with text (level domain or distribution)")
    stop = time.monotonic() + budget_s
    seen, prior = _Side(target.texts, target.vocabulary), _Side(knowledge.texts, target.vocabulary)
    reach = min(len(seen.ids), len(prior.ids))
    pins = _pins(seen, prior, knowledge)
    match = _head(seen, prior, pins, min(reach, HEAD_TYPES), stop)
    match = _tail(seen, prior, match, reach, stop)
    guess_V = np.full(target.vocabulary, -1)
    guess_V[seen.ids[: len(match)]] = prior.ids[match]
    for observed, plain in knowledge.known.items():
        guess_V[observed] = plain
    return guess_V


def _pins(seen: _Side, prior: _Side, knowledge: Prior) -> dict[int, int]:
    """Known pairs as places in the two orders."""
    places = {int(token): place for place, token in enumerate(seen.ids)}
    plain = {int(token): place for place, token in enumerate(prior.ids)}
    known = knowledge.known.items()
    return {places[seen_id]: plain[id_] for seen_id, id_ in known if seen_id in places and id_ in plain}


def _head(seen: _Side, prior: _Side, pins: dict[int, int], size: int, stop: float) -> Ints:
    """Match of the `size` commonest observed places, refined from the match by rank."""
    match, now = np.arange(min(FIRST_TYPES, size)), min(FIRST_TYPES, size)
    while True:
        for _ in range(ROUNDS):
            old, match = match, _refine(seen, prior, match, pins, now)
            if time.monotonic() > stop or (len(old) == now and (match != old).mean() < 0.05):
                break
        if now == size or time.monotonic() > stop:
            return match
        now = min(size, int(now * GROWTH))


def _refine(seen: _Side, prior: _Side, match: Ints, pins: dict[int, int], size: int) -> Ints:
    """Assign the `size` commonest observed places anew; the match so far translates their neighbours."""
    width = min(len(prior.ids), int(1.15 * size) + 16)
    columns = np.union1d(np.arange(width), [plain for place, plain in pins.items() if place < size])
    score_OP = _scores(seen, prior, match[:ANCHORS], np.arange(size), columns.astype(np.int64))
    for place, plain in pins.items():
        if place < size:
            score_OP[place, np.searchsorted(columns, plain)] = -score_OP.min() + 1e9
    return np.asarray(columns[assigned(-score_OP)], dtype=np.int64)


def _tail(seen: _Side, prior: _Side, match: Ints, reach: int, stop: float) -> Ints:
    """Append matches of the rarer places, block by block, each among the commonest candidates still free."""
    free = np.setdiff1d(np.arange(len(prior.ids)), match)
    while len(match) < reach and time.monotonic() < stop:
        block = np.arange(len(match), min(len(match) + BLOCK_TYPES, reach))
        columns = free[: 2 * len(block)]
        if len(columns) < len(block):
            break
        chosen = columns[assigned(-_scores(seen, prior, match[:ANCHORS], block, columns))]
        match, free = np.append(match, chosen), np.setdiff1d(free, chosen)
    return match


def _scores(seen: _Side, prior: _Side, match: Ints, rows: Ints, columns: Ints) -> Singles:
    """Log likelihood [O, P] of the neighbours and the count of every row, were it that column."""
    anchors = np.arange(len(match))
    background = prior.background(match)
    total_P = prior.count[columns].astype(np.float32)
    score_OP = _count_scores(seen, prior, rows, columns)
    for seen_OA, prior_PA in zip(
        seen.neighbours(rows, anchors), prior.neighbours(columns, match), strict=True
    ):
        chance_PA = (prior_PA + _SMOOTHING * background) / (total_P[:, None] + _SMOOTHING)
        score_OP += seen_OA @ np.log(chance_PA).T
    return score_OP


def _count_scores(seen: _Side, prior: _Side, rows: Ints, columns: Ints) -> Singles:
    """Normal log likelihood [O, P] of the difference of log frequencies; two sources never agree."""
    seen_O, prior_P = seen.count[rows, None], prior.count[None, columns]
    gap = np.log(seen_O / seen.count.sum()) - np.log(prior_P / prior.count.sum())
    variance = 1 / seen_O + 1 / prior_P + 0.02
    return np.asarray(-0.5 * (gap**2 / variance + np.log(variance)), dtype=np.float32)


def findings(target: Traffic, knowledge: Prior, data: Texts, budget_s: float) -> tuple[Finding, ...]:
    """Token recovery, type recovery and BLEU-4 of one decipherment; `data` are the plain texts."""
    if not knowledge.texts:
        return (not_run("sda", "token recovery", "it needs text of the domain or the distribution"),)
    started, name = time.monotonic(), f"sda/{knowledge.level}"
    guess_V = decipher(target, knowledge, budget_s)
    cost_s = round(time.monotonic() - started, 3)
    found = [token_finding(name, target, data, guess_V, over) for over in ("tokens", "types")]
    return tuple(replace(one, cost_s=cost_s) for one in (*found, _bleu_finding(name, target, data, guess_V)))


def attack(target: Traffic, knowledge: Prior, data: Texts, budget_s: float) -> Finding:
    """Share of tokens read; see `findings`."""
    return findings(target, knowledge, data, budget_s)[0]


def _bleu_finding(name: str, target: Traffic, data: Texts, guess_V: Ints) -> Finding:
    guess = [guess_V[list(text)].tolist() for text in target.texts]
    dealt = np.random.default_rng(0).permutation(guess_V[flat(target.texts)])
    chance = np.split(dealt, np.cumsum([len(text) for text in data])[:-1])
    counts = bleu_counts(data, guess)
    return measured(
        name,
        "BLEU-4",
        bleu4_of(counts),
        bleu_interval(counts),
        baseline=bleu4_of(bleu_counts(data, [part.tolist() for part in chance])),
        n=len(data),
        note="of token ids, between 0 and 1; n counts texts; the baseline deals the guesses out at random",
    )
