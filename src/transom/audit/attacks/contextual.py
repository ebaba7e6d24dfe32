"""Contextual Bayes: the posterior over a whole sentence, under a language model and the exact channel.

The prior of a sentence is a trigram model of the attacker's own text (`language`). How much the model counts
against the words' own frequencies is set on sentences of the attacker's own, sanitised by itself.
The baseline is the same attacker without the outputs: context, groups and everything that passes.

Threat model: as in `words`. Does not prove anything about attackers with more text or a larger model.
Source: Tong et al., arXiv 2410.17052, section 4 (contextual optimum); see `language`.

Legend: K candidates of one place.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from transom.audit.attacks.language import Place, Trigrams, posteriors
from transom.audit.attacks.word_text import Sentence, Sentences, Token
from transom.audit.attacks.words import (
    METRIC,
    Channel,
    WordData,
    WordKnowledge,
    WordTarget,
    originals,
    right,
    scored,
)
from transom.report.finding import Finding, not_run
from transom.report.statistics import Floats

T = TypeVar("T")
NAME = "contextual"
__all__ = ["METRIC", "NAME", "attack", "guesses"]

FEWEST_SENTENCES = 50
WIDTH = 32  # candidates of a place that are carried along
WEIGHTS = (0.6, 0.45, 0.75, 0.3, 0.9, 0.15, 1.0, 0.0)  # the likeliest to be best first


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Token recovery of the best guess a place; "not run" with little text or when time runs out."""
    deadline = time.monotonic() + budget_s
    if len(knowledge.text) < FEWEST_SENTENCES:
        got = f"got {len(knowledge.text)}"
        return not_run(NAME, METRIC, f"it needs {FEWEST_SENTENCES} sentences of the attacker's own, {got}")
    try:
        mind = learned(target.channel, knowledge, deadline)
        found = guesses(mind, target.seen, deadline)
        alone = guesses(replace(mind, unseen=True), target.seen, deadline)
    except TimeoutError as error:
        return not_run(NAME, METRIC, str(error))
    baseline = float(right(target, data, alone).mean())
    note = f"{baseline:.3f} from context alone; the model counts with power {mind.weight:g}"
    return scored(NAME, target, data, found, note=note, baseline=baseline)


@dataclass(frozen=True, eq=False)
class Mind:
    """What the attacker has learned, and with which power it counts. `unseen` leaves the outputs out."""

    channel: Channel
    prior_V: Floats = field(repr=False)
    model: Trigrams = field(repr=False)
    weight: float = 1.0
    unseen: bool = False

    def places(self, sentence: Sentence) -> list[Place]:
        """Candidates and likelihoods at each token, the WIDTH most promising ones."""
        return [self._place(token) for token in sentence]

    def _place(self, token: Token) -> Place:
        if token.kind != "drawn":
            return Place(np.array([self.model.number(token)]), np.ones(1))
        words_K, likelihood_K, unseen_K = self.channel.columns[token.word]
        if self.unseen:
            return Place(unseen_K[:WIDTH], np.ones(min(WIDTH, len(unseen_K))))
        if len(words_K) > WIDTH:
            best_K = np.argpartition(-self.prior_V[words_K] * likelihood_K, WIDTH - 1)[:WIDTH]
            words_K, likelihood_K = words_K[best_K], likelihood_K[best_K]
        return Place(words_K, likelihood_K / likelihood_K.max())


def learned(channel: Channel, knowledge: WordKnowledge, deadline: float) -> Mind:
    """The model of the attacker's text, with the power that recovers most of its trial sentences.

    Powers are tried in the order of WEIGHTS until a third of the time to `deadline` is spent.
    """
    started = time.monotonic()
    model = Trigrams.of(knowledge.text, channel.words, knowledge.prior_V)
    mind = Mind(channel, knowledge.prior_V, model, WEIGHTS[0])
    truth = [token.text for token in originals(knowledge.trial_seen, knowledge.trial)]
    tries = (replace(mind, weight=weight) for weight in WEIGHTS)
    until = started + (deadline - started) / 3
    return best_of(tries, lambda tried: guesses(tried, knowledge.trial_seen, until), truth) or mind


def best_of(tries: Iterable[T], named: Callable[[T], list[str]], truth: list[str]) -> T | None:
    """The first of those tried that names most rightly, until a TimeoutError; None when none was reached."""
    best, most = None, -1
    for tried in tries:
        try:
            hits = sum(map(operator.eq, named(tried), truth))
        except TimeoutError:
            break
        if hits > most:
            best, most = tried, hits
    return best


def guesses(mind: Mind, seen: Sentences, deadline: float = math.inf) -> list[str]:
    """One word for each drawn token. Raises TimeoutError after `deadline` (of the monotonic clock)."""
    found: list[str] = []
    for done, sentence in enumerate(seen):
        if time.monotonic() > deadline:
            raise TimeoutError(f"its time ran out after {done} of {len(seen)} sentences; raise --budget")
        places = mind.places(sentence)
        for token, place, posterior_K in zip(
            sentence, places, posteriors(mind.model, places, mind.weight), strict=True
        ):
            if token.kind == "drawn":
                found.append(mind.channel.words[place.words_K[posterior_K.argmax()]])
    return found
