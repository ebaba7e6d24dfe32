"""Mixtures of experts: experts and the router's columns change places together; each expert is keyed alone.

    router' = Q W_r Pi_x      bias' = bias Pi_x      expert'_j = expert order[j], with its own Zf and Hf

A router is a linear map of the normed stream: it takes Q and the folded norm and nothing else. Its columns
are never normalised, because their lengths decide who is chosen. Where the choice is limited to groups
(DeepSeek), groups change places and experts change places inside their group, which leaves every group's
score alone. All experts of a layer read and write under one label: their sum is one sub-layer's contribution.

Threat model: the host knows the plain weights and sees the obfuscated ones, and which experts a token takes.
Does not protect the order of experts from a host that compares their load on public text, or DeepSeek's
correction biases (whose values stay), or a neuron's identity inside an expert (as in `feedforward`).
Source: Lin et al., arXiv 2603.01499, mixture of experts; the paper's normalised columns are left out.

Legend: d plain width, w obfuscated width, n inner neurons, X experts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint.families import FAMILIES, Experts
from transom.errors import CheckpointError
from transom.obfuscation.feedforward import inwards, outwards, own_label
from transom.obfuscation.norms import reads, wide
from transom.obfuscation.task import Config, Context, Made, Task, feedforward_label
from transom.privacy.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor

_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def expert_count(config: Config) -> int:
    """Routed experts of a layer, under any of the names in use. Raises CheckpointError."""
    for name in ("n_routed_experts", "num_experts", "num_local_experts"):
        if isinstance(config.get(name), int):
            return int(config[name])
    raise CheckpointError("config.json names no number of experts (num_local_experts); restore it")


def expert_order(secret: bytes, config: Config, layer: int) -> NDArray[np.int64]:
    """The plain expert at each place [X] of a layer. Raises CheckpointError for groups of unequal size."""
    count, groups = expert_count(config), int(config.get("n_group") or 1)
    if count % groups:
        raise CheckpointError(f"config.json puts {count} experts into {groups} equal groups; restore it")
    stream = Stream(secret, f"{feedforward_label(layer)}/experts")
    members = np.arange(count).reshape(groups, -1)[stream.permutation(groups)]
    return np.concatenate([group[stream.permutation(len(group))] for group in members])


def is_sparse(config: Config, layer: int) -> bool:
    """Whether a layer has experts: none, all of Mixtral's, and those that Qwen3-MoE and DeepSeek name."""
    experts = FAMILIES[config["model_type"]].experts
    if experts is None:
        return False
    if experts.sparse == "step":
        step = int(config.get("decoder_sparse_step") or 1)
        return layer not in (config.get("mlp_only_layers") or ()) and (layer + 1) % step == 0
    return experts.sparse == "all" or layer >= int(config.get("first_k_dense_replace") or 0)


def mixture_tasks(config: Config, layer: int) -> tuple[Task, ...]:
    """Router, routed and shared experts of a layer: one weight a task."""
    known = FAMILIES[config["model_type"]].experts or Experts()
    own = f"model.layers.{layer}.{known.part}"
    before = f"model.layers.{layer}.post_attention_layernorm.weight"
    scores, correction = f"{own}.gate.weight", f"{own}.gate.e_score_correction_bias"
    tasks = [Task((scores,), (scores, before), router, layer)]
    if known.correction:
        tasks.append(Task((correction,), (correction,), bias, layer, local=True))
    experts = [f"{own}.experts.{place}" for place in range(expert_count(config))]
    experts += [f"{own}.shared_experts"] if config.get("n_shared_experts") else []
    for expert in experts:
        local = "shared" not in expert
        for part, transform, *norm in (
            (known.gate, gate, before),
            (known.up, up, before),
            (known.down, down),
        ):
            weight = f"{expert}.{part}.weight"
            tasks.append(Task((weight,), (weight, *norm), transform, layer, local))
    return tuple(tasks)


def place_experts(tasks: Iterable[Task], config: Config, secret: bytes) -> tuple[Task, ...]:
    """The tasks with each place's weights made from the expert that the secret puts there.

    Outputs keep their order: the layout of the written files must not tell the permutation.
    """
    orders: dict[int, NDArray[np.int64]] = {}
    placed = []
    for task in tasks:
        match = _EXPERT.search(task.outputs[0])
        if match:
            if task.layer not in orders:
                orders[task.layer] = expert_order(secret, config, task.layer)
            name = task.outputs[0]
            plain = orders[task.layer][int(match[1])]
            source = f"{name[: match.start(1)]}{plain}{name[match.end(1) :]}"
            task = replace(task, sources=(source, *task.sources[1:]))
        placed.append(task)
    return tuple(placed)


def router(context: Context, weight_Xd: Tensor, norm_d: Tensor) -> Made:
    """The router [X, w]."""
    inverse_wd = context.space.inverse(own_label(context), wide(weight_Xd[:0]))
    order_X = _order(context).to(weight_Xd.device)
    return (reads(weight_Xd, inverse_wd, norm_d=norm_d, order_n=order_X),)


def bias(context: Context, bias_X: Tensor) -> Made:
    """What is added to the scores [X] for the choice alone."""
    return (bias_X[_order(context).to(bias_X.device)],)


def gate(context: Context, *sources: Tensor) -> Made:
    """An expert's gate [n, w]."""
    return inwards(context, *sources, label=_label)


def up(context: Context, *sources: Tensor) -> Made:
    """An expert's linear branch [n, w]."""
    return inwards(context, *sources, label=_label, scaled=True)


def down(context: Context, *sources: Tensor) -> Made:
    """An expert's way back [w, n]."""
    return outwards(context, *sources, label=_label)


def _order(context: Context) -> Tensor:
    import torch

    return torch.from_numpy(expert_order(context.space.secret, context.config, context.task.layer))


def _label(context: Context) -> str:
    """The label of an expert's inner keys. A task that the secret did not place would write a wrong model."""
    (name, *_), (source, *_) = context.task.outputs, context.task.sources
    place, plain = _EXPERT.search(name), _EXPERT.search(source)
    if place is None or plain is None:
        return f"{own_label(context)}/shared"
    if int(_order(context)[int(place[1])]) != int(plain[1]):
        raise CheckpointError(
            f"{name} would be made from another expert than the secret's; plan with the secret"
        )
    return f"{own_label(context)}/experts.{plain[1]}"
