"""Attention probabilities beside the attention that a model runs with.

Fused attention gives none, and a model that is set to eager attention pays for it in every layer. Here the
output is computed as before (sdpa), and of the layers that are listened to the probabilities of this pass's
tokens are computed a second time, from the queries and keys.
Threat model: see `observe`. Does not protect anything.
Source: transformers' interface of attention functions; Vaswani et al. 2017, arXiv 1706.03762, section 3.2.1.

Shapes: B texts, T tokens of this pass, S tokens so far, H query heads, G of keys, K head width, M queries of
a group's heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_NAME, _LISTENS = "transom_rows", "_transom_listens"


def ready(model: Any) -> bool:
    """Set the model so that its attention modules can be listened to, and tell whether it could be: one that
    runs with anything but sdpa, or whose attention is not set while it runs, is left alone. Nothing changes
    while nobody listens."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MASKS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    if model.config._attn_implementation == _NAME:
        return True
    if model.config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    if _NAME not in ALL_ATTENTION_FUNCTIONS:
        ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
        MASKS.register(_NAME, MASKS["sdpa"])
    model.set_attn_implementation(_NAME)
    return True


@contextmanager
def beside(model: Any) -> Iterator[bool]:
    """The same for the while; one that is set already stays so."""
    before = model.config._attn_implementation
    can = ready(model)
    try:
        yield can
    finally:
        if can and before != _NAME:
            model.set_attn_implementation(before)


@contextmanager
def listening(module: Any, take: Callable[[Tensor], None]) -> Iterator[None]:
    """`take` is given the probabilities [B, H, T, S] of an attention module."""
    takes: list[Callable[[Tensor], None]] = module.__dict__.setdefault(_LISTENS, [])
    takes.append(take)
    try:
        yield
    finally:
        takes.remove(take)


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **rest: Any
) -> Any:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if takes := module.__dict__.get(_LISTENS):
        probabilities = _probabilities(module, query, key, attention_mask, **rest)
        for take in takes:
            take(probabilities)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)


def _probabilities(
    module: Any,
    query_BHTK: Any,
    key_BGSK: Any,
    mask: Tensor | None,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **rest: Any,
) -> Tensor:
    import torch

    heads, groups = query_BHTK.shape[1], key_BGSK.shape[1]
    scaling = query_BHTK.shape[-1] ** -0.5 if scaling is None else scaling
    steps, length = query_BHTK.shape[2], key_BGSK.shape[2]
    query_BGMK = (query_BHTK * scaling).reshape(len(query_BHTK), groups, -1, query_BHTK.shape[-1])
    score_BHTS = (query_BGMK @ key_BGSK.transpose(-1, -2)).view(-1, heads, steps, length)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if mask is None and causal and steps > 1:
        places = torch.arange(length, device=score_BHTS.device)
        mask = places <= places[length - steps :, None]
    if mask is not None:
        score_BHTS = (
            score_BHTS.masked_fill(~mask, torch.finfo(score_BHTS.dtype).min)
            if mask.dtype == torch.bool
            else score_BHTS + mask
        )
    found: Tensor = score_BHTS.softmax(-1, dtype=torch.float32).to(query_BHTK.dtype)
    return found
