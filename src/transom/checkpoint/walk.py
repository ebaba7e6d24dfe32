"""A model's parts by what they are, not by what its library calls them: blocks, projections, norms, heads.

Threat model: none; it reads a model in memory and changes nothing.
Does not protect anything.

Shapes: D model width, H query heads, G key-value heads, K head width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from transom.errors import NotYetError

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

_LLAMA_HEADS = {"ForCausalLM": "lm_head", "Model": ""}
_BERT_HEADS = {
    "ForSequenceClassification": "classifier",
    "ForTokenClassification": "classifier",
    "ForMaskedLM": "cls",
    "Model": "",
}
_LLAMA_LIKE = ("llama", "mistral", "qwen2", "qwen3")


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

    family: Literal["llama", "bert"]
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
    kind, name = model.config.model_type, type(model).__name__
    heads = _BERT_HEADS if kind == "bert" else _LLAMA_HEADS
    suffix = next((suffix for suffix in heads if name.endswith(suffix)), None)
    if kind not in (*_LLAMA_LIKE, "bert") or suffix is None or (kind == "bert" and model.config.is_decoder):
        raise NotYetError(f"{name} ({kind}) is not known here; known: bert, {', '.join(_LLAMA_LIKE)}")
    head = getattr(model, heads[suffix], None)
    return _walk_bert(model, head) if kind == "bert" else _walk_llama(model, head)


def _walk_llama(model: Any, head: Any) -> Walk:
    trunk, config = getattr(model, "model", model), model.config
    heads = config.num_attention_heads
    return Walk(
        family="llama",
        model=model,
        trunk=trunk,
        embedding=trunk.embed_tokens,
        blocks=tuple(_llama_block(layer) for layer in trunk.layers),
        final_norm=trunk.norm,
        head=head,
        tied=_shares(head, trunk.embed_tokens),
        width=config.hidden_size,
        query_heads=heads,
        key_value_heads=config.num_key_value_heads,
        head_width=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


def _llama_block(layer: Any) -> Block:
    attention, mlp = layer.self_attn, layer.mlp
    return Block(
        module=layer,
        query=attention.q_proj,
        key=attention.k_proj,
        value=attention.v_proj,
        attention_out=attention.o_proj,
        mlp_gate=mlp.gate_proj,
        mlp_up=mlp.up_proj,
        mlp_down=mlp.down_proj,
        attention_norm=layer.input_layernorm,
        mlp_norm=layer.post_attention_layernorm,
    )


def _walk_bert(model: Any, head: Any) -> Walk:
    trunk, config = getattr(model, "bert", model), model.config
    heads = config.num_attention_heads
    return Walk(
        family="bert",
        model=model,
        trunk=trunk,
        embedding=trunk.embeddings.word_embeddings,
        blocks=tuple(_bert_block(layer) for layer in trunk.encoder.layer),
        final_norm=None,
        head=head,
        tied=_shares(model.get_output_embeddings(), trunk.embeddings.word_embeddings),
        width=config.hidden_size,
        query_heads=heads,
        key_value_heads=heads,
        head_width=config.hidden_size // heads,
    )


def _shares(head: Any, embedding: Any) -> bool:
    return head is not None and head.weight is embedding.weight


def _bert_block(layer: Any) -> Block:
    attention = layer.attention
    return Block(
        module=layer,
        query=attention.self.query,
        key=attention.self.key,
        value=attention.self.value,
        attention_out=attention.output.dense,
        mlp_gate=None,
        mlp_up=layer.intermediate.dense,
        mlp_down=layer.output.dense,
        attention_norm=attention.output.LayerNorm,
        mlp_norm=layer.output.LayerNorm,
    )
