"""Which hardening measure moves the frontier of worst-case recovery against accuracy, and by how much.

    TRANSOM_DATA=DIR python benchmarks/obfuscate_hardening.py [--quick] [--json] [--measures M ...]

Each point is one variant of SmolLM2: what it is still worth (KL, agreement, next-token accuracy, SST-2 by
likelihood) and what a host with the public base model reads from it, 2,000 sampled ids named among the whole
vocabulary, with exact 95 % intervals. `recovery` is the worst case over the attacks mounted. Points are
stored one by one, so that an interrupted run resumes; `--again` forgets those of the measures named.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import _hardening_attacks as attacks
import _hardening_noise as noise
from _bench import RESULTS, parser, report
from _hardening import Yardstick, fidelity, host_weights, tables, untie, yardstick
from obfuscate_attacks import template_ids
from obfuscate_fidelity import documents
from transom.audit.attacks.weights import Sample, Weights, from_state, sample
from transom.audit.finding import interval
from transom.checkpoint import load

STORE = RESULTS / "obfuscate_hardening.json"
Points = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


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
        self.embedding_VD = state["model.embed_tokens.weight"].numpy().copy()
        self.head_VD = state["lm_head.weight"].numpy().copy()

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

        ids = documents(self.tokenizer, self.texts + 16)[self.texts :]
        return noise.sensitivities(self.model, torch.tensor(ids))

    def sample(self, tau_V: Any) -> Sample:
        return sample(tau_V, self.ids)


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
    return {
        "rate_nats": [into.rate, out.rate],
        "predicted_kl": into.harm + out.harm,
        **worth,
        "attacks": read_tables(study, host, study.sample(tau_V), into, out, looks=looks),
    }


def read_tables(
    study: Study, host: Weights, data: Sample, into: noise.Channel, out: noise.Channel, *, looks: bool
) -> dict[str, Any]:
    """Neurons by weights alone, then decoding; `looks`: also from one table at a time."""
    found = attacks.neurons(host, study.base, 0, 0)
    embedding_RD, head_RD = attacks.tables(host, study.base, found, 0, data.obfuscated_S)
    seen = (embedding_RD, head_RD / study.norm_D)
    clean = (into.without_noise(study.embedding_VD), out.without_noise(study.head_VD))
    spread = (into.noise_DD, out.noise_DD)
    uses = {"both tables": slice(0, 2)} | ({"embedding": slice(0, 1), "head": slice(1, 2)} if looks else {})
    return {
        f"neurons first, {name}": share(attacks.decode(seen[use], clean[use], spread[use]), data.plain_S)
        for name, use in uses.items()
    }


def isotropic(study: Study) -> Points:
    """The method's own noise, at the paper's ratios and balanced between the tables."""
    into, out = study.metrics
    pairs = [(0, 0), (0.25, 0.1), (0.5, 0.2), (1, 0.2), (2, 0.2), (4, 0.2), (1, 1), (2, 2), (4, 4), (8, 8)]
    for alpha_e, alpha_h in pairs:
        yield (
            f"alpha_e {alpha_e}, alpha_h {alpha_h}",
            lambda a=alpha_e, b=alpha_h: channels(
                study,
                noise.isotropic(study.embedding_VD, into, a),
                noise.isotropic(study.head_VD, out, b),
                looks=True,
            ),
        )


def shrunk(study: Study) -> Points:
    """Isotropic noise, then each row replaced by its posterior mean."""
    into, out = study.metrics
    for alpha in (1, 2, 4, 6, 8):
        yield (
            f"alpha {alpha}",
            lambda a=alpha: channels(
                study,
                noise.isotropic(study.embedding_VD, into, a, shrink=True),
                noise.isotropic(study.head_VD, out, a, shrink=True),
            ),
        )


def shaped(study: Study) -> Points:
    """Reverse water-filling in the metric of the model's sensitivity."""
    for rate in (1000, 300, 100, 40, 20, 14, 10):
        yield f"rate {rate}", lambda r=rate: _shaped(study, r)


def _shaped(study: Study, rate: float) -> dict[str, Any]:
    into, out = study.metrics
    theta = noise.theta_at(study.embedding_VD, (into, out), rate)
    return channels(
        study, noise.shaped(study.embedding_VD, into, theta), noise.shaped(study.head_VD, out, theta)
    )


MEASURES: dict[str, Callable[[Study], Points]] = {
    "isotropic": isotropic,
    "shaped": shaped,
    "shrunk": shrunk,
}


def stored(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def point(
    record: dict[str, Any], measure: str, name: str, compute: Callable[[], dict[str, Any]], path: Path
) -> None:
    """Compute a point that is not there yet and store the record at once."""
    points = record.setdefault("measures", {}).setdefault(measure, {})
    if name in points:
        return
    started = time.monotonic()
    found = compute()
    worst = max((finding["recovery"] for finding in found.get("attacks", {}).values()), default=None)
    points[name] = {"recovery": worst, **found, "seconds": round(time.monotonic() - started, 1)}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(f"{measure}, {name}: {points[name]}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure what is missing, print the table, store the record."""
    flags = parser(__doc__)
    flags.add_argument("--measures", nargs="+", default=list(MEASURES), choices=list(MEASURES))
    flags.add_argument("--again", action="store_true", help="forget the stored points of these measures")
    args = flags.parse_args()
    import torch

    torch.set_num_threads(1)
    path = Path("/dev/null") if args.quick else STORE
    record = {} if args.quick else stored(STORE)
    study = Study("smollm2", *((1, 20, 100) if args.quick else (4, 400, 2000)))
    record["plain"] = record.get("plain") or study.plain
    for measure in args.measures[:1] if args.quick else args.measures:
        if args.again:
            record.get("measures", {}).pop(measure, None)
        for index, (name, compute) in enumerate(MEASURES[measure](study)):
            if not args.quick or index == 3:
                point(record, measure, name, compute, path)
    report("obfuscate_hardening", record, rows(record), args)


def rows(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The table: one row a point."""
    columns = ("recovery", "kl", "top1_agreement", "next_token_accuracy", "sst2_accuracy")
    plain = {"measure": "plain", "point": ""} | {name: record["plain"].get(name) for name in columns}
    return [plain] + [
        {"measure": measure, "point": name} | {column: found.get(column) for column in columns}
        for measure, points in record["measures"].items()
        for name, found in points.items()
    ]


if __name__ == "__main__":
    main()
