"""The slices of a model's weights that are of single heads: to tune them alone, and to leave a head out.

Threat model: none here. Does not protect anything: what other heads learnt stays.
Source: the projections of transformers' models, as `checkpoint.families` names them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from transom.checkpoint.families import Names, family_of
from transom.errors import NotYetError

Scope = Literal["heads", "attention", "all"]
Head = tuple[int, int]


def _names(model: Any) -> Names:
    family = family_of({"model_type": model.config.model_type})
    if family is None:
        raise NotYetError(f"the parts of a {model.config.model_type!r} model are not known; nothing is tuned")
    return family.names


def _blocks(model: Any) -> Any:
    names = _names(model)
    return getattr(model, names.trunk, model).get_submodule(names.blocks)


def projections(model: Any, layer: int) -> list[tuple[Any, str]]:
    """The four projections of a layer, by what they are. Raises NotYetError."""
    import torch

    block, found = _blocks(model)[layer], []
    names = _names(model)
    for kind in ("query", "key", "value", "attention_out"):
        path = getattr(names, kind)
        module = block.get_submodule(path) if path else None
        if not isinstance(module, torch.nn.Linear):
            raise NotYetError(
                f"a {model.config.model_type!r} model has no {kind} projection of its own to tune"
            )
        found.append((module, kind))
    if found[0][0].out_features != found[3][0].in_features:
        raise NotYetError(f"the {model.config.model_type!r} model's queries are not of its heads alone")
    return found


def masks(model: Any, heads: Sequence[Head]) -> list[tuple[Any, Any]]:
    """Weights that have a part of one of these heads, each with a mask of it.

    That is rows of queries, and of the keys and values that the head shares with its group, with their
    biases, and columns of the projection out. Raises NotYetError."""
    import torch

    found = []
    for layer in sorted({layer for layer, _ in heads}):
        own, parts = [head for one, head in heads if one == layer], projections(model, layer)
        width = parts[3][0].in_features // model.config.num_attention_heads
        group = parts[0][0].out_features // parts[1][0].out_features
        for module, kind in parts:
            mask = torch.zeros_like(module.weight)
            for head in own:
                at = head if kind in ("query", "attention_out") else head // group
                rows = slice(at * width, (at + 1) * width)
                mask[(slice(None), rows) if kind == "attention_out" else rows] = 1
            found.append((module.weight, mask))
            if kind != "attention_out" and module.bias is not None:
                found.append((module.bias, mask[:, 0].clone()))
    return found


@contextmanager
def tuned(model: Any, scope: Scope, heads: Sequence[Head]) -> Iterator[list[Any]]:
    """The weights of a scope, with gradients."""
    layers = model.config.num_hidden_layers
    found: dict[Any, Any] = dict(masks(model, heads)) if scope == "heads" else {}
    if scope != "heads":
        for layer in range(layers):
            found |= {one: None for module, _ in projections(model, layer) for one in module.parameters()}
    if scope == "all":
        found |= dict.fromkeys(model.parameters())
    handles = []
    for weight, mask in found.items():
        weight.requires_grad_(True)
        if mask is not None:
            handles.append(weight.register_hook(lambda slope, mask=mask: slope * mask))
    try:
        yield list(found)
    finally:
        for handle in handles:
            handle.remove()
        model.requires_grad_(False)


@contextmanager
def without(model: Any, layer: int, head: int) -> Iterator[None]:
    """The model without what a head found."""
    out, _ = projections(model, layer)[3]
    width = out.in_features // model.config.num_attention_heads

    def zero(_module: Any, inputs: Any) -> Any:
        found = inputs[0].clone()
        found[..., head * width : (head + 1) * width] = 0
        return (found, *inputs[1:])

    handle = out.register_forward_pre_hook(zero)
    try:
        yield
    finally:
        handle.remove()
