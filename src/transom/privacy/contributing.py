"""Contributing tokens: those that a task needs most, which get less noise (CTI).

For classification a token contributes by its contrast: how far the share of texts that hold it differs
between one class and the rest, in standard errors. What every text holds has no contrast, as in TF-IDF, and
what few texts hold has little. For generation it contributes by the attention that it gets from a public
model. A token seen in few texts is never chosen: it tells a class by chance, and a person by its rarity.
Equal scores go together.

Threat model: the receiver sees from the length of the noise which tokens were spared, and so learns the set.
Does not protect: a spared token has less noise, and none of d_chi's promise, for the set depends on private
texts, by class on their labels too. Measure what is spared apart: `empirical_privacy` of `contributing.mask`.
Source: Shen et al., arXiv 2312.15603 (CTI); both scores are Transom's own variants.

Shapes: N tokens, T tokens of a text, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError
from transom.privacy.channel import Floats, Ints

LEAST_TEXTS = 5
Texts = Sequence[Sequence[int] | Ints]


@dataclass(frozen=True)
class Contributing:
    """The contributing tokens of a vocabulary, in ascending order, and what they are of the texts.

    `of_tokens` is the share of the texts' tokens that is spared, `of_kinds` that of their different tokens.
    """

    ids: tuple[int, ...]
    vocabulary: int
    of_tokens: float
    of_kinds: float
    chosen_from: str

    def mask(self, ids_N: Ints) -> NDArray[np.bool_]:
        """Which tokens [N] are spared."""
        return np.isin(ids_N, np.asarray(self.ids, np.int64))

    def etas(self, eta: float, spare: float) -> Floats:
        """[V]: the eta of each token's noise, `spare` times as high (1 or more) where it contributes."""
        if not spare >= 1:
            raise MisconfiguredError(f"spare must be at least 1, which spares nothing, got {spare:g}")
        eta_V = np.full(self.vocabulary, float(eta))
        eta_V[list(self.ids)] *= spare
        return eta_V

    @property
    def told(self) -> str:
        """For a guarantee: how much is spared, and what was looked at to choose it."""
        return f"{len(self.ids)} tokens, {self.of_tokens:.1%} of the texts, chosen from {self.chosen_from}"


def by_class(
    texts: Texts,
    labels: Sequence[int],
    vocabulary: int,
    fraction: float,
    *,
    least_texts: int = LEAST_TEXTS,
    never: Collection[int] = (),
) -> Contributing:
    """Tokens of the highest contrast between classes: `fraction` at most of those in `least_texts` texts.

    `never` are ids that are never spared, such as a tokenizer's own. Raises MisconfiguredError for texts and
    labels that do not fit, one class alone, no tokens, and ids outside of the vocabulary.
    """
    if len(texts) != len(labels):
        raise MisconfiguredError(f"each text has one label, got {len(texts)} texts and {len(labels)} labels")
    classes, class_N = np.unique(np.asarray(labels), return_inverse=True)
    if len(classes) < 2:
        raise MisconfiguredError(f"tokens contrast two classes or more, got {len(classes)}")
    token_V = _counts(texts, vocabulary)
    holds_CV = np.zeros((len(classes), vocabulary))
    for text, number in zip(texts, class_N, strict=True):
        holds_CV[number, np.unique(np.asarray(text, np.int64))] += 1
    contrast_V = _contrast(holds_CV, np.bincount(class_N).astype(np.float64))
    may_V = _may(holds_CV.sum(axis=0), least_texts, never)
    return _chosen(contrast_V, may_V, token_V, fraction, "texts and labels")


def by_attention(
    texts: Texts,
    received: Sequence[Sequence[float] | Floats],
    vocabulary: int,
    fraction: float,
    *,
    least_texts: int = LEAST_TEXTS,
    never: Collection[int] = (),
) -> Contributing:
    """Tokens that get the most attention: `fraction` at most of those in `least_texts` texts.

    `received` is, per text, the attention [T] that each token got: the mean over layers, heads and those
    queries that may see it (of a causal model fewer see a late token). It counts relative to the text's mean
    without the tokens of `never`: put a model's attention sinks there (its first token, separators). A token
    scores the mean over its places, as if it had `least_texts` more of mean attention. Raises as `by_class`
    does, and for attention that is negative or not finite.
    """
    if len(texts) != len(received):
        raise MisconfiguredError(
            f"each text needs its attention, got {len(texts)} texts and {len(received)} arrays"
        )
    token_V = _counts(texts, vocabulary)
    sum_V, count_V, holds_V = np.zeros(vocabulary), np.zeros(vocabulary), np.zeros(vocabulary)
    for text, mass in zip(texts, received, strict=True):
        ids_T, mass_T = np.asarray(text, np.int64), np.asarray(mass, np.float64)
        if mass_T.shape != ids_T.shape or not np.all((mass_T >= 0) & np.isfinite(mass_T)):
            raise MisconfiguredError(
                f"attention must be one number, 0 or more, for each of {len(ids_T)} tokens, got shape "
                f"{mass_T.shape}"
            )
        counted_T = ~np.isin(ids_T, list(never))
        ids_T, mass_T = ids_T[counted_T], mass_T[counted_T]
        if not mass_T.any():
            continue
        np.add.at(sum_V, ids_T, mass_T / mass_T.mean())
        np.add.at(count_V, ids_T, 1.0)
        holds_V[np.unique(ids_T)] += 1
    above_V = (sum_V - count_V) / np.maximum(count_V + least_texts, 1)
    return _chosen(above_V, _may(holds_V, least_texts, never), token_V, fraction, "texts and attention")


def _contrast(holds_CV: Floats, texts_C: Floats) -> Floats:
    """[V]: the largest difference between a class's share of texts with the token and the others' share, in
    standard errors of two samples of one share."""
    total, holds_V = texts_C.sum(), holds_CV.sum(axis=0)
    rest_C1, texts_C1 = (total - texts_C)[:, None], texts_C[:, None]
    away_CV = np.abs(holds_CV / texts_C1 - (holds_V - holds_CV) / rest_C1)
    share_V = holds_V / total
    error_CV = np.sqrt(share_V * (1 - share_V) * (1 / texts_C1 + 1 / rest_C1))
    contrast_V: Floats = (away_CV / np.where(error_CV > 0, error_CV, np.inf)).max(axis=0)
    return contrast_V


def _counts(texts: Texts, vocabulary: int) -> Ints:
    """[V]: how often each token is in the texts."""
    ids_N = np.concatenate([np.empty(0, np.int64), *(np.asarray(text, np.int64) for text in texts)])
    if not len(ids_N):
        raise MisconfiguredError(f"no tokens to choose from, got {len(texts)} texts")
    if ids_N.min() < 0 or ids_N.max() >= vocabulary:
        raise MisconfiguredError(
            f"some of {len(ids_N)} ids are not within 0 to {vocabulary - 1}; are they another tokenizer's?"
        )
    return np.bincount(ids_N, minlength=vocabulary)


def _may(holds_V: Floats, least_texts: int, never: Collection[int]) -> NDArray[np.bool_]:
    may_V = holds_V >= max(1, least_texts)
    may_V[list(never)] = False
    return may_V


def _chosen(
    score_V: Floats, may_V: NDArray[np.bool_], token_V: Ints, fraction: float, chosen_from: str
) -> Contributing:
    """The best of those that may, with a score above 0; equal scores go together, so fewer may be taken."""
    if not 0 <= fraction <= 1:
        raise MisconfiguredError(f"the fraction of tokens must lie in [0, 1], got {fraction:g}")
    most = int(fraction * may_V.sum() + 1e-9)
    ids = np.flatnonzero(may_V & (score_V > 0))
    if most < len(ids):
        ids = ids[score_V[ids] > np.sort(score_V[ids])[::-1][most]]
    return Contributing(
        ids=tuple(ids.tolist()),
        vocabulary=len(score_V),
        of_tokens=float(token_V[ids].sum() / token_V.sum()),
        of_kinds=len(ids) / int((token_V > 0).sum()),
        chosen_from=chosen_from,
    )
