"""How much of the model survives obfuscation: KL and agreement of next tokens, and two tasks by likelihood.

    TRANSOM_DATA=DIR python benchmarks/obfuscate_fidelity.py [--quick] [--json] [--model MODEL] [--h H]
    ... --engine embedded|llama.cpp|vllm [--vllm-python PATH]     one engine's agreement, preset exact

`transformers` (the default): every position of news documents (XSum), over all of the vocabulary; the
prompts are plain text. For `exact` over several keys, each with its figures, and their mean. The first key of
each preset also answers two tasks: which of two answers gains most over an empty prompt, SST-2 (full dev set)
and true/false statements (100 of each of six topics).
The other engines serve the plain and the obfuscated directory and are asked, by the gateway's own client, for
one token after every eighth beginning of a document, up to 128 tokens, for two keys. Their `kl` counts the
1,000 likeliest tokens one by one and the rest as one, which makes it a lower bound; `named` is the mass
counted one by one.
Results of several engines stand side by side in the stored record.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from _bench import RESULTS, parser, report
from _engines import TOP, engine

DOCUMENT_TOKENS = 256
PRESETS = ("exact", "balanced", "paper")
KEYS = 5  # of preset exact
ENGINE_DOCUMENTS, ENGINE_KEYS = 32, 2
ENGINE_LENGTHS = range(8, 129, 8)  # tokens


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
    sst2 = [(PROMPTS["sst2"].format(text), int(label)) for label, text in rows]
    statements = []
    for name in ("animals", "capitals", "cities", "elements", "facts", "inventions"):
        with (data_folder() / "true_false" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            found = [(row["statement"], int(row["label"])) for row in csv.DictReader(file)]
        chosen = np.random.default_rng(0).permutation(len(found))[: per_set // 6]
        statements += [(PROMPTS["true_false"].format(found[i][0]), found[i][1]) for i in chosen.tolist()]
    return {"sst2": sst2[:per_set], "true_false": statements}


PROMPTS = {"sst2": "Review: {}\nSentiment:", "true_false": "Is this true or false? {}\nAnswer:"}
ANSWERS = {"sst2": (" negative", " positive"), "true_false": (" false", " true")}


def accuracy(answerer: Any, task: str, rows: Sequence[tuple[str, int]]) -> float:
    """Share of prompts whose right answer's first token gains more over an empty text than the other's."""
    tokens = [answerer.tokenizer.encode_text(text).ids[0] for text in ANSWERS[task]]
    right = 0
    empty_K = answerer.next_log_probabilities([PROMPTS[task].format("")])[0, tokens]
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        gain_NK = answerer.next_log_probabilities([prompt for prompt, _ in batch])[:, tokens] - empty_K
        right += int(np.sum(gain_NK.argmax(axis=1) == [label for _, label in batch]))
    return right / len(rows)


def log_probabilities(answerer: Any, ids: list[int]) -> Any:
    """log P [T, V] by plain id at every position of a document."""
    import torch

    hidden_V = torch.from_numpy(answerer.hidden_V)
    with torch.inference_mode():
        logits = answerer.model(hidden_V[ids][None].to(answerer.model.device), use_cache=False).logits[0]
    return logits.float().cpu()[:, hidden_V].log_softmax(-1)


def compare(plain: Any, other: Any, ids: Sequence[list[int]]) -> dict[str, float]:
    """KL (nats, plain against other) and share of the same likeliest token, means over all positions."""
    kl, same, positions = 0.0, 0, 0
    for document in ids:
        p, q = log_probabilities(plain, document), log_probabilities(other, document)
        kl += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        positions += len(document)
    return {"kl": kl / positions, "top1_agreement": same / positions}


def in_library(args: Any) -> dict[str, Any]:
    """The record of the presets in transformers."""
    from transom.audit.utility.model import load_answerer, obfuscated
    from transom.checkpoint.tokenizer import export_tokenizer
    from transom.obfuscation.keys import preset

    plain = load_answerer(args.model, device=args.device)
    ids = documents(export_tokenizer(args.model).tokenizer, 1 if args.quick else 10)
    tasks = {} if args.quick else questions(600) | {"sst2": questions(10**6)["sst2"]}
    record: dict[str, Any] = {
        "model": args.model,
        "dtype": "float32",
        "positions": len(ids) * DOCUMENT_TOKENS,
    }
    record |= {f"{task}_accuracy_plain": accuracy(plain, task, rows) for task, rows in tasks.items()}
    jobs = [(name, key) for name in PRESETS for key in range(KEYS if name == "exact" else 1)]
    with Progress(console=Console(stderr=True)) as progress:
        for name, key in progress.track(jobs[:1] if args.quick else jobs, description="keys"):
            settings = preset(name, **({} if args.h is None else {"h": args.h}))
            hidden = obfuscated(plain, secrets.token_bytes(32), settings)
            found = compare(plain, hidden, ids)
            if key == 0:
                h = (hidden.model.config.hidden_size - plain.model.config.hidden_size) // 2
                record[name] = {"h": h, "keys": []}
                for task, rows in tasks.items():
                    record[name][f"{task}_accuracy"] = accuracy(hidden, task, rows)
            record[name]["keys"].append(found)
    for name in PRESETS:
        keys = record.get(name, {}).get("keys", [])
        for figure in ("kl", "top1_agreement") if keys else ():
            record[name][figure] = float(np.mean([key[figure] for key in keys]))
    return record


def on_engine(args: Any) -> dict[str, Any]:
    """The record of one engine that serves both directories, preset exact."""
    from transom.audit.agreement import compare as compare_scores
    from transom.audit.agreement import next_scores
    from transom.checkpoint.load import load
    from transom.checkpoint.source import find
    from transom.checkpoint.tokenizer import export_tokenizer
    from transom.obfuscation.client import write_client
    from transom.obfuscation.keyfile import new_key
    from transom.obfuscation.keys import preset, token_map
    from transom.obfuscation.plain import open_source
    from transom.obfuscation.plan import loadable_h
    from transom.obfuscation.writer import obfuscate
    from transom.serving.gateway.obfuscated import Substitution

    dtype: Any = "float32" if args.device == "cpu" else "bfloat16"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        load(args.model, dtype=dtype).model.save_pretrained(root / "plain")
        source = open_source(root / "plain")
        h = loadable_h(source.config, args.h or 128, args.engine.replace("embedded", "transformers"))
        keys = [
            new_key(source.fingerprint, source.vocabulary, preset("exact", h=h)) for _ in range(ENGINE_KEYS)
        ]
        write_client(find(args.model), source.config, keys[0], root / "client")
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(root / "client" / name, root / "plain" / name)
        ids = documents(export_tokenizer(root / "client").tokenizer, 3 if args.quick else ENGINE_DOCUMENTS)
        prompts = [one[:end] for one in ids for end in ENGINE_LENGTHS]

        async def scored(connect: Callable[[], Any], substitution: Any) -> Any:
            client = connect()
            found = await next_scores(client, prompts, TOP, substitution)
            await client.close()
            return found

        def served(folder: Path, substitution: Any) -> Any:
            with engine(args.engine, folder, dtype, args.vllm_python) as connect:
                return asyncio.run(scored(connect, substitution))

        plain, found = served(root / "plain", None), []
        for number, key in enumerate(keys[:1] if args.quick else keys):
            obfuscate(source, root / f"hidden-{number}", key)
            tau = Substitution(token_map(key.secret, key.vocabulary))
            found.append(asdict(compare_scores(plain, served(root / f"hidden-{number}", tau))))
            Console(stderr=True).print(f"key {number}: {found[-1]}")
    mean = {name: float(np.mean([one[name] for one in found])) for name in ("kl", "top1", "named")}
    return {
        "h": h,
        "dtype": "float16" if args.engine == "llama.cpp" else dtype,
        "kl": mean["kl"],
        "top1_agreement": mean["top1"],
        "named": mean["named"],
        "positions": len(prompts),
        "keys": [{"kl": one["kl"], "top1_agreement": one["top1"]} for one in found],
    }


def stored() -> dict[str, Any]:
    """The record of earlier full runs."""
    path = RESULTS / "obfuscate_fidelity.json"
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def main() -> None:
    """Measure, print the table, store the record beside those of other engines."""
    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2", help="a directory, a .gguf file, a hub name or smollm2")
    flags.add_argument("--h", type=int, help="half the added width; the nearest that loads is taken")
    flags.add_argument(
        "--engine", default="transformers", choices=("transformers", "embedded", "llama.cpp", "vllm")
    )
    flags.add_argument("--vllm-python", default="", help="the python of an environment that has vLLM")
    args = flags.parse_args()
    if args.engine == "vllm" and not args.vllm_python:
        sys.exit("give --vllm-python, the python of an environment that has vLLM")
    import torch

    torch.set_num_threads(1)
    record = {} if args.quick else stored()
    if args.engine == "transformers":
        record |= in_library(args)
        rows = [
            {"preset": name, **{key: value for key, value in record[name].items() if key != "keys"}}
            for name in PRESETS
            if name in record
        ]
    else:
        found = on_engine(args)
        record["engines"] = record.get("engines", {}) | {args.engine: found}
        rows = [{"engine": args.engine, **{k: v for k, v in found.items() if k != "keys"}}]
    report("obfuscate_fidelity", record, rows, args)


if __name__ == "__main__":
    main()
