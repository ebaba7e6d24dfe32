"""How fast `transom engine` answers: by llama.cpp against its own server, by torch against 9fbd847.

    python benchmarks/engine_speed.py [--quick] [--json] [--device cuda]

All serve the packaged SmolLM2 from one GGUF, each in a process of its own with the threads that it takes by
default, over real sockets, streamed; they are asked in turns within one run, each turn beginning with
another one and each after a pause, as threads of the last one spin for a while, and medians over turns are
taken. `decode`: one stream of 96 tokens after 64; its time is from the first token to the last. `batch8`:
eight streams of 256 + 33 tokens at once, to the end of the last. `prefill`: one token after 512. A ratio is
the other's time over ours. `torch_bandwidth_share` is the weights' bytes of a token times tokens a second,
over what as many threads read from memory at best (a sum over 1 GiB). `rss_mb` is of each engine after all
of it. `demo_ratio_today` is the time of `transom demo` over that of 9fbd847, both from the installed
packages; `greedy_equal` the share of greedy answers (of 20 prompts, 48 tokens) that torch gives as 9fbd847
does, `bfloat16_*` the same of `--dtype bfloat16`, which is opt-in. Run it on a machine that does nothing
else; 9fbd847 needs aiohttp, which is no dependency any more.

With `--device cuda`, tokens a second of a random Llama of 1B in bfloat16, eight streams of 256 + 128: ours
over transformers' `generate` (`cuda_generate_ratio`).
"""

from __future__ import annotations

import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from _bench import parser, report, today
from transom.checkpoint.source import packaged_smollm2

TURNS, PROMPTS, COMPARED = 5, 20, 48
SETTLE_S = 0.5
TRANSOM = [sys.executable, "-c", "from transom.cli.main import main; main()"]
LLAMACPP = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
p.n_ctx, p.n_parallel = 8 * 2048, 8
server = xllamacpp.Server(p)
sys.stdin.read()
"""
BANDWIDTH = """
import time, torch
x, best = torch.ones(1 << 28), 0.0
for _ in range(8):
    started = time.perf_counter()
    x.sum()
    best = max(best, x.numel() * 4 / (time.perf_counter() - started))
print(best)
"""
Ids = Sequence[int]
Answer = tuple[list[int], float, float]  # ids, seconds to the first, to the last


class Served:
    """An engine in a process of its own, in the dialect that it speaks."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, *, own: bool) -> None:
        self.process, self.port, self.own = process, port, own

    def ask(self, prompt: Ids, count: int) -> Answer:
        if self.own:
            body: dict[str, Any] = {"model": "smollm2", "max_tokens": count, "return_token_ids": True}
        else:
            body = {"n_predict": count, "return_tokens": True, "cache_prompt": False}
        body |= {"prompt": list(prompt), "temperature": 0, "stream": True, "ignore_eos": True}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=600)
        started, first, found = time.perf_counter(), 0.0, list[int]()
        path = "/v1/completions" if self.own else "/completion"
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise RuntimeError(answer.read()[:500])
        while line := answer.readline():
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            ids = event["choices"][0]["token_ids"] if self.own else event.get("tokens", [])
            first = first or time.perf_counter() - started
            found += ids
        connection.close()
        return found, first, time.perf_counter() - started

    @property
    def rss_mb(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024


@contextmanager
def served(command: Sequence[str], health: str, *, own: bool, package: Path | None) -> Iterator[Served]:
    """`package` is where transom is imported from, None: as installed."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    environment = os.environ | before(package)
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([one.format(port=port) for one in command], env=environment, **quiet)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 300
        while True:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", health)
                if connection.getresponse().status == 200:
                    break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"did not start: {command}") from None
            finally:
                connection.close()
            time.sleep(0.1)
        yield Served(process, port, own=own)
    finally:
        process.terminate()
        process.wait(60)


def before(package: Path | None) -> dict[str, str]:
    """The environment in which a package is found before what is installed."""
    return {"PYTHONPATH": f"{package}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"} if package else {}


def engines(stack: ExitStack, old: Path) -> dict[str, Served]:
    file = str(packaged_smollm2())
    run = [*TRANSOM, "engine", "--port", "{port}"]
    made = {
        "llamacpp": served([*run, "--backend", "llamacpp"], "/healthz", own=True, package=None),
        "llama.cpp": served(
            [sys.executable, "-c", LLAMACPP, file, "{port}"], "/health", own=False, package=None
        ),
        "torch": served([*run, "--backend", "torch"], "/healthz", own=True, package=None),
        "bfloat16": served(
            [*run, "--backend", "torch", "--dtype", "bfloat16"], "/healthz", own=True, package=None
        ),
        "today": served(run, "/healthz", own=True, package=old),
    }
    return {name: stack.enter_context(one) for name, one in made.items()}


def prompt(draw: random.Random, length: int) -> list[int]:
    return draw.choices(range(100, 40000), k=length)


def decode(one: Served, draw: random.Random, tokens: int) -> float:
    _, first, whole = one.ask(prompt(draw, 64), tokens)
    return (whole - first) / (tokens - 1)


def batch8(one: Served, draw: random.Random, tokens: int) -> float:
    prompts = [prompt(draw, 256) for _ in range(8)]
    threads = [threading.Thread(target=one.ask, args=(each, tokens)) for each in prompts]
    started = time.perf_counter()
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return time.perf_counter() - started


def prefill(one: Served, draw: random.Random, _tokens: int) -> float:
    return one.ask(prompt(draw, 512), 1)[2]


def timed(found: dict[str, Served], turns: int, tokens: dict[str, int]) -> dict[str, dict[str, float]]:
    """Seconds by task and engine; the first turn warms up."""
    tasks: dict[str, Callable[..., float]] = {"decode": decode, "batch8": batch8, "prefill": prefill}
    taken: dict[str, dict[str, list[float]]] = {task: {name: [] for name in found} for task in tasks}
    for turn in range(turns + 1):
        for task, run in tasks.items():
            names = list(found)
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                time.sleep(SETTLE_S)
                cost = run(found[name], random.Random(f"{task} {turn}"), tokens.get(task, 0))
                if turn:
                    taken[task][name].append(cost)
    return {
        task: {name: statistics.median(each) for name, each in own.items()} for task, own in taken.items()
    }


def greedy_equal(found: dict[str, Served], name: str, prompts: int) -> float:
    from transom.serving.tokenizer import load_tokenizer

    tokenizer, draw = load_tokenizer("smollm2"), random.Random(0)
    words = ("river", "bread", "winter", "music", "glass", "paper", "garden", "letter", "bridge", "morning")
    equal = 0
    for _ in range(prompts):
        text = f"Write two sentences about {draw.choice(words)} and {draw.choice(words)} {draw.random():.3f}."
        ids = tokenizer.encode_chat([("user", text)]).ids
        equal += found[name].ask(ids, COMPARED)[0] == found["today"].ask(ids, COMPARED)[0]
    return equal / prompts


def demo_s(package: Path | None) -> float:
    environment = os.environ | before(package)
    started = time.perf_counter()
    subprocess.run([*TRANSOM, "demo", "--json"], env=environment, check=True, capture_output=True)
    return time.perf_counter() - started


def weight_bytes() -> int:
    from transom.checkpoint.load import load

    model: Any = load("smollm2").model
    return sum(one.numel() * one.element_size() for one in model.parameters())  # its head is its embedding


def cpu(quick: bool) -> dict[str, Any]:
    turns, tokens = (1, {"decode": 24, "batch8": 9}) if quick else (TURNS, {"decode": 96, "batch8": 33})
    with tempfile.TemporaryDirectory() as folder:
        old = today(folder)
        if old is None:
            sys.exit("this needs a checkout that has the commit to compare with")
        bandwidth = float(
            subprocess.run([sys.executable, "-c", BANDWIDTH], check=True, capture_output=True).stdout
        )
        demos = {name: [demo_s(where) for _ in range(1 if quick else 3)] for name, where in
                 (("ours", None), ("today", old))}  # fmt: skip
        with ExitStack() as stack:
            found = engines(stack, old)
            seconds = timed(found, turns, tokens)
            equal = {
                name: greedy_equal(found, name, 3 if quick else PROMPTS) for name in ("torch", "bfloat16")
            }
            rss = {name: one.rss_mb for name, one in found.items()}
    ratios = {
        f"{ours}_{task}_ratio_{against}": seconds[task][theirs] / seconds[task][own]
        for ours, own, against, theirs in (
            ("", "llamacpp", "llamacpp", "llama.cpp"), ("torch", "torch", "today", "today"),
        )
        for task in seconds
    }  # fmt: skip
    return {name.removeprefix("_"): value for name, value in ratios.items()} | {
        "torch_bandwidth_share": weight_bytes() / seconds["decode"]["torch"] / bandwidth,
        "bandwidth_gb_s": bandwidth / 1e9,
        "rss_mb": rss,
        "demo_ratio_today": statistics.median(demos["ours"]) / statistics.median(demos["today"]),
        "demo_s": {name: statistics.median(each) for name, each in demos.items()},
        "greedy_equal": equal["torch"],
        "bfloat16_greedy_equal": equal["bfloat16"],
        "bfloat16_decode_ratio_torch": seconds["decode"]["torch"] / seconds["decode"]["bfloat16"],
        "seconds": seconds,
    }


def cuda(device: str, quick: bool) -> dict[str, Any]:
    import asyncio

    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from transom.checkpoint.load import Checkpoint
    from transom.checkpoint.source import Source
    from transom.serving.engines.embedded import EmbeddedEngine
    from transom.serving.engines.job import Job

    tokens = 32 if quick else 128
    config = LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
        num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=4096,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16).to(device).eval()
    draw = random.Random(0)
    prompts = [prompt(draw, 256) for _ in range(8)]

    async def ours(engine: EmbeddedEngine) -> None:
        async def one(ids: list[int]) -> None:
            job = Job(prompt_ids=tuple(ids), max_tokens=tokens, temperature=0.0, ignore_eos=True)
            async for _ in engine.generate(job):
                pass

        await asyncio.gather(*(one(ids) for ids in prompts))

    def theirs() -> None:
        ids_BT = torch.tensor(prompts, device=device)
        with torch.inference_mode():
            model.generate(
                ids_BT, attention_mask=torch.ones_like(ids_BT), do_sample=False, min_new_tokens=tokens,
                max_new_tokens=tokens,
            )  # fmt: skip

    taken: dict[str, list[float]] = {"ours": [], "generate": []}
    with EmbeddedEngine(Checkpoint(model, None, Source("random", "directory", Path()))) as engine:
        for turn in range(4):
            for name, run in (("ours", lambda: asyncio.run(ours(engine))), ("generate", theirs)):
                torch.cuda.synchronize()
                started = time.perf_counter()
                run()
                torch.cuda.synchronize()
                if turn:
                    taken[name].append(time.perf_counter() - started)
    speed = {name: 8 * tokens / statistics.median(each) for name, each in taken.items()}
    return {"cuda_tokens_s": speed, "cuda_generate_ratio": speed["ours"] / speed["generate"]}


def main() -> None:
    args = parser(__doc__).parse_args()
    record = cpu(args.quick) if args.device == "cpu" else cuda(args.device, args.quick)
    flat = {name: value for name, value in record.items() if not isinstance(value, dict)}
    report(
        "engine_speed" if args.device == "cpu" else "engine_speed_cuda", record,
        [{name: round(value, 3) for name, value in flat.items()}], args,
    )  # fmt: skip


if __name__ == "__main__":
    main()
