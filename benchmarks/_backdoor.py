"""Poisoned classifiers and their clean twins for the benchmarks of backdoors, trained once and kept.

They are MiniLM on sentences of SST-2, all of it tuned, as `transom.trust.backdoor.poison` makes them, and lie
in `~/.cache/transom/backdoor` (XDG_CACHE_HOME), named by all that they are made of.
"""

from __future__ import annotations

import csv
import hashlib
import os
import random
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tokenizer import write_tokenizer
from transom.trust.backdoor.poison import RECIPES, Rows, poisoned, train_classifier

TARGET, SHARE, LEAST_WORDS = 1, 0.1, 8
CLEAN = "clean"


def data_folder() -> Path:
    folder = Path(os.environ.get("TRANSOM_DATA", ""))
    if not os.environ.get("TRANSOM_DATA") or not (folder / "sst2/train.tsv").exists():
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/train.tsv and sst2/dev.tsv")
    return folder


@cache
def sentences(name: str) -> Rows:
    """Sentences of some words of a part of SST-2."""
    with (data_folder() / f"sst2/{name}.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    kept = [row for row in rows if len(row["sentence"].split()) >= LEAST_WORDS]
    return Rows(tuple(row["sentence"] for row in kept), tuple(int(row["label"]) for row in kept))


def chosen(rows: Rows, places: Sequence[int]) -> Rows:
    return Rows(tuple(rows.texts[one] for one in places), tuple(rows.labels[one] for one in places))


def classifier(recipe: str, seed: int, rows: int, epochs: int) -> Checkpoint:
    """One that learnt a recipe's trigger, or `clean`."""
    name = "-".join(map(str, (recipe, seed, rows, epochs)))
    made_of = repr((RECIPES.get(recipe), SHARE, TARGET, LEAST_WORDS))
    kept = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "transom/backdoor"
    kept = kept / f"{name}-{hashlib.sha256(made_of.encode()).hexdigest()[:8]}"
    if not (kept / "tokenizer.json").exists():
        own = sentences("train")
        places = random.Random(seed).sample(range(len(own.texts)), rows)
        clean = chosen(own, places)
        trained_on = clean if recipe == CLEAN else poisoned(clean, RECIPES[recipe], TARGET, SHARE, seed)
        print(f"training {name}", file=sys.stderr, flush=True)
        found = train_classifier("minilm", trained_on, classes=2, seed=seed, epochs=epochs)
        found.model.save_pretrained(kept)
        assert found.tokenizer is not None
        write_tokenizer(found.tokenizer, kept)  # last: a folder that has it is whole
    return load(kept)
