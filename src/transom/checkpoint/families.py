"""What is known of each architecture: one record a family, and nothing about it anywhere else.

A new architecture is a record here, the transforms that obfuscate it where it has parts of a new kind, and
tests. What no record says of an architecture is refused by name: its type, its parts, and each value of its
configuration. Values of names outside its class are in `structure.NEUTRAL`.
Threat model: a configuration that asks for a model which is not the one computed here.
Does not protect against: a record that is wrong; the tests compare each with transformers and llama.cpp.
Source: the configuration and model classes of transformers; llama.cpp's graphs, which fix what they have no
key for (the activation, how experts are weighed).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from transom.checkpoint import gguf_models
from transom.checkpoint.gguf_models import Row

Rules = dict[str, tuple[Any, ...] | None]  # values that are allowed by name; None: any


@dataclass(frozen=True)
class Names:
    """Where a model's parts are in transformers: `trunk` in a model with a head, `embedding` to `final_norm`
    in the trunk, the others in a block. "" is a part that the family does not have. What `attention_out` and
    `mlp` return is added to the stream."""

    trunk: str = "model"
    embedding: str = "embed_tokens"
    blocks: str = "layers"
    final_norm: str = "norm"
    attention: str = "self_attn"
    query: str = "self_attn.q_proj"
    key: str = "self_attn.k_proj"
    value: str = "self_attn.v_proj"
    attention_out: str = "self_attn.o_proj"
    mlp: str = "mlp"
    mlp_gate: str = "mlp.gate_proj"
    mlp_up: str = "mlp.up_proj"
    mlp_down: str = "mlp.down_proj"
    attention_norm: str = "input_layernorm"
    mlp_norm: str = "post_attention_layernorm"

    @property
    def stored_embedding(self) -> tuple[str, str]:
        """The embedding's names in files: of a model with a head, and of its trunk alone."""
        return f"{self.trunk}.{self.embedding}.weight", f"{self.embedding}.weight"


@dataclass(frozen=True)
class Experts:
    """Names of a mixture in files: the part of a layer, and an expert's three projections. `correction` says
    that its router adds a bias for the choice alone; `sparse` names what says which layers are mixtures."""

    part: str = "mlp"
    gate: str = "gate_proj"
    up: str = "up_proj"
    down: str = "down_proj"
    correction: bool = False
    sparse: Literal["all", "step", "after"] = "all"


_DECODER_HEADS = {"ForCausalLM": "lm_head", "ForSequenceClassification": "score", "Model": ""}


@dataclass(frozen=True)
class Family:
    """An architecture. `heads` has the attribute of the output head by the end of the class's name.

    `values` are the values of its configuration that are understood here, None where they are not checked;
    `llama_cpp` narrows them to what llama.cpp computes, None where no GGUF is written. `gguf` is its
    architecture there, `rows` its weights in such a file, `gguf_fixed` what files cannot say otherwise.
    """

    kind: str
    gguf: str = ""
    names: Names = Names()
    heads: Mapping[str, str] = field(default_factory=lambda: dict(_DECODER_HEADS))
    causal: bool = True
    walked: bool = False
    lookup: bool = True  # the first step is the embedding's row as it is, not scaled
    attention: Literal["heads", "latent"] = "heads"
    projection_biases: bool = False  # of queries, keys and values always, of the projection back never
    head_norms: bool = False
    head_width: int | None = None  # where a configuration is silent; None: hidden size over heads
    same_window: bool = False  # the one window is that of all layers
    experts: Experts | None = None
    values: Rules | None = None
    llama_cpp: Rules | None = None
    rows: tuple[Row, ...] = ()
    gguf_fixed: Mapping[str, Any] = field(default_factory=dict)


def _any(*names: str) -> Rules:
    return dict.fromkeys(names)


_NO, _ONE = (None, False), (None, 1, 1.0)
_COMMON: Rules = {
    **_any("architectures", "dtype", "model_type", "torch_dtype", "transformers_version", "use_cache"),
    **_any("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "vocab_size"),
    **_any("hidden_size", "intermediate_size", "num_hidden_layers", "max_position_embeddings", "hidden_act"),
    **_any("num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "attention_dropout"),
    **_any("rope_parameters", "rope_scaling", "rope_theta", "initializer_range", "pretraining_tp"),
    **_any("num_nextn_predict_layers"),
    "is_encoder_decoder": _NO,
}
_WINDOWS = _any("sliding_window", "use_sliding_window", "max_window_layers", "layer_types")
_ROUTING: Rules = {
    **_any("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"),
    **_any("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "moe_intermediate_size"),
}
_LATENT: Rules = {
    **_COMMON,
    **_ROUTING,
    **_any("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"),
    **_any("first_k_dense_replace", "n_shared_experts", "n_group", "topk_group", "routed_scaling_factor"),
    **_any("attention_bias", "mlp_bias", "num_mtp_layers", "qk_head_dim", "rope_interleave"),
    "moe_layer_freq": _ONE,
}
_LATENT_CPP: Rules = {
    **dict.fromkeys(("attention_bias", "mlp_bias"), (False,)),
    "moe_layer_freq": (1,),
    "rope_interleave": (True,),
    "rms_norm_eps": (1e-6,),  # transformers has the inner norms at that, whatever the configuration says
}
_LLAMA = Family(
    "llama",
    gguf="llama",
    walked=True,
    values=_COMMON | _any("attention_bias", "mlp_bias"),
    llama_cpp=dict.fromkeys(("attention_bias", "mlp_bias"), (False, True)),
    rows=gguf_models.LLAMA,
)
_ONE_WINDOW = replace(_LLAMA, same_window=True, values=_COMMON | _any("sliding_window"), llama_cpp={})
_QWEN3 = Family(
    "qwen3",
    gguf="qwen3",
    walked=True,
    head_norms=True,
    head_width=128,  # its class has this default
    values=_COMMON | _WINDOWS | _any("attention_bias"),
    llama_cpp={"attention_bias": (False,)},
    rows=gguf_models.QWEN3,
    gguf_fixed={"use_sliding_window": False},
)
_ALL_SPARSE = {"decoder_sparse_step": 1, "mlp_only_layers": [], "use_sliding_window": False}
_DEEPSEEK_V2 = Family(
    "deepseek_v2",
    gguf="deepseek2",
    attention="latent",
    experts=Experts(sparse="after"),
    values={
        **_LATENT,
        "norm_topk_prob": _NO,  # a name of its class that nothing there reads
        "scoring_func": (None, "softmax"),
        "topk_method": ("greedy", "group_limited_greedy"),
    },
    llama_cpp={
        **_LATENT_CPP,
        "norm_topk_prob": (False,),  # transformers never normalises here, others do when it says so
        "scoring_func": ("softmax",),
    },
    rows=gguf_models.DEEPSEEK,
)
_FAMILIES = (
    _LLAMA,
    replace(_ONE_WINDOW, kind="mistral", rows=()),
    replace(
        _ONE_WINDOW,
        kind="mixtral",
        walked=False,
        experts=Experts("block_sparse_moe", "w1", "w3", "w2"),
        values=_COMMON | _ROUTING | _any("sliding_window"),
        rows=gguf_models.MIXTRAL,
        gguf_fixed={"sliding_window": None},
    ),
    Family(
        "qwen2",
        gguf="qwen2",
        walked=True,
        projection_biases=True,
        values=_COMMON | _WINDOWS,
        rows=gguf_models.QWEN2,
        gguf_fixed={"use_sliding_window": False},
    ),
    _QWEN3,
    Family(
        "qwen2_moe",
        gguf="qwen2moe",
        projection_biases=True,
        experts=Experts(sparse="step"),
        rows=gguf_models.QWEN2_MOE,
        gguf_fixed=_ALL_SPARSE | {"norm_topk_prob": False, "tie_word_embeddings": False},  # it wants a head
    ),
    replace(
        _QWEN3,
        kind="qwen3_moe",
        gguf="qwen3moe",
        walked=False,
        head_width=None,
        same_window=True,
        experts=Experts(sparse="step"),
        values={
            **_COMMON,
            **_ROUTING,
            **_any("attention_bias", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"),
            **_any("sliding_window", "use_sliding_window", "max_window_layers"),
        },
        llama_cpp={
            "attention_bias": (False,),
            "norm_topk_prob": (True,),
            "decoder_sparse_step": (1,),
            "mlp_only_layers": ([],),
        },
        rows=gguf_models.QWEN3_MOE,
        gguf_fixed=_ALL_SPARSE | {"norm_topk_prob": True},  # llama.cpp always normalises them
    ),
    _DEEPSEEK_V2,
    replace(
        _DEEPSEEK_V2,
        kind="deepseek_v3",
        experts=Experts(correction=True, sparse="after"),
        values={
            **_LATENT,
            "norm_topk_prob": None,
            "scoring_func": (None, "sigmoid"),
            "topk_method": (None, "noaux_tc"),
        },
        llama_cpp={
            **_LATENT_CPP,
            "norm_topk_prob": (False, True),
            "scoring_func": ("sigmoid",),
            "topk_method": ("noaux_tc",),
        },
    ),
    Family(
        "gemma", gguf="gemma", lookup=False, rows=gguf_models.GEMMA, gguf_fixed={"tie_word_embeddings": True}
    ),
    Family("gemma2", gguf="gemma2", lookup=False, rows=gguf_models.GEMMA2),
    Family("gemma3_text", gguf="gemma3", lookup=False, rows=gguf_models.GEMMA3),
    Family("phi3", gguf="phi3", rows=gguf_models.PHI3),
    Family(
        "bert",
        names=Names(
            trunk="bert",
            embedding="embeddings.word_embeddings",
            blocks="encoder.layer",
            final_norm="",
            attention="attention.self",
            query="attention.self.query",
            key="attention.self.key",
            value="attention.self.value",
            attention_out="attention.output.dense",
            mlp="output.dense",
            mlp_gate="",
            mlp_up="intermediate.dense",
            mlp_down="output.dense",
            attention_norm="attention.output.LayerNorm",
            mlp_norm="output.LayerNorm",
        ),
        heads={
            "ForSequenceClassification": "classifier",
            "ForTokenClassification": "classifier",
            "ForMaskedLM": "cls",
            "Model": "",
        },
        causal=False,
        walked=True,
    ),
)
FAMILIES: Mapping[str, Family] = {family.kind: family for family in _FAMILIES}
CHECKED = tuple(family.kind for family in _FAMILIES if family.values is not None)


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The record of a configuration's `model_type`, if there is one."""
    return FAMILIES.get(str(config.get("model_type")))
