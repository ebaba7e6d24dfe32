"""A word trigram model of the attacker's own text, and the exact posterior it gives over a noised sentence.

Interpolated Kneser-Ney smoothing, one discount an order. Given candidates and their likelihoods at every
place of a sentence, forward and backward sums over all readings give each candidate's exact posterior
probability under model and channel: naming the likeliest one a place maximises the expected number of words
recovered, which the likeliest whole sentence does not.

Threat model: see `words`. Does not protect anything.
Source: Chen and Goodman 1999, section 3 (interpolated Kneser-Ney); Rabiner 1989 (forward-backward).

Legend: N occurrences, V model vocabulary, J K L candidates of three places in a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from transom.audit.attacks.word_text import Sentences, Token, spelled, with_unseen
from transom.report.statistics import Floats, Ints

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
OWN_POWER = 0.5
_EDGES = (START, END, UNKNOWN)


@dataclass(frozen=True, eq=False)
class _Order:
    """Discounted counts of one order: sorted keys [N] with their counts, and per context total and rest."""

    keys_N: Ints
    discounted_N: Floats
    contexts_C: Ints
    totals_C: Floats
    rest_C: Floats  # the discounts taken, to be given to the lower order

    @classmethod
    def of(cls, contexts_N: Ints, words_N: Ints, counts_N: Floats, size: int) -> _Order:
        """From distinct (context, word) pairs and their counts."""
        once, twice = (counts_N == 1).sum(), (counts_N == 2).sum()
        discount = once / max(1, once + 2 * twice) if once else 0.5
        keys_N = contexts_N * size + words_N
        order = np.argsort(keys_N)
        contexts_C, place_N = np.unique(contexts_N, return_inverse=True)
        taken_N = np.minimum(counts_N, discount)
        return cls(
            keys_N[order],
            (counts_N - taken_N)[order],
            contexts_C,
            np.bincount(place_N, weights=counts_N).astype(np.float64),
            np.bincount(place_N, weights=taken_N).astype(np.float64),
        )

    def count(self, contexts: Ints, words: Ints, size: int) -> Floats:
        """Discounted counts of pairs, 0 where unseen; the two broadcast."""
        return _looked_up(self.keys_N, self.discounted_N, contexts * size + words)

    def context(self, contexts: Ints) -> tuple[Floats, Floats]:
        """(total, rest) of contexts; (1, 1) where unseen, which leaves all to the lower order."""
        found = _looked_up(self.contexts_C, self.totals_C, contexts)
        rest = _looked_up(self.contexts_C, self.rest_C, contexts)
        return np.where(found > 0, found, 1.0), np.where(found > 0, rest, 1.0)


def _looked_up(keys_N: Ints, values_N: Floats, wanted: Ints) -> Floats:
    place = np.minimum(np.searchsorted(keys_N, wanted), len(keys_N) - 1)
    return np.where(keys_N[place] == wanted, values_N[place], 0.0)


@dataclass(frozen=True, eq=False)
class Trigrams:
    """The model. `ids` knows every word of the channel and of the text; others are UNKNOWN.

    `frequency_V` is how often a word is met, `unigram_V` in how many contexts.
    """

    ids: dict[str, int]
    frequency_V: Floats
    unigram_V: Floats
    pairs: _Order
    triples: _Order

    @classmethod
    def of(cls, text: Sentences, words: Sequence[str], prior_V: Floats) -> Trigrams:
        """Trained on `text`; the channel's `words` keep their ids, `prior_V` backs off their frequencies."""
        spellings = [[spelled(token) for token in sentence] for sentence in text]
        ids = {word: number for number, word in enumerate(words)}
        for spelling in (*_EDGES, *(word for sentence in spellings for word in sentence)):
            ids.setdefault(spelling, len(ids))
        size = len(ids)
        tokens_N = np.array([i for sentence in spellings for i in _framed(sentence, ids)], dtype=np.int64)
        inside_N = np.flatnonzero(tokens_N != ids[START])
        first_N, second_N, third_N = (tokens_N[inside_N - back] for back in (2, 1, 0))
        triples, counts_N = np.unique((first_N * size + second_N) * size + third_N, return_counts=True)
        contexts_N, thirds_N = triples // size, triples % size
        # Lower orders count in how many contexts a word was met, not how often (Kneser and Ney).
        pairs, met_N = np.unique(contexts_N % size * size + thirds_N, return_counts=True)
        met_V = np.bincount(pairs % size, minlength=size).astype(np.float64)
        frequency_V = np.full(size, 1e-9)
        frequency_V[: len(words)] += prior_V
        return cls(
            ids,
            frequency_V,
            with_unseen(met_V, frequency_V),
            _Order.of(pairs // size, pairs % size, met_N.astype(np.float64), size),
            _Order.of(contexts_N, thirds_N, counts_N.astype(np.float64), size),
        )

    def probabilities(self, first_J: Ints, second_K: Ints, third_L: Ints) -> Floats:
        """P(third | first, second) [J, K, L]."""
        size = len(self.unigram_V)
        total_K, rest_K = self.pairs.context(second_K)
        pair_KL = self.pairs.count(second_K[:, None], third_L, size)
        pair_KL = (pair_KL + rest_K[:, None] * self.unigram_V[third_L]) / total_K[:, None]
        contexts_JK = first_J[:, None] * size + second_K
        total_JK, rest_JK = self.triples.context(contexts_JK)
        triple_JKL = self.triples.count(contexts_JK[:, :, None], third_L, size)
        return (triple_JKL + rest_JK[:, :, None] * pair_KL) / total_JK[:, :, None]

    def number(self, token: Token) -> int:
        """The id of a token that was not drawn."""
        return self.ids.get(spelled(token), self.ids[UNKNOWN])


class Place(NamedTuple):
    """One place of a sentence: candidates' model ids [K] and the likelihoods [K] of what was seen there."""

    words_K: Ints
    likelihood_K: Floats


def _framed(words: Iterable[str], ids: dict[str, int]) -> list[int]:
    return [ids[START], ids[START], *(ids[word] for word in words), ids[END]]


def posteriors(model: Trigrams, places: Sequence[Place], weight: float) -> list[Floats]:
    """Posterior probabilities [K] of the candidates at each place.

    The model counts with power `weight`, and each word's own frequency with the rest or OWN_POWER, whichever
    is more: at weight 0 there is no context. (Powers because the model is surer of itself than it is right.)
    """
    edge = Place(np.array([model.ids[START]]), np.ones(1))
    chain = [edge, edge, *places, Place(np.array([model.ids[END]]), np.ones(1))]
    steps = [_step(model, *chain[i - 2 : i + 1], weight=weight) for i in range(2, len(chain))]
    forward, backward = [np.ones((1, 1))], [np.ones((len(chain[-2].words_K), 1))]
    for step_JKL in steps:
        forward.append(_normal(np.einsum("jk,jkl->kl", forward[-1], step_JKL)))
    for step_JKL in steps[:0:-1]:
        backward.append(_normal(np.einsum("jkl,kl->jk", step_JKL, backward[-1])))
    pairs = zip(forward[1:-1], backward[:0:-1], strict=True)
    return [_normal((before_KL * after_KL).sum(axis=0)) for before_KL, after_KL in pairs]


def _step(model: Trigrams, first: Place, second: Place, third: Place, *, weight: float) -> Floats:
    """What the third word adds, given the two before it: model, frequency and likelihood [J, K, L]."""
    context_JKL = model.probabilities(first.words_K, second.words_K, third.words_K) ** weight
    own_L = model.frequency_V[third.words_K] ** max(1 - weight, OWN_POWER) * third.likelihood_K
    return np.asarray(context_JKL * own_L, dtype=np.float64)


def _normal(values: Floats) -> Floats:
    return np.asarray(values / values.sum(), dtype=np.float64)
