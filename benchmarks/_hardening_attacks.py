"""Seeded functional matching: tokens named by what the model says after them, after a known prefix.

The attacker runs the model. It stands on the function alone, so whatever keeps the function keeps the attack;
known tokens percolate as in `transom.audit.attacks.gram_matching`.

Threat model: the host, with the public base model, that recognises a few tokens in the traffic.
Does not prove anything about attacks that are not here.
Source: own.

Shapes: V vocabulary, D width, R rows to name, A anchors, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from transom.audit.attacks.gram_matching import percolate
from transom.audit.attacks.matching import Floats
from transom.report.statistics import Ints


@dataclass(frozen=True)
class Behaviour:
    """States [rows, contexts * D] before the head after each context and one token, and the head [V, D]."""

    states: Floats
    head_VD: Floats
    contexts: int

    def logits(self, anchors_A: Ints) -> Floats:
        """Logits of the anchors after each context, less their mean."""
        parts = np.split(self.states, self.contexts, axis=1)
        found = [part @ self.head_VD[anchors_A].T for part in parts]
        return np.hstack([part - part.mean(1, keepdims=True) for part in found])


def behaviour(model: Any, ids: Ints, contexts: list[list[int]], batch: int = 256) -> Behaviour:
    """Run `model` on every context followed by each of `ids` (in the model's own numbering)."""
    import torch

    found = []
    with torch.inference_mode():
        for context in contexts:
            parts = []
            for start in range(0, len(ids), batch):
                block = torch.as_tensor(ids[start : start + batch])[:, None]
                past = model.model(input_ids=torch.tensor([context]), use_cache=True).past_key_values
                past.batch_repeat_interleave(len(block))
                out = model.model(input_ids=block, past_key_values=past, use_cache=True)
                parts.append(out.last_hidden_state[:, -1].numpy())
            found.append(np.concatenate(parts))
    head = model.get_output_embeddings().weight.detach().numpy()
    return Behaviour(np.hstack(found), head, len(contexts))


def functional_matching(
    target: Behaviour, base: Behaviour, rows_R: Ints, candidates_C: Ints, known: dict[int, int]
) -> Ints:
    """Plain ids [R] by what the model says after each token."""
    return percolate(target.logits, base.logits, target.states, base.states, rows_R, candidates_C, known)
