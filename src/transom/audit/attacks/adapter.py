"""LoRA adapters: read from disk, and added to a base model for as long as they are looked at.

The folder is what the peft library writes: `adapter_config.json` and `adapter_model.safetensors`, with
A [R, D] and B [O, R] for each linear layer; the layer's weight becomes W + scale * B A.

Threat model: broken files, and files that would run code: a pickle is refused, never opened. Does not
protect against: weights that are well formed and malicious.
Source: Hu et al. 2021, arXiv 2106.09685, section 4.1; Kalajdzievski 2023, arXiv 2312.03732 (rsLoRA's scale).

Shapes: D in, O out, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.source import read_json
from transom.errors import CheckpointError, NotYetError

if TYPE_CHECKING:
    import torch

_PREFIX = "base_model.model."
_ENDS = (".lora_A.weight", ".lora_B.weight")
_UNKNOWN = ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern", "modules_to_save", "lora_bias")


@dataclass(frozen=True)
class Adapter:
    """A and B by the name of their layer in the base model, and what their product is multiplied by."""

    factors: dict[str, tuple[torch.Tensor, torch.Tensor]]
    scale: float


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in `folder`. Raises CheckpointError (absent, broken, a pickle), NotYetError (not LoRA)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    config = read_json(folder / "adapter_config.json")
    scale = _scale(folder, config)
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        pickle = (folder / "adapter_model.bin").exists()
        why = "its weights only as a pickle, which runs code when read" if pickle else "no weights"
        raise CheckpointError(f"{folder} holds {why}; save it with safe_serialization=True ({file.name})")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a whole safetensors file ({type(error).__name__})") from None
    return Adapter(_pairs(file, tensors, config["r"]), scale)


def _scale(folder: Path, config: dict[str, Any]) -> float:
    if config.get("peft_type") != "LORA" or config.get("bias", "none") != "none":
        kind = f"{config.get('peft_type')!r} with bias {config.get('bias')!r}"
        raise NotYetError(f"{folder} is an adapter of type {kind}; known: LORA with bias 'none'")
    if used := [name for name in _UNKNOWN if config.get(name)]:
        raise NotYetError(
            f"{folder} uses {', '.join(used)}, which is not known here; merge it with peft first"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"{folder}: r must be a positive integer and lora_alpha a number; restore it")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _pairs(
    file: Path, tensors: dict[str, torch.Tensor], rank: int
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """The two factors by layer, every tensor used and of the rank that the configuration names."""
    if unknown := sorted(name for name in tensors if not name.endswith(_ENDS)):
        raise NotYetError(f"{file} holds {unknown[0]!r}; known are the factors of linear layers only")
    layers = {name.removesuffix(end) for name in tensors for end in _ENDS if name.endswith(end)}
    pairs = {}
    for layer in sorted(layers):
        a_RD, b_OR = (tensors.get(layer + end) for end in _ENDS)
        if a_RD is None or b_OR is None or a_RD.ndim != 2 or b_OR.ndim != 2:
            raise CheckpointError(f"{file}: {layer!r} lacks one of its two factors; restore it")
        if not a_RD.shape[0] == b_OR.shape[1] == rank:
            shapes = f"{tuple(a_RD.shape)} and {tuple(b_OR.shape)}"
            raise CheckpointError(f"{file}: {layer!r} has factors {shapes}, not of rank {rank}; restore it")
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
        for name, (a_RD, b_OR) in adapter.factors.items():
            delta_OD = (adapter.scale * b_OR @ a_RD).to(before[name])
            weights[name].data = before[name] + delta_OD
        yield
    finally:
        for name, weight in weights.items():
            weight.data = before[name]


def _weight(model: Any, name: str, a_RD: torch.Tensor, b_OR: torch.Tensor) -> Any:
    from torch import nn

    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, nn.Linear):
        raise CheckpointError(f"the base model has no linear layer {name!r}; is it this adapter's base?")
    wanted = (b_OR.shape[0], a_RD.shape[1])
    if layer.weight.shape != wanted:
        raise CheckpointError(
            f"the adapter's {name!r} is {wanted}, the base model's {tuple(layer.weight.shape)}; "
            "is it this adapter's base?"
        )
    return layer.weight
