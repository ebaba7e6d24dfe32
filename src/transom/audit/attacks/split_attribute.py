"""AIA: name an attribute of a text, such as its sentiment, from the noised states that the vendor sees of it.

Classifiers are trained on public texts with their attribute, passed through the public front, with noise
drawn afresh in every step: `aia/pooled` on the mean state of a text, `aia/tokens` on every state, which it
weighs before it adds them up, and `aia/read` on the rows that the posterior of `split_nearest` expects: that
uses the law of the noise, but public texts get noise only once.

Threat model: see `split_view`; the vendor has labelled public texts like the customer's. Does not protect
anything; a larger classifier may name more.
Source: Song and Raghunathan 2020, arXiv 2004.00053 (attribute inference); Shen et al., arXiv 2312.15603.

Shapes: B texts, T tokens of a text, D width, A attributes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from transom.audit.attacks.split_inverter import FEWEST, side_by_side
from transom.audit.attacks.split_nearest import reader
from transom.audit.attacks.split_view import Private, Public, Seen, misfit, named
from transom.audit.attacks.states import descend
from transom.checkpoint.seeded import seeded
from transom.report.finding import Bound, Finding, not_run

if TYPE_CHECKING:
    import torch

Kind = Literal["pooled", "tokens", "read"]
METRIC = "attributes"
_INNER, _RATE, _BATCH, _TOKENS = 64, 2e-3, 64, 512
_SHARE = 0.9  # of the budget, for training


def attacks() -> tuple[Bound, ...]:
    """On the mean state of each text, on all its states, and on what is read of them."""

    def bound(kind: Kind) -> Bound:
        def run(target: Seen, knowledge: Public, data: Private, budget_s: float) -> Finding:
            return attack(target, knowledge, data, budget_s, kind=kind)

        return Bound(f"aia/{kind}", METRIC, run)

    return bound("pooled"), bound("tokens"), bound("read")


def attack(
    target: Seen,
    knowledge: Public,
    data: Private,
    budget_s: float,
    *,
    kind: Kind = "tokens",
    steps: int = 600,
) -> Finding:
    """Share of texts whose attribute is named; trains for `steps` steps or most of `budget_s`."""
    import torch

    stop, name = time.monotonic() + _SHARE * budget_s, f"aia/{kind}"
    if gap := misfit(name, METRIC, target, knowledge, data, of_texts=kind != "read"):
        return gap
    if len(knowledge.attributes) != len(knowledge.texts) or len(knowledge.texts) < FEWEST:
        held = f"{len(knowledge.texts)} public texts and {len(knowledge.attributes)} attributes"
        return not_run(name, METRIC, f"{held}; training needs {FEWEST} texts, each with its attribute")
    if len(data.labels) != len(data.texts):
        return not_run(name, METRIC, f"{len(data.labels)} true attributes for {len(data.texts)} texts")
    kinds_A, places_B = np.unique(knowledge.attributes, return_inverse=True)
    rng, draw = np.random.default_rng(0), torch.Generator().manual_seed(0)
    examples, seen = _examples(target, knowledge, draw, kind), _shown(target, knowledge, target.means, kind)
    sample_ND = torch.cat([examples(place) for place in range(min(500, len(places_B)))])
    mean_D, spread_D = sample_ND.mean(0), sample_ND.std(0) + 1e-6

    def logits(net: Any, texts: list[torch.Tensor]) -> torch.Tensor:
        states_BTD, real_BT = side_by_side([(states_TD - mean_D) / spread_D for states_TD in texts])
        return _logits(net, states_BTD, real_BT, kind)

    with seeded(0):
        net = _net(len(mean_D), len(kinds_A))
    optimiser = torch.optim.AdamW(net.parameters(), lr=_RATE, weight_decay=0.05)

    def loss() -> torch.Tensor:
        some = rng.integers(0, len(places_B), _BATCH)
        texts = [examples(place) for place in some]
        return torch.nn.functional.cross_entropy(logits(net, texts), torch.from_numpy(places_B[some]))

    taken = descend(optimiser, loss, steps, stop)
    with torch.no_grad():
        guess_B = kinds_A[logits(net, seen).argmax(1).numpy()]
    note = f"{taken} steps on {len(knowledge.texts)} public texts, {target.views} views"
    return named(name, METRIC, guess_B, np.array(data.labels), note=note)


def _examples(
    target: Seen, knowledge: Public, draw: torch.Generator, kind: Kind
) -> Callable[[int], torch.Tensor]:
    """The states [T, D] of a public text by its number, with fresh noise; what is read of them is kept."""

    def noised(place: int) -> torch.Tensor:
        return target.law.add(knowledge.clean[place], draw, target.views, knowledge.texts[place])

    if kind != "read":
        return noised
    return _shown(target, knowledge, list(map(noised, range(len(knowledge.texts)))), kind).__getitem__


def _shown(target: Seen, knowledge: Public, states: Sequence[torch.Tensor], kind: Kind) -> list[torch.Tensor]:
    """The states, or the rows of the embedding that they let expect, among the ids of public text."""
    import torch

    if kind != "read":
        return list(states)
    ids_C = torch.from_numpy(np.flatnonzero(knowledge.counts_V))
    alone = reader(target.law, target.views, knowledge)
    expected = [
        alone.log_posterior(part_ND[None], ids_C).softmax(1) @ knowledge.table_VD[ids_C]
        for part_ND in torch.split(torch.cat(list(states)), _TOKENS)
    ]
    return list(torch.split(torch.cat(expected), [len(text) for text in states]))


def _net(width: int, attributes: int) -> Any:
    """What states say, how much each counts, and the attributes."""
    from torch import nn

    weight, name = nn.Linear(width, 1), nn.Sequential(nn.GELU(), nn.Linear(_INNER, attributes))
    nn.init.zeros_(weight.weight)
    return nn.ModuleDict({"value": nn.Linear(width, _INNER), "weight": weight, "name": name})


def _logits(net: Any, states_BTD: torch.Tensor, real_BT: torch.Tensor, kind: Kind) -> torch.Tensor:
    """[B, A]: of the mean state, or of all states by their weights."""
    if kind == "pooled":
        pooled_BD = states_BTD.sum(1) / real_BT.sum(1, keepdim=True)
        named_BA: torch.Tensor = net["name"](net["value"](pooled_BD))
        return named_BA
    weight_BT1 = net["weight"](states_BTD).masked_fill(~real_BT[..., None], -1e9).softmax(1)
    weighed_BA: torch.Tensor = net["name"]((net["value"](states_BTD) * weight_BT1).sum(1))
    return weighed_BA
