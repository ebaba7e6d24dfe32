"""How much of the model survives obfuscation: KL and agreement of next tokens, and two tasks by likelihood.

    TRANSOM_DATA=DIR python benchmarks/obfuscate_fidelity.py [--quick] [--json] [--model MODEL]

For each preset the model is obfuscated by `transom obfuscate` and run beside the plain one in the same
library and dtype. `kl` (nats, plain against obfuscated) and `top1_agreement` are means over the positions of
news documents (XSum); the tasks ask which of two answers is likelier: SST-2 (full dev set) and the true/false
statements (100 of each of six topics).
"""

from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from _bench import parser, report
from _obfuscated import next_token_logits, obfuscated

DOCUMENT_TOKENS = 256
PRESETS = ("exact", "balanced", "paper")


def data_folder() -> Path:
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/, true_false/ and xsum/")
    return Path(os.environ["TRANSOM_DATA"])


def documents(tokenizer: Any, count: int) -> list[list[int]]:
    """Token ids of the first documents that are long enough."""
    ids = []
    with (data_folder() / "xsum" / "xsum-1000.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            encoded = tokenizer.encode(json.loads(line)["document"], add_special_tokens=False).ids
            if len(encoded) >= DOCUMENT_TOKENS:
                ids.append(encoded[:DOCUMENT_TOKENS])
            if len(ids) == count:
                break
    return ids


def questions(per_set: int) -> dict[str, list[tuple[str, int]]]:
    """Prompts with the index of the right answer, by task."""
    lines = (data_folder() / "sst2" / "dev.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = [line.split("\t") for line in lines]
    sst2 = [(f"Review: {text}\nSentiment:", int(label)) for label, text in rows]
    statements = []
    for name in ("animals", "capitals", "cities", "elements", "facts", "inventions"):
        with (data_folder() / "true_false" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found = [(row["statement"], int(row["label"])) for row in csv.DictReader(file)]
        chosen = np.random.default_rng(0).permutation(len(found))[: per_set // 6]
        statements += [
            (f"Is this true or false? {found[i][0]}\nAnswer:", found[i][1]) for i in chosen.tolist()
        ]
    return {"sst2": sst2[:per_set], "true_false": statements}


ANSWERS = {"sst2": (" negative", " positive"), "true_false": (" false", " true")}


def accuracy(model: Any, tokenizer: Any, task: str, rows: list[tuple[str, int]], tau: Any) -> float:
    """Share of prompts after which the right answer's first token is likelier than the other's."""
    import torch

    answers = [tau[tokenizer.encode(text, add_special_tokens=False).ids[0]] for text in ANSWERS[task]]
    right = 0
    for prompt, label in rows:
        ids = tau[tokenizer.encode(prompt, add_special_tokens=False).ids]
        logits = next_token_logits(model, torch.tensor(ids)[None])[0, -1]
        right += int(logits[answers[1]] > logits[answers[0]]) == label
    return right / len(rows)


def compare(plain: Any, hidden: Any, ids: list[list[int]], tau: Any) -> tuple[float, float]:
    """(KL in nats, share of positions with the same likeliest token), means over all positions."""
    import torch

    kl, same, positions = 0.0, 0, 0
    for document in ids:
        p = next_token_logits(plain, torch.tensor(document)[None])[0].log_softmax(-1)
        q = next_token_logits(hidden, torch.tensor(tau[document])[None])[0].log_softmax(-1)[:, tau]
        kl += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += len(document)
    return kl / positions, same / positions


def main() -> None:
    """Measure each preset, print the table, store the record."""
    from transom.checkpoint.load import load

    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2", help="a directory, a .gguf file, a hub name or smollm2")
    args = flags.parse_args()
    import torch

    torch.set_num_threads(1)
    dtype: Any = "float32" if args.device == "cpu" else "bfloat16"
    plain = load(args.model, dtype=dtype, device=args.device)
    assert plain.tokenizer is not None
    tokenizer = plain.tokenizer.tokenizer
    ids, tasks = documents(tokenizer, 2 if args.quick else 20), questions(12 if args.quick else 600)
    if not args.quick:
        tasks["sst2"] = questions(10**6)["sst2"]
    identity = np.arange(plain.model.config.vocab_size)
    record: dict[str, Any] = {"model": args.model, "dtype": dtype, "positions": len(ids) * DOCUMENT_TOKENS}
    record |= {
        f"{task}_accuracy_plain": accuracy(plain.model, tokenizer, task, rows, identity)
        for task, rows in tasks.items()
    }
    with Progress(console=Console(stderr=True)) as progress:
        for preset in progress.track(PRESETS[:1] if args.quick else PRESETS, description="presets"):
            with obfuscated(args.model, preset, device=args.device) as made:
                hidden = load(made.folder, dtype=dtype, device=args.device).model
                kl, agreement = compare(plain.model, hidden, ids, made.tau)
                record[preset] = {"h": made.settings.h, "kl": kl, "top1_agreement": agreement} | {
                    f"{task}_accuracy": accuracy(hidden, tokenizer, task, rows, made.tau)
                    for task, rows in tasks.items()
                }
    rows = [{"preset": preset, **record[preset]} for preset in PRESETS if preset in record]
    report("obfuscate_fidelity", record, rows, args)


if __name__ == "__main__":
    main()
