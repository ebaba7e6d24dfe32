"""Bag of words: which words are in a sentence, read off its embedding by a linear classifier for each.

The attacker embeds its own texts and trains, with a tenth of them kept to choose the threshold above which a
word counts as there.

Threat model: see `sentences`; this attack asks the encoder for embeddings only. Does not protect anything;
it names only words that its texts hold.
Source: Song and Raghunathan 2020, arXiv 2004.00053, section 3, multi-label classification.

Shapes: N texts, D width, U words of the attacker's texts.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.sentences import Encoder, f1, overlap
from transom.audit.attacks.traffic import Texts
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

_SCALE = 20.0  # embeddings have length 1; this is about what a coordinate of variance 1 needs
_EPOCHS, _BATCH, _LEARNING_RATE = 12, 256, 3e-3
_CHUNK = 512


@dataclass(frozen=True)
class Bag:
    """The classifiers: ids of words [U], weights [U, D] and biases [U], and the threshold of a log-odds."""

    words_U: Ints
    linear: Any
    threshold: float
    texts: int

    def log_odds(self, values_ND: torch.Tensor) -> torch.Tensor:
        """[N, U]: of each word being in the sentence."""
        import torch

        with torch.inference_mode():
            logits_NU: torch.Tensor = self.linear(values_ND * _SCALE)
        return logits_NU

    def read(self, log_odds_NU: torch.Tensor) -> Texts:
        """The words above the threshold, the likeliest first; at least one a sentence."""
        above_N = (log_odds_NU > self.threshold).sum(1).clamp_min(1)
        ranked_NU = log_odds_NU.argsort(1, descending=True)
        pairs = zip(ranked_NU, above_N.tolist(), strict=True)
        return tuple(tuple(self.words_U[ranked_U[:count].numpy()].tolist()) for ranked_U, count in pairs)


def train(encoder: Encoder, texts: Texts, budget_s: float) -> Bag:
    """Embed what texts three quarters of `budget_s` allow, train in the rest; at least a little of both."""
    import torch

    started = time.monotonic()
    order = np.random.default_rng(0).permutation(len(texts))
    texts = tuple(texts[number] for number in order)
    made: list[torch.Tensor] = []
    while sum(map(len, made)) < len(texts):
        start = sum(map(len, made))
        made.append(encoder.embed(texts[start : start + _CHUNK]))
        if time.monotonic() > started + 0.75 * budget_s:
            break
    values_ND = torch.cat(made)
    return fit(values_ND, texts[: len(values_ND)], started + budget_s)


def fit(values_ND: torch.Tensor, texts: Texts, stop: float) -> Bag:
    """Train on texts whose embeddings are at hand, until `stop`; the first tenth chooses the threshold."""
    words_U = np.unique([token for text in texts for token in text])
    held = max(1, len(texts) // 10)
    bag = Bag(words_U, _fitted(values_ND[held:], texts[held:], words_U, stop), 0.0, len(texts))
    return replace(bag, threshold=_best_threshold(bag, values_ND[:held], texts[:held]))


def _fitted(values_ND: torch.Tensor, texts: Texts, words_U: Ints, stop: float) -> Any:
    import torch

    linear = torch.nn.Linear(values_ND.shape[1], len(words_U))
    places = np.searchsorted(words_U, [word for text in texts for word in set(text)])
    counts_U = np.bincount(places, minlength=len(words_U))
    share_U = torch.from_numpy(counts_U / len(texts)).float()
    linear.bias.data = share_U.clamp(1e-5, 0.99).logit()
    linear.weight.data.zero_()
    optimiser = torch.optim.Adam(linear.parameters(), lr=_LEARNING_RATE)
    draw = np.random.default_rng(0)
    orders = (draw.permutation(len(texts)) for _ in range(_EPOCHS))
    batches = (order[i : i + _BATCH] for order in orders for i in range(0, len(order), _BATCH))
    for step, rows_B in enumerate(batches):
        if step and time.monotonic() > stop:
            break
        there_BU = _present([texts[row] for row in rows_B.tolist()], words_U)
        logits_BU = linear(values_ND[torch.from_numpy(rows_B)] * _SCALE)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits_BU, there_BU, reduction="sum")
        optimiser.zero_grad()
        (loss / len(rows_B)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return linear


def _present(texts: Sequence[tuple[int, ...]], words_U: Ints) -> torch.Tensor:
    """[B, U]: 1 where a text holds the word."""
    import torch

    there_BU = torch.zeros(len(texts), len(words_U))
    for row_U, text in zip(there_BU, texts, strict=True):
        row_U[np.searchsorted(words_U, sorted(set(text)))] = 1.0
    return there_BU


def _best_threshold(bag: Bag, values_ND: torch.Tensor, texts: Texts) -> float:
    """The threshold with the largest F1 on texts that the classifiers were not trained on."""
    log_odds_NU = bag.log_odds(values_ND)
    tried = {
        float(threshold): f1(overlap(replace(bag, threshold=float(threshold)).read(log_odds_NU), texts))
        for threshold in np.arange(-4, 2.01, 0.25)
    }
    return max(tried, key=lambda threshold: tried[threshold])
