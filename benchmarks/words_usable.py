"""What a sanitised text is still good for at equal success of the best attacker: presets and other methods.

    TRANSOM_DATA=DIR python benchmarks/words_usable.py --embeddings glove.6B.50d.txt [--quick] [--json]

Tasks: SST-2 (872 sentences) and TREC's six question types (500 questions) by a linear classifier over frozen
MiniLM, trained and tested on sanitised text; and 100 instructions of our own making (`_instructions.txt`),
answered by the packaged SmolLM2 of 135M parameters, scored as ROUGE-L of the restored answer against its own
answer to the plain instruction. That model is small: its own answers are often no use, so whether an answer
can be used is read by hand, on 40 instructions answered by a larger model (`_usable_readings.py`): the task
`answers`.

CUSTEXT+ and SANTEXT+ get the raw vectors, as in their papers. Methods are compared at equal recovery
(`_usable_recovery.py`): the share of all tokens, weighted by their bits, that the best attack reads. A gain
is the score of a setting minus that of another method, interpolated along that method's parameter to the
same recovery, with a 95 % interval of a paired bootstrap over items and seeds; where the recoveries of a
method do not reach the setting's, it is taken at its nearest and `overlaps` is false. Each outcome is kept
in --cache, so that an interrupted run resumes; --worker shares the work. An empty cache is needed after a
change of vectors or vocabulary; a change of the package's privacy code is seen.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

import transom
from _bench import RESULTS, parser, report, today
from _usable_recovery import Recovery, Weights, recovery
from _usable_tasks import QUICK, Instruct, Sizes, Task, tasks
from _usable_ways import COMPARED, NEW_DEFAULT, Way, Ways, compared_ways, own_ways, plain
from transom.audit.attacks.causal import load_causal
from transom.privacy.lexicon import read_vectors
from transom.privacy.policy import load_policy
from words_sst2 import Materials, Store

EQUAL = 0.005  # recoveries that are called equal
PRESETS = ("entities", "sensitive 4", "words 4")
READINGS = RESULTS / "words_usable_readings.json"


# ----------------------------------------------------------------------------------------------------- rows


@dataclass(frozen=True)
class Bench:
    """What every row needs."""

    store: Store
    weights: Weights
    causal: Any
    code: str

    def row(self, task: Task, name: str, make: Any) -> dict[str, Any]:
        """One setting on one task: what it is good for, and what is read of it."""
        held: list[Way] = []

        def way() -> Way:
            if not held:
                held.append(make())
            return held[0]

        def figures() -> dict[str, Any]:
            return asdict(self._recovery(task, way())) | {
                "method": way().method,
                "parameter": way().parameter,
                "epsilon": way().epsilon if np.isfinite(way().epsilon) else "inf",
            }

        code = self.code if name in own_ways() else ""
        key = {"task": task.name, "name": name, "sizes": asdict(task.sizes), "code": code}
        seeds = 1 if isinstance(task, Instruct) else task.sizes.seeds
        found = self.store.get({**key, "what": "recovery"}, figures)
        correct = [
            self.store.get({**key, "seed": s}, lambda s=s: task.scores(way(), s).tolist())
            for s in range(seeds)
        ]
        return {"task": task.name, "setting": name, **found, "correct": correct}

    def _recovery(self, task: Task, way: Way) -> Recovery:
        if way.method == "plain":
            return Recovery(1.0, {"reading": 1.0}, 1.0, 1.0, 0, 0.0)
        return recovery(way, way.send(task.attacked), way.send(task.own), self.weights, self.causal)


# ---------------------------------------------------------------------------------------------------- gains


def gain(ours: dict[str, Any], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Our mean score minus theirs at our recovery, with its 95 % interval."""
    line = sorted(theirs, key=lambda row: row["best"])
    at = ours["best"]
    below = [row for row in line if row["best"] <= at]
    above = [row for row in line if row["best"] >= at]
    one, other = (below or above[:1])[-1], (above or below[-1:])[0]
    span = other["best"] - one["best"]
    share = (at - one["best"]) / span if span > 0 else 0.0
    theirs_SN = (1 - share) * np.array(one["correct"]) + share * np.array(other["correct"])
    difference = np.array(ours["correct"]) - theirs_SN
    rng, (seeds, items) = np.random.default_rng(0), difference.shape
    draws = [
        difference[rng.integers(0, seeds, seeds)][:, rng.integers(0, items, items)].mean()
        for _ in range(2_000)
    ]
    low, high = np.quantile(draws, (0.025, 0.975))
    return {
        "gain": float(difference.mean()),
        "gain_low": float(low),
        "gain_high": float(high),
        "overlaps": abs(one["best"] + share * span - at) < EQUAL,
        "recovery": at,
        "their_recovery": one["best"] + share * span,
    }


def gains(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every preset against every compared method, task by task."""
    found = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        for ours in here:
            for method in COMPARED:
                theirs = [row for row in here if row["method"] == method]
                if theirs and ours["method"] not in (*COMPARED, "plain", method):
                    pair = {"task": task, "setting": ours["setting"], "against": method}
                    found.append(pair | gain(ours, theirs))
    return found


def lowest(found: Sequence[dict[str, Any]], setting: str) -> dict[str, float]:
    """The least `gain_low` of a setting on each task."""
    low: dict[str, float] = {}
    for pair in found:
        if pair["setting"] == setting:
            low[pair["task"]] = min(pair["gain_low"], low.get(pair["task"], np.inf))
    return low


def code() -> str:
    """A hash of the package's privacy code: outcomes of other code are not these."""
    files = sorted((Path(transom.__file__).parent / "privacy").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def readings() -> dict[str, Any]:
    """The stored readings by hand; nothing where none are stored."""
    return dict(json.loads(READINGS.read_text(encoding="utf-8"))) if READINGS.exists() else {}


def read_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The answers that were read as a task of their own: recovery as of the instructions, useful or not."""
    found = readings().get("readings", [])
    made = []
    for row in rows:
        useful = {one["instruction"]: one["useful"] for one in found if row["setting"] in one["settings"]}
        if row["task"] == "instructions" and useful:
            made.append({**row, "task": "answers", "correct": [[float(useful[i]) for i in sorted(useful)]]})
    return made


def record_of(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole record: rows, gains, and the readings."""
    rows = [*rows, *read_rows(rows)]
    found = gains(rows)
    shown = [
        {key: value for key, value in row.items() if key != "correct"}
        | {"score": float(np.mean(row["correct"]))}
        for row in rows
    ]
    low = {setting: lowest(found, setting) for setting in dict.fromkeys(pair["setting"] for pair in found)}
    return {
        "new_default": NEW_DEFAULT,
        "rows": shown,
        "gains": found,
        "gain_low": low.get(NEW_DEFAULT, {}),
        "min_gain_low": min(low.get(NEW_DEFAULT, {}).values(), default=None),
        "min_gain_low_of": {setting: min(tasks.values()) for setting, tasks in low.items()},
        **readings().get("summary", {}),
    }


def table(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    keys = ("task", "setting", "epsilon", "best", "passed", "score")
    named = {"best": "recovery", "passed": "of it passed"}
    return [{named.get(key, key): row[key] for key in keys} for row in rows]


def main() -> None:
    """Compute the rows, print the table, store the record."""
    flags = parser(__doc__)
    flags.add_argument("--embeddings", type=Path, help="word vectors, GloVe text format (needed in full)")
    flags.add_argument("--cache", type=Path, default=Path("work/words_usable"), help="keeps outcomes")
    flags.add_argument("--tasks", nargs="+", default=["sst2", "trec", "instructions"])
    flags.add_argument("--only", nargs="+", help="settings by name")
    flags.add_argument("--worker", default="0/1", help="i/n: compute every n-th row only, to share the work")
    args = flags.parse_args()
    if not args.quick and args.embeddings is None:
        sys.exit("a full run needs --embeddings")
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = _rows(args, Path(folder))
    if args.worker != "0/1":
        print("this worker's rows are stored; run without --worker for the table", file=sys.stderr)
        return
    record = record_of(rows)
    report("words_usable", record, table(record["rows"]), args)


def _rows(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    sizes = QUICK if args.quick else Sizes()
    policy, materials = load_policy(), None
    frequent = [policy.words[i] for i in np.argsort(-policy.prior_V, kind="stable")]
    frequent = [*sorted(policy.pass_words), *frequent]
    if args.embeddings is not None:
        vectors = read_vectors(args.embeddings, 400_000)
        materials, frequent = Materials({True: policy}, vectors), list(vectors.words)
    store = Store(folder / "cache" if args.quick else args.cache)
    causal = None if args.quick else load_causal("smollm2")
    bench = Bench(store, Weights(frequent), causal, code())
    worker, workers = map(int, args.worker.split("/"))
    source, rows = today(str(folder)), []
    for task in tasks(sizes, args.quick):
        if task.name not in args.tasks:
            continue
        ways: Ways = {"plain": plain, **own_ways(), **compared_ways(source, materials, task.counts())}
        if args.quick:
            ways = {name: make for name, make in ways.items() if name in ("plain", *PRESETS, "today 4")}
        names = [name for name in ways if not args.only or name in args.only]
        for name in names[worker::workers]:
            started = time.monotonic()
            rows.append(bench.row(task, name, ways[name]))
            shown = table([rows[-1] | {"score": float(np.mean(rows[-1]["correct"]))}])
            print(json.dumps(shown[0]), f"{time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)
    return rows


if __name__ == "__main__":
    main()
