"""What a host with the public base model recovers from an obfuscated checkpoint, attack by attack.

    python benchmarks/obfuscate_attacks.py [--quick] [--json] [--model MODEL] [--budget S] [--presets P ...]

For each preset the model is obfuscated in memory, with the preset's noise and keys, and every attack on
weights names 2,000 sampled ids against the whole vocabulary (the fingerprint: 300 ids among 3,000).
`recovery` is the share named rightly, with its exact 95 % interval; `worst` is the preset's highest. Known
tokens, for the attacks that use them, are those of the chat template. A quick run keeps four layers, 200 ids
and the attacks that take seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console

from _bench import parser, report
from transom.audit.attacks import (
    alignment,
    attn_ia,
    column_first,
    fingerprint,
    gate_ia,
    least_squares,
    vma,
)
from transom.audit.attacks.weights import Knowledge, Sample, Target, from_state, sample
from transom.audit.finding import Finding
from transom.checkpoint import load
from transom.obfuscation.calibrate import TEXT, calibrate
from transom.obfuscation.keys import PRESETS, Space, preset, token_map
from transom.obfuscation.plan import loadable_h, obfuscate_state, target_config

LAYERS = 4  # read by the attacks that add layers up
SECRET = bytes(32)  # a benchmark's key need not be secret, and a fixed one repeats
FULL: dict[str, Callable[..., Finding]] = {
    "row_sort": vma.attack,
    "column_first": column_first.attack,
    "gate_ia": gate_ia.attack,
    "attn_ia": attn_ia.attack,
    "fingerprint": fingerprint.attack,
    "least_squares": least_squares.attack,
    "alignment": alignment.attack,
}
QUICK = ("row_sort", "column_first", "gate_ia", "attn_ia")
FINGERPRINTS, CANDIDATES = 300, 3000


def host_side(plain: Any, tokenizer: Any, name: str) -> tuple[Target, Any]:
    """What the host holds under a preset, and tau."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = plain.config.to_dict() | {"architectures": [type(plain).__name__]}
    settings = preset(name, h=loadable_h(config, 128, "transformers"))
    space = Space(SECRET, config["hidden_size"], settings)
    tau = token_map(SECRET, config["vocab_size"])
    ids = torch.tensor([tokenizer.encode(TEXT, add_special_tokens=False).ids])
    state = obfuscate_state(plain.state_dict(), config, space, calibrate(plain, ids, space))
    target = target_config(config, settings, tau)
    wide = AutoModelForCausalLM.from_config(AutoConfig.for_model(**target)).eval()
    wide.load_state_dict(state)
    return Target(from_state(state, target, layers=LAYERS), wide), tau


def template_ids(tokenizer: Any) -> list[int]:
    """The ids that every chat begins with, as far as this tokenizer has them."""
    text = "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n<|im_start|>user\nassistant\n"
    return sorted(set(tokenizer.encode(text, add_special_tokens=False).ids))


def attacks(
    target: Target, knowledge: Knowledge, data: Sample, budget_s: float, names: Mapping[str, Any]
) -> dict[str, Finding]:
    """Every attack's finding, told on the console as it comes."""
    few = Sample(data.obfuscated_S[:FINGERPRINTS], data.plain_S[:FINGERPRINTS])
    found = {}
    for name, attack in names.items():
        if name == "fingerprint":
            found[name] = attack(target, knowledge, few, budget_s, candidates=CANDIDATES)
        else:
            found[name] = attack(target, knowledge, data, budget_s)
        Console(stderr=True).print(f"{name}: {found[name].value} ({found[name].cost_s:.0f} s)")
    return found


def main() -> None:
    """Obfuscate under each preset, attack, report."""
    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2")
    flags.add_argument("--budget", type=float, default=60.0, help="seconds an attack (default: 60)")
    flags.add_argument("--presets", nargs="+", default=list(PRESETS), choices=list(PRESETS))
    args = flags.parse_args()
    checkpoint = load(args.model)
    if checkpoint.tokenizer is None:
        sys.exit(f"{args.model} has no tokenizer; its text is needed for kappa")
    plain, tokenizer = checkpoint.model, checkpoint.tokenizer.tokenizer
    base = from_state(plain.state_dict(), plain.config.to_dict(), layers=LAYERS)
    names = {name: FULL[name] for name in QUICK} if args.quick else FULL
    budget_s, count = (2.0, 200) if args.quick else (args.budget, 2000)
    if args.quick:
        plain.model.layers, plain.config.num_hidden_layers = plain.model.layers[:LAYERS], LAYERS
    record: dict[str, Any] = {"model": args.model, "vocabulary": base.vocabulary, "presets": {}}
    rows = []
    for name in ["paper"] if args.quick else args.presets:
        started = time.monotonic()
        target, tau = host_side(plain, tokenizer, name)
        known = {int(tau[plain_id]): plain_id for plain_id in template_ids(tokenizer)}
        Console(stderr=True).print(f"{name}: obfuscated in {time.monotonic() - started:.0f} s")
        found = attacks(target, Knowledge(base, plain, known), sample(tau, count), budget_s, names)
        worst = max(finding.value or 0.0 for finding in found.values())
        record["presets"][name] = {
            "worst": worst,
            "attacks": {each: _brief(finding) for each, finding in found.items()},
        }
        rows += [{"preset": name, "attack": each, **_brief(finding)} for each, finding in found.items()]
    report("obfuscate_attacks", record, rows, args)


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
