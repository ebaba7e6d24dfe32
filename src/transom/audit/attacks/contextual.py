"""Contextual Bayes: the posterior over a whole sentence, under a language model and the exact channel.

The prior of a sentence is a trigram model of the attacker's own text, log-linearly mixed with what a neural
reader makes of the sentence when there is one. At each place the likeliest candidate by its posterior
marginal is named, which maximises the expected recovery. How much model and reader count is set on sentences
of the attacker's own, sanitised by itself.
The baseline is the same attacker without the outputs: context, groups and everything that passes.

Threat model: as in `words`. Does not prove anything about attackers with more text or a larger model.
Source: Tong et al., arXiv 2410.17052, section 4 (contextual optimum); see `language` and `reader`.

Legend: K candidates of one place.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, TypeVar

import numpy as np

from transom.audit.attacks.language import Place, Trigrams, posteriors
from transom.audit.attacks.word_text import Sentence, Sentences, Token
from transom.audit.attacks.words import (
    METRIC,
    Channel,
    Floats,
    WordData,
    WordKnowledge,
    WordTarget,
    originals,
    right,
    scored,
)
from transom.audit.finding import Finding, not_run

NAME = "contextual"
__all__ = ["METRIC", "NAME", "attack", "guesses"]

FEWEST_SENTENCES = 50
WIDTH = 32  # candidates of a place that are carried along
WEIGHTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0)
READER_WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)
_TINY = 1e-30
_T = TypeVar("_T")


class Reader(Protocol):
    """A neural model of context: posterior probabilities [K] of the candidates at each token."""

    def posteriors(self, sentences: Sentences, places: Sequence[Sequence[Place]]) -> list[list[Floats]]: ...


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Token recovery of the best guess a place; "not run" with little text or when time runs out."""
    started = time.monotonic()
    if len(knowledge.text) < FEWEST_SENTENCES:
        got = f"got {len(knowledge.text)}"
        return not_run(NAME, METRIC, f"it needs {FEWEST_SENTENCES} sentences of the attacker's own, {got}")
    deadline = started + budget_s
    try:
        mind = learned(target.channel, knowledge, deadline)
        found = guesses(mind, target.seen, deadline)
        alone = guesses(replace(mind, unseen=True), target.seen, deadline)
    except TimeoutError as error:
        return not_run(NAME, METRIC, str(error))
    baseline = float(right(target, data, alone).mean())
    mixed = f"trigram weight {mind.weight:g}"
    mixed += f", reader weight {mind.reader_weight:g}" if mind.reader is not None else ""
    note = f"{baseline:.3f} from context alone; {mixed}"
    return scored(NAME, target, data, found, started=started, note=note, baseline=baseline)


@dataclass(frozen=True, eq=False)
class Mind:
    """What the attacker has learned, and how much each part counts. `unseen` leaves the outputs out."""

    channel: Channel
    prior_V: Floats = field(repr=False)
    model: Trigrams = field(repr=False)
    reader: Reader | None = None
    weight: float = 1.0
    reader_weight: float = 0.0
    unseen: bool = False

    def places(self, sentence: Sentence) -> list[Place]:
        """Candidates and likelihoods at each token, the WIDTH most promising ones."""
        return [self._place(token) for token in sentence]

    def _place(self, token: Token) -> Place:
        if token.kind != "drawn":
            return Place(np.array([self.model.number(token)]), np.ones(1))
        return candidates(self.channel, self.prior_V, token, unseen=self.unseen)


def candidates(channel: Channel, prior_V: Floats, token: Token, *, unseen: bool = False) -> Place:
    """The WIDTH most promising originals of a drawn token; `unseen` does without its output."""
    if token.kind != "drawn":
        return Place(np.zeros(1, dtype=np.int64), np.ones(1))
    words_K, likelihood_K, unseen_K = channel.columns[token.word]
    if unseen:
        return Place(unseen_K[:WIDTH], np.ones(min(WIDTH, len(unseen_K))))
    if len(words_K) > WIDTH:
        best_K = np.argpartition(-prior_V[words_K] * likelihood_K, WIDTH - 1)[:WIDTH]
        words_K, likelihood_K = words_K[best_K], likelihood_K[best_K]
    return Place(words_K, likelihood_K / likelihood_K.max())


def learned(channel: Channel, knowledge: WordKnowledge, deadline: float) -> Mind:
    """The model of the attacker's text, with the weights that recover most of its trial sentences."""
    model = Trigrams.of(knowledge.text, channel.words, knowledge.prior_V)
    mind = Mind(channel, knowledge.prior_V, model, knowledge.reader)
    truth = [token.text for token in originals(knowledge.trial_seen, knowledge.trial)]
    if not truth:
        return mind
    places = [mind.places(sentence) for sentence in knowledge.trial_seen]
    reader_weights: tuple[float, ...] = (0.0,)
    read: list[Floats] = []
    if mind.reader is not None:
        reader_weights = READER_WEIGHTS
        read = _at_drawn(knowledge.trial_seen, mind.reader.posteriors(knowledge.trial_seen, places))
    best, most = mind, -1
    for weight in WEIGHTS:
        known = _at_drawn(knowledge.trial_seen, _chained(model, places, weight, deadline))
        for reader_weight in reader_weights:
            named = _named(mind, knowledge.trial_seen, places, _mixed(known, read, reader_weight))
            hits = sum(map(operator.eq, named, truth))
            if hits > most:
                best, most = replace(mind, weight=weight, reader_weight=reader_weight), hits
    return best


def guesses(mind: Mind, seen: Sentences, deadline: float = math.inf) -> list[str]:
    """One word for each drawn token. Raises TimeoutError after `deadline` (of the monotonic clock)."""
    places = [mind.places(sentence) for sentence in seen]
    known = _at_drawn(seen, _chained(mind.model, places, mind.weight, deadline))
    read: list[Floats] = []
    if mind.reader is not None and mind.reader_weight > 0:
        read = _at_drawn(seen, mind.reader.posteriors(seen, places))
    return _named(mind, seen, places, _mixed(known, read, mind.reader_weight))


def _chained(
    model: Trigrams, places: Sequence[Sequence[Place]], weight: float, deadline: float
) -> Iterator[list[Floats]]:
    for done, sentence in enumerate(places):
        if time.monotonic() > deadline:
            raise TimeoutError(f"its time ran out after {done} of {len(places)} sentences; raise --budget")
        yield posteriors(model, sentence, weight)


def _at_drawn(seen: Sentences, of_tokens: Iterable[Sequence[_T]]) -> list[_T]:
    """The values of the drawn tokens alone, in order."""
    return [
        value
        for sentence, values in zip(seen, of_tokens, strict=True)
        for token, value in zip(sentence, values, strict=True)
        if token.kind == "drawn"
    ]


def _mixed(known: Sequence[Floats], read: Sequence[Floats], reader_weight: float) -> Sequence[Floats]:
    """Log scores [K] of each place: the model's, and the reader's with its weight."""
    logs = [np.log(np.maximum(posterior_K, _TINY)) for posterior_K in known]
    if not reader_weight:
        return logs
    return [
        one + reader_weight * np.log(np.maximum(other, _TINY)) for one, other in zip(logs, read, strict=True)
    ]


def _named(
    mind: Mind, seen: Sentences, places: Sequence[Sequence[Place]], scores: Sequence[Floats]
) -> list[str]:
    words = mind.channel.words
    candidates = _at_drawn(seen, ([place.words_K for place in sentence] for sentence in places))
    return [words[words_K[score_K.argmax()]] for words_K, score_K in zip(candidates, scores, strict=True)]
