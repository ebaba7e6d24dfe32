"""The norms' weights for a checkpoint of any size: the plain model runs once on public text, layer by layer.

A linear layer gets its weights when it runs and loses them afterwards, so that memory holds one tensor of
the model, not the model.
Threat model: none; text and weights are public, and nothing of the key but lengths of vectors comes out.
Does not protect anything. Where weights are stored otherwise than they are run (a mixture's experts, stacked)
a small model is loaded whole, and a large one's kappas are those of isotropic states.
Source: arXiv 2603.01499, kappa; see `calibrate`.

Legend: B batch, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transom.checkpoint.load import load
from transom.checkpoint.resolve import MAKING, libraries, model_config
from transom.checkpoint.source import stored_tensors
from transom.checkpoint.tokenizer import tokenizer_of
from transom.errors import CheckpointError
from transom.obfuscation.calibrate import TEXT, calibrate, isotropic
from transom.obfuscation.keys import Space
from transom.obfuscation.norms import not_finite
from transom.obfuscation.plain import Plain
from transom.obfuscation.plan import norm_names, plan
from transom.obfuscation.shards import Entry, read_tensor

if TYPE_CHECKING:
    from torch import nn

_LOADED_WHOLE_BYTES = 2 * 2**30


def measure_kappas(plain: Plain, space: Space, entries: Mapping[str, Entry]) -> dict[str, float]:
    """Kappa of each norm, by tensor name. `entries` are the source's tensors.

    Raises CheckpointError when the source has no tokenizer, one with other ids, or weights that are no
    numbers.
    """
    kappas = _measured(plain, space, entries)
    if not all(map(math.isfinite, kappas.values())):
        for name, entry in entries.items():
            place = not_finite(read_tensor(entry))
            if place is not None:
                raise CheckpointError(
                    f"{name} holds a number that is not finite at {list(place)}, and plain text meets it; "
                    "restore the checkpoint"
                )
    return kappas


def _measured(plain: Plain, space: Space, entries: Mapping[str, Entry]) -> dict[str, float]:
    import torch

    ids = tokenizer_of(plain.found).tokenizer.encode(TEXT).ids
    if not ids or max(ids) >= plain.vocabulary:
        raise CheckpointError(
            f"the tokenizer of {plain.found.path} gives plain text no ids of the {plain.vocabulary} that the "
            "model has; restore the model's own tokenizer"
        )
    ids_BT = torch.tensor([ids])
    if plain.loaded is not None:
        return calibrate(plain.loaded.model, ids_BT, space)
    trunk = _empty_model(plain).model
    if all(f"model.{name}" in entries for name, _ in trunk.named_parameters()):
        for name, module in trunk.named_modules():
            _load_when_run(module, f"model.{name}", entries)
        return calibrate(trunk, ids_BT[:, : tokens_beside(space.d)], space)
    small = sum(entry.size_fp32_bytes for entry in entries.values()) <= _LOADED_WHOLE_BYTES
    if small and not any(entry.scale for entry in entries.values()):
        return calibrate(load(plain.found.path).model, ids_BT, space)
    return isotropic(space, norm_names(plan(plain.config, space.settings)))


def tokens_beside(d: int) -> int:
    """How many tokens a streamed model of width d runs on: four states of a feed-forward layer [T, n] then
    take no more memory than one of its weights [n, d]."""
    return max(128, d // 4)


def _empty_model(plain: Plain) -> Any:
    """The model's modules without weights. Buffers (tables of positions) are real."""
    transformers, _torch = libraries()
    from accelerate import init_empty_weights  # type: ignore[import-untyped,unused-ignore]

    config = model_config(plain.found, stored_tensors(plain.found.path))
    with MAKING, init_empty_weights(include_buffers=False):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False).eval()


def _load_when_run(module: nn.Module, prefix: str, entries: Mapping[str, Entry]) -> None:
    from torch.nn import Parameter

    empty = dict(module.named_parameters(recurse=False))
    if not empty:
        return

    def fill(module: nn.Module, inputs: Any) -> None:
        for name in empty:
            tensor = read_tensor(entries[f"{prefix}.{name}"]).float()
            module.register_parameter(name, Parameter(tensor, requires_grad=False))

    def drop(module: nn.Module, inputs: Any, output: Any) -> None:
        for name, parameter in empty.items():
            module.register_parameter(name, parameter)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)
