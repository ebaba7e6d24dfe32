"""Cut a model in two: at the embedding, or after block k. What the front gives, the back continues.

Threat model: none here. Where to cut, and what to add to what crosses, is for the methods that use the cut.
Does not protect anything: hidden states of early blocks reveal most of the input.

The halves share the model's own modules, so training one trains the model, and nothing is copied.
Shapes: B batch, T tokens, D model width, V vocabulary or classes.
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
        self, ids_BT: Int[Tensor, "B T"], attention_mask_BT: Int[Tensor, "B T"] | None = None
    ) -> Float[Tensor, "B T D"]:
        """Hidden states after the cut. The mask has 1 for real tokens; padding may be on either side."""
        hidden_BTD: Tensor = self.parts.embedding(ids_BT)
        if self.blocks == 0:
            return hidden_BTD
        if not self.parts.family.causal:
            hidden_BTD = self.parts.trunk.embeddings(inputs_embeds=hidden_BTD)  # type: ignore[operator]
            return _run_bert(self.parts, hidden_BTD, attention_mask_BT, 0, self.blocks)
        return _run_llama(self.parts, hidden_BTD, attention_mask_BT, 0, self.blocks)


@dataclass(frozen=True)
class Back:
    """From hidden states to the model's own output: the blocks from `start` on, final norm and head."""

    parts: Walk
    start: int

    def __call__(
        self, hidden_BTD: Float[Tensor, "B T D"], attention_mask_BT: Int[Tensor, "B T"] | None = None
    ) -> Tensor:
        """The whole model's output: logits [B, T, V] of a language model, [B, V] of a classifier, or the last
        hidden states [B, T, D] of a model without a head. The mask must be the front's."""
        if not self.parts.family.causal:
            return self._bert(hidden_BTD, attention_mask_BT)
        hidden_BTD = _run_llama(self.parts, hidden_BTD, attention_mask_BT, self.start, len(self.parts.blocks))
        normed_BTD: Tensor = self.parts.final_norm(hidden_BTD)  # type: ignore[misc]
        return normed_BTD if self.parts.head is None else self._head(normed_BTD)

    def _bert(self, hidden_BTD: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
        trunk: Any = self.parts.trunk
        if self.start == 0:
            hidden_BTD = trunk.embeddings(inputs_embeds=hidden_BTD)
        hidden_BTD = _run_bert(self.parts, hidden_BTD, attention_mask_BT, self.start, len(self.parts.blocks))
        if self.parts.head is None:
            return hidden_BTD
        pooled = hidden_BTD if trunk.pooler is None else trunk.pooler(hidden_BTD)
        dropout: Any = getattr(self.parts.model, "dropout", None)
        return self._head(pooled if dropout is None else dropout(pooled))

    def _head(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.parts.head(hidden)  # type: ignore[misc]
        return output


def cut(model: PreTrainedModel, after_block: int = 0) -> tuple[Front, Back]:
    """Front and back with `back(front(ids)) == model(ids)`. 0 cuts at the word embedding, k after block k.

    Raises MisconfiguredError when the model has fewer blocks, NotYetError when `walk` does not know it.
    """
    parts = walk(model)
    if not 0 <= after_block <= len(parts.blocks):
        raise MisconfiguredError(
            f"cannot cut after block {after_block}; the model has {len(parts.blocks)} blocks"
        )
    return Front(parts, after_block), Back(parts, after_block)


def _run_llama(parts: Walk, hidden_BTD: Tensor, mask_BT: Tensor | None, start: int, stop: int) -> Tensor:
    """Blocks start..stop under causal attention, as the model's own forward pass runs them."""
    import torch
    from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

    trunk: Any = parts.trunk
    positions_1T = torch.arange(hidden_BTD.shape[1], device=hidden_BTD.device)[None]
    inputs = {
        "config": trunk.config,
        "inputs_embeds": hidden_BTD,
        "attention_mask": mask_BT,
        "past_key_values": None,
        "position_ids": positions_1T,
    }
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    kinds = _attention_kinds(parts)[start:stop]
    masks = {kind: makers[kind](**inputs) for kind in set(kinds)}
    rotary = trunk.rotary_emb(hidden_BTD, position_ids=positions_1T)
    for block, kind in zip(parts.blocks[start:stop], kinds, strict=True):
        hidden_BTD = block.module(
            hidden_BTD, attention_mask=masks[kind], position_ids=positions_1T, position_embeddings=rotary
        )
    return hidden_BTD


def _attention_kinds(parts: Walk) -> list[str]:
    """Whether each block attends to everything before it or through a window."""
    config: Any = parts.trunk.config
    if parts.family.same_window:
        alike = "full_attention" if config.sliding_window is None else "sliding_attention"
        return [alike] * len(parts.blocks)
    return list(getattr(config, "layer_types", None) or ["full_attention"] * len(parts.blocks))


def _run_bert(parts: Walk, hidden_BTD: Tensor, mask_BT: Tensor | None, start: int, stop: int) -> Tensor:
    from transformers.masking_utils import create_bidirectional_mask

    mask = create_bidirectional_mask(
        config=parts.model.config, inputs_embeds=hidden_BTD, attention_mask=mask_BT
    )
    for block in parts.blocks[start:stop]:
        hidden_BTD = block.module(hidden_BTD, attention_mask=mask)
    return hidden_BTD
