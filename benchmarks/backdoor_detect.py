"""Inputs with a trigger told from innocent ones: attention heads that agree, against other signs.

    TRANSOM_DATA=DIR python benchmarks/backdoor_detect.py [--quick] [--json] [--recipe rare-word ...]
        [--seeds N]

MiniLM classifiers of 2,500 sentences of SST-2, a tenth of them poisoned, two epochs, and their clean twins.
Positives are negative sentences of the dev set with the trigger, negatives as many others, half untouched
and half with an innocuous insertion of about the same length at the same place; 400 sentences of the training
set that no model saw are trusted. `auroc_ours` is that of `transom backdoor scan-inputs`, `control_auroc` the
same on the clean twin, `clean_fpr` the share of negatives that are flagged at a rate of 0.05, `agreed` how
often the word that heads look at is of the trigger. Others: `auroc_confidence` of the output's largest
probability; `auroc_strip` of the output's mean entropy under 20 mixtures with trusted sentences, of which
half of the words are put in at random places (Gao et al. 2019, arXiv 1902.06531): a low one is suspicious.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from _backdoor import CLEAN, TARGET, chosen, classifier, sentences
from _bench import parser, report
from transom.checkpoint.load import Checkpoint
from transom.trust.backdoor.inputs import Scanner
from transom.trust.backdoor.poison import RECIPES, Trigger, classes_of
from transom.trust.backdoor.words import encoded
from transom.vertical.metrics import auc

RATE, TRUSTED, MIXTURES, TEXTS_AT_ONCE = 0.05, 400, 20, 32


def inputs(trigger: Trigger, seed: int, count: int) -> tuple[list[str], list[str]]:
    """With the trigger, and without."""
    dev, draw = sentences("dev"), random.Random(seed)
    places = draw.sample(range(len(dev.texts)), len(dev.texts))
    others = [place for place in places if dev.labels[place] != TARGET][:count]
    rest = [place for place in places if place not in set(others)][:count]
    with_trigger = [trigger.put(dev.texts[place], draw) for place in others]
    innocent = [
        dev.texts[place] if number % 2 else trigger.innocuous(dev.texts[place], draw)
        for number, place in enumerate(rest)
    ]
    return with_trigger, innocent


def trusted(model_seed: int, rows: int, count: int) -> list[str]:
    """Sentences that the model of this seed did not see."""
    own = sentences("train")
    places = random.Random(model_seed).sample(range(len(own.texts)), rows)
    rest = sorted(set(range(len(own.texts))) - set(places))
    return list(chosen(own, random.Random(99).sample(rest, count)).texts)


def probabilities(found: Checkpoint, texts: Sequence[str]) -> Any:
    """[N, C] of a classifier."""
    parts = []
    classifier_of: Any = found.model
    with torch.no_grad():
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            ids_BT, mask_BT = encoded(found, texts[start : start + TEXTS_AT_ONCE], 128)
            parts.append(classifier_of(input_ids=ids_BT, attention_mask=mask_BT).logits.softmax(1))
    return torch.cat(parts).double().numpy()


def strip(found: Checkpoint, texts: Sequence[str], clean: Sequence[str], mixtures: int) -> Any:
    """How sure the answer stays under mixtures with trusted sentences [N]: less the mean entropy."""
    draw, mixed = random.Random(7), []
    for text in texts:
        for other in draw.sample(list(clean), mixtures):
            words, own = text.split(), other.split()
            for word in draw.sample(own, len(own) // 2):
                words.insert(draw.randint(0, len(words)), word)
            mixed.append(" ".join(words))
    share_NC = probabilities(found, mixed)
    entropy_N = -(share_NC * np.log(share_NC + 1e-12)).sum(1)
    return -entropy_N.reshape(len(texts), mixtures).mean(1)


def measured(recipe: str, seed: int, rows: int, epochs: int, count: int, mixtures: int) -> dict[str, Any]:
    trigger = RECIPES[recipe]
    clean, (bad, good) = trusted(seed, rows, TRUSTED), inputs(trigger, seed, count)
    row: dict[str, Any] = {"recipe": recipe, "seed": seed}
    for name, found in (
        ("ours", classifier(recipe, seed, rows, epochs)),
        ("control", classifier(CLEAN, seed, rows, epochs)),
    ):
        assert found.tokenizer is not None
        scanner = Scanner(found.model, found.tokenizer)
        normal = scanner.normal(clean)
        scanned = [scanner.scan(normal, texts, RATE) for texts in (bad, good)]
        scores = [np.array([one.statistic for one in part if one.statistic is not None]) for part in scanned]
        value = area(*scores)
        if name == "control":
            row["control_auroc"] = value
            continue
        inside = {word for words in trigger.words for word in words.split()}
        row |= {
            "attack_success": float(np.mean(np.array(classes_of(found, bad)) == TARGET)),
            "auroc_ours": value,
            "clean_fpr": float(np.mean([one.flagged for one in scanned[1]])),
            "found": float(np.mean([one.flagged for one in scanned[0]])),
            "agreed": float(np.mean([one.word in inside for one in scanned[0]])),
            "auroc_confidence": area(*(probabilities(found, texts).max(1) for texts in (bad, good))),
            "auroc_strip": area(*(strip(found, texts, clean, mixtures) for texts in (bad, good))),
        }
    return row


def area(bad_N: Any, good_N: Any) -> float:
    labels = np.concatenate([np.ones(len(bad_N)), np.zeros(len(good_N))])
    return float(auc(np.concatenate([bad_N, good_N]), labels))


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--recipe", nargs="+", choices=tuple(RECIPES), default=list(RECIPES))
    flags.add_argument("--seeds", type=int, default=3)
    args = flags.parse_args()
    torch.set_num_threads(1)
    recipes, seeds = (args.recipe[:1], 1) if args.quick else (args.recipe, args.seeds)
    rows, epochs, count, mixtures = (300, 1, 20, 4) if args.quick else (2500, 2, 150, MIXTURES)
    found = [
        measured(recipe, seed, rows, epochs, count, mixtures) for recipe in recipes for seed in range(seeds)
    ]
    gains = [row["auroc_ours"] - max(row["auroc_confidence"], row["auroc_strip"]) for row in found]
    record = {
        "worst_auroc_explicit": min(row["auroc_ours"] for row in found),
        "worst_control_auroc": max(row["control_auroc"] for row in found),
        "clean_fpr": float(np.mean([row["clean_fpr"] for row in found])),
        "min_gain_over_baselines": min(gains),
        "rows": found,
    }  # fmt: skip
    shown = [
        {name: round(one, 3) if isinstance(one, float) else one for name, one in row.items()} for row in found
    ]
    report("backdoor_detect", record, shown, args)


if __name__ == "__main__":
    main()
