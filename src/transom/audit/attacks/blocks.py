"""IMA and ISA on rows of texts of unlike lengths: the first tokens of the texts that are long enough.

A causal model's states do not depend on what follows, so the first rows of a text are those of its beginning.

Threat model: see `rows`, `ima` and `isa`; the inverter is trained on states that get noise of the same law.
Does not protect anything.
Source: as `ima` and `isa`.

Shapes: B texts, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks import ima, isa
from transom.audit.attacks.rows import Rows, Truth, estimated, misfit
from transom.audit.attacks.states import METRIC, States, require_hidden
from transom.audit.attacks.traffic import Texts
from transom.report.finding import Bound, Finding, not_run
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

    from transom.audit.attacks.beam import Public

_LONGEST, _TEXTS = 16, 64  # of a block: gradients through the model for more take too long
_FEWEST = 32  # public texts to train an inverter on


@dataclass(frozen=True)
class Observed:
    """Where the rows come from: the public model, and the block after which they were taken (None: the
    embedding's own rows)."""

    model: Any
    layer: int | None

    def states_of(self, ids_BT: Ints) -> torch.Tensor:
        """The rows [B, T, D] that ids would have without noise."""
        import torch

        if self.layer is not None:
            return require_hidden(isa.observe(self.model, ids_BT, self.layer))
        with torch.no_grad():
            rows_BTD: torch.Tensor = self.model.get_input_embeddings()(torch.from_numpy(ids_BT)).float()
        return rows_BTD


def attacks(place: Observed, own: Texts) -> tuple[Bound, ...]:
    """IMA with the attacker's `own` texts and, for hidden states, ISA; both take targets of `rows`."""
    made = [Bound("ima", METRIC, _blockwise("ima", lambda *of: _invert(place, own, *of)))]
    if place.layer is not None:
        made.append(Bound("isa/hidden", METRIC, _blockwise("isa/hidden", lambda *of: _descend(place, *of))))
    return tuple(made)


def block_length(texts: Texts) -> int:
    """The length at which the blocks hold the most tokens."""
    lengths = np.array([len(text) for text in texts])
    return max(
        range(1, min(_LONGEST, lengths.max()) + 1), key=lambda size: size * int((lengths >= size).sum())
    )


def _blockwise(
    name: str, attack: Callable[[Rows, States, Ints, float], Finding]
) -> Callable[[Rows, Public, Truth, float], Finding]:
    def run(target: Rows, knowledge: Public, data: Truth, budget_s: float) -> Finding:
        import torch

        if gap := misfit(name, target, knowledge.table_VD, data):
            return gap
        size = block_length(data.texts)
        chosen = [number for number, text in enumerate(data.texts) if len(text) >= size][:_TEXTS]
        rows_BTD = torch.stack([target.texts[number][:size].float() for number in chosen])
        ids_BT = np.array([data.texts[number][:size] for number in chosen])
        return attack(estimated(target, knowledge.table_VD), States(0, hidden=rows_BTD), ids_BT, budget_s)

    return run


def _invert(
    place: Observed, own: Texts, target: Rows, states: States, ids_BT: Ints, budget_s: float
) -> Finding:
    import torch

    size = ids_BT.shape[1]
    public = [text[:size] for text in own if len(text) >= size]
    if len(public) < _FEWEST:
        reason = f"{len(public)} public texts of {size} tokens or more; training needs {_FEWEST}"
        return not_run("ima", METRIC, reason)
    draw = torch.Generator().manual_seed(0)

    def states_of(plain_BT: Ints) -> torch.Tensor:
        rows_BTD = place.states_of(plain_BT)
        return target.noise.protect(rows_BTD.flatten(0, 1), draw).view(rows_BTD.shape)

    return ima.attack(states, ima.Simulator(np.array(public), states_of), ids_BT, budget_s)


def _descend(place: Observed, _target: Rows, states: States, ids_BT: Ints, budget_s: float) -> Finding:
    observed = States(place.layer or 0, hidden=states.hidden)
    return isa.attack(observed, place.model, ids_BT, budget_s)
