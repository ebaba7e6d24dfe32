"""LoRA adapters: read from disk, and added to a model for as long as they are looked at or trained.

The folder is what the peft library writes: `adapter_config.json` and `adapter_model.safetensors`, with
A [R, D] and B [O, R] for each linear layer; the layer's weight becomes W + scale * B A. `read_adapter` and
`applied` do without peft, for plain LoRA; `attach` is peft's own layers, for all that it computes.

Threat model: broken files, and files that would run code: a pickle is refused, never opened. Does not
protect against: weights that are well formed and malicious. What peft passes over in silence is an error
here: a tensor that its layers do not have, one that they lack, a setting that this version does not know.
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732 (rsLoRA's scale).

Shapes: D in, O out, R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.families import family_of
from transom.checkpoint.seeded import seeded
from transom.checkpoint.source import damaged, read_json
from transom.errors import CheckpointError, NotYetError, extra

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Factors = dict[str, tuple["torch.Tensor", "torch.Tensor"]]
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_ENDS = (".lora_A.weight", ".lora_B.weight")
_UNKNOWN = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")
# What would change or bring weights of the base, which the file's factors alone do not tell.
_BEYOND = ("modules_to_save", "trainable_token_indices", "layer_replication", "auto_mapping")
_PLAIN_STARTS = (None, True, False, "gaussian")  # the others (pissa, olora, ...) take something off the base


@dataclass(frozen=True)
class Adapter:
    """A and B by the name of their layer in the base model, and what their product is multiplied by."""

    factors: Factors
    scale: float


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in `folder`. Raises CheckpointError (absent, broken, a pickle), NotYetError (not LoRA)."""
    folder = Path(folder)
    config = _lora_config(folder)
    scale = _scale(folder, config)
    return Adapter(_pairs(folder / _WEIGHTS, _tensors(folder), config["r"]), scale)


def _lora_config(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "adapter_config.json")
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        kind = f"{config.get('peft_type')!r} with bias {config.get('bias')!r}"
        raise NotYetError(f"{folder} is an adapter of type {kind}; known: LORA with bias 'none'")
    return config


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / _WEIGHTS
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").exists()
        why = "its weights only as a pickle, which runs code when read" if pickle else "no weights"
        raise CheckpointError(f"{folder} holds {why}; save it with safe_serialization=True ({file.name})")
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({type(error).__name__})") from None


def _scale(folder: Path, config: dict[str, Any]) -> float:
    if used := [name for name in _UNKNOWN if config.get(name)]:
        raise NotYetError(
            f"{folder} uses {', '.join(used)}, which is not known here; merge it with peft first"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise damaged(f"{folder}: r must be a positive integer and lora_alpha a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(file: Path, tensors: dict[str, torch.Tensor], rank: int) -> Factors:
    if unknown := sorted(name for name in tensors if not name.endswith(_ENDS)):
        raise NotYetError(f"{file} holds {unknown[0]!r}; known are the factors of linear layers only")
    layers = {name.removesuffix(end) for name in tensors for end in _ENDS if name.endswith(end)}
    pairs = {}
    for layer in sorted(layers):
        a_RD, b_OR = (tensors.get(layer + end) for end in _ENDS)
        if a_RD is None or b_OR is None or a_RD.ndim != 2 or b_OR.ndim != 2:
            raise damaged(f"{file}: {layer!r} lacks one of its two factors")
        if not a_RD.shape[0] == b_OR.shape[1] == rank:
            shapes = f"{tuple(a_RD.shape)} and {tuple(b_OR.shape)}"
            raise damaged(f"{file}: {layer!r} has factors {shapes}, not of rank {rank}")
        if not (a_RD.isfinite().all() and b_OR.isfinite().all()):
            raise CheckpointError(f"{file}: {layer!r} holds values that are not finite")
        pairs[layer.removeprefix(_PREFIX)] = (a_RD.float(), b_OR.float())
    if not pairs:
        raise CheckpointError(f"{file} holds no factors; there is nothing to audit")
    return pairs


@contextmanager
def applied(model: Any, adapter: Adapter) -> Iterator[None]:
    """`model` with the adapter added, and exactly as it was afterwards. Raises CheckpointError."""
    weights = {name: _weight(model, name, *factors) for name, factors in adapter.factors.items()}
    before = {name: weight.data for name, weight in weights.items()}
    try:
        _add(weights, adapter)
        yield
    finally:
        for name, weight in weights.items():
            weight.data = before[name]


def merge(model: PreTrainedModel, folder: str | Path) -> None:
    """Add the adapter in `folder` to the model's weights, in new tensors. Raises as `attach` and
    `read_adapter`, with nothing added."""
    attach(model, folder)  # which refuses what the factors alone do not tell
    detach(model)
    adapter = read_adapter(folder)
    _add({name: _weight(model, name, *factors) for name, factors in adapter.factors.items()}, adapter)


def _add(weights: Mapping[str, Any], adapter: Adapter) -> None:
    for name, (a_RD, b_OR) in adapter.factors.items():
        weights[name].data = weights[name].data + (adapter.scale * b_OR @ a_RD).to(weights[name])


def _weight(model: Any, name: str, a_RD: torch.Tensor, b_OR: torch.Tensor) -> Any:
    from torch import nn

    layer = dict(model.named_modules()).get(name)
    if not isinstance(layer, nn.Linear):
        raise CheckpointError(f"the base model has no linear layer {name!r}; is it this adapter's base?")
    embedding = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None
    if embedding is not None and embedding.weight is layer.weight:
        raise NotYetError(
            f"the adapter changes {name!r}, whose weights are the embedding's too; untie them first"
        )
    wanted = (b_OR.shape[0], a_RD.shape[1])
    if layer.weight.shape != wanted:
        raise CheckpointError(
            f"the adapter's {name!r} is {wanted}, the base model's {tuple(layer.weight.shape)}; "
            "is it this adapter's base?"
        )
    return layer.weight


def attach(
    model: PreTrainedModel, folder: str | Path, *, first_layer: int | None = None, trainable: bool = False
) -> None:
    """Put the adapter's layers, as peft computes them, into `model` in place; `detach` takes them out again.

    `first_layer` says that the model is part of the one that the adapter was made for, from that layer on:
    layers are renumbered, and those that the model does not have are left out. Without it, and apart from
    that, file and layers must have the very same tensors. Only the adapter's are made `trainable`; what was
    trainable before stays so. A head that was trained beside it without peft's `task_type` is in no file.
    Raises CheckpointError (broken, another base's), NotYetError (what is beyond LoRA's factors, an adapter
    already there), MissingExtraError.
    """
    folder = Path(folder)
    with extra("models", "peft and torch"):
        import peft
    _check_beyond(folder, {field.name for field in fields(peft.LoraConfig)})
    if hasattr(model, "peft_config"):
        raise NotYetError("the model has an adapter already; detach it first")
    config = peft.LoraConfig.from_pretrained(str(folder))
    config.inference_mode = not trainable
    before = [parameter for parameter in model.parameters() if parameter.requires_grad]
    tensors = _renumbered(model, folder / _WEIGHTS, _tensors(folder), first_layer)
    try:
        with seeded(0):  # for factors that the file's replace
            peft.inject_adapter_in_model(config, model)
        _check_same(folder / _WEIGHTS, tensors, peft.get_peft_model_state_dict(model))
        peft.set_peft_model_state_dict(model, tensors)
    except (ValueError, KeyError, CheckpointError) as error:
        detach(model)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{folder} does not fit the model ({type(error).__name__}); is it this adapter's base?"
        ) from None
    finally:
        for parameter in before:
            parameter.requires_grad_(True)


def detach(model: PreTrainedModel) -> None:
    """Take the layers of `attach` out of the model, whose own weights they never changed."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            model.set_submodule(name, module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def _check_beyond(folder: Path, known: set[str]) -> None:
    config = _lora_config(folder)
    if config.get("init_lora_weights") not in _PLAIN_STARTS:
        raise NotYetError(
            f"{folder} started from {str(config['init_lora_weights'])[:40]!r}, which changes the base model; "
            "convert it to plain LoRA with peft first"
        )
    beyond = [name for name in config if config[name] and (name in _BEYOND or name not in known)]
    if beyond:
        raise NotYetError(f"{folder} uses {', '.join(beyond)[:200]}, which is not known here")


def _renumbered(
    model: Any, file: Path, tensors: Mapping[str, torch.Tensor], first_layer: int | None
) -> dict[str, torch.Tensor]:
    if strange := [name for name in tensors if not name.startswith(_PREFIX)]:
        raise CheckpointError(f"{file} holds {strange[0]!r}, which is not named as peft names its tensors")
    named = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    if first_layer is None:
        return named
    family = family_of({"model_type": model.config.model_type})
    if family is None:
        raise NotYetError(f"the layers of a {model.config.model_type!r} model are not known; give it whole")
    count = len(getattr(model, family.names.trunk, model).get_submodule(family.names.blocks))
    place = re.compile(rf"(?<=\b{re.escape(family.names.blocks)}\.)\d+(?=\.)")
    kept = {}
    for name, tensor in named.items():
        found = place.search(name)
        layer = int(found[0]) - first_layer if found else 0
        if 0 <= layer < count:
            kept[place.sub(str(layer), name, count=1)] = tensor
    return kept


def _check_same(file: Path, ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    if differing := sorted(ours.keys() ^ theirs.keys()):
        where = "the file alone has" if differing[0] in ours else "the file lacks"
        raise CheckpointError(
            f"{file}: {where} {differing[0]!r}, of {len(differing)} such tensors; is it this adapter's base, "
            "and all of it? For a part of it, say which layer comes first"
        )
    if not ours:
        raise CheckpointError(f"{file} holds no factors of these layers")
    for name, tensor in ours.items():
        if tensor.shape != theirs[name].shape:
            shapes = f"{tuple(tensor.shape)}, and the model asks for {tuple(theirs[name].shape)}"
            raise CheckpointError(f"{file}: {name!r} is {shapes}; is it this adapter's base?")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name!r} holds values that are not finite")
