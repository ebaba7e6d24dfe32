"""Tiny checkpoints on disk, one of them written as a GGUF the way llama.cpp lays it out."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.checkpoint.tokenizer import export_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers": "blk",
}  # fmt: skip


@pytest.fixture(scope="session")
def gguf_file(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama as a float32 GGUF with its tokenizer, written with the reference writer."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    model = load(llama).model
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    _add_tokenizer(writer, llama)
    for name, weight in model.state_dict().items():
        array = weight.numpy()
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        if "attn_q" in name or "attn_k" in name:
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            halves = array.reshape(heads, 2, -1, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: gguf.GGUFWriter, folder: Path) -> None:
    import json

    files = export_tokenizer(folder)
    record = json.loads(files.tokenizer.to_str())
    vocabulary = sorted(files.tokenizer.get_vocab().items(), key=lambda item: item[1])
    special = {token["id"] for token in record["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([text for text, _ in vocabulary])
    writer.add_token_types([3 if i in special else 1 for _, i in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in record["model"]["merges"]])
    for role, add in (
        ("bos", writer.add_bos_token_id),
        ("eos", writer.add_eos_token_id),
        ("pad", writer.add_pad_token_id),
    ):
        add(files.tokenizer.token_to_id(files.specials[f"{role}_token"]))
    writer.add_chat_template(files.chat_template)
