"""Leak on the output side: what the gradient at the final states of a causal model tells of the next token.

Under the layout `customer` the vendor sent the state z and gets back g = c J(z)' W' (p - e_y): W is the head,
p its probabilities, J the slope of the final norm, y the token that follows, c one over the tokens of a
batch. The vendor knows all but y (and c, which it fits): candidates are ranked by the part of g along their
row, and the best few fitted one by one; where the customer adds noise, the model's own p is the prior.

Threat model: see `split_view`; head and norm are the public model's (frozen, at the customer). Does not
protect anything; a head that the customer trained in secret is read less well.
Source: Chen et al., arXiv 2409.00960 (the gradient of a causal model tells its text); the solution is ours.

Shapes: N tokens, T tokens of a text, D width, V vocabulary, K candidates.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.split_view import Private, Public, Seen
from transom.audit.attacks.states import METRIC
from transom.checkpoint.cut import Front
from transom.report.finding import Finding, clustered, not_run
from transom.report.statistics import Bools

if TYPE_CHECKING:
    import torch

NAME = "next tokens/gradient"
_CANDIDATES = 64
__all__ = ["METRIC", "NAME", "attack", "followers"]


@dataclass(frozen=True, eq=False)
class Followers:
    """Of each place but the last: candidates [T - 1, K] for the next token, and the logarithms of the model's
    own probability and of the posterior, both [T - 1, K]."""

    ids_TK: torch.Tensor
    prior_TK: torch.Tensor
    log_TK: torch.Tensor


def attack(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
    """Share of tokens named, of all but the first of each text, on as many texts as `budget_s` allows; chance
    is the model's own guess without the gradient."""
    stop = time.monotonic() + budget_s
    if not knowledge.predicts:
        return not_run(NAME, METRIC, f"a {type(knowledge.model).__name__} does not predict next tokens")
    if len(target.top_gradients) != len(data.texts) or len(target.top_states) != len(data.texts):
        return not_run(NAME, METRIC, "no gradients at the top; it needs the layout `customer`")
    hits: list[Bools] = []
    guessed: list[Bools] = []
    sizes: list[int] = []
    for states_TD, gradient_TD, text in zip(target.top_states, target.top_gradients, data.texts, strict=True):
        if sizes and time.monotonic() > stop:
            break
        if len(text) < 2:
            continue
        found = followers(knowledge.front, states_TD, gradient_TD, target.gradient_noise)
        rows, wanted = np.arange(len(text) - 1), np.array(text[1:])
        hits.append(found.ids_TK.numpy()[rows, found.log_TK.argmax(1).numpy()] == wanted)
        guessed.append(found.ids_TK.numpy()[rows, found.prior_TK.argmax(1).numpy()] == wanted)
        sizes.append(len(rows))
    if not sizes:
        return not_run(NAME, METRIC, "no text of two tokens or more")
    baseline = float(np.concatenate(guessed).mean())
    note = f"{len(sizes)} of {len(data.texts)} texts; guessing is the model's own guess"
    return clustered(NAME, METRIC, np.concatenate(hits), sizes, baseline=baseline, note=note)


def followers(front: Front, states_TD: torch.Tensor, gradient_TD: torch.Tensor, noise: float) -> Followers:
    """What gradients [T, D] at final states [T, D] tell of the tokens that follow; `noise` is the standard
    deviation of a gradient's coordinate."""
    import torch

    states_TD, gradient_TD = states_TD[:-1].float(), gradient_TD[:-1].float()
    norm: Any = front.parts.final_norm or torch.nn.Identity()
    head: Any = front.parts.head
    weight_VD = head.weight.detach().float()
    count = min(_CANDIDATES, len(weight_VD))
    point_TD = states_TD.clone().requires_grad_(True)
    normed_TD = norm(point_TD)

    def slope(out_TD: torch.Tensor) -> torch.Tensor:
        (back_TD,) = torch.autograd.grad(normed_TD, point_TD, out_TD, create_graph=True)
        return back_TD

    any_TD = torch.zeros_like(normed_TD, requires_grad=True)
    (along_TD,) = torch.autograd.grad(slope(any_TD), any_TD, gradient_TD, retain_graph=True)  # J g
    own_TV = (normed_TD.detach() @ weight_VD.T).log_softmax(1)
    near_TV = -(along_TD @ weight_VD.T) / weight_VD.norm(dim=1).clamp_min(1e-12)  # -<g, J' w_y>
    ids_TK = torch.cat([near_TV.topk(count, 1).indices, own_TV.topk(count, 1).indices], 1)
    center_TD = own_TV.exp() @ weight_VD
    mixed_TKD = torch.stack([slope(center_TD - weight_VD[ids_T]).detach() for ids_T in ids_TK.T], 1)
    inner_TK = (mixed_TKD @ gradient_TD[..., None])[..., 0]
    square_TK = mixed_TKD.square().sum(2).clamp_min(1e-20)
    best_T1 = (inner_TK.clamp_min(0).square() / square_TK).argmax(1, keepdim=True)
    c = float((inner_TK / square_TK).gather(1, best_T1).clamp_min(0).median())
    away_TK = (gradient_TD[:, None] - c * mixed_TKD).square().sum(2)
    prior_TK = own_TV.gather(1, ids_TK)
    spread = max(noise, 1e-3 * float(gradient_TD.square().mean().sqrt()), 1e-20)
    away_TK = away_TK * gradient_TD.any(1, keepdim=True)  # a token without a loss has no gradient
    return Followers(ids_TK, prior_TK, prior_TK - away_TK / (2 * spread**2))
