"""What obfuscation costs online: time to first token and per output token, on the same engine and dtype.

    python benchmarks/obfuscate_serving.py [--quick] [--json] [--model MODEL] [--device cuda]

The embedded engine serves the plain and the obfuscated checkpoint in turns, one request at a time.
`tpot_ratio` and `ttft_ratio` are medians of obfuscated over plain; `bound` is (d + 2h) / d, what the wider
hidden size explains. `--architecture Llama|Qwen3` with `--width` makes a random checkpoint instead.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from _bench import parser, report
from _obfuscated import obfuscated

PROMPT_TOKENS = 256
ANSWER_TOKENS = 64


async def one_request(engine: Any, ids: tuple[int, ...]) -> tuple[float, float]:
    """(time to first token, time per further token) in milliseconds."""
    from transom.serving.engines.job import Job

    start_s, first_s, tokens = time.perf_counter(), 0.0, 0
    job = Job(prompt_ids=ids, max_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True)
    async for step in engine.generate(job):
        tokens += len(step.ids)
        first_s = first_s or time.perf_counter()
    end_s = time.perf_counter()
    return (first_s - start_s) * 1e3, (end_s - first_s) * 1e3 / max(1, tokens - 1)


def random_model(folder: Path, architecture: str, width: int, layers: int) -> str:
    """A random checkpoint of that architecture in bfloat16; returns its folder."""
    from transom.checkpoint.tiny import tiny_llama

    heads = width // 64
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": max(1, heads // 4), "head_dim": 64}
    return str(
        tiny_llama(folder, architecture=architecture, **sizes, **heads_of, max_position_embeddings=2048)
    )


def main() -> None:
    """Measure in turns, print the table, store the record."""
    from transom.checkpoint.load import load
    from transom.serving.engines.embedded import EmbeddedEngine

    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2")
    flags.add_argument("--architecture", choices=("Llama", "Qwen3"), help="a random model instead of --model")
    flags.add_argument("--width", type=int, default=2048, help="of a random model")
    flags.add_argument("--layers", type=int, default=16, help="of a random model")
    args = flags.parse_args()
    import torch

    torch.set_num_threads(1)
    runs = 3 if args.quick else 15
    dtype: Any = "float32" if args.device == "cpu" else "bfloat16"
    with ExitStack() as stack:
        model = args.model
        if args.architecture:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            model = random_model(folder / "model", args.architecture, args.width, args.layers)
        made = stack.enter_context(obfuscated(model, "exact", device=args.device))
        engines = {}
        for name, source in (("plain", model), ("obfuscated", made.folder)):
            checkpoint = load(source, dtype=dtype, device=args.device)
            engines[name] = stack.enter_context(EmbeddedEngine(checkpoint, max_batch=1))
        d = made.settings.h and load_width(made.folder) - 2 * made.settings.h
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        ids = tuple(i % min(map(int, (len(made.tau), 400))) for i in range(PROMPT_TOKENS))
        for run in range(runs + 1):
            for name, engine in engines.items():
                timed = asyncio.run(one_request(engine, ids))
                if run:  # the first run warms up
                    took[name].append(timed)
    ttft = {name: statistics.median(t for t, _ in values) for name, values in took.items()}
    tpot = {name: statistics.median(t for _, t in values) for name, values in took.items()}
    record = {
        "model": args.model,
        "random": args.architecture and f"{args.architecture} {args.width} x {args.layers}",
        "dtype": dtype,
        "h": made.settings.h,
        "bound": (d + 2 * made.settings.h) / d,
        "ttft_ratio": ttft["obfuscated"] / ttft["plain"],
        "tpot_ratio": tpot["obfuscated"] / tpot["plain"],
        "ttft_ms": ttft,
        "tpot_ms": tpot,
    }
    rows = [{"model": name, "ttft_ms": ttft[name], "tpot_ms": tpot[name]} for name in took]
    rows.append({"model": "ratio", "ttft_ms": record["ttft_ratio"], "tpot_ms": record["tpot_ratio"]})
    report("obfuscate_serving", record, rows, args)


def load_width(folder: Path) -> int:
    """Hidden size of a checkpoint folder."""
    from transom.checkpoint.source import read_json

    return int(read_json(folder / "config.json")["hidden_size"])


if __name__ == "__main__":
    main()
