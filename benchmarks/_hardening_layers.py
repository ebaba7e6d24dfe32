"""Variants whose layers differ from the public ones: re-grown feed-forwards, and secretly fine-tuned weights.

A re-grown feed-forward starts from random weights and learns, on public text, to answer its layer's inputs as
the old one did; no neuron of it corresponds to a public one. Fine-tuning here is a few steps of next-token
loss with a large step; its direction is then taken longer or shorter to sweep the size of the change.

Threat model: see `_hardening_points`. Seeds are a study's: a product would draw the start from the CSPRNG.

Shapes: B batch, T tokens, D width, N positions.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np


def regrow(model: Any, layer: int, ids_BT: Any, *, steps: int, batch: int = 512, seed: int = 0) -> float:
    """Replace one layer's feed-forward in place; the share of its output's variance left unexplained."""
    import torch

    inputs_ND, outputs_ND = _activations(model, layer, ids_BT)
    generator = torch.Generator().manual_seed(seed)
    feedforward = model.model.layers[layer].mlp
    for linear in (feedforward.gate_proj, feedforward.up_proj, feedforward.down_proj):
        drawn = torch.randn(linear.weight.shape, generator=generator) * linear.weight.std()
        linear.weight = torch.nn.Parameter(drawn)
    optimiser = torch.optim.AdamW(feedforward.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    variance, held_out = outputs_ND.var(0).sum(), len(inputs_ND) // 20
    for _ in range(steps):
        rows = torch.randint(held_out, len(inputs_ND), (batch,), generator=generator)
        error = feedforward(inputs_ND[rows]) - outputs_ND[rows]
        (error.square().sum(-1).mean() / variance).backward()
        optimiser.step()
        optimiser.zero_grad()
        schedule.step()
    for parameter in feedforward.parameters():
        parameter.requires_grad_(False)
    error = feedforward(inputs_ND[:held_out]) - outputs_ND[:held_out]
    return float(error.square().sum(-1).mean() / variance)


def _activations(model: Any, layer: int, ids_BT: Any) -> tuple[Any, Any]:
    """Inputs and outputs [N, D] of a feed-forward, the layers behind it not run."""
    import torch

    from transom.checkpoint.observe import observing

    class ReachedError(Exception):
        pass

    seen: dict[str, list[Any]] = {"mlp_in": [], "mlp_out": []}

    def see(kind: str, _layer: int, value_BTD: Any) -> None:
        seen[kind].append(value_BTD[0])
        if kind == "mlp_out":
            raise ReachedError

    with torch.inference_mode(), observing(model, [layer], ["mlp_in", "mlp_out"], see):
        for ids_T in ids_BT:
            with suppress(ReachedError):
                model.model(input_ids=ids_T[None], use_cache=False)
    return torch.cat(seen["mlp_in"]).clone(), torch.cat(seen["mlp_out"]).clone()


def fine_tune(model: Any, ids_BT: Any, *, step: float) -> dict[str, Any]:
    """A step against the gradient's sign a text, on every matrix: {name: change}, the model as it was."""
    import torch

    matrices = {name: weight for name, weight in model.named_parameters() if weight.ndim == 2}
    before = {name: weight.detach().clone() for name, weight in matrices.items()}
    model.requires_grad_(True)
    for ids_T in ids_BT:
        model(input_ids=ids_T[None], labels=ids_T[None], use_cache=False).loss.backward()
        with torch.no_grad():
            for weight in matrices.values():
                weight -= step * weight.grad.sign()
        model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    change = {}
    for name, weight in matrices.items():
        change[name] = weight.data - before[name]
        weight.data = before[name]
    return change


def random_change(model: Any, seed: int) -> dict[str, Any]:
    """A Gaussian change of every matrix, as large as the matrix itself."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(weight.shape, generator=generator) * weight.square().mean().sqrt()
        for name, weight in model.named_parameters()
        if weight.ndim == 2
    }


def relative_size(model: Any, change: dict[str, Any]) -> float:
    """Frobenius norm of the change over that of the weights it is added to."""
    weights = dict(model.named_parameters())
    above = sum(float(part.square().sum()) for part in change.values())
    return float(np.sqrt(above / sum(float(weights[name].square().sum()) for name in change)))
