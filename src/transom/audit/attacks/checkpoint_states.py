"""IMA and ISA mounted on an obfuscated checkpoint: the host reads the states of ids that it is sent.

ISA's texts are of eight sampled tokens, two of them known.

Threat model: see `ima` and `isa`; the host knows the method and its settings. Does not protect anything.
Source: Lin et al., arXiv 2603.01499.

Shapes: B texts, T tokens, D width, W obfuscated width, S sampled ids.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING

import numpy as np

from transom.audit.attacks import ima, isa
from transom.audit.attacks.own_keys import settings_of
from transom.audit.attacks.states import METRIC, States
from transom.audit.attacks.weights import Knowledge, Sample, Target
from transom.errors import MisconfiguredError
from transom.obfuscation.keys import Settings, Space
from transom.report.finding import Finding, not_run
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

_TOKENS, _KNOWN, _KEYS, _PUBLIC_TEXTS = 8, 2, 4, 1000


def invert(
    target: Target, knowledge: Knowledge, data: Sample, budget_s: float, *, settings: Settings | None = None
) -> Finding:
    """IMA on the embedding's rows; `settings` are the method's (None: no noise, and h from the widths).

    The candidates are the sampled tokens alone, which helps the attacker.
    """
    import torch

    base_VD = torch.from_numpy(knowledge.base.embedding_VD)
    settings = settings or settings_of(target, knowledge)
    noise = 0.0 if settings is None else settings.alpha_e * float(base_VD.std())
    keys = cycle(_own_keys(base_VD.shape[1], settings))

    def states_of(ids_BT: Ints) -> torch.Tensor:
        rows_BTD = base_VD[torch.from_numpy(ids_BT)]
        return (rows_BTD + noise * torch.randn_like(rows_BTD)) @ next(keys)

    plain_BT, observed_BT = _texts(data.plain_S), _texts(data.obfuscated_S)
    public = np.random.default_rng(1).choice(data.plain_S, (_PUBLIC_TEXTS, _TOKENS))
    observed = torch.from_numpy(target.weights.embedding_VD[observed_BT])
    return ima.attack(States(0, observed), ima.Simulator(public, states_of), plain_BT, budget_s)


def descend(
    target: Target, knowledge: Knowledge, data: Sample, budget_s: float, *, kind: isa.Kind = "hidden"
) -> Finding:
    """ISA on the first block's residual stream or attention probabilities."""
    if target.model is None or knowledge.model is None:
        return not_run(f"isa/{kind}", METRIC, "needs both models to run, and one was not given")
    seen = isa.observe(target.model, _texts(data.obfuscated_S), 0)
    return isa.attack(seen, knowledge.model, _texts(data.plain_S), budget_s, kind=kind, prefix=_KNOWN)


def _texts(ids_S: Ints) -> Ints:
    """[B, 8]: the sampled ids as texts. Raises MisconfiguredError for fewer than eight."""
    if len(ids_S) < _TOKENS:
        raise MisconfiguredError(f"texts of {_TOKENS} tokens need a sample of as many, got {len(ids_S)}")
    return ids_S[: len(ids_S) // _TOKENS * _TOKENS].reshape(-1, _TOKENS)


def _own_keys(width: int, settings: Settings | None) -> list[torch.Tensor]:
    """Embedding keys [D, W] of the attacker's own; the identity where the rows were only permuted."""
    import secrets

    import torch

    if settings is None:
        return [torch.eye(width)]
    spaces = [Space(secrets.token_bytes(32), width, settings) for _ in range(_KEYS)]
    return [space.key("embedding").float() for space in spaces]
