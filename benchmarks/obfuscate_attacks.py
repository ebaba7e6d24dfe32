"""What a host with the public base model recovers from an obfuscated checkpoint, attack by attack.

    python benchmarks/obfuscate_attacks.py [--quick] [--json] [--model MODEL] [--budget S] [--presets P ...]
                                           [--attacks A ...] [--sections weights traffic] [--candidates N]

Section `weights`: for each preset the model is obfuscated in memory, with the preset's noise and keys, and
every attack on weights names 2,000 sampled ids against the whole vocabulary (the fingerprint 400 ids among
all, or among `--candidates`; attacks on states 400 ids). `unprotected` is the plain checkpoint whose rows are
permuted and nothing else: what an attack must undo to be believed elsewhere. `recovery` is the share named
rightly, with its exact 95 % interval; `worst` is the preset's highest. Known tokens, for least squares and
alignment_seeded, are those of the chat template.
Section `traffic`: see `_traffic.py`; it needs TRANSOM_DATA with xsum/ and sst2/.
Each finding is stored as it comes, beside those of earlier runs on the same model. A quick run keeps four
layers, 200 ids and the attacks that take seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

import _traffic
from _bench import RESULTS, parser, report
from transom.audit.attacks import (
    alignment,
    attn_ia,
    checkpoint_states,
    column_first,
    fingerprint,
    gate_ia,
    least_squares,
    nearest,
    vma,
)
from transom.audit.attacks.own_keys import obfuscated
from transom.audit.attacks.weights import Knowledge, Sample, Target, from_state, sample
from transom.checkpoint import load
from transom.obfuscation.calibrate import TEXT
from transom.obfuscation.keys import PRESETS, Settings, preset, token_map
from transom.obfuscation.plan import loadable_h
from transom.report.finding import Finding

NAME, UNPROTECTED = "obfuscate_attacks", "unprotected"
LAYERS = 4  # read by the attacks that add layers up
SECRET = bytes(32)  # a benchmark's key need not be secret, and a fixed one repeats
QUICK = ("row_sort", "column_first", "gate_ia", "attn_ia", "nn")
FEW = ("fingerprint", "ima", "isa_hidden", "isa_attention")  # name 400 ids
Attack = Callable[..., Finding]


def suite(settings: Settings | None, public_VR: Any, candidates: int | None) -> dict[str, Attack]:
    """Every attack by name; those that make keys of their own know the method's settings."""
    read = partial(fingerprint.attack, settings=settings, public_VR=public_VR, candidates=candidates)
    return {
        "row_sort": vma.attack,
        "column_first": column_first.attack,
        "gate_ia": gate_ia.attack,
        "attn_ia": attn_ia.attack,
        "least_squares": least_squares.attack,
        "alignment": _unseeded,
        "alignment_seeded": alignment.attack,
        "fingerprint": read,
        "nn": nearest.attack,
        "ima": partial(checkpoint_states.invert, settings=settings),
        "isa_hidden": partial(checkpoint_states.descend, kind="hidden"),
        "isa_attention": partial(checkpoint_states.descend, kind="attention"),
    }


def _unseeded(target: Target, knowledge: Knowledge, data: Sample, budget_s: float) -> Finding:
    """Alignment without a single known token."""
    return alignment.attack(target, replace(knowledge, known={}), data, budget_s)


def permuted(plain: Any) -> tuple[Any, Any]:
    """The plain model with the rows of embedding and head in another order, and that order (tau)."""
    import torch

    tau = token_map(SECRET, plain.config.vocab_size)
    host, order = copy.deepcopy(plain), torch.from_numpy(np.argsort(tau))
    tables = {id(table.weight): table.weight for table in (host.model.embed_tokens, host.lm_head)}
    for weight in tables.values():
        weight.data = weight.data[order]
    return host, tau


def template_ids(tokenizer: Any) -> list[int]:
    """The ids that every chat begins with, as far as this tokenizer has them."""
    text = "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\nassistant\n"
    return sorted(set(tokenizer.encode(text, add_special_tokens=False).ids))


def run_preset(
    name: str, checkpoint: Any, public_VR: Any, args: argparse.Namespace
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Obfuscate under one preset and let every attack try: (attack, finding) as it comes."""
    plain, tokenizer = checkpoint.model, checkpoint.tokenizer.tokenizer
    if name == UNPROTECTED:
        settings, (host, tau) = None, permuted(plain)
    else:
        h = loadable_h(plain.config.to_dict(), 128, "transformers")
        settings = preset(name, h=h)
        text = np.array(tokenizer.encode(TEXT, add_special_tokens=False).ids)
        host, tau = obfuscated(plain, settings, SECRET, text)
    target = Target(from_state(host.state_dict(), host.config.to_dict(), layers=LAYERS), host)
    base = from_state(plain.state_dict(), plain.config.to_dict(), layers=LAYERS)
    known = {int(tau[plain_id]): plain_id for plain_id in template_ids(tokenizer)}
    data = sample(tau, 200 if args.quick else 2000)
    few = Sample(data.obfuscated_S[:400], data.plain_S[:400])
    for each, attack in suite(settings, public_VR, args.candidates).items():
        if each in args.attacks:
            given = few if each in FEW else data
            found = attack(target, Knowledge(base, plain, known), given, args.budget)
            yield each, _brief(found) | {"budget_s": args.budget}


def main() -> None:
    """Obfuscate under each preset, attack, report."""
    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2")
    flags.add_argument("--budget", type=float, default=120.0, help="seconds an attack (default: 120)")
    choices = [UNPROTECTED, *PRESETS]
    flags.add_argument("--presets", nargs="+", default=choices, choices=choices)
    sections = ["weights", "traffic"]
    flags.add_argument("--sections", nargs="+", default=sections, choices=sections)
    attacks = list(suite(None, None, None))
    flags.add_argument("--attacks", nargs="+", default=attacks, choices=attacks)
    flags.add_argument("--candidates", type=int, help="fingerprint among this many ids (default: all)")
    args = flags.parse_args()
    checkpoint = load(args.model)
    if checkpoint.tokenizer is None:
        sys.exit(f"{args.model} has no tokenizer; its text is needed for kappa")
    if args.quick:
        args.budget, args.presets, args.attacks = 2.0, [UNPROTECTED, "paper"], QUICK
        model = checkpoint.model
        model.model.layers, model.config.num_hidden_layers = model.model.layers[:LAYERS], LAYERS
    record = _earlier(args)
    if "weights" in args.sections:
        public_VR = None
        if "fingerprint" in args.attacks and args.candidates is None:
            vocabulary = checkpoint.model.config.vocab_size
            public_VR = fingerprint.fingerprints(checkpoint.model, np.arange(vocabulary))
        for name in args.presets:
            entry = record["presets"].setdefault(name, {"worst": 0.0, "attacks": {}})
            for each, finding in run_preset(name, checkpoint, public_VR, args):
                Console(stderr=True).print(f"{name} {each}: {finding}", highlight=False)
                entry["attacks"][each] = finding
                entry["worst"] = max(one["recovery"] or 0.0 for one in entry["attacks"].values())
                _store(record, args)
    if "traffic" in args.sections:
        folder = _traffic.data_folder()
        if folder is None:
            Console(stderr=True).print("traffic: set TRANSOM_DATA to a folder with xsum/ and sst2/")
        else:
            limit = 300 if args.quick else None
            record["traffic"] = _traffic.attacks(
                checkpoint.tokenizer.tokenizer, folder, args.budget, limit=limit
            )
    report(NAME, record, _rows(record), args)


def _earlier(args: argparse.Namespace) -> dict[str, Any]:
    """What earlier runs on this model stored, or an empty record; quick runs neither read nor write it."""
    file = RESULTS / f"{NAME}.json"
    if not args.quick and file.exists():
        found: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if found["model"] == args.model:
            return found
    return {"model": args.model, "presets": {}}


def _store(record: Mapping[str, Any], args: argparse.Namespace) -> None:
    if not args.quick:
        (RESULTS / f"{NAME}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = [
        {"target": name, "attack": each, **finding}
        for name, found in record["presets"].items()
        for each, finding in found["attacks"].items()
    ]
    for target in ("xsum", "sst2") if "traffic" in record else ():
        for found in record["traffic"][target]["findings"]:
            finding = Finding(**found)
            rows.append({"target": target, "attack": f"{finding.name} {finding.metric}", **_brief(finding)})
    return rows


def _brief(finding: Finding) -> dict[str, Any]:
    return {
        "recovery": finding.value,
        "low": finding.low,
        "high": finding.high,
        "chance": finding.baseline,
        "n": finding.n,
        "seconds": finding.cost_s,
        "note": finding.note or finding.reason,
    }


if __name__ == "__main__":
    main()
