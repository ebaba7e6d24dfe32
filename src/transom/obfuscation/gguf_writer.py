"""An obfuscated checkpoint folder as one GGUF file for llama.cpp, tensor by tensor.

The vocabulary written is one of placeholders, `<0>`, `<1>`, ...: the host's engine gets ids and gives ids,
and has nothing to decode them with. The width of a head is written out, as it is no longer the hidden size
divided by the heads; the output matrix is written apart, because it is no longer the embedding.
Threat model: that of the obfuscated folder; this only changes its form, so its card speaks for the GGUF too.
Does not protect: anything the folder did not. Rounding to Q8_0 is no protection.
Source: the GGUF specification; llama.cpp's conversion of these architectures (its Llama rotates neighbouring
rows where transformers rotates the halves of a head, hence `_interleaved`).

Shapes: E experts, H heads, K head width.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transom.checkpoint.source import check, find, read_json
from transom.errors import CheckpointError, MisconfiguredError, MissingExtraError, NotYetError
from transom.obfuscation import gguf_latent

ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "mixtral": "llama",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
}
KINDS = ("f16", "q8_0")
_BLOCK = 32  # Q8_0: so many values share a scale
_DIVISORS = "rope_freqs.weight"
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
_EXPERT = re.compile(r"(?<=\.experts\.)(\d+)\.")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the GGUF: where its values are, [E] of them for experts, and what becomes of them."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[tuple[Path, str], ...]
    heads: int = 0  # rows of so many heads are to be interleaved
    kind: str = "f32"


def write_gguf(folder: str | Path, out: str | Path, kind: str = "f16") -> Path:
    """Write an obfuscated folder as `out`, whole or not at all; `kind` is f16 or q8_0 (vectors stay float32).

    Holds one tensor in memory. Raises MisconfiguredError (kind, a width that Q8_0 cannot have, an existing
    file, a full disk), NotYetError (architecture, rescaled positions), CheckpointError, MissingExtraError.
    """
    folder, out = Path(folder), Path(out)
    if kind not in KINDS:
        raise MisconfiguredError(f"the type must be one of {', '.join(KINDS)}, got {kind!r}")
    if out.exists():
        raise MisconfiguredError(f"{out} exists; remove it or give another path")
    gguf = _library()
    check(find(folder))
    config = read_json(folder / "config.json")
    _require_known(config)
    tensors = list(_tensors(gguf, folder, config, kind))
    partial = out.with_name(f".{out.name}.partial")
    writer = gguf.GGUFWriter(str(partial), ARCHITECTURES[config["model_type"]])
    try:
        _describe(gguf, writer, config, kind)
        _vocabulary(writer, config)
        for tensor in tensors:
            writer.add_tensor_info(
                tensor.name,
                tensor.shape,
                np.dtype(np.float32),
                _size_bytes(gguf, tensor),
                _type(gguf, tensor),
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            made = tensor.name == _DIVISORS
            writer.write_tensor_data(_rope_divisors(config) if made else _encoded(gguf, tensor))
        writer.flush()
        for file in writer.fout:
            os.fsync(file.fileno())
        partial.replace(out)
    except OSError as error:
        raise MisconfiguredError(
            f"cannot write {out} ({error.strerror}); free the disk or choose another path"
        ) from None
    finally:
        writer.close()
        with suppress(FileNotFoundError):
            partial.unlink()
    return out


def _library() -> Any:
    try:
        import gguf
        import torch  # noqa: F401  reads bfloat16, which numpy does not know
    except ImportError:
        raise MissingExtraError("models", "gguf and torch") from None
    return gguf


def _require_known(config: Mapping[str, Any]) -> None:
    model_type = config.get("model_type")
    if model_type not in ARCHITECTURES:
        raise NotYetError(
            f"no GGUF for the model type {model_type!r}; it can be written for {', '.join(ARCHITECTURES)}"
        )
    scaling = _rope(config)["rope_type"]
    if scaling not in ("default", "llama3") or (scaling == "llama3" and model_type != "llama"):
        raise NotYetError(f"no GGUF for positions rescaled by {scaling!r}; serve the folder with vLLM")
    if model_type == "qwen3_moe" and not config.get("norm_topk_prob"):
        raise NotYetError(
            "llama.cpp always normalises the weights of Qwen3's experts, and this model does not"
        )
    if config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1:
        raise NotYetError("no GGUF for a model whose layers have experts here and none there")
    if _is_latent(config):
        gguf_latent.require_known(config)


def _is_latent(config: Mapping[str, Any]) -> bool:
    return ARCHITECTURES[config["model_type"]] == "deepseek2"


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The rotary settings of either form of configuration."""
    old = config.get("rope_scaling") or {}
    old = {"rope_theta": config.get("rope_theta", 10_000.0), "rope_type": old.get("type", "default"), **old}
    return old | (config.get("rope_parameters") or {})


def _rope_divisors(config: Mapping[str, Any]) -> np.ndarray:
    """By how much Llama 3.1 slows each pair of a head, float32 [K/2]: the long waves only."""
    rope = _rope(config)
    turns = rope["rope_theta"] ** -(np.arange(0, _head_width(config), 2) / _head_width(config)) / (2 * np.pi)
    turns *= rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - share) / rope["factor"] + share), np.float32)


def _head_width(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _tensors(gguf: Any, folder: Path, config: Mapping[str, Any], kind: str) -> Iterator[_Tensor]:
    """Every tensor of the folder in its order, experts of one layer and part together."""
    from safetensors import safe_open

    names = gguf.get_tensor_name_map(
        _architecture(gguf, config["model_type"]), int(config["num_hidden_layers"])
    )
    found: dict[str, dict[int, tuple[tuple[int, ...], Path, str]]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  it is no mapping
                shape = tuple(file.get_slice(name).get_shape())
                target, expert = _target(names, name)
                found.setdefault(target, {})[expert] = (shape, path, name)
    if _rope(config)["rope_type"] == "llama3":
        yield _Tensor(_DIVISORS, (_head_width(config) // 2,), ())
    for target, parts in found.items():
        if sorted(parts) not in ([-1], list(range(len(parts)))):
            raise CheckpointError(f"the tensor {target} lacks experts; obfuscate again")
        ordered = [parts[i] for i in sorted(parts)]
        shape = ordered[0][0] if -1 in parts else (len(parts), *ordered[0][0])
        sources = tuple((path, name) for _, path, name in ordered)
        if ".attn_kv_b." in target:
            for half, cut in gguf_latent.halves(config).items():
                name = target.replace("attn_kv_b", half)
                yield _Tensor(name, cut, sources, kind=_kind(name, cut, kind))
            continue
        yield _Tensor(target, shape, sources, _heads(target, config), _kind(target, shape, kind))


def _architecture(gguf: Any, model_type: str) -> Any:
    wanted = ARCHITECTURES[model_type]
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == wanted)


def _target(names: Any, name: str) -> tuple[str, int]:
    """The tensor's name in llama.cpp, and which expert it is (-1: none). Raises NotYetError."""
    expert = _EXPERT.search(name)
    spelled = _EXPERT.sub("", name).replace("_correction_bias", "_correction.bias")
    known = names.get_name(spelled, (".weight", ".bias"))
    if not known:
        raise NotYetError(f"no place in a GGUF for the tensor {name!r}; serve the folder with vLLM")
    return known, int(expert[1]) if expert else -1


def _heads(target: str, config: Mapping[str, Any]) -> int:
    if ARCHITECTURES[config["model_type"]] != "llama":
        return 0
    heads = int(config["num_attention_heads"])
    part = target.split(".")[-2]
    if part == "attn_k":
        return int(config.get("num_key_value_heads") or heads)
    return heads if part == "attn_q" else 0


def _kind(target: str, shape: tuple[int, ...], kind: str) -> str:
    """Vectors and routers stay float32, as llama.cpp expects them."""
    if len(shape) == 1 or ".ffn_gate_inp." in target:
        return "f32"
    if kind == "q8_0" and shape[-1] % _BLOCK:
        raise MisconfiguredError(
            f"{target} has rows of {shape[-1]} values, and Q8_0 needs a multiple of {_BLOCK}; take f16, or "
            "obfuscate with an h that makes the hidden size one"
        )
    return kind


def _type(gguf: Any, tensor: _Tensor) -> Any:
    return gguf.GGMLQuantizationType[tensor.kind.upper()]


def _size_bytes(gguf: Any, tensor: _Tensor) -> int:
    block, block_bytes = gguf.GGML_QUANT_SIZES[_type(gguf, tensor)]
    return int(np.prod(tensor.shape, dtype=np.int64)) // int(block) * int(block_bytes)


def _encoded(gguf: Any, tensor: _Tensor) -> np.ndarray:
    """The tensor's bytes, one source after the other."""
    parts = [_part(gguf, tensor, path, name) for path, name in tensor.sources]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _part(gguf: Any, tensor: _Tensor, path: Path, name: str) -> np.ndarray:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        values: np.ndarray = file.get_tensor(name).float().numpy()
    if tensor.heads:
        values = _interleaved(values, tensor.heads)
    if re.search(r"\.attn_[kv]_b\.", tensor.name):
        values = gguf_latent.half_of(values, tensor.name, tensor.shape)
    if tensor.kind == "f16":
        with np.errstate(over="ignore"):
            values = values.astype(np.float16)
    if not np.isfinite(values).all():
        raise CheckpointError(f"the tensor {name} holds values that {tensor.kind} cannot; obfuscate again")
    if tensor.kind == "q8_0":
        values = gguf.quants.quantize(values, _type(gguf, tensor))
    return np.ascontiguousarray(values)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [H, 2, K/2] of halves apart to [H, K/2, 2]."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _describe(gguf: Any, writer: Any, config: Mapping[str, Any], kind: str) -> None:
    heads, head_width = int(config["num_attention_heads"]), _head_width(config)
    window = config.get("sliding_window") or config["max_position_embeddings"]
    writer.add_type("model")
    writer.add_name("obfuscated")
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(min(int(window), int(config["max_position_embeddings"])))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_rope_freq_base(float(_rope(config)["rope_theta"]))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    if _is_latent(config):
        gguf_latent.describe(gguf, writer, config)
    else:
        writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
        writer.add_key_length(head_width)
        writer.add_value_length(head_width)
        writer.add_rope_dimension_count(head_width)
    experts = next((config[name] for name in _EXPERT_COUNTS if config.get(name)), None)
    if experts:
        writer.add_expert_count(int(experts))
        writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(int(config["moe_intermediate_size"]))


def _vocabulary(writer: Any, config: Mapping[str, Any]) -> None:
    """Placeholders that decode to nothing but their own number, and the ids that end an answer."""
    size = int(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_types([1] * size)  # ordinary text
    writer.add_token_merges(["< 0"])  # llama.cpp demands some, and this one leads nowhere
    writer.add_add_bos_token(False)
    ends = config.get("eos_token_id")
    for add, token in zip(
        (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id),
        ends if isinstance(ends, list) else [ends],
        strict=False,
    ):
        if token is not None:
            add(int(token))
    for add, role in ((writer.add_bos_token_id, "bos"), (writer.add_pad_token_id, "pad")):
        if config.get(f"{role}_token_id") is not None:
            add(int(config[f"{role}_token_id"]))
