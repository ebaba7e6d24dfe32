"""IMA: train an inverter, a transformer of two layers, that reads token ids off observed states.

The attacker runs public text through the public model, obfuscates the states with keys of its own where the
method is known (`Simulator.states_of`), trains on the pairs, and applies the inverter to the real states.

Threat model: the host knows the method and the base model, not the key. Does not protect anything; it names
only tokens that its public text holds, and a failure says that this network did not learn to, in this time.
Source: arXiv 2603.01499, the inversion-model attack; Kugler et al. 2021, "InvBERT", arXiv 2109.10104.

Shapes: B texts, T tokens, D width, C candidate tokens, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.states import METRIC, States, descend, recovery, require_hidden
from transom.checkpoint.seeded import seeded
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

NAME = "ima"
_WIDTH, _HEADS, _LEARNING_RATE, _BATCH = 128, 4, 2e-3, 32


@dataclass(frozen=True)
class Simulator:
    """What the attacker brings: public ids [N, T], and the states [B, T, D] that ids [B, T] would have."""

    public_ids: Ints
    states_of: Callable[[Ints], torch.Tensor]


def attack(
    target: States,
    knowledge: Simulator,
    data: Ints,
    budget_s: float,
    *,
    steps: int = 1000,
) -> Finding:
    """Share of tokens read; `data` are the plain ids [B, T]. Trains for `steps` steps or `budget_s`."""
    import torch

    started = time.monotonic()
    observed_BTD = require_hidden(target)
    candidates_C = np.unique(knowledge.public_ids)
    example = knowledge.states_of(knowledge.public_ids[:_BATCH]).float()
    if example.shape[-1] != observed_BTD.shape[-1]:
        return not_run(
            NAME,
            METRIC,
            f"simulated states are {example.shape[-1]} wide, observed ones {observed_BTD.shape[-1]}",
        )
    with seeded(0):
        inverter = _inverter(example, len(candidates_C))
        taken = _train(inverter, knowledge, candidates_C, steps, started + budget_s)
    with torch.no_grad():
        guess_BT = candidates_C[inverter(observed_BTD).argmax(-1).numpy()]
    note = f"{taken} steps on {len(knowledge.public_ids)} public texts, {len(candidates_C)} candidates"
    return recovery(NAME, guess_BT, data, note=note)


def _inverter(example_BTD: torch.Tensor, candidates: int) -> Any:
    """A network [B, T, D] -> [B, T, C], which standardises states as the simulated ones are spread."""
    from torch import nn

    flat = example_BTD.flatten(0, 1)
    scale = nn.Linear(flat.shape[1], _WIDTH)
    with_spread = flat.std(0) + 1e-6
    scale.weight.data /= with_spread
    scale.bias.data -= scale.weight.data @ flat.mean(0)
    block = nn.TransformerEncoderLayer(
        _WIDTH, _HEADS, 2 * _WIDTH, dropout=0.0, batch_first=True, norm_first=True
    )
    blocks = nn.TransformerEncoder(block, 2, enable_nested_tensor=False)
    return nn.Sequential(scale, blocks, nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, candidates))


def _train(inverter: Any, knowledge: Simulator, candidates_C: Ints, steps: int, stop: float) -> int:
    """Train in place; the number of steps taken, at least one."""
    import torch

    draw = np.random.default_rng(0)
    optimiser = torch.optim.AdamW(inverter.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)

    def loss() -> torch.Tensor:
        ids_BT = knowledge.public_ids[draw.integers(0, len(knowledge.public_ids), _BATCH)]
        logits = inverter(knowledge.states_of(ids_BT).float())
        wanted = torch.from_numpy(np.searchsorted(candidates_C, ids_BT))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())

    return descend(optimiser, loss, steps, stop)
