"""What is made of attention and of inner neurons, for some steps of an answer after others.

    lookback    mean attention to the prompt over that and mean attention to the answer, the first token left
                out, as it draws what goes nowhere
    sink        attention to the first token
    entropy     of attention, over the logarithm of how many tokens it has
    newest      attention to the token before
    laplacian   of the answer's tokens so far, the mean eigenvalue of the Laplacian of their attention: as it
                looks back alone, the diagonal is that: how much later tokens and itself look at a token, on
                average, less how much it looks at itself
    rauq        of each layer, the logarithm of a sureness that goes on: a share `_OWN` of it is the
                probability of the token that was chosen, the rest what was before times attention to the
                token before, in the head that most looks there so far
    mlp         the inner neurons' root mean square, how unequal they are (Hoyer 2004), and the share of the
                largest hundredth

What has to be remembered from one step to the next is kept in a `Memory`.
Threat model: see the room. Does not protect anything.
Source: Chuang et al. 2024, arXiv 2407.07071 (lookback); Binkowski et al. 2025, arXiv 2502.17598 (Laplacian);
Vazhentsev et al. 2025, arXiv 2505.20045, section 4 (RAUQ, whose head is that of the whole answer).

Shapes: S steps, L layers, H heads, M of these (LH), T tokens so far, A of the answer, N inner neurons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LOOKS = ("lookback", "sink", "entropy", "newest")
_OWN = 0.2
_LEAST = 1e-9


@dataclass(eq=False)
class Memory:
    """Of an answer so far: how much each of its tokens was looked at and looks at itself [M, A], attention
    to the token before, summed [L, H], the sureness of each layer [L], and how many steps there were."""

    seen_MA: Any = None
    own_MA: Any = None
    newest_LH: Any = None
    sure_L: Any = None
    steps: int = 0


def attention_of(map_MST: Any, prompt: int) -> Any:
    """The four of `LOOKS` [S, M, 4]; `prompt` tokens come before the answer's."""
    import torch

    steps, length = map_MST.shape[1:]
    own_S = torch.arange(length - steps, length, device=map_MST.device)  # each row's own place
    sink_MS = map_MST[..., 0]
    before_MS = map_MST[..., 1:prompt].sum(2) / max(prompt - 1, 1)
    after_MS = map_MST[..., prompt:].sum(2) / (own_S - prompt + 1)
    entropy_MS = -(map_MST * (map_MST + _LEAST).log()).sum(2) / (own_S + 1.0).log().clamp(min=_LEAST)
    newest_MS = map_MST[:, torch.arange(steps), own_S - 1]
    lookback_MS = before_MS / (before_MS + after_MS).clamp(min=_LEAST)
    return torch.stack([lookback_MS, sink_MS, entropy_MS, newest_MS], dim=-1).transpose(0, 1)


def laplacian_of(map_MST: Any, prompt: int, kept: Memory) -> Any:
    """[S, M]."""
    import torch

    rows_MSA = map_MST[..., prompt:]
    steps, tokens = rows_MSA.shape[1:]
    places_A = torch.arange(tokens, device=rows_MSA.device)
    place_S1 = places_A[tokens - steps :, None]
    seen_MSA = rows_MSA.cumsum(1)
    own_MA = torch.zeros_like(rows_MSA[:, 0])
    own_MA[:, tokens - steps :] = rows_MSA[:, torch.arange(steps), place_S1[:, 0]]
    if kept.seen_MA is not None:
        before = kept.seen_MA.shape[1]
        seen_MSA[..., :before] += kept.seen_MA[:, None]
        own_MA[:, :before] += kept.own_MA
    kept.seen_MA, kept.own_MA = seen_MSA[:, -1], own_MA
    there_SA = places_A <= place_S1
    mean_MSA = seen_MSA / (place_S1 - places_A + 1).clamp(min=1) - own_MA[:, None]
    return ((mean_MSA * there_SA).sum(2) / (place_S1[:, 0] + 1)).T


def rauq_of(newest_SLH: Any, chance_S: Any, kept: Memory) -> Any:
    """[S, L], of steps after the first, whose probability `kept.sure_L` is before."""
    import torch

    found = []
    if kept.sure_L is None:  # the first was not looked at, as nobody asked: what comes is nobody's
        kept.sure_L = torch.zeros_like(newest_SLH[0, :, 0])
    for newest_LH, chance in zip(newest_SLH, chance_S, strict=True):
        total = newest_LH if kept.newest_LH is None else kept.newest_LH + newest_LH
        looks_L = newest_LH.gather(1, total.argmax(1, keepdim=True))[:, 0]
        sure_L = _OWN * chance + (1 - _OWN) * looks_L * kept.sure_L
        kept.newest_LH, kept.sure_L = total, sure_L
        found.append(sure_L.clamp(min=_LEAST).log())
    return torch.stack(found)


def mlp_of(inner_SN: Any) -> Any:
    """The three numbers of a layer's inner neurons [S, 3]."""
    import torch

    size_SN, count = inner_SN.abs(), inner_SN.shape[1]
    total_S, square_S = size_SN.sum(1), size_SN.square().sum(1).clamp(min=_LEAST)
    unequal_S = (math.sqrt(count) - total_S / square_S.sqrt()) / (math.sqrt(count) - 1)
    most_S = size_SN.topk(max(1, count // 100), dim=1).values.sum(1) / total_S.clamp(min=_LEAST)
    return torch.stack([(square_S / count).sqrt(), unequal_S, most_S], dim=1)
