"""Made-up answers told from true ones on SmolLM2: `transom hallucination` against other signs.

    TRANSOM_DATA=DIR [TRANSOM_LM_POLYGRAPH=PYTHON] [TRANSOM_UQLM=PYTHON] python
        benchmarks/hallucination_auroc.py [--quick] [--json] [--set facts ...] [--keep FOLDER]

The sets are those of `_hallucination.py`, of 900 answers each at most, of which one in three is held out;
answers to one question stay together. `auroc_ours` is the detector's (logistic, all families), with the
interval over answers; `auroc_best_single` of the number of the states, of some fifty that nothing is fitted
to, that tells most on what is learnt from; `auroc_length` of the number of tokens, `auroc_label_prior` of
always saying what is commoner; `ece` of five parts of equal size, and `ece_if_right` what that would be on
average if labels were drawn by the risks themselves, as so few answers tell no better. `transfer` has the
detector of each other set, `transfer_single` the best single number of that set, told on this one.
lm-polygraph 0.7.0 and uqlm 0.6.7 score the same held-out answers (`_hallucination_peers.py`), where Pythons
that have them are named: `auroc_lm_polygraph_best` and `auroc_uqlm_best` are the best of their scores on the
very answers that are told of, which favours them; `auroc_rauq` is lm-polygraph's. `eigenscore` is
lm-polygraph's too, of ten answers drawn to each of 30 questions, beside ours on these 30, and counts in no
total. A set with fewer than 60 held-out answers of a kind is reported and counts in no total, nor does
TruthfulQA, whose labels a reader agrees with no oftener than by chance (`hallucination_labels.py`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import parser, report
from _hallucination import MOST, SETS, data_folder, peers, scored, set_of
from transom.checkpoint.load import Checkpoint, load
from transom.report.statistics import auc
from transom.trust.hallucination.detector import model_of
from transom.trust.hallucination.fit import folds_of, groups_of
from transom.trust.hallucination.states import Reader
from transom.trust.hallucination.study import Set, Studied, best_single, ece, risks, singles, study

FEWEST, MISLABELLED = 60, ("truthfulqa",)
_SHOWN = (
    "set", "auroc_ours", "auroc_lm_polygraph_best", "lm_polygraph", "auroc_uqlm_best", "auroc_best_single",
    "auroc_length", "ece", "ece_if_right", "judged",
)  # fmt: skip


def rows_of(sets: list[Set], found: Checkpoint, kept: Path) -> list[dict[str, Any]]:
    studied = study(sets, model=model_of(found), heads=found.model.config.num_attention_heads)
    return [row_of(one, other, sets, found, kept) for one, other in zip(sets, studied, strict=True)]


def row_of(one: Set, studied: Studied, sets: list[Set], found: Checkpoint, kept: Path) -> dict[str, Any]:
    held = held_of(one)
    labels_N, part = np.array(one.made_up, int)[held], one.part(held)
    others = peers(one, found, held, kept)
    polygraph = {name: value for name, value in others.items() if name.startswith("lm-polygraph")}
    uqlm = [value for name, value in others.items() if name.startswith("uqlm")]
    single = {name: value for name, value in studied.baselines.items() if name.startswith("best single")}
    risk_N, draw = risks(studied.detector, part.states), np.random.default_rng(0)
    return {
        "set": one.name,
        "answers": studied.answers,
        "made_up": studied.made_up,
        "auroc_ours": studied.area.value,
        "interval": studied.area.interval,
        "auroc_lm_polygraph_best": max(polygraph.values(), default=None),
        "lm_polygraph": max(polygraph, key=lambda name: polygraph[name], default="").partition(" ")[2],
        "auroc_uqlm_best": max(uqlm, default=None),
        "auroc_rauq": polygraph.get("lm-polygraph RAUQ"),
        "peers": others,
        "eigenscore": sampled(one, found, held, kept, risk_N),
        "auroc_best_single": next(iter(single.values())),
        "single": next(iter(single)).removeprefix("best single: "),
        "auroc_length": studied.baselines["length"],
        "auroc_label_prior": studied.baselines["label prior"],
        "ece": studied.ece,
        "ece_if_right": float(
            np.mean([ece(risk_N, (draw.random(len(risk_N)) < risk_N).astype(float)) for _ in range(200)])
        ),
        "reads": list(studied.detector.probes),
        "along": studied.along,
        "stages": studied.stages,
        "without": studied.without,
        "families": {name: max(values) for name, values in studied.families.items()},
        "transfer": studied.transfer,
        "transfer_single": {other.name: single_on(other, part, labels_N) for other in sets},
        "judged": one.name not in MISLABELLED
        and min(studied.made_up[1], studied.answers[1] - studied.made_up[1]) >= FEWEST,
    }


def sampled(one: Set, found: Checkpoint, held: list[int], kept: Path, risk_N: Any) -> dict[str, float]:
    """EigenScore, and ours, on the answers to questions that it has a score of."""
    if not one.examples[0].question:
        return {}
    scores = scored("eigenscore", one, found, held, kept).get("EigenScore", [])
    places = [place for place, value in enumerate(scores) if value is not None]
    if not places:
        return {}
    labels_N = np.array([one.made_up[held[place]] for place in places], int)
    return {
        "answers": len(places),
        "auroc": float(auc(np.array([scores[place] for place in places]), labels_N)),
        "auroc_ours": float(auc(risk_N[places], labels_N)),
    }


def held_of(one: Set) -> list[int]:
    """What is held out, as `study` holds it out."""
    held: list[int] = folds_of(np.array(one.made_up, int), groups_of(one.examples), 0, 3)[0].tolist()
    return held


def single_on(learnt: Set, part: Set, labels_N: Any) -> float:
    """The best single number of what is learnt from in one set, on part of another."""
    held = set(held_of(learnt))
    name, way = best_single(learnt.part([place for place in range(len(learnt.states)) if place not in held]))
    return float(auc(way * np.array([singles(one)[name] for one in part.states]), labels_N))


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    judged = [row for row in rows if row["judged"]]
    if not judged:
        return {}
    baselines = ("auroc_best_single", "auroc_length", "auroc_label_prior")
    theirs = ("auroc_lm_polygraph_best", "auroc_uqlm_best")
    told = [row for row in judged if all(row[name] is not None for name in theirs)]
    moved = [
        row["transfer"][name] - row["transfer_single"][name]
        for row in judged
        for name in row["transfer"]
        if name != row["set"]
    ]
    return {
        "min_gain_peers": min(
            (row["auroc_ours"] - max(row[name] for name in theirs) for row in told), default=None
        ),
        "min_gain_baselines": min(row["auroc_ours"] - max(row[name] for name in baselines) for row in judged),
        "mean_gain_transfer": float(np.mean(moved)) if moved else None,
        "min_gain_transfer": min(moved, default=None),
        "worst_ece": max(row["ece"] for row in judged),
        "worst_auroc_ours": min(row["auroc_ours"] for row in judged),
    }


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--set", nargs="+", choices=SETS, default=list(SETS), dest="sets")
    flags.add_argument("--keep", type=Path, help="keep answers, states and peers' scores in this folder")
    flags.add_argument("--read-only", action="store_true", help="end when all is read and kept")
    args = flags.parse_args()
    data_folder()
    torch.set_num_threads(1)
    found = load("smollm2")
    reader = Reader(found.model)
    names, most = (args.sets[:2], 90) if args.quick else (args.sets, MOST)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(args.keep or folder).absolute()
        sets = [set_of(name, found, reader, most, kept if args.keep else None) for name in names]
        if args.read_only:
            for one in sets:
                peers(one, found, held_of(one), kept)
            return
        rows = rows_of(sets, found, kept)
    shown = [
        {name: round(row[name], 3) if isinstance(row[name], float) else row[name] for name in _SHOWN}
        for row in rows
    ]
    report("hallucination_auroc", totals(rows) | {"rows": rows}, shown, args)


if __name__ == "__main__":
    main()
