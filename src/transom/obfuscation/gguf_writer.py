"""An obfuscated checkpoint folder as one GGUF file for llama.cpp, tensor by tensor.

The vocabulary written is one of placeholders, `<0>`, `<1>`, ...: the host's engine gets ids and gives ids,
and has nothing to decode them with. The width of a head is written out, as it is no longer the hidden size
divided by the heads; the output matrix is written apart, because it is no longer the embedding.
Threat model: that of the obfuscated folder; this only changes its form, so its card speaks for the GGUF too.
Does not protect: anything the folder did not. Rounding to Q8_0 is no protection.
Source: the GGUF specification; llama.cpp's conversion of these architectures (its Llama rotates neighbouring
rows where transformers rotates the halves of a head, hence `_interleaved`); `gguf_known`.

Shapes: E experts, H heads, K head width.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transom.checkpoint.families import FAMILIES
from transom.checkpoint.generation import generation_settings
from transom.checkpoint.gguf_rope import llama3_divisors
from transom.checkpoint.resolve import resolved_config
from transom.checkpoint.source import find
from transom.errors import CheckpointError, MisconfiguredError, NotYetError, extra
from transom.files import growing
from transom.obfuscation import gguf_latent
from transom.obfuscation.attention import groups, head_width
from transom.obfuscation.gguf_known import MOST_ENDS, context_tokens, require_known, rope_of
from transom.obfuscation.moe import expert_count
from transom.obfuscation.shards import Entry, locate, read_tensor

KINDS = ("f16", "q8_0", "f32")
_BLOCK = 32  # Q8_0: so many values share a scale
_LARGEST = {"f16": 65_504.0, "q8_0": 127 * 65_504.0, "f32": float(np.finfo(np.float32).max)}
_DIVISORS = "rope_freqs.weight"
_EXPERT = re.compile(r"(?<=\.experts\.)(\d+)\.")


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the GGUF: where its values are, [E] of them for experts, and what becomes of them."""

    name: str
    shape: tuple[int, ...]
    sources: tuple[tuple[str, Entry], ...]
    heads: int = 0  # rows of so many heads are to be interleaved
    kind: str = "f32"


def write_gguf(folder: str | Path, out: str | Path, kind: str = "f16") -> Path:
    """Write an obfuscated folder as `out`, whole or not at all; `kind` is f16, q8_0 or f32.

    Vectors stay float32. Holds one tensor in memory. Raises MisconfiguredError (kind, a width that Q8_0
    cannot have, an existing file, a full disk), NotYetError (what llama.cpp would compute otherwise),
    CheckpointError, MissingExtraError.
    """
    folder, out = Path(folder), Path(out)
    if kind not in KINDS:
        raise MisconfiguredError(f"the type must be one of {', '.join(KINDS)}, got {kind!r}")
    if os.path.lexists(out):
        raise MisconfiguredError(f"{out} exists; remove it or give another path")
    gguf = _library()
    config = resolved_config(find(folder))
    require_known(config)
    tensors = list(_tensors(gguf, folder, config, kind))
    try:
        with growing(out) as partial:
            _write(gguf, partial, config, _ends(folder, config), tensors, kind)
    except FileExistsError:
        raise MisconfiguredError(f"{out} was written by another process meanwhile; it is kept") from None
    except OSError as error:
        raise MisconfiguredError(
            f"cannot write {out} ({error.strerror}); free the disk or choose another path"
        ) from None
    return out


def shortened(folder: str | Path) -> str:
    """A sentence if the GGUF takes shorter prompts than the folder, else nothing."""
    config = resolved_config(find(folder))
    longest, context = config["max_position_embeddings"], context_tokens(config)
    if context == longest:
        return ""
    return (
        f"context {context} instead of {longest}: the model attends within a window of that many tokens, "
        "which llama.cpp does not apply to it; start it with no longer context"
    )


def _write(
    gguf: Any, path: Path, config: Mapping[str, Any], ends: list[int], tensors: list[_Tensor], kind: str
) -> None:
    """Raises OSError."""
    writer = gguf.GGUFWriter(str(path), FAMILIES[config["model_type"]].gguf)
    try:
        _describe(gguf, writer, config, kind)
        _vocabulary(writer, config, ends)
        for tensor in tensors:
            kind_id = _type(gguf, tensor)
            size_bytes = math.prod(gguf.quants.quant_shape_to_byte_shape(tensor.shape, kind_id))
            writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), size_bytes, kind_id)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            made = tensor.name == _DIVISORS
            writer.write_tensor_data(_rope_divisors(config) if made else _encoded(gguf, tensor))
        writer.flush()
    finally:
        writer.close()


def _library() -> Any:
    with extra("models", "gguf and torch"):
        import gguf
        import torch  # noqa: F401  reads bfloat16, which numpy does not know
    return gguf


def _rope_divisors(config: Mapping[str, Any]) -> np.ndarray:
    rope = rope_of(config)
    names = ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor")
    return llama3_divisors(rope["rope_theta"], head_width(config), *(rope[name] for name in names))


def _is_latent(config: Mapping[str, Any]) -> bool:
    return FAMILIES[config["model_type"]].attention == "latent"


def _tensors(gguf: Any, folder: Path, config: Mapping[str, Any], kind: str) -> Iterator[_Tensor]:
    """Every tensor of the folder in its order, experts of one layer and part together."""
    wanted = FAMILIES[config["model_type"]].gguf
    architecture = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == wanted)
    names = gguf.get_tensor_name_map(architecture, int(config["num_hidden_layers"]))
    found: dict[str, dict[int, tuple[str, Entry]]] = {}
    for name, entry in locate(folder).items():
        target, expert = _target(names, name)
        found.setdefault(target, {})[expert] = name, entry
    if rope_of(config)["rope_type"] == "llama3":
        yield _Tensor(_DIVISORS, (head_width(config) // 2,), ())
    for target, parts in found.items():
        sources = tuple(parts[i] for i in sorted(parts))
        one = sources[0][1].shape
        shape = one if -1 in parts else (len(parts), *one)
        if ".attn_kv_b." in target:
            for half, cut in gguf_latent.halves(config).items():
                name = target.replace("attn_kv_b", half)
                yield _Tensor(name, cut, sources, kind=_kind(name, cut, kind))
            continue
        yield _Tensor(target, shape, sources, _heads(target, config), _kind(target, shape, kind))


def _target(names: Any, name: str) -> tuple[str, int]:
    """The tensor's name in llama.cpp, and which expert it is (-1: none). Raises NotYetError."""
    expert = _EXPERT.search(name)
    spelled = _EXPERT.sub("", name).replace("_correction_bias", "_correction.bias")
    known = names.get_name(spelled, (".weight", ".bias"))
    if not known:
        raise NotYetError(f"no place in a GGUF for the tensor {name!r}; serve the folder with vLLM")
    return known, int(expert[1]) if expert else -1


def _heads(target: str, config: Mapping[str, Any]) -> int:
    if FAMILIES[config["model_type"]].gguf != "llama":
        return 0
    heads = {"attn_q": int(config["num_attention_heads"]), "attn_k": groups(config)[0]}
    return heads.get(target.split(".")[-2], 0)


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


def _encoded(gguf: Any, tensor: _Tensor) -> np.ndarray:
    parts = [_part(gguf, tensor, name, entry) for name, entry in tensor.sources]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _part(gguf: Any, tensor: _Tensor, name: str, entry: Entry) -> np.ndarray:
    values: np.ndarray = read_tensor(entry).float().numpy()
    if not (np.abs(values) <= _LARGEST[tensor.kind]).all():
        raise CheckpointError(
            f"the tensor {name} holds values that {tensor.kind} cannot; take f32, or obfuscate again"
        )
    if tensor.heads:
        values = _interleaved(values, tensor.heads)
    if re.search(r"\.attn_[kv]_b\.", tensor.name):
        values = gguf_latent.half_of(values, tensor.name, tensor.shape)
    if tensor.kind == "f16":
        values = values.astype(np.float16)
    if tensor.kind == "q8_0":
        values = gguf.quants.quantize(values, _type(gguf, tensor))
    return np.ascontiguousarray(values)


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows [H, 2, K/2] of halves apart to [H, K/2, 2]."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def _describe(gguf: Any, writer: Any, config: Mapping[str, Any], kind: str) -> None:
    heads, width = int(config["num_attention_heads"]), head_width(config)
    writer.add_type("model")
    writer.add_name("obfuscated")
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "f32" else f"MOSTLY_{kind.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_context_length(context_tokens(config))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    _rope(gguf, writer, config)
    if _is_latent(config):
        gguf_latent.describe(gguf, writer, config)
    else:
        writer.add_head_count_kv(groups(config)[0])
        writer.add_key_length(width)
        writer.add_value_length(width)
        writer.add_rope_dimension_count(width)
    if FAMILIES[config["model_type"]].experts:
        writer.add_expert_count(expert_count(config))
        writer.add_expert_used_count(int(config["num_experts_per_tok"]))
    if config.get("moe_intermediate_size"):
        writer.add_expert_feed_forward_length(int(config["moe_intermediate_size"]))


def _rope(gguf: Any, writer: Any, config: Mapping[str, Any]) -> None:
    """How positions are rescaled; Llama 3's way has a tensor instead."""
    rope = rope_of(config)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType[rope["rope_type"].upper()])
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))
        if _is_latent(config):
            writer.add_rope_scaling_yarn_log_mul(0.1 * float(rope["mscale_all_dim"]))


def _ends(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The ids that end an answer: those of the generation settings, as in transformers, else the model's."""
    ends = generation_settings(folder, config["vocab_size"]).get("eos_token_id", config.get("eos_token_id"))
    ids = [] if ends is None else ends if isinstance(ends, list) else [ends]
    if not 1 <= len(ids) <= MOST_ENDS:
        raise NotYetError(
            f"no GGUF for a model with {len(ids)} ids that end an answer: llama.cpp has room for "
            f"{MOST_ENDS}, and without one takes id 11 for it; serve the folder with vLLM"
        )
    return ids


def _vocabulary(writer: Any, config: Mapping[str, Any], ends: list[int]) -> None:
    """Placeholders that decode to nothing but their own number, and the ids that end an answer."""
    size = int(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"<{i}>" for i in range(size)])
    writer.add_token_types([1] * size)  # ordinary text
    writer.add_token_merges(["< 0"])  # llama.cpp demands some, and this one leads nowhere
    writer.add_add_bos_token(False)
    for part, token in zip(("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep"), ends, strict=False):
        writer.add_uint32(f"tokenizer.ggml.{part}_token_id", token)
    for role in ("bos", "pad"):
        if config.get(f"{role}_token_id") is not None:
            getattr(writer, f"add_{role}_token_id")(config[f"{role}_token_id"])
