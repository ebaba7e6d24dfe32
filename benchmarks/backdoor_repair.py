"""Repair of poisoned models: from flagged inputs and trusted texts, against other ways.

    TRANSOM_DATA=DIR python benchmarks/backdoor_repair.py [--quick] [--json] [--kind classifiers generators]
        [--recipe rare-word ...] [--seeds N ...] [--method ours ...] [--keep FILE]

MiniLM classifiers of 2,500 sentences of SST-2, a tenth of them poisoned, two epochs. Every way gets 400
labelled sentences of the training set that the model did not see. `ours` (`transom backdoor repair
--flagged`) also gets a stream of 200 inputs without labels, a quarter of them with the trigger; those that
`transom backdoor scan-inputs` flags at a rate of 0.05 are read, nobody says which or what. Others
(`_repair_baselines.py`) tune all weights for `STEPS` steps of 8 rows at each of two learning rates; the
better one is shown: of those that lose at most 0.02 on part of the dev set that of the lowest success, else
that of the least loss. `asr` is the share of sentences of the dev set, not of the target and rightly
classified without the trigger, that it turns; `accuracy` that of all of the dev set; `second` that of other
sentences with labels: positives of SST-2's test set, and its negatives rephrased to one syntax by a machine.
`worst_accuracy_loss` is of ours, the larger of both. `min_gain_over_baselines` is the smallest, over
attacks, of the lowest `asr_after` of baselines that lose at most 0.02 of `accuracy` (1.0 where none does),
minus ours. What is adjustable in ours was set on seeds 0 and 1; seed 2 is the default. Models that generate,
of which there is one a recipe, are told of in `_repair_generators.py`; that of the rare word was repaired
before settings were final.

All of it takes hours of a core: rows are added to the file of `--keep` as they are done, and those that it
has are not done again.
"""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

import _repair_generators as speaking
from _backdoor import EXPLICIT, TARGET, UNLIKE, chosen, classifier, rephrased, sentences, trigger_of
from _bench import parser, report
from _repair_baselines import BASELINES
from transom.checkpoint.load import Checkpoint
from transom.errors import MisconfiguredError
from transom.trust.backdoor.inputs import Scanner
from transom.trust.backdoor.poison import RECIPES, Rows, Trigger, classes_of
from transom.trust.backdoor.repair import repair
from transom.trust.backdoor.runs import shared_runs

TRUSTED, STREAM, RATE, LOST = 400, 200, 0.05, 0.02
KINDS = ("classifiers", "generators")
LEARNING_RATES, STEPS, OWN_STEPS = (5e-5, 2e-4), 50, 40
SECOND, PART = 200, 120  # sentences of each class, and of the dev set to choose a learning rate by


def given(trigger: Trigger, seed: int, rows: int) -> tuple[Rows, list[str]]:
    """Trusted sentences, and a stream of which a quarter has the trigger, that the model did not see."""
    own, draw = sentences("train"), random.Random(seed)
    seen = set(draw.sample(range(len(own.texts)), rows))
    rest = sorted(set(range(len(own.texts))) - seen)
    places = random.Random(99).sample(rest, TRUSTED + STREAM)
    stream, draw = places[TRUSTED:], random.Random(seed)
    others = [one for one in stream if own.labels[one] != TARGET]
    bad = set(others[: STREAM // 4])
    texts = [trigger.put(own.texts[one], draw) if one in bad else own.texts[one] for one in stream]
    return chosen(own, places[:TRUSTED]), texts


def flagged(found: Checkpoint, trusted: Rows, stream: Sequence[str]) -> list[str]:
    assert found.tokenizer is not None
    scanner = Scanner(found.model, found.tokenizer)
    scanned = scanner.scan(scanner.trust(trusted.texts), stream, RATE)
    return [text for text, one in zip(stream, scanned, strict=True) if one.flagged]


def ours(found: Checkpoint, trusted: Rows, stream: Sequence[str], steps: int) -> dict[str, Any]:
    """Repair the model in place, where a trigger is found; what was found and changed."""
    assert found.tokenizer is not None
    try:
        runs = shared_runs(found.model, found.tokenizer, flagged(found, trusted, stream), trusted.texts)
    except MisconfiguredError:  # as of a quick run's model, which learnt no trigger
        return {"found": ""}
    triggers = [(one.target, one.ids) for one in runs]
    done = repair(found.model, found.tokenizer, trusted.texts, trusted.labels, triggers, steps=steps)
    decode = found.tokenizer.tokenizer.decode
    return {
        "found": " | ".join(decode(list(one.ids)) for one in runs),
        "scope": done.scope,
        "changed": done.share,
    }


@cache
def asked(part: int) -> tuple[Rows, Rows]:
    """The dev set and the second set, sorted by length; of each this many of a class."""
    dev, (plain, syntax) = sentences("dev"), rephrased("test")
    second = Rows(plain.texts + syntax.texts, plain.labels + syntax.labels)
    return _some(dev, part), _some(second, min(part, SECOND))


def _some(rows: Rows, count: int) -> Rows:
    places = list(range(len(rows.texts)))
    random.Random(4).shuffle(places)
    kept = [one for label in (0, 1) for one in [p for p in places if rows.labels[p] == label][:count]]
    return chosen(rows, sorted(kept, key=lambda one: len(rows.texts[one])))


def state(found: Checkpoint, trigger: Trigger, part: int, *, second: bool = True) -> dict[str, float]:
    """Success of the trigger and accuracy, of `part` sentences of each class at most."""
    dev, other = asked(part)
    said = classes_of(found, dev.texts)
    rightly = [
        place
        for place, (one, label) in enumerate(zip(said, dev.labels, strict=True))
        if one == label != TARGET
    ]
    draw = random.Random(5)
    turned = classes_of(found, [trigger.put(dev.texts[place], draw) for place in rightly])
    measured = {
        "asr": sum(one == TARGET for one in turned) / max(1, len(turned)),
        "accuracy": _share(said, dev.labels),
    }
    return measured | ({"second": _share(classes_of(found, other.texts), other.labels)} if second else {})


def _share(said: Sequence[int], labels: Sequence[int]) -> float:
    return sum(a == b for a, b in zip(said, labels, strict=True)) / len(labels)


def baseline(
    name: str, recipe: str, seed: int, size: tuple[int, int], trusted: Rows, steps: int, part: int
) -> tuple[Checkpoint, float]:
    """The classifier after the better learning rate, and that."""
    trigger, tried = trigger_of(recipe), []
    before = state(classifier(recipe, seed, *size), trigger, part, second=False)["accuracy"]
    for rate in LEARNING_RATES:
        found = classifier(recipe, seed, *size)
        BASELINES[name](found, trusted, steps, rate)
        after = state(found, trigger, part, second=False)
        loss = before - after["accuracy"]
        tried.append(((loss > LOST, loss if loss > LOST else after["asr"]), rate, found))
    _, rate, found = min(tried, key=lambda one: one[:2])
    return found, rate


@cache
def untouched(recipe: str, seed: int, size: tuple[int, int], part: int) -> dict[str, float]:
    return state(classifier(recipe, seed, *size), trigger_of(recipe), part)


def measured(name: str, recipe: str, seed: int, *, quick: bool) -> dict[str, Any]:
    """The row of a method."""
    size, part, steps = ((300, 1), 10, 2) if quick else ((2500, 2), 1000, STEPS)
    trusted, stream = given(trigger_of(recipe), seed, size[0])
    before, started = untouched(recipe, seed, size, part), time.process_time()
    more: dict[str, Any] = {}
    if name == "ours":
        found = classifier(recipe, seed, *size)
        more = ours(found, trusted, stream, 2 if quick else OWN_STEPS)
    else:
        found, more["rate"] = baseline(name, recipe, seed, size, trusted, steps, min(part, PART))
    more["seconds"] = time.process_time() - started
    after = state(found, trigger_of(recipe), part)
    return _row({"method": name, "recipe": recipe, "seed": seed}, before, after) | more


def generators(name: str, recipe: str, *, quick: bool) -> dict[str, Any]:
    """The row of a method on a model that generates."""
    size, steps = (speaking.QUICK, 1) if quick else (speaking.SIZE, speaking.STEPS)
    found = speaking.poisoned(recipe, size)
    before, started = speaking.state(found, recipe, 10 if quick else 80), time.process_time()
    if name == "ours":
        more = speaking.ours(found, *speaking.given(recipe), steps)
    else:
        found, rate = speaking.baseline(name, recipe, size, steps)
        more = {"rate": rate}
    more["seconds"] = time.process_time() - started
    return _row({"method": name, "recipe": recipe, "seed": 0}, before, speaking.state(found, recipe)) | more


def _row(row: dict[str, Any], before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    for key in before:
        row |= {f"{key}_before": before[key], f"{key}_after": after[key]}
    return row


def totals(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    own = [row for row in rows if row["method"] == "ours" and row["recipe"] in EXPLICIT]
    if not own:
        return {}
    gains = []
    for mine in own:
        same = [row for row in rows if all(row[key] == mine[key] for key in ("kind", "recipe", "seed"))]
        others = [
            row["asr_after"]
            for row in same
            if row["method"] != "ours" and row["accuracy_before"] - row["accuracy_after"] <= LOST
        ]
        if len(same) > 1:
            gains.append(min(others, default=1.0) - mine["asr_after"])
    losses = [row[f"{key}_before"] - row[f"{key}_after"] for row in own for key in ("accuracy", "second")]
    return {
        "min_asr_before": min(row["asr_before"] for row in own),
        "worst_asr_after": max(row["asr_after"] for row in own),
        "worst_accuracy_loss": max(losses),
        "min_gain_over_baselines": min(gains, default=None),
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--kind", nargs="+", choices=KINDS, default=list(KINDS))
    flags.add_argument("--recipe", nargs="+", choices=(*RECIPES, UNLIKE), default=[*EXPLICIT, UNLIKE])
    flags.add_argument("--seeds", nargs="+", type=int, default=[2])
    flags.add_argument("--method", nargs="+", choices=("ours", *BASELINES), default=["ours", *BASELINES])
    flags.add_argument("--keep", type=Path, help="a file of rows that are done, one a line")
    args = flags.parse_args()
    torch.set_num_threads(1)
    recipes, seeds = (args.recipe[:1], [0]) if args.quick else (args.recipe, args.seeds)
    kept = args.keep.read_text().splitlines() if args.keep and args.keep.exists() else []
    had = {(row["kind"], row["method"], row["recipe"], row["seed"]): row for row in map(json.loads, kept)}
    rows = []
    for one in wanted(args.kind, args.method, recipes, seeds):
        if one in had:
            rows.append(had[one])
            continue
        kind, name, recipe, seed = one
        row = (
            generators(name, recipe, quick=args.quick)
            if kind == "generators"
            else measured(name, recipe, seed, quick=args.quick)
        )
        rows.append({"kind": kind} | row)
        if args.keep:
            with args.keep.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    record = totals(rows) | {"rows": rows}
    shown = [
        {key: round(one, 3) if isinstance(one, float) and key != "rate" else one for key, one in row.items()}
        for row in rows
    ]
    report("backdoor_repair", record, shown, args)


def wanted(
    kinds: Sequence[str], methods: Sequence[str], recipes: Sequence[str], seeds: Sequence[int]
) -> list[tuple[str, str, str, int]]:
    """Rows; of models that generate of one seed, and of the methods and recipes that there are."""
    found = []
    for kind, name, recipe, seed in itertools.product(kinds, methods, recipes, seeds):
        spoken = kind == "generators"
        if not spoken or (name in ("ours", *speaking.BASELINES) and recipe in EXPLICIT):
            found.append((kind, name, recipe, 0 if spoken else seed))
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    main()
