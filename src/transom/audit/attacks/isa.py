"""ISA: find input embeddings that make the public model show the observed states, then the nearest tokens.

Gradient descent on the embeddings of all texts at once; then, from left to right, the token among the nearest
few whose own state fits best, which a causal model allows: a state depends on nothing after it.
Two kinds of observation: the residual stream after a block, and a block's attention probabilities. Key
transforms cancel in attention scores and permute heads, so the probabilities are compared in sorted order
over heads; a residual stream of another width is compared by the cosines between its tokens, which a change
of basis nearly keeps.

Threat model: the host sees the states of a request and owns the public model. Does not protect anything; the
search is local, and a failure says that it did not get there in this time.
Source: arXiv 2603.01499, the internal-state attack on hidden states and attention scores.

Shapes: B texts, T tokens, D width, H heads, V vocabulary, K candidates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from transom.audit.attacks.states import METRIC, States, descend, recovery
from transom.checkpoint.observe import eager, observing
from transom.checkpoint.walk import walk
from transom.errors import MisconfiguredError
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

Kind = Literal["hidden", "attention"]
See = Callable[["torch.Tensor"], "torch.Tensor"]  # from embeddings [B, T, D] to what is compared
_BLOCK = 1024  # texts seen at once in the search
_LEARNING_RATE = 0.1  # in units of the embedding's own spread


class _Reached(Exception):  # noqa: N818 (a signal, not an error)
    """Carries an observation out of a model whose later layers need not run."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value


def attack(
    target: States,
    knowledge: Any,
    data: Ints,
    budget_s: float,
    *,
    kind: Kind = "hidden",
    steps: int = 400,
    nearest_tokens: int = 64,
    prefix: int = 0,
) -> Finding:
    """Share of tokens read; `knowledge` is the public model (transformers, causal), `data` plain ids [B, T].

    Descends for `steps` steps or half of `budget_s`, and searches among `nearest_tokens` tokens a position.
    The first `prefix` tokens are the chat template's: known, and not counted. "not run" where the target
    lacks that kind of state.
    """
    import torch

    started, name = time.monotonic(), f"isa/{kind}"
    wanted = target.hidden if kind == "hidden" else target.attention
    if wanted is None:
        return not_run(name, METRIC, f"no {kind} states were observed")
    base_VD = walk(knowledge).embedding.weight.detach().float()
    look = _look(kind, wanted.float(), base_VD.shape[1])
    goal, known = look(wanted.float()), torch.from_numpy(data[:, :prefix])
    with _watched(knowledge, kind, target.layer) as run:

        def see(x_BTD: torch.Tensor) -> torch.Tensor:
            return look(run(x_BTD))

        sought = _Sought(see, goal, base_VD, known)
        x_BTD, taken = sought.descend(data.shape[1], steps, started + budget_s / 2)
        with torch.no_grad():
            guess_BT = sought.search(x_BTD, nearest_tokens, started + budget_s)
    note = f"{taken} steps, {nearest_tokens} tokens a position, layer {target.layer}, {prefix} tokens known"
    return recovery(name, guess_BT[:, prefix:].numpy(), data[:, prefix:], note=note)


@dataclass(frozen=True)
class _Sought:
    """Texts whose observation is `goal`; of each, the first ids are `known`."""

    see: See
    goal: torch.Tensor
    base_VD: torch.Tensor
    known: torch.Tensor

    def descend(self, tokens: int, steps: int, stop: float) -> tuple[torch.Tensor, int]:
        """(embeddings [B, T, D] whose observation is near the goal, steps taken: at least one)."""
        import torch

        base_VD, fixed = self.base_VD, self.base_VD[self.known]
        spread, draw = base_VD.std(), torch.Generator().manual_seed(0)
        free = (len(fixed), tokens - fixed.shape[1], base_VD.shape[1])
        x = (base_VD.mean(0) + 0.1 * spread * torch.randn(*free, generator=draw)).requires_grad_(True)
        optimiser = torch.optim.Adam([x], lr=float(_LEARNING_RATE * spread))

        def loss() -> torch.Tensor:
            away = self.see(torch.cat([fixed, x], 1)) - self.goal
            return away.square().mean() / (self.goal.var() + 1e-12)

        taken = descend(optimiser, loss, steps, stop)
        return torch.cat([fixed, x.detach()], 1), taken

    def search(self, x_BTD: torch.Tensor, count: int, stop: float) -> torch.Tensor:
        """Ids [B, T]: left to right, the candidate whose row of the observation is nearest to the goal's.

        After `stop` the nearest tokens stand.
        """
        import torch

        away_BTV = torch.cdist(x_BTD.flatten(0, 1), self.base_VD).view(*x_BTD.shape[:2], -1)
        candidates_BTK = away_BTV.topk(min(count, len(self.base_VD)), largest=False).indices
        guess_BT = candidates_BTK[..., 0]
        guess_BT[:, : self.known.shape[1]] = self.known
        for place in range(self.known.shape[1], x_BTD.shape[1]):
            if time.monotonic() > stop:
                break
            ids_BK = candidates_BTK[:, place]
            before = self.base_VD[guess_BT[:, None, :place].expand(-1, ids_BK.shape[1], -1)]
            trial = torch.cat([before, self.base_VD[ids_BK][:, :, None]], 2).flatten(0, 1)
            row = torch.cat([self.see(part)[..., -1, :] for part in torch.split(trial, _BLOCK)])
            row = row.view(*ids_BK.shape, *row.shape[1:])
            wanted = self.goal[:, None, ..., place, : row.shape[-1]]
            best = (row - wanted).square().flatten(2).sum(-1).argmin(1)
            guess_BT[:, place] = ids_BK[torch.arange(len(best)), best]
        return guess_BT


def observe(model: Any, ids_BT: Ints, layer: int) -> States:
    """What a host sees when `model` runs `ids_BT`: the stream after block `layer`, the attention in it."""
    import torch

    with torch.no_grad():
        x_BTD = walk(model).embedding(torch.from_numpy(np.asarray(ids_BT)))
        with _watched(model, "attention", layer) as run:
            attention = run(x_BTD)
        with _watched(model, "hidden", layer) as run:
            return States(layer, hidden=run(x_BTD), attention=attention)


def _look(kind: Kind, wanted: torch.Tensor, width: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """What of an observation is compared: something the two models share."""
    from torch.nn.functional import normalize

    if kind == "attention":
        return lambda probabilities_BHTT: probabilities_BHTT.sort(dim=1).values
    if wanted.shape[-1] == width:
        return lambda hidden_BTD: hidden_BTD
    return lambda hidden_BTD: normalize(hidden_BTD, dim=-1) @ normalize(hidden_BTD, dim=-1).mT


@contextmanager
def _watched(model: Any, kind: Kind, layer: int) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """A function from embeddings [B, T, D] to the observation at `layer`; later layers do not run."""

    def reach(_kind: str, _layer: int, value: torch.Tensor) -> None:
        raise _Reached(value)

    def run(x_BTD: torch.Tensor) -> torch.Tensor:
        try:
            model(inputs_embeds=x_BTD, use_cache=False)
        except _Reached as reached:
            value: torch.Tensor = reached.value
            return value
        raise MisconfiguredError("the model ran without reaching the layer to watch")

    if layer < 0:
        raise MisconfiguredError(f"layer must be 0 or more, got {layer}")
    with eager(model), observing(model, [layer], [kind], reach):  # both kinds by the same arithmetic
        yield run
