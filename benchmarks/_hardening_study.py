"""The hardening study's plain model, its noise points, and the worst-case reading of two tables.

Threat model: see `_hardening_points`.

Shapes: V vocabulary, D width, R rows to name.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import _hardening_noise as noise
from _hardening import Yardstick, fidelity, host_weights, tables, untie, yardstick
from obfuscate_fidelity import documents
from transom.audit.attacks import neurons_first
from transom.audit.attacks.weights import Sample, Weights, from_state, sample
from transom.checkpoint import load
from transom.report.statistics import interval

WORK = Path("work/hardening")
FIRST_SENSITIVITY_TEXT = 8  # those before it measure fidelity


@dataclass
class Study:
    """The plain model and everything measured once."""

    name: str
    texts: int
    rows: int
    ids: int

    def __post_init__(self) -> None:
        checkpoint = load(self.name)
        if checkpoint.tokenizer is None:
            sys.exit(f"{self.name} has no tokenizer")
        self.model: Any = untie(checkpoint.model)
        self.tokenizer: Any = checkpoint.tokenizer.tokenizer
        state, config = self.model.state_dict(), self.model.config.to_dict()
        self.base: Weights = from_state(state, config, layers=1)
        self.norm_D = state["model.norm.weight"].numpy().copy()
        self.embedding_VD = state["model.embed_tokens.weight"].numpy()
        self.head_VD = state["lm_head.weight"].numpy()

    @cached_property
    def yardstick(self) -> Yardstick:
        return yardstick(self.model, self.tokenizer, self.texts, self.rows)

    @cached_property
    def plain(self) -> dict[str, float]:
        return fidelity(self.model, self.yardstick)

    @cached_property
    def metrics(self) -> tuple[Any, Any]:
        """Sensitivities of the two tables, on documents that no fidelity is measured on."""
        import torch

        def compute() -> Any:
            ids = documents(self.tokenizer, FIRST_SENSITIVITY_TEXT + self.texts**2)[FIRST_SENSITIVITY_TEXT:]
            return np.stack(noise.sensitivities(self.model, torch.tensor(ids), gradients=self.texts >= 4))

        into, out = self.remembered(f"metrics-{self.texts}", compute)
        return into, out

    def sample(self, tau_V: Any) -> Sample:
        return sample(tau_V, self.ids)

    def base_layers(self, count: int) -> Weights:
        """The public model's first layers, as attacks read them."""
        return from_state(self.model.state_dict(), self.model.config.to_dict(), layers=count)

    def remembered(self, name: str, compute: Callable[[], Any]) -> Any:
        """An array that takes long, kept on disk."""
        path = WORK / f"{name}-{Path(self.name).stem}.npy"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, compute())
        return np.load(path, allow_pickle=False)


def share(guess_R: Any, plain_R: Any) -> dict[str, Any]:
    """Recovery with its exact interval."""
    hits, n = int((guess_R == plain_R).sum()), len(plain_R)
    low, high = interval(hits, n)
    return {"recovery": hits / n, "low": low, "high": high, "n": n}


def channels(study: Study, into: noise.Channel, out: noise.Channel, *, looks: bool = False) -> dict[str, Any]:
    """One point: both tables through their channels, measured and attacked."""
    embedding_VD, head_VD = into.send(study.embedding_VD, 1), out.send(study.head_VD, 2)
    with tables(study.model, embedding_VD, head_VD):
        worth = fidelity(study.model, study.yardstick)
        host, tau_V = host_weights(study.model, 1)
    del embedding_VD, head_VD  # half a gigabyte each in a large vocabulary
    return {
        "rate_nats": [into.rate, out.rate],
        "predicted_kl": into.harm + out.harm,
        **worth,
        "attacks": read_tables(study, host, study.sample(tau_V), into, out, looks=looks),
    }


def read_tables(
    study: Study,
    host: Weights,
    data: Sample,
    into: noise.Channel,
    out: noise.Channel,
    *,
    looks: bool = False,
    base: Weights | None = None,
    layer: int = 0,
) -> dict[str, Any]:
    """Neurons by weights alone, then decoding; `looks`: also from one table at a time."""
    base = base or study.base
    found = neurons_first.neurons(host, base, layer, layer)
    embedding_RD, head_RD = neurons_first.tables(host, base, found, layer, data.obfuscated_S)
    seen = (embedding_RD, head_RD / study.norm_D)
    clean = (into.without_noise(study.embedding_VD), out.without_noise(study.head_VD))
    spread = (into.noise_DD, out.noise_DD)
    uses: dict[str, slice] = {"both tables": slice(0, 2)}
    uses |= {"embedding": slice(0, 1), "head": slice(1, 2)} if looks else {}
    return {
        f"neurons first, {name}": share(
            neurons_first.decode(list(seen)[use], list(clean)[use], list(spread)[use]), data.plain_S
        )
        for name, use in uses.items()
    }
