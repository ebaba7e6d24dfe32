"""The configuration of the model that the engine really runs: what a file says, and what its silence means.

A `config.json` names some values; its class fills in the rest, and classes differ. What is written for
another class, or read by another engine, must therefore start from the filled-in one.
Threat model: broken and absurd configurations, refused before anything is built or allocated; values that
transformers drops without a word although they change the model.
Does not protect against: a configuration that is well-formed and not the one the weights were trained with.
Source: transformers' configuration classes, asked and not copied.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transom.checkpoint.families import CHECKED, family_of
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.source import Source, Stored, damaged, read_json, stored_tensors
from transom.checkpoint.spare import is_spare
from transom.checkpoint.structure import check_structure, check_values
from transom.errors import CheckpointError, NotYetError, extra

_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
_SIDES = (
    "vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "num_local_experts", "num_experts", "n_routed_experts", "kv_lora_rank",
    "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "n_embd", "n_head", "n_inner",
)  # fmt: skip
_SHORT = 2**20  # a side that costs nothing, though a model may do without what it is the side of
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OLD_NAMES = {"LLaMAForCausalLM": "LlamaForCausalLM"}
TASKS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
_NOT_THE_MODELS = (
    "id2label", "label2id", "problem_type", "output_attentions", "output_hidden_states", "return_dict",
    "chunk_size_feed_forward",
)  # fmt: skip


def libraries() -> tuple[Any, Any]:
    """(transformers, torch), the former silent. Raises MissingExtraError."""
    with extra("models", "torch and transformers"):
        import torch
        import transformers
    transformers.utils.logging.set_verbosity(logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers, torch


MAKING = threading.RLock()
"""Held while transformers makes a model: meanwhile it changes `PreTrainedModel.tie_weights` and torch's
default dtype for the whole process, and two threads that overlap leave them changed for good."""


def resolved_config(source: Source) -> dict[str, Any]:
    """Every value of a checkpoint's configuration, as the engine takes it, in plain JSON types.

    Both generations of names for the rotary embedding and for experts are in it. `tie_word_embeddings` is
    True only where the head really is the embedding. Raises CheckpointError, NotYetError, MissingExtraError.
    """
    if source.kind == "gguf":
        from transom.checkpoint.gguf_config import gguf_config

        return gguf_config(read_gguf_head(source.path))
    tensors = stored_tensors(source.path)
    config = model_config(source, tensors)
    check_fit(source, config, tensors)
    flat = flattened(config) | {"tie_word_embeddings": is_tied(config, tensors)}
    if flat.get("dtype") is None:  # engines then take the weights'
        kinds = (_DTYPES[stored.dtype] for stored in tensors.values() if stored.dtype in _DTYPES)
        flat["dtype"] = flat["torch_dtype"] = next(kinds, None)
    return flat


def flattened(config: Any) -> dict[str, Any]:
    """A transformers configuration as `resolved_config` gives it: what its class knows, and nothing else."""
    record = config.to_dict()
    known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map.values())
    known |= {"model_type", "head_dim", "dtype", "quantization_config", "tie_word_embeddings"}
    # Other engines' DeepSeek asks for these.
    known |= {"moe_layer_freq", "scoring_func", "topk_method", "num_nextn_predict_layers"}
    flat = {name: value for name, value in record.items() if name in known and name not in _NOT_THE_MODELS}
    if flat.get("quantization_config") is None:
        flat.pop("quantization_config", None)
    for name, stored in config.attribute_map.items():
        if stored in flat:
            flat[name] = flat[stored]
    family = family_of(record)
    if family and family.attention == "latent":
        flat.pop("head_dim", None)  # the class's word for the rotary part alone
    elif not flat.get("head_dim") and "num_attention_heads" in flat:
        flat["head_dim"] = config.hidden_size // config.num_attention_heads
    if flat.get("dtype") is not None:
        flat["torch_dtype"] = flat["dtype"]
    return flat | _rotary(flat.get("rope_parameters"))


def model_config(source: Source, tensors: Mapping[str, Stored]) -> Any:
    """The configuration of a checkpoint directory as transformers' own class. Raises as `resolved_config`."""
    transformers, _torch = libraries()
    file = source.path / "config.json"
    raw = read_json(file)
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise damaged(f"{file} names no model_type")
    if kind not in transformers.CONFIG_MAPPING:
        raise NotYetError(f"{file}: the installed transformers does not know the model_type {kind[:80]!r}")
    check_values(file, raw)
    _check_bounds(file, raw, tensors)
    config = _as_class(source.path, transformers)
    config.return_dict, config.output_hidden_states = True, False
    for name in ("attn", "experts"):  # kernels that an engine prefers, which may not be installed here
        setattr(config, f"_{name}_implementation_internal", None)
    if getattr(config, "quantization_config", None) == {}:
        del config.quantization_config
    config.architectures = _architectures(config)
    if config.pad_token_id == -1:  # engines take it for none
        config.pad_token_id = None
    check_structure(file, raw, flattened(config))
    return config


def model_class(source: Source, config: Any) -> Any:
    """The class that a configuration names as its architecture. Raises NotYetError, CheckpointError."""
    transformers, _torch = libraries()
    names = config.architectures
    if not names:
        raise NotYetError(
            f"{source.path}/config.json names no architecture; write the class of the weights into it, such "
            'as "architectures": ["BertForMaskedLM"]'
        )
    found = getattr(transformers, names[0], None)
    if not isinstance(found, type) or not issubclass(found, transformers.PreTrainedModel):
        raise NotYetError(
            f"{source.path}: the installed transformers does not know the architecture {names[0][:80]!r}"
        )
    own: Any = found
    if own.config_class is not type(config):
        raise damaged(
            f"{source.path}/config.json says model_type {config.model_type!r}, whose class is not that of "
            f"the architecture {names[0]!r}"
        )
    return own


def task_class(source: Source, config: Any, task: str) -> Any:
    """The class of the configuration's architecture for a task. Raises NotYetError."""
    transformers, _torch = libraries()
    auto = getattr(transformers, TASKS[task])
    family = family_of({"model_type": config.model_type})
    sees_ahead = task == "causal-lm" and family is not None and not family.causal
    if sees_ahead or type(config) not in auto._model_mapping:
        raise NotYetError(f"{source.path}: {config.model_type!r} models are not for {task} yet")
    return auto._model_mapping[type(config)]


def check_fit(source: Source, config: Any, tensors: Mapping[str, Stored], wanted: Any | None = None) -> None:
    """The weights are those of the configuration: none missing, none spare, each of its shape. Where a class
    is `wanted`, that counts for its trunk, and its head may be the files' or not.

    transformers loads them without their values, so nothing is read or allocated. Raises CheckpointError.
    """
    _transformers, torch = libraries()
    found = wanted or model_class(source, config)
    plain = type(config).from_dict(config.to_dict())
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        if not isinstance(quantised, dict) or quantised.get("quant_method") != "fp8":
            return  # its tensors are packed in ways of its own
        del plain.quantization_config
    empty = {
        name: torch.empty(stored.shape, device="meta")
        for name, stored in tensors.items()
        if quantised is None or not name.endswith("_scale_inv")
    }
    try:
        with MAKING:
            model, info = found.from_pretrained(
                None, config=plain, state_dict=empty, device_map="meta", output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
    except Exception as error:
        raise CheckpointError(
            f"{source.path} could not be loaded ({type(error).__name__}): no model is made of this "
            "config.json and these shapes; restore its files"
        ) from error
    if wanted is not None:
        trunk = f"{wanted.base_model_prefix}."
        for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            info[what] = {name for name in info[what] if _is_of(trunk, name)}
    made = {"trunk": model.base_model_prefix, "modules": dict(model.named_modules())}
    shapes = {name: stored.shape for name, stored in tensors.items()}  # a fused tensor has none in the file
    unread = {
        name
        for name in info["unexpected_keys"]
        if not is_spare(name, shapes.get(name, (0,)), kind=config.model_type, **made)
    }
    _check_info(source.path, config, info, unread)


def _is_of(trunk: str, name: Any) -> bool:
    """Whether a tensor (or one with its two shapes) is of the trunk; the pooler is the head's."""
    name = name if isinstance(name, str) else name[0]
    return name.startswith(trunk) and ".pooler." not in name


def is_tied(config: Any, tensors: Mapping[str, Stored]) -> bool:
    """Whether head and embedding are one. A head in the file is the head, whatever the configuration says."""
    return bool(getattr(config, "tie_word_embeddings", False)) and "lm_head.weight" not in tensors


def causal_class(kind: str) -> str:
    """The name of a model_type's class of language models. Raises MissingExtraError."""
    transformers, _torch = libraries()
    return str(transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind])


def _architectures(config: Any) -> list[str] | None:
    names = config.architectures
    if not names and config.model_type in CHECKED:
        return [causal_class(config.model_type)]
    return [_OLD_NAMES.get(name, name) for name in names] if names else names


def _check_bounds(file: Path, raw: Mapping[str, Any], tensors: Mapping[str, Stored]) -> None:
    """No more layers than tensors, no long side longer than a whole tensor: or building it takes for ever."""
    largest = max((math.prod(stored.shape) for stored in tensors.values()), default=0)
    for names, most, what in (
        (_LAYERS, len(tensors), "the weights hold {} tensors"),
        (_SIDES, max(largest, _SHORT), "the largest tensor of the weights holds {} numbers"),
    ):
        for name in names:
            if isinstance(raw.get(name), int) and raw[name] > most:
                raise CheckpointError(
                    f"{file}: {name} is {str(raw[name])[:40]}, but {what.format(most)}; one of them is not "
                    "this model's: restore it"
                )


def _as_class(folder: Path, transformers: Any) -> Any:
    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each class has its own ways of refusing
        told = " ".join(str(error).split())[:200]
        raise damaged(
            f"{folder / 'config.json'} is not a configuration that transformers takes "
            f"({type(error).__name__}: {told})"
        ) from None


def _check_info(folder: Path, config: Any, info: Mapping[str, Any], unread: set[str]) -> None:
    further = further_layers(config.to_dict())
    spare = {name for name in unread if not name.startswith(further)}
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise damaged(f"{folder} lacks {len(missing)} tensors, first {missing[0]!r}")
    if info["mismatched_keys"]:
        name, had, wanted = sorted(info["mismatched_keys"], key=str)[0]
        raise damaged(
            f"{folder}: {name!r} has the shape {list(had)}, and config.json asks for {list(wanted)}"
        )
    if spare:
        raise CheckpointError(
            f"{folder} holds {len(spare)} tensors that no part of the model reads, first {min(spare)!r}: "
            "it would answer without them; give the configuration that they belong to"
        )


def further_layers(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Prefixes of layers after the last, which predict further tokens and which engines leave out."""
    first = config.get("num_hidden_layers") or 0
    layers = range(first, first + (config.get("num_nextn_predict_layers") or 0))
    return tuple(f"model.layers.{layer}." for layer in layers)


def _rotary(parameters: Any) -> dict[str, Any]:
    """The older names of the rotary embedding's values."""
    if not isinstance(parameters, dict) or not isinstance(parameters.get("rope_theta"), int | float):
        return {}
    scaling = {name: value for name, value in parameters.items() if name != "rope_theta"}
    plain = scaling.get("rope_type", "default") == "default"
    older = None if plain else scaling | {"type": scaling["rope_type"]}
    return {"rope_theta": parameters["rope_theta"], "rope_scaling": older}
