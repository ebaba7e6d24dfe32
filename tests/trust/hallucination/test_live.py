"""What an engine tells while it answers several prompts at once, against one pass over each whole answer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.engines.vllm_like import VllmLike

from transom.checkpoint.load import Checkpoint, Dtype, load
from transom.checkpoint.tiny import tiny_llama
from transom.errors import MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.serving.engines.base import Call
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.job import Job
from transom.serving.engines.vllm_states import VllmStatesEngine
from transom.trust.hallucination.combine import Linear
from transom.trust.hallucination.detector import SELECTIONS, About, Detector, Probe, model_of
from transom.trust.hallucination.live import FIRST, LATER, RiskTeller, RiskWatch
from transom.trust.hallucination.states import ATTENTION, Encoded, Reader

PROMPTS = ((5, 9, 14), (7,), tuple(range(20, 44)), (300, 301))
STEPS = 7


def drawn_detector(found: Checkpoint, *, attention: bool = True, line: float = 0.5) -> Detector:
    """Of every family, with weights that were drawn."""
    draw, whole = np.random.default_rng(0), Reader(found.model, attention)
    widths = {name: x.shape[1] for name, x in whole.read(Encoded((5,), (6, 7, 8), (0,))).families.items()}
    probes = {name: Probe(draw.normal(size=width), float(draw.normal())) for name, width in widths.items()}
    about = About(
        "transom-hallucination-2", model_of(found), "logistic", tuple(probes), line, 0.1, 40, 20, "", ""
    )
    numbers = len(probes) * len(SELECTIONS)
    return Detector(about, probes, Linear(np.ones(numbers), np.zeros(1)), np.zeros(numbers), 1.0, 0.0)


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
    whole, detector = Reader(found.model), drawn_detector(found)
    assert detector.probes.keys() > ATTENTION
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
async def test_rows_of_states_that_a_vllm_wrote_are_those_of_one_pass(tmp_path: Path, dtype: Dtype) -> None:
    found = load(tiny_llama(tmp_path / "model"), dtype=dtype)
    whole, detector = Reader(found.model, attention=False), drawn_detector(found, attention=False)
    folder = tmp_path / "states"
    folder.mkdir()
    teller = RiskTeller(found, detector)
    like = VllmLike(found.model, folder, teller.layers)
    with serve_in_thread(like.app()) as url:
        engine = VllmStatesEngine(url, teller, folder)
        size = (await engine.probe()).features
        call = Call(prompts=PROMPTS, max_tokens=STEPS, temperature=0, features=size, stream=True)
        deltas = [delta async for delta in engine.generate(call)]
        await engine.close()
    for index, prompt in enumerate(PROMPTS):
        own = [one for one in deltas if one.index == index]
        ids = tuple(i for one in own for i in one.ids)
        rows_TF = np.concatenate([one.features_TF for one in own if one.features_TF is not None])
        assert rows_TF[:, 1].tolist() == [FIRST, *[LATER] * (STEPS - 1)]
        series = detector.series(whole.read(Encoded(prompt, ids, (0,) * len(prompt))))
        near = 2e-3 if dtype == "float32" else 0.3
        for place, (name, wanted_S) in enumerate(series.items(), 2):
            np.testing.assert_allclose(rows_TF[:, place], wanted_S, atol=near, err_msg=name)
    assert not list(folder.iterdir())


async def test_states_of_other_layers_or_another_model_are_refused_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    teller = RiskTeller(found, drawn_detector(found, attention=False))
    other = load(tiny_llama(tmp_path / "other", seed=1))
    for model, layers in ((found.model, teller.layers[::-1]), (other.model, teller.layers)):
        like = VllmLike(model, tmp_path, layers)
        with serve_in_thread(like.app()) as url:
            engine = VllmStatesEngine(url, teller, tmp_path)
            with pytest.raises(MisconfiguredError, match="states of layers"):
                await engine.probe()
            await engine.close()
        assert [tuple(one["prompt"]) for one in like.asked] == [teller.probe]


def test_states_of_which_only_the_first_tokens_are_right_are_refused(tmp_path: Path) -> None:
    """As in real models its length is a hundred times the others'."""
    found = load(tiny_llama(tmp_path / "model"))
    teller = RiskTeller(found, drawn_detector(found, attention=False))
    with torch.no_grad():
        states = found.model(input_ids=torch.tensor([teller.probe]), output_hidden_states=True).hidden_states
    last: list[torch.Tensor] = []
    hook = found.model.model.norm.register_forward_pre_hook(lambda _m, given: last.append(given[0]))
    with torch.no_grad():
        found.model(input_ids=torch.tensor([teller.probe]))
    hook.remove()
    count = found.model.config.num_hidden_layers
    states_TLD = torch.stack([last[0][0] if one == count else states[one][0] for one in teller.layers], 1)
    teller.check(states_TLD)
    states_TLD[5] *= 0.5
    with pytest.raises(MisconfiguredError, match="states of layers"):
        teller.check(states_TLD)


def test_a_detector_that_looks_at_attention_cannot_do_with_states(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    with pytest.raises(MisconfiguredError, match="--no-attention"):
        RiskTeller(found, drawn_detector(found))
    other = load(tiny_llama(tmp_path / "other", seed=1))
    with pytest.raises(MisconfiguredError, match="another model"):
        RiskTeller(other, drawn_detector(found, attention=False))
