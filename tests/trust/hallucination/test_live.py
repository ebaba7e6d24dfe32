"""What an engine tells while it answers several prompts at once, against one pass over each whole answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from transom.checkpoint.load import load
from transom.checkpoint.tiny import tiny_llama
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.job import Job
from transom.trust.hallucination.combine import Linear
from transom.trust.hallucination.detector import SELECTIONS, About, Detector, Probe, model_of
from transom.trust.hallucination.live import FIRST, LATER, RiskWatch
from transom.trust.hallucination.states import ATTENTION, Encoded, Reader

PROMPTS = ((5, 9, 14), (7,), tuple(range(20, 44)), (300, 301))
STEPS = 7


async def told(engine: EmbeddedEngine, prompt: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
    job = Job(prompt_ids=prompt, max_tokens=STEPS, temperature=0.0, ignore_eos=True, features=True)
    ids, rows = list[int](), []
    async for step in engine.generate(job):
        ids += step.ids
        assert step.features_TF is not None
        rows.append(step.features_TF)
    return ids, np.concatenate(rows)


async def silent(engine: EmbeddedEngine, prompt: tuple[int, ...]) -> int:
    """How many tokens an answer has of which nobody wants to be told, in the others' batch."""
    job = Job(prompt_ids=prompt, max_tokens=2 * STEPS, temperature=0.0, ignore_eos=True)
    return sum([len(step.ids) async for step in engine.generate(job)])


async def test_rows_of_a_batch_are_what_is_read_of_each_answer_by_itself(tmp_path: Path) -> None:
    """Every family, those that remember earlier steps among them."""
    found = load(tiny_llama(tmp_path / "model"))
    draw, whole = np.random.default_rng(0), Reader(found.model)
    widths = {name: x.shape[1] for name, x in whole.read(Encoded((5,), (6, 7, 8), (0,))).families.items()}
    assert widths.keys() > ATTENTION
    probes = {name: Probe(draw.normal(size=width), float(draw.normal())) for name, width in widths.items()}
    about = About(
        "transom-hallucination-2", model_of(found), "logistic", tuple(probes), 0.5, 0.1, 40, 20, "", ""
    )
    numbers = len(probes) * len(SELECTIONS)
    detector = Detector(about, probes, Linear(np.ones(numbers), np.zeros(1)), np.zeros(numbers), 1.0, 0.0)
    with EmbeddedEngine(found, max_batch=3, watch=RiskWatch(found, detector)) as engine:
        unwatched = asyncio.create_task(silent(engine, (11, 12)))
        answers = await asyncio.gather(*(told(engine, prompt) for prompt in PROMPTS))
        assert await unwatched == 2 * STEPS
    for prompt, (ids, rows_TF) in zip(PROMPTS, answers, strict=True):
        assert rows_TF[:, 1].tolist() == [FIRST, *[LATER] * (STEPS - 1)]
        series = detector.series(whole.read(Encoded(prompt, tuple(ids), (0,) * len(prompt))))
        for place, (name, wanted_S) in enumerate(series.items(), 2):
            own_T = rows_TF[STEPS - len(wanted_S) :, place]
            np.testing.assert_allclose(own_T, wanted_S, atol=2e-3, rtol=1e-3, err_msg=name)
