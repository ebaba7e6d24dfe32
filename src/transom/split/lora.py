"""The adapter and the head of a model that is tuned in parts, under the names that peft writes.

peft's layers are put into the blocks of one party; a classifier's head is trained beside them. Names are
those of an adapter's file without its prefix: `model.layers.1.self_attn.q_proj.lora_A.weight`,
`score.weight`.
Threat model: mistakes; see `checks`. Does not protect anything.
Source: Hu et al., arXiv 2106.09685.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from transom.checkpoint.cut import Tail
from transom.checkpoint.families import family_of
from transom.checkpoint.seeded import seeded
from transom.errors import CheckpointError, extra
from transom.split.checks import blocks_of, covered, require_trainable
from transom.split.job import Adapter

if TYPE_CHECKING:
    from torch import nn
    from torch.nn import Parameter

_KEPT = ("lora_A", "lora_B")


def lora_config(model: Any, adapter: Adapter, blocks: Sequence[int]) -> Any:
    """peft's configuration of an adapter in these blocks, without a task. Raises MissingExtraError."""
    with extra("models", "peft and torch"):
        from peft import LoraConfig
    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=0.0,
        target_modules=list(targets_of(model, adapter)),
        layers_to_transform=list(blocks),
        layers_pattern=blocks_of(model)[0].rsplit(".", 1)[-1],
    )


def targets_of(model: Any, adapter: Adapter) -> tuple[str, ...]:
    """The layers that the job names, or query and value as this architecture calls them."""
    family = family_of({"model_type": model.config.model_type})
    if adapter.targets or family is None:
        return adapter.targets
    return tuple(name.rsplit(".", 1)[-1] for name in (family.names.query, family.names.value))


def weighing(model: Any, names: Iterable[str]) -> frozenset[str]:
    """Those of these tensors that belong to queries and keys. They say how much a token heeds each other: of
    a text of one row, which heeds itself alone, their gradient is zero but for rounding."""
    family = family_of({"model_type": model.config.model_type})
    layers = () if family is None else (family.names.query, family.names.key)
    return frozenset(name for name in names if any(f".{layer}." in name for layer in layers))


def add_adapter(model: Any, adapter: Adapter, blocks: range, seed: int) -> None:
    """Put a fresh adapter into these blocks, in place; nothing else of the model is trained then.

    Same seed, same weights. Raises MisconfiguredError when it would not cover what was named.
    """

    wanted = adapter_names(model, adapter, blocks)
    config = lora_config(model, adapter, blocks)  # before it: a missing extra
    from peft import inject_adapter_in_model

    with seeded(seed):
        inject_adapter_in_model(config, model)
    require_trainable(model, [name.replace(".weight", ".default.weight") for name in wanted])


def adapter_names(model: Any, adapter: Adapter, blocks: Sequence[int]) -> tuple[str, ...]:
    """The names of the tensors of an adapter in these blocks. Raises as `checks.covered`."""
    layers = covered(model, targets_of(model, adapter), blocks)
    return tuple(f"{layer}.{kept}.weight" for layer in layers for kept in _KEPT)


def head_modules(tail: Tail) -> dict[str, nn.Module]:
    """What of a classifier's tail is trained and saved: its head, and the pooler before it, by name.

    The pooler because few checkpoints have one, and a random one would be lost. Raises CheckpointError for
    a model without a head.
    """
    parts = tail.parts
    chosen = [part for part in (getattr(parts.trunk, "pooler", None), parts.head) if part is not None]
    if parts.head is None:
        raise CheckpointError(f"{type(parts.model).__name__} has no head to train")
    return {name: part for name, part in parts.model.named_modules() if any(part is one for one in chosen)}


def head_names(tail: Tail) -> tuple[str, ...]:
    """The names of the head's tensors."""
    return tuple(
        f"{name}.{inner}" for name, module in head_modules(tail).items() for inner in module.state_dict()
    )


def train_head(tail: Tail) -> None:
    """Let the head's tensors be trained, beside whatever is."""
    for module in head_modules(tail).values():
        module.requires_grad_(True)


def trained(model: Any) -> dict[str, Parameter]:
    """The parameters that are trained, by the names that a file gives them."""
    return {
        name.replace(".default.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
