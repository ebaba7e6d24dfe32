"""What an attacker reads of sanitised texts, over all their tokens; the measure of `words_usable.py`.

Every token of the original counts, names, numbers and punctuation too, weighted by -log2 of its public
frequency (Zipf's law over the ranks of the vectors' words; the rarest rank for others). What passes is read.
For a drawn word the attacker knows the mechanism's integers, for a placeholder its label: the candidates are
the values that stand behind that label in text of its own, sanitised the same way. The attacks are those of
`transom audit words`: exact Bayes, contextual Bayes (trigrams of the attacker's text) and a causal language
model over both; the best of them counts. The language model's power is 1, which trials on other text chose
(`audit_strength.py`), and which words were drawn together is not used.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from _usable_ways import Sent, Unit, Way
from transom.audit.attacks import bayes, causal, contextual
from transom.audit.attacks.word_text import (
    Sentence,
    Sentences,
    Token,
    drawn,
    whole_sentences,
    with_unseen,
    without_overlap,
)
from transom.audit.attacks.words import Channel, Column, WordKnowledge, WordTarget, read_channel
from words_sst2 import tokens_of

CANDIDATES = 64  # of a placeholder
Guesses = dict[str, list[str]]
TRIAL = 60  # sentences on which the trigrams' weight is set
LEARNING_S = 60.0
POWER = 1.0


class Weights:
    """-log2 of the public frequency of a word, by its rank among words, the most frequent first."""

    def __init__(self, words: Sequence[str]) -> None:
        self._rank = {word: rank for rank, word in reversed(list(enumerate(words)))}
        self._total = float(np.sum(1.0 / (2.7 + np.arange(len(words)))))

    def __call__(self, source: str) -> float:
        """The bits of a token; one of several words has those of all."""
        return sum(
            math.log2((2.7 + self._rank.get(word, len(self._rank))) * self._total)
            for word in tokens_of(source) or [source]
        )


@dataclass(frozen=True)
class Recovery:
    """Shares of all tokens' bits that each attack reads, and the share of plain tokens that pass."""

    best: float
    by_attack: Mapping[str, float]
    passed: float
    passed_tokens: float
    tokens: int
    hidden: float  # bits behind placeholders


def recovery(
    way: Way, attacked: Sequence[Sent], own: Sequence[Sent], weights: Weights, model: Any
) -> Recovery:
    """What the attacks read of `attacked`; the attacker owns the plain text behind `own`, and `model`."""
    units = [unit for sent in attacked for unit in sent.units]
    weight_N = np.array([weights(unit.source) for unit in units])
    passed_N = np.array([unit.state == "passed" for unit in units])
    covered = [unit.source for unit in units if unit.state != "passed"]
    total = float(weight_N.sum())
    shares = {"reading": float(weight_N[passed_N].sum()) / total}
    if covered:
        for name, guesses in _attacks(way, attacked, own, weights, model).items():
            hit = np.array([guess == source for guess, source in zip(guesses, covered, strict=True)])
            shares[name] = shares["reading"] + float(weight_N[~passed_N][hit].sum()) / total
    hidden = np.array([unit.state == "hidden" for unit in units])
    return Recovery(
        max(shares.values()),
        shares,
        shares["reading"],
        float(passed_N.mean()),
        len(units),
        float(weight_N[hidden].sum()) / total,
    )


def _attacks(
    way: Way, attacked: Sequence[Sent], own: Sequence[Sent], weights: Weights, model: Any
) -> Guesses:
    """One guess of each attack for every token that does not pass."""
    target, knowledge = _Book(way, own, weights).mounted(attacked)
    mind = contextual.learned(target.channel, knowledge, time.monotonic() + LEARNING_S)
    named = {
        "bayes": bayes.guesses(target, knowledge.prior_V),
        "contextual": contextual.guesses(mind, target.seen),
    }
    if model is not None:
        named["language model"] = causal.guesses(causal.Reader(mind, model, POWER), target.seen)
    return named


class _Book:
    """What the attacker knows: its own text before and after, and what every output says of a word."""

    def __init__(self, way: Way, own: Sequence[Sent], weights: Weights) -> None:
        self._way, self._own = way, own
        counted: dict[str, Counter[str]] = defaultdict(Counter)
        for unit in _units(own):
            if unit.state == "hidden":
                counted[str(unit.seen)][unit.source] += 1
        self._values = {label: counts.most_common(CANDIDATES) for label, counts in counted.items()}
        met = (value for values in self._values.values() for value, _ in values)
        self._words = tuple(dict.fromkeys((*way.words, *met)))
        self._ids = {word: number for number, word in enumerate(self._words)}
        self._labels: dict[str, int] = {}
        self._public_V = np.array([2.0 ** -weights(word) for word in self._words])

    def mounted(self, attacked: Sequence[Sent]) -> tuple[WordTarget, WordKnowledge]:
        """What the attacks take; everything that does not pass counts as drawn."""
        sent_as = {_plain(sent): sent for sent in self._own if sent.units}
        text = whole_sentences(without_overlap(tuple(sent_as), tuple(map(_plain, attacked))))
        text = tuple(text[i] for i in np.random.default_rng(0).permutation(len(text)))
        trial, rest = text[:TRIAL], text[TRIAL:]
        seen, trial_seen = (
            tuple(map(self._seen, some)) for some in (attacked, [sent_as[one] for one in trial])
        )
        columns = self._columns((*seen, *trial_seen))
        mechanism: Any = None  # read into the columns; no attack asks for it again
        channel = Channel(self._words, columns, 0.0, 0.0)
        prior_V = with_unseen(self._counts(lambda unit: unit.state != "passed"), self._public_V)
        return WordTarget(channel, seen), WordKnowledge(mechanism, prior_V, rest, trial, trial_seen)

    def _seen(self, sent: Sent) -> Sentence:
        return tuple(
            Token("passed", unit.source)
            if unit.state == "passed"
            else Token("drawn", "x", self._number(unit.seen))
            for unit in sent.units
        )

    def _number(self, seen: tuple[int, int] | str) -> int:
        """One number for each output of each mechanism, and behind these for each label."""
        size = len(self._way.words)
        if isinstance(seen, tuple):
            return seen[0] * size + seen[1]
        return len(self._way.mechanisms) * size + self._labels.setdefault(seen, len(self._labels))

    def _counts(self, wanted: Callable[[Unit], bool]) -> Any:
        ids = [self._ids.get(unit.source, -1) for unit in _units(self._own) if wanted(unit)]
        return np.bincount([i for i in ids if i >= 0], minlength=len(self._words))

    def _columns(self, seen: Sentences) -> dict[int, Column]:
        """What each output says: the words that a mechanism draws, or the values behind a label."""
        size, columns = len(self._way.words), {}
        outputs = {token.word for token in drawn(seen)}
        for number, mechanism in enumerate(self._way.mechanisms):
            counts_V = self._counts(lambda unit, n=number: unit.state == "drawn" and unit.seen[0] == n)[:size]
            prior_V = with_unseen(counts_V, self._public_V[:size]) * self._way.drawable[number]
            mine = {output - number * size for output in outputs if output // size == number}
            found = read_channel(self._way.words, mechanism, mine, prior_V).columns
            columns |= {number * size + output: column for output, column in found.items()}
        for label in self._labels:
            known = self._values.get(label) or [(self._words[0], 1)]  # a label that the own text lacks
            words_K = np.array([self._ids[value] for value, _ in known])
            columns[self._number(label)] = Column(words_K, np.ones(len(words_K)), words_K)
        return columns


def _units(sents: Iterable[Sent]) -> Iterator[Unit]:
    return (unit for sent in sents for unit in sent.units)


def _plain(sent: Sent) -> Sentence:
    return tuple(Token("passed", unit.source) for unit in sent.units)
