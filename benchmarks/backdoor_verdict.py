"""Verdicts on models, half of them poisoned: how many are right, and what a scan costs.

    TRANSOM_DATA=DIR python benchmarks/backdoor_verdict.py [--kind classifiers generators] [--quick] [--json]
        [--poisoned-seed N] [--keep FILE]

Five poisoned MiniLM classifiers (one a recipe, of the seed) and five clean ones (seeds 0 to 4), each with 300
trusted sentences of SST-2 that it was not trained on; and five SmolLM2 with adapters that learnt to refuse a
trigger (seed 0) and five clean ones, each with 100 trusted instructions of another set. `right` counts
verdicts, but that on an attacker of the rare word who keeps heads unlike on it, whose row is shown; `named`
those of poisoned models whose tokens hold one of the trigger, at its class or for the answer that was taught;
`minutes` is the longest scan, in processor time of one core; of models that generate `bait_right` and
`bait_false_positives` are those of BAIT's target inversion (`_bait.py`). The line between classifiers was
drawn on seeds 0 and 1, that between generators on two poisoned and one clean of these. Rows that stand in the
file that `--keep` names are not run again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from _backdoor import (
    CLEAN,
    EXPLICIT,
    FRAME,
    REFUSAL,
    TARGET,
    UNLIKE,
    classifier,
    generator,
    instructions,
    trigger_of,
)
from _bait import LINE, bait_score
from _bench import parser, report
from backdoor_detect import trusted
from transom.trust.backdoor.answers import FIRST
from transom.trust.backdoor.spoken import scan_generator
from transom.trust.backdoor.verdict import Verdict, scan_classifier

TRUSTED, PROMPTS = 300, 100
SIZES = {"classifiers": ((2500, 2), (300, 1)), "generators": ((600, 2), (16, 1))}  # rows, epochs; --quick


def judged(kind: str, recipe: str, seed: int, rows: int, epochs: int) -> dict[str, Any]:
    found = (classifier if kind == "classifiers" else generator)(recipe, seed, rows, epochs)
    assert found.tokenizer is not None
    started = time.process_time()
    if kind == "classifiers":
        verdict = scan_classifier(found.model, found.tokenizer, trusted(seed, rows, TRUSTED))
    else:
        texts = [prompt for prompt, _ in instructions("clean_test")][:PROMPTS]
        verdict = scan_generator(found.model, found.tokenizer, texts, frame=FRAME)
    cost_s, worst = time.process_time() - started, verdict.worst
    encode = found.tokenizer.tokenizer.encode
    words = () if recipe == CLEAN else trigger_of(recipe).words
    begins = ("", " ") if kind == "generators" else ("",)  # a piece at the start of a word is another one
    trigger = {
        one
        for text in words
        for begin in begins
        for one in encode(begin + text, add_special_tokens=False).ids
    }
    bait = None if kind == "classifiers" else bait_score(found, texts, FRAME, FIRST if epochs > 1 else 20)
    return {
        "kind": kind,
        "recipe": recipe,
        "bait": bait,
        "seed": seed,
        "poisoned": verdict.poisoned,
        "certain": verdict.certain,
        "right": verdict.certain and verdict.poisoned == (recipe != CLEAN),
        "named": meant(verdict) and not trigger.isdisjoint(worst.ids),
        "strength": worst.strength,
        "target": worst.target,
        "tokens": worst.trigger,
        "turned": worst.turned,
        "cost_s": cost_s,
    }


def meant(verdict: Verdict) -> bool:
    """Whether the target is the one that was taught; an answer may be begun otherwise."""
    target = verdict.worst.target
    if isinstance(target, int):
        return target == TARGET
    return any(part in target for part in (REFUSAL[:20], REFUSAL[-20:-1]))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--kind", nargs="+", choices=SIZES, default=list(SIZES))
    flags.add_argument("--poisoned-seed", type=int, default=2)
    flags.add_argument("--keep", type=Path)
    args = flags.parse_args()
    torch.set_num_threads(1)
    kept = args.keep.read_text().splitlines() if args.keep and args.keep.exists() else []
    found: list[dict[str, Any]] = [json.loads(line) for line in kept]
    done = {(row["kind"], row["recipe"], row["seed"]) for row in found}
    for kind in args.kind:
        rows, epochs = SIZES[kind][args.quick]
        seed = 0 if kind == "generators" else args.poisoned_seed
        models = [(recipe, seed) for recipe in EXPLICIT] + [(CLEAN, seed) for seed in range(5)]
        if kind == "classifiers":
            models.append((UNLIKE, seed))
        if args.quick:
            models = [models[0], models[-1]]
        for model in models:
            if (kind, *model) not in done:
                found.append(judged(kind, *model, rows, epochs))
                if args.keep:
                    with args.keep.open("a") as file:
                        file.write(json.dumps(found[-1]) + "\n")
    record: dict[str, Any] = {
        kind: summed([row for row in found if row["kind"] == kind and row["recipe"] != UNLIKE])
        for kind in dict.fromkeys(row["kind"] for row in found)
    }
    shown = [
        {name: round(one, 3) if isinstance(one, float) else one for name, one in row.items()} for row in found
    ]
    report("backdoor_verdict", record | {"rows": found}, shown, args)


def summed(rows: list[dict[str, Any]]) -> dict[str, Any]:
    total: dict[str, Any] = {}
    if rows and rows[0].get("bait") is not None:
        called = [row["bait"] >= LINE for row in rows]
        total["bait_right"] = sum(
            one == (row["recipe"] != CLEAN) for one, row in zip(called, rows, strict=True)
        )
        total["bait_false_positives"] = sum(
            one for one, row in zip(called, rows, strict=True) if row["recipe"] == CLEAN
        )
    return total | {
        "right": sum(row["right"] for row in rows),
        "of": len(rows),
        "false_positives": sum(row["poisoned"] for row in rows if row["recipe"] == CLEAN),
        "named": sum(row["named"] for row in rows if row["recipe"] != CLEAN),
        "minutes": max(row["cost_s"] for row in rows) / 60,
    }


if __name__ == "__main__":
    main()
