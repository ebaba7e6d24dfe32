"""Our attacks against the published ones, on the same target and the same sentences in the same run.

    TRANSOM_DATA=DIR python benchmarks/audit_strength.py --embeddings glove.6B.50d.txt [--part words]
    TRANSOM_DATA=DIR python benchmarks/audit_strength.py --part lm

A pair is one of our attacks, a published one and a target; how each is set up stands in
`_audit_strength_words.py`, `_audit_strength_embeddings.py` and `_audit_strength_lm.py`; in the last, what a
language model adds to contextual Bayes, the reference is ours too. `shortfall` is the largest recovery of a
reference minus ours over the other pairs: 0 or below when ours never falls short. `contextual_gain` is the
least gain of contextual Bayes over mask-token inference at epsilon 4, `contextual_gain_low` the lower end of
its interval. `lm_gain_low` is the lower end of the interval of the language model's gain over contextual
Bayes, on `lm_sentences` sentences of XSum: the worst of epsilon 1 and 4. Each part stores its pairs, so that
the parts can be run one after the other.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import _audit_strength_embeddings as embeddings
import _audit_strength_lm as lm
import _audit_strength_words as words
from _bench import RESULTS, parser, report

NAME = "audit_strength"
PARTS = ("words", "embeddings", "lm")
COLUMNS = ("pair", "recovery_ours", "recovery_reference", "gain_low", "gain_high", "n", "minutes")


def stored() -> dict[str, list[dict[str, Any]]]:
    """The pairs of each part as stored by an earlier run."""
    path = RESULTS / f"{NAME}.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {part: found.get(part, []) for part in PARTS}


def summary(pairs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The overall figures."""
    record: dict[str, Any] = {"minutes": sum(pair["minutes"] for part in PARTS for pair in pairs[part])}
    if published := [*pairs["words"], *pairs["embeddings"]]:
        record["shortfall"] = max(pair["recovery_reference"] - pair["recovery_ours"] for pair in published)
    if pairs["lm"]:
        record["lm_gain_low"] = min(pair["gain_low"] for pair in pairs["lm"])
        record["lm_sentences"] = min(pair["sentences"] for pair in pairs["lm"])
    masked = [p for p in pairs["words"] if "epsilon 4" in p["pair"] and p["pair"].endswith("mask token")]
    if masked:
        least = min(masked, key=lambda pair: pair["recovery_ours"] - pair["recovery_reference"])
        record["contextual_gain"] = least["recovery_ours"] - least["recovery_reference"]
        record["contextual_gain_low"] = min(pair["gain_low"] for pair in masked)
    return record


def main() -> None:
    """Run the parts that are wanted, print all pairs, store the record."""
    flags = parser(__doc__)
    flags.add_argument("--embeddings", type=Path, help="word vectors, GloVe text format; for the words part")
    flags.add_argument("--model", help="a BERT with a masked-language head, for mask-token inference")
    flags.add_argument(
        "--sentences", type=int, help="so many at random; by default all of SST-2 dev, 300 of XSum"
    )
    flags.add_argument("--part", choices=PARTS, action="append", help="only this part; repeatable")
    args = flags.parse_args()
    parts = args.part or PARTS
    if "words" in parts and args.embeddings is None:
        flags.error("the words part needs --embeddings")
    made: dict[str, list[dict[str, Any]]] = {}
    if "words" in parts:
        settings = {"model": args.model, "sentences": args.sentences, "quick": args.quick}
        made["words"] = words.pairs(args.embeddings, **settings)
    if "embeddings" in parts:
        made["embeddings"] = embeddings.pairs(quick=args.quick)
    if "lm" in parts:
        made["lm"] = lm.pairs(sentences=args.sentences or lm.SENTENCES, quick=args.quick)
    pairs = ({part: [] for part in PARTS} if args.quick else stored()) | made
    rows = [{key: pair[key] for key in COLUMNS} for part in PARTS for pair in pairs[part]]
    report(NAME, summary(pairs) | pairs, rows, args)


if __name__ == "__main__":
    main()
