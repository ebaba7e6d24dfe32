"""What it costs to judge answers: of decoding, of fitting, and of memory.

    python benchmarks/hallucination_cost.py [--quick] [--json]

The embedded torch engine answers prompts of 64 tokens with 96 tokens each, one at a time and greedily, plain
and with each of two detectors that read every family of theirs, in turns within one run;
`score_overhead_logits` is the processor time of a detector of hidden states and logits over plain decoding,
less 1, `score_overhead` of one that looks at attention and neurons too. The medians over turns are taken.
`fit_minutes` is the processor time of reading
and fitting 1,000 answers, extrapolated from `read` of them (64 tokens of prompt, 64 of answer), and
`peak_rss_ratio` the peak of a process that reads 20 answers over that of one that has the model answer as
long a prompt."""

from __future__ import annotations

import asyncio
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from _bench import parser, report
from transom.checkpoint.load import load
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.job import Job
from transom.trust.hallucination.combine import Linear
from transom.trust.hallucination.detector import SELECTIONS, About, Detector, Probe, model_of
from transom.trust.hallucination.fit import fit
from transom.trust.hallucination.live import RiskWatch
from transom.trust.hallucination.states import Encoded, Reader

PROMPT, ANSWER, TURNS, ANSWERS = 64, 96, 7, 1000


def encoded(draw: Any, prompt: int, answer: int) -> Encoded:
    ids = [tuple(draw.integers(100, 40000, count).tolist()) for count in (prompt, answer)]
    return Encoded(ids[0], ids[1], (2,) * prompt)


def detectors(found: Any) -> dict[str, Detector]:
    """Of drawn weights, which read every family there is: what is fitted reads some."""
    draw, made = np.random.default_rng(0), {}
    for name, attention in (("logits", False), ("attention", True)):
        states = Reader(found.model, attention).read(encoded(draw, 8, 6)).families
        probes = {one: Probe(draw.normal(size=x_SF.shape[1]), 0.0) for one, x_SF in states.items()}
        about = About(
            "transom-hallucination-2", model_of(found), "logistic", tuple(probes), 0.5, 0.1, 40, 20, "", ""
        )
        size = len(probes) * len(SELECTIONS)
        made[name] = Detector(about, probes, Linear(np.ones(size), np.zeros(1)), np.zeros(size), 1.0, 0.0)
    return made


async def decoded(engine: EmbeddedEngine, prompt: tuple[int, ...], answer: int, features: bool) -> float:
    """Processor time of one answer."""
    job = Job(prompt_ids=prompt, max_tokens=answer, temperature=0.0, ignore_eos=True, features=features)
    started = time.process_time()
    async for _ in engine.generate(job):
        pass
    return time.process_time() - started


def overheads(found: Any, turns: int, answer: int) -> dict[str, float]:
    draw, told = np.random.default_rng(1), detectors(found)
    engines = {"plain": EmbeddedEngine(found)}
    engines |= {name: EmbeddedEngine(found, watch=RiskWatch(found, one)) for name, one in told.items()}
    taken: dict[str, list[float]] = {name: [] for name in engines}
    try:
        for turn in range(turns + 1):
            prompt = tuple(draw.integers(100, 40000, PROMPT).tolist())
            for name, engine in engines.items():
                cost = asyncio.run(decoded(engine, prompt, answer, name != "plain"))
                if turn:  # the first one warms up
                    taken[name].append(cost)
    finally:
        for engine in engines.values():
            engine.close()
    ratio = {
        name: statistics.median(a / b for a, b in zip(taken[name], taken["plain"], strict=True)) - 1
        for name in told
    }
    return {"score_overhead_logits": ratio["logits"], "score_overhead": ratio["attention"]}


def fit_minutes(found: Any, read: int) -> float:
    draw, reader = np.random.default_rng(2), Reader(found.model)
    reader.prepare()
    started = time.process_time()
    states = [reader.read(encoded(draw, 64, 64)) for _ in range(read)]
    reading = time.process_time() - started
    started = time.process_time()
    many = (states * -(-ANSWERS // read))[:ANSWERS]
    fit(many, [bool(one % 2) for one in range(ANSWERS)], [str(one) for one in range(ANSWERS)], model="0" * 64)
    return (reading / read * ANSWERS + time.process_time() - started) / 60


def peak(task: str) -> float:
    """Of a process of its own, in MiB."""
    done = subprocess.run(
        [sys.executable, __file__, "--task", task], capture_output=True, text=True, check=True
    )
    return float(done.stdout.strip().splitlines()[-1])


def task(name: str) -> None:
    torch.set_num_threads(1)
    found, draw = load("smollm2"), np.random.default_rng(3)
    reader = Reader(found.model)
    for _ in range(20):
        one = encoded(draw, PROMPT, ANSWER)
        if name == "read":
            reader.read(one)
        else:
            with torch.no_grad():
                out = found.model(input_ids=torch.tensor([one.prompt]), use_cache=True, logits_to_keep=1)
                found.model(input_ids=torch.tensor([one.answer]), past_key_values=out.past_key_values)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--task", choices=("read", "answer"))
    args = flags.parse_args()
    if args.task:
        task(args.task)
        return
    torch.set_num_threads(1)
    found = load("smollm2")
    turns, answer, read = (2, 24, 10) if args.quick else (TURNS, ANSWER, 50)
    record: dict[str, Any] = overheads(found, turns, answer)
    record |= {"fit_minutes": fit_minutes(found, read), "read": read}
    record["peak_rss_ratio"] = peak("read") / peak("answer")
    report("hallucination_cost", record, [{name: round(one, 3) for name, one in record.items()}], args)


if __name__ == "__main__":
    main()
