"""A model's parts by what they are, not by what its library calls them: blocks, projections, norms, heads.

Threat model: none; it reads a model in memory and changes nothing.
Does not protect anything.

Shapes: D model width, H query heads, G key-value heads, K head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from transom.checkpoint.families import FAMILIES, Family, family_of
from transom.errors import NotYetError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Block:
    """One layer. Weights [out, in]: query [H*K, D], key and value [G*K, D], attention_out [D, H*K].

    `mlp_gate` is None where the MLP has no gate (BERT). A Llama block normalises before attention and before
    the MLP, a BERT block after each; `attention_norm` and `mlp_norm` are those two in order.
    """

    module: nn.Module
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    attention_out: nn.Linear
    mlp_gate: nn.Linear | None
    mlp_up: nn.Linear
    mlp_down: nn.Linear
    attention_norm: nn.Module
    mlp_norm: nn.Module


@dataclass(frozen=True)
class Walk:
    """A model seen as embedding, blocks, final norm and output head. `head` is None where a model has none.

    `tied` says that head and embedding share one weight [V, D].
    """

    family: Family
    model: PreTrainedModel
    trunk: nn.Module
    embedding: nn.Embedding
    blocks: tuple[Block, ...]
    final_norm: nn.Module | None
    head: nn.Module | None
    tied: bool
    width: int
    query_heads: int
    key_value_heads: int
    head_width: int


def walk(model: PreTrainedModel) -> Walk:
    """The parts of a Llama, Mistral, Qwen2, Qwen3 or BERT. Raises NotYetError for other architectures."""
    config: Any = model.config
    output: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    family, name = family_of({"model_type": config.model_type}), type(model).__name__
    suffixes = family.heads if family and family.walked else {}
    suffix = next((suffix for suffix in suffixes if name.endswith(suffix)), None)
    if family is None or suffix is None or (not family.causal and config.is_decoder):
        known = sorted(other.kind for other in FAMILIES.values() if other.walked)
        raise NotYetError(f"{name} ({config.model_type}) is not known here; known: {', '.join(known)}")
    trunk: Any = getattr(model, family.names.trunk, model)
    embedding: Any = trunk.get_submodule(family.names.embedding)
    heads = config.num_attention_heads
    return Walk(
        family=family,
        model=model,
        trunk=trunk,
        embedding=embedding,
        blocks=tuple(_block(layer, family) for layer in trunk.get_submodule(family.names.blocks)),
        final_norm=_part(trunk, family.names.final_norm),
        head=_part(model, family.heads[suffix]),
        tied=getattr(output, "weight", None) is embedding.weight,
        width=config.hidden_size,
        query_heads=heads,
        key_value_heads=getattr(config, "num_key_value_heads", heads),
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _block(layer: Any, family: Family) -> Block:
    parts = {field.name for field in fields(Block)} - {"module"}
    return Block(module=layer, **{part: _part(layer, getattr(family.names, part)) for part in parts})


def _part(module: Any, path: str) -> Any:
    return module.get_submodule(path) if path else None
