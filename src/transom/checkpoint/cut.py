"""Cut a model in two, or in three: at the embedding or after block k, and before the head. Each part goes on
with what the one before gives.

Threat model: none here. Where to cut, and what to add to what crosses, is for the methods that use the cut.
Does not protect anything: hidden states of early blocks reveal most of the input.

The parts share the model's own modules, so training one trains the model, and nothing is copied. With a
cache each (`new_cache`) they continue a text: they are given its new tokens, and the mask of all of it. A
front and a tail do with a model that has no more blocks than the front's.
Shapes: B batch, T tokens, S tokens with those before, D model width, V vocabulary or classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float, Int

from transom.checkpoint.walk import Walk, walk
from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Front:
    """From ids to hidden states: the embedding and the first `blocks` blocks."""

    parts: Walk
    blocks: int

    def __call__(
        self,
        ids_BT: Int[Tensor, "B T"],
        attention_mask_BS: Int[Tensor, "B S"] | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the cut. The mask has 1 for real tokens; padding may be on either side."""
        return self.from_rows(self.parts.embedding(ids_BT), attention_mask_BS, cache)

    def from_rows(
        self, rows_BTD: Float[Tensor, "B T D"], attention_mask_BS: Tensor | None = None, cache: Any = None
    ) -> Float[Tensor, "B T D"]:
        """The same from the embedding's rows of the ids."""
        if self.blocks == 0:
            return rows_BTD
        return _run(self.parts, rows_BTD, attention_mask_BS, 0, self.blocks, cache)


@dataclass(frozen=True)
class Middle:
    """From hidden states to the last block's: the blocks from `start` on."""

    parts: Walk
    start: int

    def __call__(
        self,
        hidden_BTD: Float[Tensor, "B T D"],
        attention_mask_BS: Int[Tensor, "B S"] | None = None,
        cache: Any = None,
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the last block. The mask must be the front's."""
        return _run(self.parts, hidden_BTD, attention_mask_BS, self.start, len(self.parts.blocks), cache)


@dataclass(frozen=True)
class Tail:
    """From the last block's hidden states to the model's own output: final norm, pooler and head."""

    parts: Walk

    def __call__(
        self, hidden_BTD: Float[Tensor, "B T D"], attention_mask_BS: Int[Tensor, "B S"] | None = None
    ) -> Tensor:
        """Logits [B, T, V] of a language model, [B, V] of a classifier; the last hidden states [B, T, D] of a
        model without a head. A decoder that classifies reads the last token that the mask calls real."""
        parts: Any = self.parts
        output: Tensor = hidden_BTD if parts.final_norm is None else parts.final_norm(hidden_BTD)
        if parts.head is None:
            return output
        if parts.head is getattr(parts.model, "score", None):
            output = _last_real(output, attention_mask_BS)
        steps = (getattr(parts.trunk, "pooler", None), getattr(parts.model, "dropout", None), parts.head)
        for step in steps:
            output = output if step is None else step(output)
        return output


@dataclass(frozen=True)
class Back:
    """From hidden states to the model's own output: the blocks from `start` on, final norm and head."""

    parts: Walk
    start: int

    def __call__(
        self,
        hidden_BTD: Float[Tensor, "B T D"],
        attention_mask_BS: Int[Tensor, "B S"] | None = None,
        cache: Any = None,
    ) -> Tensor:
        """The whole model's output: logits [B, T, V] of a language model, [B, V] of a classifier, or the last
        hidden states [B, T, D] of a model without a head. The mask must be the front's."""
        top_BTD = Middle(self.parts, self.start)(hidden_BTD, attention_mask_BS, cache)
        return Tail(self.parts)(top_BTD, attention_mask_BS)


def three(model: PreTrainedModel, after_block: int = 0) -> tuple[Front, Middle, Tail]:
    """Parts with `tail(middle(front(ids))) == model(ids)`; cuts and errors as in `cut`."""
    parts = walk(model)
    if not 0 <= after_block <= len(parts.blocks):
        raise MisconfiguredError(
            f"cannot cut after block {after_block}; the model has {len(parts.blocks)} blocks"
        )
    return Front(parts, after_block), Middle(parts, after_block), Tail(parts)


def cut(model: PreTrainedModel, after_block: int = 0) -> tuple[Front, Back]:
    """Front and back with `back(front(ids)) == model(ids)`. 0 cuts at the word embedding, k after block k.

    Raises MisconfiguredError when the model has fewer blocks, NotYetError when `walk` does not know it.
    """
    front, middle, _tail = three(model, after_block)
    return front, Back(middle.parts, middle.start)


def new_cache() -> Any:
    """An empty key-value cache for one half: it keeps every position, a mask does a window's sliding."""
    from transformers import DynamicCache

    return DynamicCache()


@dataclass(frozen=True)
class _Shifted:
    """A half's cache as its blocks see it, which count from the model's first."""

    cache: Any
    start: int

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *more: Any, **named: Any) -> Any:
        """The keys and values of a block so far, with these."""
        return self.cache.update(keys, values, layer_idx - self.start, *more, **named)


def _last_real(hidden_BTD: Tensor, mask_BS: Tensor | None) -> Tensor:
    """The states [B, D] of each row's last token that is no padding."""
    import torch

    if mask_BS is None:
        return hidden_BTD[:, -1]
    places_T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)
    last_B = (places_T * (mask_BS[:, -len(places_T) :] != 0)).argmax(-1)
    return hidden_BTD[torch.arange(len(last_B), device=last_B.device), last_B]


def _run(
    parts: Walk, hidden_BTD: Tensor, mask_BS: Tensor | None, start: int, stop: int, cache: Any
) -> Tensor:
    from transformers.masking_utils import create_bidirectional_mask

    if parts.family.causal:
        return _run_causal(parts, hidden_BTD, mask_BS, start, stop, cache)
    if cache is not None:
        raise MisconfiguredError("only a causal model continues a text; run this one without a cache")
    if start == 0:
        hidden_BTD = parts.trunk.embeddings(inputs_embeds=hidden_BTD)  # type: ignore[operator]
    mask = create_bidirectional_mask(
        config=parts.model.config, inputs_embeds=hidden_BTD, attention_mask=mask_BS
    )
    for block in parts.blocks[start:stop]:
        hidden_BTD = block.module(hidden_BTD, attention_mask=mask)
    return hidden_BTD


def _run_causal(
    parts: Walk, hidden_BTD: Tensor, mask_BS: Tensor | None, start: int, stop: int, cache: Any
) -> Tensor:
    import torch
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    trunk: Any = parts.trunk
    before = 0 if cache is None else cache.get_seq_length()
    positions_1T = torch.arange(before, before + hidden_BTD.shape[1], device=hidden_BTD.device)[None]
    inputs = {
        "config": trunk.config,
        "inputs_embeds": hidden_BTD,
        "attention_mask": mask_BS,
        "past_key_values": cache,
        "position_ids": positions_1T,
    }
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    kinds = _attention_kinds(parts)[start:stop]
    masks = {kind: makers[kind](**inputs) for kind in set(kinds)}
    rotary = trunk.rotary_emb(hidden_BTD, position_ids=positions_1T)
    shifted = None if cache is None else _Shifted(cache, start)
    for block, kind in zip(parts.blocks[start:stop], kinds, strict=True):
        hidden_BTD = block.module(
            hidden_BTD,
            attention_mask=masks[kind],
            position_ids=positions_1T,
            position_embeddings=rotary,
            past_key_values=shifted,
            use_cache=cache is not None,
        )
    return hidden_BTD


def _attention_kinds(parts: Walk) -> list[str]:
    """Whether each block attends to everything before it or through a window."""
    config: Any = parts.trunk.config
    if parts.family.same_window:
        alike = "full_attention" if config.sliding_window is None else "sliding_attention"
        return [alike] * len(parts.blocks)
    return list(getattr(config, "layer_types", None) or ["full_attention"] * len(parts.blocks))
