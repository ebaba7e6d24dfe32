"""Beam search: read noised embedding rows with a language model as the prior.

Each row says how likely each token of the public table is; the language model says which token may follow
which. The search keeps the hypotheses with the largest sum of both, which with the true law of the noise is
the sentence's posterior; a scale that is not known is estimated first. `nearest` reads each row alone.

Threat model: see `rows`. The attacker has a causal language model with the target's vocabulary, or text of
its own for a bigram model. Does not protect anything; a pruned candidate or hypothesis is not found again.
Source: Rashid et al. 2025, "BeamClean", arXiv 2505.13758 (joint estimate of the noise and beam decoding).

Shapes: T tokens of a text, H hypotheses of all texts, K candidates a token, D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.audit.attacks.bigrams import Bigrams
from transom.audit.attacks.rows import Rows, Truth, estimated, misfit, score
from transom.audit.attacks.states import METRIC as METRIC  # an attack has one
from transom.audit.attacks.traffic import Texts
from transom.report.finding import Finding, not_run

if TYPE_CHECKING:
    import torch

NAME = "beam"
_TEXTS = 4  # texts decoded side by side

# Continue the hypotheses of these numbers [H] (of the call before) with these ids [H]; the answer is
# log P(next id) [H, V]. The first call's numbers mean nothing, its ids are the start token.
Step = Callable[["torch.Tensor", "torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Prior:
    """A language: `begin()` opens one decoding, `start_id` is what stands before a text."""

    begin: Callable[[], Step]
    start_id: int
    name: str


@dataclass(frozen=True)
class Public:
    """What the attacker brings: the public table [V, D] and a language for its ids (None: none)."""

    table_VD: torch.Tensor
    prior: Prior | None = None


def causal(model: Any, start_id: int, name: str = "language model") -> Prior:
    """The language of a causal transformers model, with its cache of keys and values."""
    import torch
    from transformers import DynamicCache

    def begin() -> Step:
        cache = DynamicCache(config=model.config)

        @torch.inference_mode()
        def step(parents_H: torch.Tensor, ids_H: torch.Tensor) -> torch.Tensor:
            if cache.get_seq_length():
                cache.batch_select_indices(parents_H)
            logits = model(ids_H[:, None], past_key_values=cache, use_cache=True).logits[:, -1]
            return torch.log_softmax(logits.float(), -1)

        return step

    return Prior(begin, start_id, name)


def bigrams(texts: Texts, vocabulary: int) -> Prior:
    """The language of pairs in the attacker's own texts."""
    import torch

    language = Bigrams.of(texts, vocabulary)

    def step(_parents_H: torch.Tensor, ids_H: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.from_numpy(language.row(before)) for before in ids_H.tolist()])

    return Prior(lambda: step, language.start_id, f"bigrams of {len(texts)} texts")


def nearest(target: Rows, knowledge: Public, data: Truth, budget_s: float) -> Finding:
    """The baseline: each row read alone, as the token it is likeliest from. `budget_s` is not used."""
    if gap := misfit("nn", target, knowledge.table_VD, data):
        return gap
    return score("nn", _nearest(target, knowledge.table_VD), data, note="each row alone")


def attack(
    target: Rows,
    knowledge: Public,
    data: Truth,
    budget_s: float,
    *,
    width: int = 16,
    candidates: int = 256,
) -> Finding:
    """Share of tokens read with `width` hypotheses a text and the `candidates` likeliest tokens a row.

    Texts that `budget_s` does not reach are left out; the note counts them.
    """
    stop = time.monotonic() + budget_s
    if gap := misfit(NAME, target, knowledge.table_VD, data):
        return gap
    if knowledge.prior is None:
        return not_run(NAME, METRIC, "no language to search with; give a causal model or public text")
    target, prior = estimated(target, knowledge.table_VD), knowledge.prior
    guesses = decode(target, knowledge.table_VD, prior, width, candidates, stop=stop)
    if not guesses:
        return not_run(NAME, METRIC, f"{budget_s:.2g} s are too few for one text; raise --budget")
    note = (
        f"{prior.name}, {width} hypotheses, {candidates} candidates, noise of scale "
        f"{target.noise.scale:.3g}, {len(guesses)} of {len(data.texts)} texts within the budget"
    )
    reached = Truth(data.texts[: len(guesses)], data.decode)
    alone = _nearest(Rows(target.texts[: len(guesses)], target.noise), knowledge.table_VD)
    return score(NAME, guesses, reached, alone, note=note)


def _nearest(target: Rows, table_VD: torch.Tensor) -> Texts:
    table_VD = target.noise.clipped(table_VD)
    best = (target.noise.distance(rows.float(), table_VD).argmin(1).tolist() for rows in target.texts)
    return tuple(tuple(ids) for ids in best)


def decode(
    target: Rows, table_VD: torch.Tensor, prior: Prior, width: int, candidates: int, *, stop: float
) -> Texts:
    """The ids of the first texts, as many as are reached before `stop`."""
    table_VD = target.noise.clipped(table_VD)
    read: dict[int, tuple[int, ...]] = {}
    for start in range(0, len(target.texts), _TEXTS):
        if time.monotonic() > stop:
            break
        numbers = range(start, min(start + _TEXTS, len(target.texts)))
        longest_first = sorted(numbers, key=lambda number: -len(target.texts[number]))
        likely = [_likely(target, number, table_VD, candidates) for number in longest_first]
        read |= dict(zip(longest_first, _search(likely, prior, width), strict=True))
    return tuple(read[number] for number in sorted(read))


def _likely(
    target: Rows, number: int, table_VD: torch.Tensor, candidates: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-likelihoods [T, K], ids [T, K]) of the likeliest tokens of each row."""
    away_TV = target.noise.distance(target.texts[number].float(), table_VD)
    best = target.noise.log_likelihood(away_TV).topk(min(candidates, len(table_VD)), dim=1)
    return best.values, best.indices


def _search(
    likely: Sequence[tuple[torch.Tensor, torch.Tensor]], prior: Prior, width: int
) -> list[tuple[int, ...]]:
    """The best ids of each text; texts come longest first, and each leaves the batch at its end."""
    import torch

    step, best = prior.begin(), [torch.empty(0, dtype=torch.long)] * len(likely)
    owners_H = parents_H = torch.arange(len(likely))
    ids_H, scores_H = torch.full((len(likely),), prior.start_id), torch.zeros(len(likely))
    paths_HT = torch.empty(len(likely), 0, dtype=torch.long)
    for place in range(len(likely[0][0])):
        next_HV = step(parents_H, ids_H)
        kept: list[tuple[torch.Tensor, ...]] = []  # owners, parents, ids, scores: one tuple a text
        for owner, (logs_TK, ids_TK) in enumerate(likely):
            if place < len(ids_TK):
                mine = torch.nonzero(owners_H == owner).flatten()
                total_HK = scores_H[mine, None] + next_HV[mine][:, ids_TK[place]] + logs_TK[place]
                scores, flat = total_HK.flatten().topk(min(width, total_HK.numel()))
                row, column = flat // total_HK.shape[1], flat % total_HK.shape[1]
                kept.append((torch.full_like(row, owner), mine[row], ids_TK[place][column], scores))
        owners_H, parents_H, ids_H, scores_H = (torch.cat(parts) for parts in zip(*kept, strict=True))
        paths_HT = torch.cat([paths_HT[parents_H], ids_H[:, None]], 1)
        for owner in sorted(set(owners_H.tolist())):
            best[owner] = paths_HT[owners_H == owner][0]  # topk puts the best first
    return [tuple(ids.tolist()) for ids in best]
