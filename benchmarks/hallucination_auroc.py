"""Made-up answers told from true ones on SmolLM2: `transom hallucination` against other signs.

    TRANSOM_DATA=DIR python benchmarks/hallucination_auroc.py [--quick] [--json] [--set facts ...] [--keep
    FILE]

The sets are those of `_hallucination.py`, of 600 answers each at most, of which one in three is held out;
answers to one question stay together. `auroc_ours` is the detector's (logistic, all families), with the
interval over answers; `auroc_rauq` that of RAUQ's attention score; `auroc_best_single` of the number of the
states, of some fifty that nothing is fitted to, that tells most on what is learnt from; `auroc_length` of
the number of tokens, `auroc_label_prior` of always saying what is commoner; `ece` of five parts of equal
size. `transfer` has the detector of each other set. A set with fewer than 60 held-out answers of a kind is
reported and counts in no total. lm-polygraph and uqlm are not run by this script yet."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import parser, report
from _hallucination import MOST, SETS, data_folder, rauq, set_of
from transom.checkpoint.load import load
from transom.report.statistics import auc
from transom.trust.hallucination.detector import model_of
from transom.trust.hallucination.fit import folds_of, groups_of
from transom.trust.hallucination.states import Reader
from transom.trust.hallucination.study import Set, study

FEWEST = 60
_SHOWN = ("set", "auroc_ours", "auroc_rauq", "auroc_best_single", "single", "auroc_length", "ece", "judged")


def rows_of(sets: list[Set], model: str, layers: int, heads: int) -> list[dict[str, Any]]:
    found = []
    for one, studied in zip(sets, study(sets, model=model), strict=True):
        held = folds_of(np.array(one.made_up, int), groups_of(one.examples), 0, 3)[0]
        labels = np.array(one.made_up, int)[held]
        doubt = np.array([rauq(one.states[place], layers, heads) for place in held])
        single = {name: value for name, value in studied.baselines.items() if name.startswith("best single")}
        found.append(
            {
                "set": one.name,
                "answers": studied.answers,
                "made_up": studied.made_up,
                "auroc_ours": studied.area.value,
                "interval": studied.area.interval,
                "auroc_rauq": auc(doubt, labels),
                "auroc_best_single": next(iter(single.values())),
                "single": next(iter(single)).removeprefix("best single: "),
                "auroc_length": studied.baselines["length"],
                "auroc_label_prior": studied.baselines["label prior"],
                "ece": studied.ece,
                "stages": studied.stages,
                "without": studied.without,
                "families": {name: max(values) for name, values in studied.families.items()},
                "transfer": studied.transfer,
                "judged": min(studied.made_up[1], studied.answers[1] - studied.made_up[1]) >= FEWEST,
            }
        )
    return found


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    judged = [row for row in rows if row["judged"]]
    if not judged:
        return {}
    baselines = ("auroc_best_single", "auroc_length", "auroc_label_prior", "auroc_rauq")
    return {
        "min_gain_baselines": min(row["auroc_ours"] - max(row[name] for name in baselines) for row in judged),
        "worst_ece": max(row["ece"] for row in judged),
        "worst_auroc_ours": min(row["auroc_ours"] for row in judged),
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), dest="sets")
    flags.add_argument("--keep", type=Path, help="write the rows here too")
    args = flags.parse_args()
    data_folder()
    torch.set_num_threads(1)
    found = load("smollm2")
    reader = Reader(found.model)
    names, most = (args.sets[:2], 90) if args.quick else (args.sets, MOST)
    sets = [set_of(name, found, reader, most) for name in names]
    config = found.model.config
    rows = rows_of(sets, model_of(found), config.num_hidden_layers, config.num_attention_heads)
    if args.keep:
        args.keep.write_text(json.dumps(rows))
    shown = [
        {
            name: round(one, 3) if isinstance(one, float) else one
            for name, one in row.items()
            if name in _SHOWN
        }
        for row in rows
    ]
    report("hallucination_auroc", totals(rows) | {"rows": rows}, shown, args)


if __name__ == "__main__":
    main()
