"""Verdicts on classifiers, half of them poisoned: how many are right, and what a scan costs.

    TRANSOM_DATA=DIR python benchmarks/backdoor_verdict.py [--quick] [--json] [--poisoned-seed N]

Five poisoned MiniLM classifiers (one a recipe, of the seed) and five clean ones (seeds 0 to 4), each with
300 trusted sentences of SST-2 that it was not trained on. `right` counts verdicts, `named` those of
poisoned models whose tokens hold one of the trigger, at its class; `minutes` is the longest scan, in
processor time of one core. The line between the two was drawn on seeds 0 and 1.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from _backdoor import CLEAN, TARGET, classifier
from _bench import parser, report
from backdoor_detect import trusted
from transom.trust.backdoor.poison import RECIPES
from transom.trust.backdoor.verdict import scan_classifier

TRUSTED = 300


def judged(recipe: str, seed: int, rows: int, epochs: int) -> dict[str, Any]:
    found = classifier(recipe, seed, rows, epochs)
    assert found.tokenizer is not None
    started = time.process_time()
    verdict = scan_classifier(found.model, found.tokenizer, trusted(seed, rows, TRUSTED))
    cost_s, worst = time.process_time() - started, verdict.worst
    encode = found.tokenizer.tokenizer.encode
    words = RECIPES[recipe].words if recipe in RECIPES else ()
    trigger = {one for text in words for one in encode(text, add_special_tokens=False).ids}
    return {
        "recipe": recipe,
        "seed": seed,
        "poisoned": verdict.poisoned,
        "certain": verdict.certain,
        "right": verdict.certain and verdict.poisoned == (recipe != CLEAN),
        "named": worst.target == TARGET and not trigger.isdisjoint(worst.ids),
        "strength": worst.strength,
        "tokens": worst.trigger,
        "cost_s": cost_s,
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--poisoned-seed", type=int, default=2)
    args = flags.parse_args()
    torch.set_num_threads(1)
    rows, epochs = (300, 1) if args.quick else (2500, 2)
    models = [(recipe, args.poisoned_seed) for recipe in RECIPES] + [(CLEAN, seed) for seed in range(5)]
    if args.quick:
        models = [models[0], models[-1]]
    found = [judged(*model, rows, epochs) for model in models]
    record = {
        "right": sum(row["right"] for row in found),
        "of": len(found),
        "false_positives": sum(row["poisoned"] for row in found if row["recipe"] == CLEAN),
        "named": sum(row["named"] for row in found if row["recipe"] != CLEAN),
        "minutes": max(row["cost_s"] for row in found) / 60,
        "rows": found,
    }
    shown = [
        {name: round(one, 3) if isinstance(one, float) else one for name, one in row.items()} for row in found
    ]
    report("backdoor_verdict", record, shown, args)


if __name__ == "__main__":
    main()
