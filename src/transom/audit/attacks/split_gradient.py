"""Reconstruction from both directions: texts whose states, and whose gradients at the top, are those seen.

It starts from what the trained inverter says of each token. Under the layout `customer` of a causal model
the gradient at the place before tells of the same token (`split_next`), and the two are added. After k blocks
it then descends on soft tokens, mixes of the likeliest few, so that the public front shows the noised states
with the most likelihood under the law, all tokens of a text together; of start and end the likelier stands.
A gradient that the vendor itself returned is a function of what it sees, and a classifier's gradient at the
top tells the label alone (`split_labels`): neither adds anything here. The note says what was used.

Threat model: see `split_view`. Does not protect anything; the descent is local.
Source: Chen et al., arXiv 2409.00960 (BiSR: a learnt start, then forward and backward matched together); the
likelihood of the noise in the place of their experts is our own.

Shapes: B texts, T tokens of a text, D width, V vocabulary, K candidates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transom.audit.attacks import split_inverter
from transom.audit.attacks.rows import Noise
from transom.audit.attacks.split_inverter import FEWEST, side_by_side
from transom.audit.attacks.split_next import followers
from transom.audit.attacks.split_view import Law, Private, Public, Seen, misfit, read
from transom.audit.attacks.states import METRIC, descend
from transom.audit.batches import by_length
from transom.checkpoint.cut import Front
from transom.report.finding import Finding, not_run

if TYPE_CHECKING:
    import torch

NAME = "bisr"
_CANDIDATES, _BATCH, _RATE = 16, 32, 0.3
_SHARE, _ENDS = 0.5, 0.9  # of the budget: for the inverter, and when no further step of a descent is taken
__all__ = ["METRIC", "NAME", "attack"]


def attack(
    target: Seen,
    knowledge: Public,
    data: Private,
    budget_s: float,
    *,
    learn: int = 500,
    steps: int = 60,
) -> Finding:
    """Share of tokens named: `learn` steps or half of `budget_s` for the inverter, `steps` for each text."""
    started = time.monotonic()
    stop = started + _ENDS * budget_s
    if gap := misfit(NAME, METRIC, target, knowledge, data):
        return gap
    if len(knowledge.texts) < FEWEST:
        return not_run(NAME, METRIC, f"{len(knowledge.texts)} public texts; training needs {FEWEST}")
    inverter = split_inverter.trained(target, knowledge, learn, started + _SHARE * budget_s)
    given = len(target.top_gradients) == len(target.states) == len(target.top_states)
    backward = given and knowledge.predicts
    starts: dict[int, _Start] = {}
    for place, log_TV in inverter.log_posterior(target.means):
        starts[place] = _start(log_TV + _told(target, knowledge, place, log_TV) if backward else log_TV)
    guesses = {place: start.best for place, start in starts.items()}
    searched = 0
    if knowledge.after_block:
        for places in by_length(target.means, _BATCH):
            if time.monotonic() > stop:
                break
            some = [starts[place] for place in places]
            means = [target.means[place] for place in places]
            found = _refined(target, knowledge, means, some, steps, stop)
            guesses |= dict(zip(places, found, strict=True))
            searched += len(places)
    used = "states and gradients at the top" if backward else "states"
    note = f"{used}; inverter of {inverter.steps} steps; {searched} of {len(starts)} texts descended on"
    return read(NAME, tuple(guesses[place] for place in range(len(guesses))), data, note=note)


@dataclass(frozen=True, eq=False)
class _Start:
    """The likeliest ids of each token of a text and the logarithms of their weights, both [T, K]."""

    ids_TK: torch.Tensor
    log_TK: torch.Tensor

    @property
    def best(self) -> tuple[int, ...]:
        return tuple(self.ids_TK[:, 0].tolist())


def _start(log_TV: torch.Tensor) -> _Start:
    log_TK, ids_TK = log_TV.log_softmax(1).topk(min(_CANDIDATES, log_TV.shape[1]), 1)
    return _Start(ids_TK.clone(), log_TK.clone())


def _told(target: Seen, knowledge: Public, place: int, log_TV: torch.Tensor) -> torch.Tensor:
    """[T, V]: what the gradient at the token before adds; nothing for the first one."""
    import torch

    told_TV = torch.zeros_like(log_TV)
    if len(log_TV) > 1:
        states_TD, gradient_TD = target.top_states[place], target.top_gradients[place]
        found = followers(knowledge.front, states_TD, gradient_TD, target.gradient_noise)
        gain_TK = found.log_TK - found.prior_TK
        told_TV[1:] = gain_TK.min(1, keepdim=True).values
        told_TV[1:].scatter_(1, found.ids_TK, gain_TK)
    return told_TV


def _refined(
    target: Seen,
    knowledge: Public,
    states: list[torch.Tensor],
    starts: list[_Start],
    steps: int,
    stop: float,
) -> list[tuple[int, ...]]:
    """The likelier of start and end of a descent, of each text; it ends at `stop` if need be."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    seen_BTD, real_BT = side_by_side(states)
    ids_BTK = pad_sequence([start.ids_TK for start in starts], True)
    prior_BTK = pad_sequence([start.log_TK for start in starts], True)
    rows_BTKD, law = knowledge.table_VD[ids_BTK], _known(target, seen_BTD[real_BT])
    weight_BTK = prior_BTK.clone().requires_grad_(True)

    def cost_B(mix_BTK: torch.Tensor) -> torch.Tensor:
        embedded_BTD = (mix_BTK[..., None] * rows_BTKD).sum(2)
        shown_BTD = _front_of_rows(knowledge.front)(embedded_BTD, real_BT.long())
        away_BT = law.level((shown_BTD - seen_BTD).flatten(0, 1)).norm(dim=1).view(real_BT.shape)
        seen_BTK = law.log_likelihood(away_BT[..., None].expand_as(mix_BTK), ids_BTK, seen_BTD.shape[2])
        cost_BT = (mix_BTK * (mix_BTK.clamp_min(1e-9).log() - prior_BTK - seen_BTK)).sum(2)
        return (cost_BT * real_BT).sum(1)

    optimiser = torch.optim.Adam([weight_BTK], lr=_RATE)
    descend(optimiser, lambda: cost_B(weight_BTK.softmax(2)).sum(), steps, stop)
    count = ids_BTK.shape[2]
    ends = [torch.zeros_like(ids_BTK[..., 0]), weight_BTK.detach().argmax(2)]
    with torch.no_grad():
        costs_2B = torch.stack([cost_B(torch.nn.functional.one_hot(end, count).float()) for end in ends])
    best_BT = torch.where((costs_2B[1] < costs_2B[0])[:, None], ends[1], ends[0])
    found_BT = ids_BTK.gather(2, best_BT[..., None])[..., 0]
    return [tuple(ids[: len(one)].tolist()) for ids, one in zip(found_BT, states, strict=True)]


def _known(target: Seen, seen_ND: torch.Tensor) -> Law:
    """The law of the mean view; a little noise where there is none."""
    noise, width = target.law.noise, seen_ND.shape[1]
    if noise.law == "none" or noise.scale is None:
        return replace(target.law, noise=Noise("gaussian", float(seen_ND.std()) / 10))
    if target.views > 1 or noise.law == "laplace":
        return replace(target.law, noise=Noise("gaussian", (noise.variance(width) / target.views) ** 0.5))
    return target.law


def _front_of_rows(front: Front) -> Any:
    """The front, for embedding rows in the place of ids."""
    import torch

    parts: Any = replace(front.parts, embedding=torch.nn.Identity())  # type: ignore[arg-type]
    return replace(front, parts=parts)
