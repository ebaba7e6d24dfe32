"""What one party has trained, to bytes and back, bit for bit: weights, AdamW's moments, the count of steps.

One safetensors file in memory. A run that stops, is read into fresh objects and goes on ends with the very
bits of one that did not stop. What it is of (`about`: job, party, model) is in it and must be the same.
Threat model: accidents: another run's file, half a file, flipped bits that make no sense; all is checked
before anything is changed. Does not protect: a state forged by who may write it.
Source: own. torch's AdamW keeps `step`, `exp_avg`, `exp_avg_sq` for each parameter.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.checkpoint.finite import is_finite
from transom.config import load_json
from transom.errors import CheckpointError
from transom.link.learner import Learner

if TYPE_CHECKING:
    from torch import Tensor

_FORMAT = "split-state/1"
_OPTIMISER = "AdamW, foreach"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_LARGEST_STEP = 2**24  # torch counts in float32
_DO = "restore the state of this run, or begin it anew"


@dataclass(frozen=True)
class State:
    """A state as it was read: steps done, what it is of, weights by name, and the optimiser's moments."""

    steps: int
    about: Mapping[str, str]
    weights: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    buffers: Mapping[str, Tensor]


def save(learner: Learner, about: Mapping[str, str]) -> bytes:
    """The learner's state as bytes: the same bytes for the same state."""
    from safetensors.torch import save as to_bytes

    tensors = {f"weight/{name}": value.detach() for name, value in learner.parameters.items()}
    tensors |= {f"buffer/{name}": value for name, value in learner.buffers.items()}
    for name, parameter in learner.parameters.items():
        for moment, value in learner.optimiser.state.get(parameter, {}).items():
            tensors[f"{moment}/{name}"] = value
    head = {"format": _FORMAT, "optimiser": _OPTIMISER, "steps": learner.steps, "about": dict(about)}
    plain = {name: value.to("cpu", copy=True).contiguous() for name, value in tensors.items()}
    return to_bytes(plain, {"transom": json.dumps(head, sort_keys=True)})


def read(data: bytes, about: Mapping[str, str]) -> State:
    """A state from bytes. Raises CheckpointError: malformed, not finite, or of something else (both told)."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        head = _head(data)
        tensors = load(data)
        steps, found = head["steps"], head["about"]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"this is no whole state ({len(data)} bytes, {type(error).__name__}); {_DO}"
        ) from None
    if (head.get("format"), head.get("optimiser")) != (_FORMAT, _OPTIMISER):
        raise CheckpointError(f"this state is not of {_FORMAT} with {_OPTIMISER}; {_DO}")
    if type(steps) is not int or not 0 <= steps < _LARGEST_STEP or not isinstance(found, dict):
        raise CheckpointError(f"this state's head is not one that is written here; {_DO}")
    if other := sorted(name for name in {*found, *about} if found.get(name) != about.get(name)):
        told = "; ".join(
            f"{name}: it has {str(found.get(name))[:80]!r}, here {about.get(name)!r}" for name in other
        )
        raise CheckpointError(f"this state is of something else: {told}; {_DO}")
    kinds: dict[str, dict[str, Tensor]] = {kind: {} for kind in ("weight", "buffer", *_MOMENTS)}
    for key, value in tensors.items():
        kind, _, name = key.partition("/")
        floats = value.is_floating_point() or kind == "buffer"
        if kind not in kinds or not floats or not is_finite(value.float()):
            raise CheckpointError(f"this state holds a tensor that is not finite or not known; {_DO}")
        kinds[kind][name] = value
    return State(steps, found, kinds.pop("weight"), kinds, kinds.pop("buffer"))


def restore(learner: Learner, data: bytes, about: Mapping[str, str]) -> None:
    """Make the learner what it was when it was saved. Raises CheckpointError and has then changed nothing."""
    state = read(data, about)
    _require_fit(learner, state)
    put_weights(learner, state)
    for name, parameter in learner.parameters.items() if state.steps else ():
        moments = {kind: state.moments[kind][name].clone() for kind in _MOMENTS}
        step = moments.pop("step")  # torch keeps it on the processor
        learner.optimiser.state[parameter] = {
            "step": step,
            **{kind: value.to(parameter.device) for kind, value in moments.items()},
        }
    learner.optimiser.zero_grad(set_to_none=True)
    learner.steps = state.steps


def put_weights(learner: Learner, state: State) -> None:
    """The state's weights alone, to use what was trained. Raises CheckpointError unless they fit."""
    import torch

    _require_same(learner.parameters, state.weights)
    _require_same(learner.buffers, state.buffers)
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(state.weights[name])
        for name, buffer in learner.buffers.items():
            buffer.copy_(state.buffers[name])


def _require_fit(learner: Learner, state: State) -> None:
    _require_same(learner.parameters, state.weights)
    _require_same(learner.buffers, state.buffers)
    for kind in _MOMENTS:
        if not state.steps and state.moments[kind]:
            raise CheckpointError(f"this state has moments of the optimiser, and no steps; {_DO}")
        if state.steps and kind != "step":
            _require_same(learner.parameters, state.moments[kind])
    if not state.steps:
        return
    if state.moments["step"].keys() != learner.parameters.keys() or any(
        value.shape != () or not 1 <= float(value) <= state.steps or float(value) % 1
        for value in state.moments["step"].values()
    ):
        raise CheckpointError(f"this state's counts of steps are not those of its {state.steps} steps; {_DO}")
    if any(bool((value < 0).any()) for value in state.moments["exp_avg_sq"].values()):
        raise CheckpointError(f"this state holds squares below zero; {_DO}")


def _require_same(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    differing = sorted(own.keys() ^ tensors.keys()) or sorted(
        name
        for name, parameter in own.items()
        if (parameter.shape, parameter.dtype) != (tensors[name].shape, tensors[name].dtype)
    )
    if differing:
        raise CheckpointError(
            f"this state does not fit what is trained here, first {differing[0]!r} of {len(differing)} "
            f"tensors; {_DO}"
        )


def _head(data: bytes) -> dict[str, Any]:
    """Our part of the file's header."""
    size = int.from_bytes(data[:8], "little")
    header = load_json(data[8 : 8 + size])
    head: dict[str, Any] = load_json(header["__metadata__"]["transom"])
    return head
