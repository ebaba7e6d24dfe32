"""Beam search over a noised sentence: which candidates at each place, under a causal language model.

A reading of a sentence is worth the sum of its words' log-posteriors and `power` times the model's log-
probability of the whole text, known words included: what stands behind a gap speaks for its words too. A gap
is a place to be read, with what is known up to the next one. At each gap every hypothesis is continued by the
candidates that the word before lets expect most, twice `width` of them a sentence; they are read whole, with
what follows, and the best `width` stay. Sentences are read side by side.

Threat model: see `words`. Does not protect anything; a pruned candidate or hypothesis is not found again.
Source: Rashid et al. 2025, "BeamClean", arXiv 2505.13758 (beam decoding of noised text).

Legend: S sentences, R rows (hypotheses of all sentences), K candidates of a gap, T tokens, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from transom.audit.batches import padded
from transom.report.statistics import Floats

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Ids = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Causal:
    """A causal language model, its tokenizer, and the id that stands before a text."""

    model: Any = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    start_id: int
    name: str


class Gap(NamedTuple):
    """A place to be read: token ids of its candidates [K], their log-posteriors [K], what is known behind."""

    words: tuple[Ids, ...]
    log_K: Floats
    behind: Ids


class Gapped(NamedTuple):
    """A sentence: the ids before its first gap, and its gaps."""

    lead: Ids
    gaps: tuple[Gap, ...]


class Reading(NamedTuple):
    """A candidate's number for each gap, and what the reading is worth."""

    chosen: tuple[int, ...]
    score: float


def read(
    model: Causal, sentences: Sequence[Gapped], power: float, width: int, deadline: float = math.inf
) -> list[list[Reading]]:
    """The best readings of each sentence, at most `width`, the best one first.

    Raises TimeoutError after `deadline` (of the monotonic clock).
    """
    import torch

    order = sorted(range(len(sentences)), key=lambda s: -len(sentences[s].gaps))
    some = [sentences[s] for s in order]
    found: list[list[Reading]] = [[] for _ in sentences]
    with torch.inference_mode():
        state = _State(model)
        logs = state.grow([0] * len(some), [one.lead for one in some])
        rows = [(s, Reading((), power * log)) for s, log in enumerate(logs)]
        for number in range(max((len(one.gaps) for one in some), default=0)):
            if time.monotonic() > deadline:
                raise TimeoutError
            for s, reading in rows:
                if len(some[s].gaps) == number:
                    found[order[s]].append(reading)
            rows = _continued(state, some, rows, number, power, width)
        for s, reading in rows:
            found[order[s]].append(reading)
    return found


Rows = list[tuple[int, Reading]]  # the sentence of each row, best first within a sentence


def _continued(
    state: _State, sentences: Sequence[Gapped], rows: Rows, number: int, power: float, width: int
) -> Rows:
    """The rows of the sentences that have a gap of this number, continued over it."""
    fed: list[tuple[int, int]] = []  # (row, candidate)
    for s, mine in _by_sentence(rows):
        if number < len(sentences[s].gaps):
            fed += _promising(state, sentences[s].gaps[number], rows, mine, power, 2 * width)
    gaps = [sentences[rows[r][0]].gaps[number] for r, _ in fed]
    logs = state.grow(
        [r for r, _ in fed], [gap.words[k] + gap.behind for gap, (_, k) in zip(gaps, fed, strict=True)]
    )
    grown: Rows = []
    for (r, k), gap, log in zip(fed, gaps, logs, strict=True):
        s, reading = rows[r]
        grown.append((s, Reading((*reading.chosen, k), reading.score + float(gap.log_K[k]) + power * log)))
    kept = [
        r for _, mine in _by_sentence(grown) for r in sorted(mine, key=lambda r: -grown[r][1].score)[:width]
    ]
    state.keep(kept)
    return [grown[r] for r in kept]


def _by_sentence(rows: Rows) -> list[tuple[int, list[int]]]:
    found: dict[int, list[int]] = {}
    for r, (s, _) in enumerate(rows):
        found.setdefault(s, []).append(r)
    return list(found.items())


def _promising(
    state: _State, gap: Gap, rows: Rows, mine: list[int], power: float, most: int
) -> list[tuple[int, int]]:
    """The (row, candidate) pairs worth most by the candidates' first tokens."""
    firsts = state.next_RV[mine][:, [ids[0] for ids in gap.words]].double().numpy()
    score_RK = np.array([rows[r][1].score for r in mine])[:, None] + gap.log_K + power * firsts
    best = np.argsort(-score_RK, axis=None, kind="stable")[:most]
    return [(mine[i // len(gap.words)], int(i % len(gap.words))) for i in best.tolist()]


class _State:
    """The model's memory of every row, and log P of the token after each: `next_RV`."""

    next_RV: torch.Tensor

    def __init__(self, model: Causal) -> None:
        import torch
        from transformers import DynamicCache

        self._model = model.model
        self._cache = DynamicCache(config=self._model.config)
        self._mask_RT = torch.zeros(1, 0, dtype=torch.long)
        self._start_id = model.start_id

    def grow(self, parents: Sequence[int], fed: Sequence[Ids]) -> list[float]:
        """Make a row of each parent by the tokens fed to it; their log-probabilities in all."""
        import torch

        first = not self._mask_RT.shape[1]
        if first:
            fed = [(self._start_id, *ids) for ids in fed]
        else:
            self._cache.batch_select_indices(torch.tensor(parents))
        ids_RT, new_RT = padded(fed)
        before_RT = self._mask_RT[torch.tensor(parents)]
        self._mask_RT = torch.cat([before_RT, new_RT], 1)
        states_RTD = self._model.base_model(
            input_ids=ids_RT,
            attention_mask=self._mask_RT,
            position_ids=before_RT.sum(1, keepdim=True) + torch.arange(ids_RT.shape[1]),
            past_key_values=self._cache,
            use_cache=True,
        ).last_hidden_state
        # Only at real tokens: the head costs a third of the whole.
        logits_NV = self._model.get_output_embeddings()(states_RTD[new_RT.bool()])
        logs_NV = logits_NV.float().log_softmax(-1)
        ends = np.cumsum([len(ids) for ids in fed])
        known = [0.0] * len(fed) if first else self.next_RV[parents, ids_RT[:, 0]].tolist()
        inside_N = logs_NV[:-1].gather(1, ids_RT[new_RT.bool()][1:, None])[:, 0].double().numpy()
        totals = [
            head + float(inside_N[end - len(ids) : end - 1].sum())
            for head, ids, end in zip(known, fed, ends.tolist(), strict=True)
        ]
        self.next_RV = logs_NV[torch.from_numpy(ends - 1)]
        return totals

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows."""
        import torch

        chosen_R = torch.tensor(rows, dtype=torch.long)
        self._cache.batch_select_indices(chosen_R)
        self._mask_RT, self.next_RV = self._mask_RT[chosen_R], self.next_RV[chosen_R]
