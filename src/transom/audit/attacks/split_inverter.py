"""Trained inverter: what the nearest state says of each token, and what its neighbours add.

A network with a block of attention is trained on public text that passed through the public front, with noise
drawn afresh in every step. It starts from the posterior of `split_nearest`, sees the states and the rows that
this posterior expects, and learns what to add to it; ids that public text lacks have their embedding's row.

Threat model: see `split_view`. Does not protect anything; a failure says that this network did not learn to,
in this time.
Source: Shen et al., arXiv 2312.15603; Chen et al., arXiv 2409.00960, section 4 (a learnt inverter first);
Kugler et al. 2021, "InvBERT", arXiv 2109.10104.

Shapes: N tokens, B texts, T tokens of a text, D width, C candidates.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from transom.audit.attacks.split_nearest import Reader, reader
from transom.audit.attacks.split_view import Private, Public, Seen, misfit, read
from transom.audit.attacks.states import METRIC, descend
from transom.audit.attacks.traffic import flat
from transom.audit.batches import by_length
from transom.checkpoint.seeded import seeded
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

NAME = "eia/inverter"
FEWEST = 32  # public texts to train on
_HEADS, _WIDEST, _RATE, _BATCH = 4, 256, 1e-3, 32
_SAMPLE = 500  # public texts that tell how states are spread
_HELD_OUT = 0.05  # share of public texts
_SHARE = 0.9  # of the budget, for training
__all__ = ["METRIC", "NAME", "Inverter", "attack", "trained"]


@dataclass(frozen=True, eq=False)
class Inverter:
    """The posterior it starts from, the network, the center and spread [D] of what that reads, the rows that
    it names ids by, and how many steps it was trained for."""

    alone: Reader
    net: Any
    usual_2D: torch.Tensor
    rows_VD: torch.Tensor
    steps: int = 0

    def logits(self, states_BTD: torch.Tensor, real_BT: torch.Tensor, ids_C: torch.Tensor) -> torch.Tensor:
        """[N, C] for the real tokens of padded texts; `real_BT` is True where a token is."""
        import torch

        net, (center_D, spread_D), rows_CD = self.net, self.usual_2D, self.rows_VD[ids_C]
        with torch.no_grad():
            log_NC = self.alone.log_posterior(states_BTD[real_BT][None], ids_C)
            expected_BTD = torch.zeros_like(states_BTD)
            expected_BTD[real_BT] = log_NC.softmax(1) @ rows_CD
        normal_BTD = (states_BTD - center_D) / spread_D
        into_BTW = net["states"](normal_BTD) + net["rows"](expected_BTD)
        around_BTW = net["block"](into_BTW, src_key_padding_mask=~real_BT)
        row_ND = net["out"](around_BTW[real_BT])
        logits_NC: torch.Tensor = (
            net["trust"].weight[0, 0] * log_NC + row_ND @ rows_CD.T / len(center_D) ** 0.5
        )
        return logits_NC

    def log_posterior(self, states: Sequence[torch.Tensor]) -> Iterator[tuple[int, torch.Tensor]]:
        """(place, [T, V]) of each of the texts, given the states [T, D]; not in their order."""
        import torch

        ids_V = torch.arange(len(self.rows_VD))
        for places in by_length(states, _BATCH):
            with torch.no_grad():
                logits_NV = self.logits(*side_by_side([states[place] for place in places]), ids_V)
                logs_NV = logits_NV.log_softmax(1)
            yield from zip(
                places, torch.split(logs_NV, [len(states[place]) for place in places]), strict=True
            )


def attack(target: Seen, knowledge: Public, data: Private, budget_s: float, *, steps: int = 1000) -> Finding:
    """Share of tokens named; trains for `steps` steps or most of `budget_s`."""
    stop = time.monotonic() + _SHARE * budget_s
    if gap := misfit(NAME, METRIC, target, knowledge, data):
        return gap
    if len(knowledge.texts) < FEWEST:
        return not_run(NAME, METRIC, f"{len(knowledge.texts)} public texts; training needs {FEWEST}")
    inverter = trained(target, knowledge, steps, stop)
    best = {place: tuple(logs.argmax(1).tolist()) for place, logs in inverter.log_posterior(target.means)}
    note = f"{inverter.steps} steps on {len(knowledge.texts)} public texts, {target.views} views"
    return read(NAME, tuple(best[place] for place in range(len(best))), data, note=note)


def trained(target: Seen, knowledge: Public, steps: int, stop: float) -> Inverter:
    """An inverter for states such as the target's, the means of as many views; untrained where public texts
    that were held out say that training made it worse."""
    import torch

    draw, rng = torch.Generator().manual_seed(0), np.random.default_rng(0)
    with seeded(0):
        start = _start(target, knowledge, draw)
    inverter = replace(start, net=deepcopy(start.net))
    optimiser = torch.optim.AdamW(inverter.net.parameters(), lr=_RATE, weight_decay=0.01)
    ids_C, held = np.unique(flat(knowledge.texts)), max(1, int(_HELD_OUT * len(knowledge.texts)))

    def loss(of: Inverter, places: Ints) -> torch.Tensor:
        states_BTD, real_BT = side_by_side([knowledge.clean[place] for place in places])
        ids_N = flat(tuple(knowledge.texts[place] for place in places))
        states_BTD[real_BT] = target.law.add(states_BTD[real_BT], draw, target.views, torch.from_numpy(ids_N))
        logits_NC = of.logits(states_BTD, real_BT, torch.from_numpy(ids_C))
        wanted_N = np.searchsorted(ids_C, ids_N)
        return torch.nn.functional.cross_entropy(logits_NC, torch.from_numpy(wanted_N))

    def step() -> torch.Tensor:
        return loss(inverter, rng.integers(held, len(knowledge.texts), _BATCH))

    taken = descend(optimiser, step, steps, stop)
    with torch.no_grad():
        before, after = (float(loss(one, np.arange(held))) for one in (start, inverter))
    return replace(inverter, steps=taken) if after < before else start


def _start(target: Seen, knowledge: Public, draw: torch.Generator) -> Inverter:
    """Untrained: its answer is the posterior of each token alone."""
    import torch
    from torch import nn

    rows_VD = (knowledge.table_VD - knowledge.table_VD.mean(0)) / knowledge.table_VD.std()
    ids_N = torch.from_numpy(flat(knowledge.texts[:_SAMPLE]))
    seen_ND = target.law.add(torch.cat(knowledge.clean[:_SAMPLE]), draw, target.views, ids_N)
    width = rows_VD.shape[1]
    wide = min(_WIDEST, _HEADS * -(-width // _HEADS))
    block = nn.TransformerEncoderLayer(wide, _HEADS, 2 * wide, 0.0, batch_first=True, norm_first=True)
    out, trust = nn.Linear(wide, width), nn.Linear(1, 1, bias=False)
    nn.init.zeros_(out.weight)
    nn.init.ones_(trust.weight)
    parts = {"states": nn.Linear(width, wide), "rows": nn.Linear(width, wide), "block": block}
    net = nn.ModuleDict(parts | {"out": out, "trust": trust})
    usual_2D = torch.stack([seen_ND.mean(0), seen_ND.std(0) + 1e-6])
    return Inverter(reader(target.law, target.views, knowledge), net, usual_2D, rows_VD)


def side_by_side(texts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """(states [B, T, D] with zeros behind, True where a token is [B, T])."""
    from torch.nn.utils.rnn import pad_sequence

    real_BT = pad_sequence([states_TD.new_ones(len(states_TD)) for states_TD in texts], True).bool()
    return pad_sequence(list(texts), True), real_BT
