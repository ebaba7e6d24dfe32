"""How far labels by references agree with a reader, on samples of 50 of SmolLM2's own answers.

    TRANSOM_DATA=DIR python benchmarks/hallucination_labels.py [--quick] [--json] [--show SET] [--keep FOLDER]

`hallucination_labels.csv` has what the reader said: of the answers to cities whether the country is wrong, of
TruthfulQA's whether what is mainly said is false, or is not an answer. They are known by their digests, so
an answer that another version of a library gives is not counted: `found` says how many were. The answers are
the first 50, drawn by seed 50, of those that references tell of. `--show` prints them to be judged.
"""

from __future__ import annotations

import csv
import hashlib
import random
from pathlib import Path
from typing import Any

import torch

from _bench import parser, report
from _hallucination import answered, data_folder, kept_examples
from transom.checkpoint.load import load
from transom.trust.hallucination.states import Example

JUDGED, SETS, COUNT = Path(__file__).with_name("hallucination_labels.csv"), ("cities-asked", "truthfulqa"), 50


def digest(one: Example) -> str:
    return hashlib.sha256(f"{one.question}\n{one.answer}".encode()).hexdigest()[:16]


def sample(examples: Any) -> list[Example]:
    return random.Random(50).sample(list(examples), COUNT)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--show", choices=SETS)
    flags.add_argument("--keep", type=Path, help="a folder of `hallucination_auroc.py --keep`")
    args = flags.parse_args()
    data_folder()
    torch.set_num_threads(1)
    found, rows = load("smollm2"), []
    with JUDGED.open(newline="") as file:
        said = {(row["set"], row["answer_sha256"]): row["made_up"] == "1" for row in csv.DictReader(file)}
    for name in SETS[:1] if args.quick else SETS:
        most = 60 if args.quick else 900
        examples = kept_examples(name, args.keep) if args.keep else list(answered(found, name, most))
        if args.show == name:
            for one in sample(examples):
                print(f"{digest(one)} {int(bool(one.made_up))} {one.question}\n    {one.answer}")
        examples = list({digest(one): one for one in examples}.values())
        known = [
            (bool(one.made_up), said[name, key]) for one in examples if (name, key := digest(one)) in said
        ]
        rows.append(
            {
                "set": name,
                "found": len(known),
                "agree": sum(ours == theirs for ours, theirs in known),
                "made_up_by_references": sum(ours for ours, _ in known),
                "made_up_by_reader": sum(theirs for _, theirs in known),
            }
        )
    report("hallucination_labels", {"rows": rows}, rows, args)


if __name__ == "__main__":
    main()
