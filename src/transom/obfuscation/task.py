"""What the writer schedules: one task makes a few tensors of the obfuscated checkpoint from a few plain ones.

Threat model: none here. Does not protect anything by itself; its transform does.
Labels name the use of a key: what a sub-layer reads and what it writes share a label and not a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.obfuscation.keys import Space

if TYPE_CHECKING:
    from torch import Tensor

Config = Mapping[str, Any]
Made = tuple["Tensor", ...]  # a task's outputs, in its order
Transform = Callable[..., Made]  # of the context, and of the task's sources one by one


@dataclass(frozen=True)
class Task:
    """`outputs` from `sources` (tensor names) by `transform`, in layer `layer` or -1. Where it is `local`, a
    number of the first source that is not finite stays in its row (of a token, of an expert)."""

    outputs: tuple[str, ...]
    sources: tuple[str, ...]
    transform: Transform
    layer: int = -1
    local: bool = False


@dataclass(frozen=True)
class Context:
    """What a transform needs beside its tensors. `kappas`: the weight of each norm, by its tensor name."""

    task: Task
    space: Space
    config: Config
    kappas: Mapping[str, float]


Planner = Callable[[Config, int], tuple[Task, ...]]  # of one layer


def attention_label(layer: int) -> str:
    """The key label of a layer's attention: what it reads and what it writes."""
    return f"layers.{layer}.attention"


def feedforward_label(layer: int) -> str:
    """The key label of a layer's feed-forward, or of all experts of its mixture."""
    return f"layers.{layer}.feedforward"


def linear_task(name: str, transform: Transform, layer: int, *norm: str, bias: bool) -> Task:
    """The task of a linear layer: its weight, the norm before it if it reads the stream, its bias if any."""
    outputs = (f"{name}.weight", *([f"{name}.bias"] if bias else []))
    return Task(outputs, (outputs[0], *norm, *outputs[1:]), transform, layer)
