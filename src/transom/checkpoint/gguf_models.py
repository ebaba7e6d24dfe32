"""Where each weight of a model lies in a GGUF: one table of rows an architecture.

Threat model and limits: as `gguf_config`. Source: llama.cpp's names and shapes (src/llama-arch.cpp and
src/models/), and how its conversion changes weights: it interleaves the rotary halves of Llama's queries and
keys, adds one to Gemma's norm weights, stacks experts, and splits the latent projection of DeepSeek in two.

Shapes, in the order of transformers: V vocabulary, D model width, K head width, Q = query heads times K,
G = key-value heads times K, P = Q + 2 G, F feed-forward width, W = 2 F, E experts, I width of an expert,
S width of the shared expert. DeepSeek: A heads, q and r ranks of the latent query and key-value, n head width
without position, k with it, p position, v value width; J = A k, R = r + p, B = A (n + v), O = A v.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Row:
    """A tensor in the file, and the weight it is or is a part of: several rows of one target are joined along
    the last axis but one, in their order. `blk.{}.` and the layers' name are added where `outer` is False.

    `form` is how the values change, see `gguf_weights`. A row counts where the configuration has `only`
    ("not x": where it has not). `absent` says what takes the place of a missing tensor: zeros, or an error.
    """

    stored: str
    target: str
    shape: str
    form: str = ""
    only: str = ""
    absent: str = ""
    outer: bool = False


def _swap(rows: tuple[Row, ...], *changed: Row) -> tuple[Row, ...]:
    """The rows with those of the same stored name replaced, and the others of `changed` after them."""
    new = {row.stored: row for row in changed}
    kept = tuple(new.pop(row.stored, row) for row in rows)
    return kept + tuple(new.values())


_OUTER = (
    Row("token_embd.weight", "model.embed_tokens.weight", "V D", outer=True),
    Row("output_norm.weight", "model.norm.weight", "D", outer=True),
    Row("output.weight", "lm_head.weight", "V D", only="not tie_word_embeddings", outer=True),
)
_ATTENTION = (
    Row("attn_norm.weight", "input_layernorm.weight", "D"),
    Row("attn_q.weight", "self_attn.q_proj.weight", "Q D"),
    Row("attn_k.weight", "self_attn.k_proj.weight", "G D"),
    Row("attn_v.weight", "self_attn.v_proj.weight", "G D"),
    Row("attn_output.weight", "self_attn.o_proj.weight", "D Q"),
    Row("ffn_norm.weight", "post_attention_layernorm.weight", "D"),
)
_DENSE = (
    Row("ffn_gate.weight", "mlp.gate_proj.weight", "F D"),
    Row("ffn_up.weight", "mlp.up_proj.weight", "F D"),
    Row("ffn_down.weight", "mlp.down_proj.weight", "D F"),
)
_EXPERTS = (
    Row("ffn_gate_inp.weight", "mlp.gate.weight", "E D"),
    Row("ffn_gate_exps.weight", "mlp.experts.gate_up_proj", "E I D"),
    Row("ffn_up_exps.weight", "mlp.experts.gate_up_proj", "E I D"),
    Row("ffn_down_exps.weight", "mlp.experts.down_proj", "E D I"),
)
_HEAD_NORMS = (
    Row("attn_q_norm.weight", "self_attn.q_norm.weight", "K"),
    Row("attn_k_norm.weight", "self_attn.k_norm.weight", "K"),
)
_PAIRS = (
    Row("attn_q.weight", "self_attn.q_proj.weight", "Q D", "pairs"),
    Row("attn_k.weight", "self_attn.k_proj.weight", "G D", "pairs"),
)
_LLAMA_BIASES = (
    Row("attn_q.bias", "self_attn.q_proj.bias", "Q", "pairs", "attention_bias", "zeros"),
    Row("attn_k.bias", "self_attn.k_proj.bias", "G", "pairs", "attention_bias", "zeros"),
    Row("attn_v.bias", "self_attn.v_proj.bias", "G", "", "attention_bias", "zeros"),
    Row("attn_output.bias", "self_attn.o_proj.bias", "D", "", "attention_bias", "zeros"),
    Row("ffn_gate.bias", "mlp.gate_proj.bias", "F", "", "mlp_bias", "zeros"),
    Row("ffn_up.bias", "mlp.up_proj.bias", "F", "", "mlp_bias", "zeros"),
    Row("ffn_down.bias", "mlp.down_proj.bias", "D", "", "mlp_bias", "zeros"),
)
_QWEN_BIASES = (
    Row("attn_q.bias", "self_attn.q_proj.bias", "Q"),
    Row("attn_k.bias", "self_attn.k_proj.bias", "G"),
    Row("attn_v.bias", "self_attn.v_proj.bias", "G"),
)
_SHARED = (
    Row("ffn_gate_inp_shexp.weight", "mlp.shared_expert_gate.weight", "D", "row"),
    Row("ffn_gate_shexp.weight", "mlp.shared_expert.gate_proj.weight", "S D"),
    Row("ffn_up_shexp.weight", "mlp.shared_expert.up_proj.weight", "S D"),
    Row("ffn_down_shexp.weight", "mlp.shared_expert.down_proj.weight", "D S"),
)
_FOUR_NORMS = (
    Row("post_attention_norm.weight", "post_attention_layernorm.weight", "D"),
    Row("ffn_norm.weight", "pre_feedforward_layernorm.weight", "D"),
    Row("post_ffw_norm.weight", "post_feedforward_layernorm.weight", "D"),
)
_PHI = (
    Row("attn_norm.weight", "input_layernorm.weight", "D"),
    Row("attn_qkv.weight", "self_attn.qkv_proj.weight", "P D"),
    Row("attn_output.weight", "self_attn.o_proj.weight", "D Q"),
    Row("ffn_norm.weight", "post_attention_layernorm.weight", "D"),
    Row("ffn_up.weight", "mlp.gate_up_proj.weight", "W D"),
    Row("ffn_down.weight", "mlp.down_proj.weight", "D F"),
)
_LATENT = (
    Row("attn_norm.weight", "input_layernorm.weight", "D"),
    Row("attn_q.weight", "self_attn.q_proj.weight", "J D", "", "not q_lora_rank"),
    Row("attn_q_a.weight", "self_attn.q_a_proj.weight", "q D", "", "q_lora_rank"),
    Row("attn_q_a_norm.weight", "self_attn.q_a_layernorm.weight", "q", "", "q_lora_rank"),
    Row("attn_q_b.weight", "self_attn.q_b_proj.weight", "J q", "", "q_lora_rank"),
    Row("attn_kv_a_mqa.weight", "self_attn.kv_a_proj_with_mqa.weight", "R D"),
    Row("attn_kv_a_norm.weight", "self_attn.kv_a_layernorm.weight", "r"),
    Row("attn_k_b.weight", "self_attn.kv_b_proj.weight", "A r n", "latent keys", "parted"),
    Row("attn_v_b.weight", "self_attn.kv_b_proj.weight", "A v r", "", "parted"),
    Row("attn_kv_b.weight", "self_attn.kv_b_proj.weight", "B r", "", "not parted"),
    Row("attn_output.weight", "self_attn.o_proj.weight", "D O"),
    Row("ffn_norm.weight", "post_attention_layernorm.weight", "D"),
    *(replace(row, only="dense") for row in _DENSE),
    *(replace(row, only="sparse") for row in _EXPERTS),
    Row("exp_probs_b.bias", "mlp.gate.e_score_correction_bias", "E", "", "correction", "zeros"),
    Row("ffn_gate_shexp.weight", "mlp.shared_experts.gate_proj.weight", "S D", "", "sparse"),
    Row("ffn_up_shexp.weight", "mlp.shared_experts.up_proj.weight", "S D", "", "sparse"),
    Row("ffn_down_shexp.weight", "mlp.shared_experts.down_proj.weight", "D S", "", "sparse"),
)


def _less_one(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    """Gemma's norms multiply by one more than their weight; the file has the sum."""
    return tuple(replace(row, form="less one") if "norm" in row.stored else row for row in rows)


LLAMA = _OUTER + _swap(_ATTENTION, *_PAIRS) + _DENSE + _LLAMA_BIASES
MIXTRAL = _OUTER + _swap(_ATTENTION, *_PAIRS) + _EXPERTS
QWEN2 = _OUTER + _ATTENTION + _QWEN_BIASES + _DENSE
QWEN2_MOE = _OUTER + _ATTENTION + _QWEN_BIASES + _EXPERTS + _SHARED
QWEN3 = _OUTER + _ATTENTION + _HEAD_NORMS + _DENSE
QWEN3_MOE = _OUTER + _ATTENTION + _HEAD_NORMS + _EXPERTS
GEMMA = _less_one(_OUTER + _ATTENTION + _DENSE)
GEMMA2 = _less_one(_swap(GEMMA, *_FOUR_NORMS))
GEMMA3 = GEMMA2 + _less_one(_HEAD_NORMS)
PHI3 = _OUTER + _PHI
DEEPSEEK = _OUTER + _LATENT
