"""Prompts judged while they are answered: as offline, whoever shares the batch, or not at all and said so."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.observe import Span
from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineGarbageError, MisconfiguredError
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.job import Job
from transom.trust.backdoor.detector import Detector, fit_detector
from transom.trust.backdoor.live import HEAD, HeadWatch, judge, row_size
from transom.trust.backdoor.measures import seen
from transom.trust.backdoor.prompts import (
    ELSEWHERE,
    IN_PARTS,
    LONG,
    MOST_TOKENS,
    NO_IDS,
    SHORT,
    UNREAD,
    PromptReader,
)
from transom.trust.backdoor.words import Words

from .test_detector import prompts

FRAME = (0, 87), (1, 201)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(tiny_llama(tmp_path_factory.mktemp("live") / "model", max_position_embeddings=2048))


def framed(found: Checkpoint, count: int, seed: int) -> list[tuple[int, ...]]:
    return [(*FRAME[0], *one, *FRAME[1]) for one in prompts(found, count, seed)]


@pytest.fixture(scope="module")
def detector(found: Checkpoint) -> Detector:
    return fit_detector(found, framed(found, 120, 0), FRAME)


async def rows(engine: EmbeddedEngine, prompt: Any, *, tokens: int = 3, features: bool = True) -> Any:
    """The features of each token of an answer."""
    given = {"prompt_ids": prompt} if isinstance(prompt, tuple) else {"prompt_embeds": prompt}
    job = Job(**given, max_tokens=tokens, temperature=0.0, ignore_eos=True, features=features)
    return [step.features_TF async for step in engine.generate(job)]


async def test_live_equals_offline_whoever_shares_the_batch(found: Checkpoint, detector: Detector) -> None:
    asked = framed(found, 12, 5)
    with EmbeddedEngine(found, max_batch=4, watch=HeadWatch(found, detector)) as engine:
        told = await asyncio.gather(*(rows(engine, one, tokens=2 + len(one) % 5) for one in asked))
    reader = PromptReader(found.tokenizer.tokenizer, *FRAME)  # type: ignore[union-attr]
    words = [one for one in map(reader.read, asked) if isinstance(one, Words)]
    assert len(words) == len(asked)
    for text, offline, answer in zip(words, seen(found.model, words), told, strict=True):
        row_F = answer[0][0]
        np.testing.assert_allclose(row_F[len(HEAD) :], offline.measures_LM.ravel(), atol=1e-5)
        judged = judge(detector, row_F, 0.05, {len(text.ids)})
        statistic = detector.normal.statistics(
            offline.measures_LM.astype(np.float32)[None].astype(np.float64), [len(text.ids)]
        )
        assert judged.statistic == pytest.approx(float(statistic[0]), abs=1e-5)
        assert judged.place == text.word_T.index(offline.agreed_L[-1])
        assert all((later[0, 1:2] == 0).all() for later in answer[1:])


async def test_an_answer_is_the_same_whether_its_prompt_is_measured(
    found: Checkpoint, detector: Detector
) -> None:
    (prompt,) = framed(found, 1, 6)
    with EmbeddedEngine(found, watch=HeadWatch(found, detector)) as engine:
        answers = []
        for features in (True, False):
            job = Job(prompt_ids=prompt, max_tokens=8, temperature=0.0, ignore_eos=True, features=features)
            answers.append([step.ids async for step in engine.generate(job)])
    assert answers[0] == answers[1]
    assert found.model.config._attn_implementation == "sdpa"


async def test_what_cannot_be_measured_says_why(found: Checkpoint, detector: Detector) -> None:
    (prompt,) = framed(found, 1, 7)
    embeds_TD = found.model.get_input_embeddings()(torch.tensor(prompt)).detach().numpy()  # type: ignore[operator]
    cases = {
        SHORT: (*FRAME[0], prompt[3], *FRAME[1]),
        LONG: (*FRAME[0], *([prompt[3]] * MOST_TOKENS), *FRAME[1]),
        ELSEWHERE: prompt[2:],
        NO_IDS: embeds_TD,
    }
    with EmbeddedEngine(found, watch=HeadWatch(found, detector)) as engine:
        for code, asked in cases.items():
            row_F = (await rows(engine, asked, tokens=1))[0][0]
            assert judge(detector, row_F, 0.05, {len(asked)}).reason == UNREAD[code]


@pytest.mark.parametrize("spans", [[(4, 9)], [(9, 9), (9, 9)], [(9, 9), (12, 9)]])
def test_a_prompt_read_in_parts_or_with_others_is_not_measured(
    found: Checkpoint, detector: Detector, spans: list[tuple[int, int]]
) -> None:
    ids = torch.tensor([[5] * 4] * len(spans))
    watch = HeadWatch(found, detector)
    with torch.no_grad():
        _, tell = watch.run(lambda: found.model(ids), [Span(*one, {}) for one in spans])
        told_BF = tell([0] * len(spans))
    for row_F, (length, prompt) in zip(told_BF, spans, strict=True):
        assert row_F[1] == (IN_PARTS if length <= prompt else 0)
        assert judge(detector, row_F, 0.05, {9}).reason == UNREAD[IN_PARTS]
    with torch.no_grad():  # the end of a prompt whose beginning is in a cache
        told_BF = watch.run(lambda: found.model(ids), [Span(9, 9, {})])[1]([0])
    assert judge(detector, told_BF[0], 0.05, {9}).reason == UNREAD[IN_PARTS]


def test_another_model_dtype_or_detector_is_told(
    tmp_path: Path, found: Checkpoint, detector: Detector
) -> None:
    half = load(found.source.path, dtype="bfloat16")
    for other in (load(tiny_llama(tmp_path / "other", seed=1)), half):
        with pytest.raises(MisconfiguredError, match="belongs to another model, tokenizer or dtype"):
            HeadWatch(other, detector)
    row_F = np.zeros(row_size(detector), np.float32)
    row_F[0] = replace(detector, before=(7,)).tag
    assert judge(detector, row_F, 0.05, {9}).reason == "the engine has another detector"


def test_a_lying_engine_is_refused_and_an_outlier_flagged(detector: Detector) -> None:
    """What stands in the head is checked against what was sent; measures far out are flagged, either way."""
    usual_F = detector.normal.line_2F[0] + np.log(9) * detector.normal.line_2F[1]
    good_F = np.array([detector.tag, 1, 9, 3, 2, *usual_F], np.float32)
    clear = judge(detector, good_F, 0.05, {9, 30})
    assert (clear.flagged, clear.place, clear.length) == (False, 3, 2)
    assert clear.p_value is not None
    assert clear.p_value > 0.5
    for way in (-1.0, 1.0):
        far_F = good_F.copy()
        far_F[len(HEAD) :] += np.float32(way * 40 * detector.normal.deviation_F.max())
        far = judge(detector, far_F, 0.05, {9})
        assert far.flagged
        assert far.p_value == pytest.approx(1 / (1 + len(detector.normal.held)))
    sweep = {1: (2, 7, 0.5, -6), 2: (8, 0, -9, 1e30), 3: (-1, 8, 9, 0.5), 4: (0, -1, 7, 3e38)}
    for place, values in sweep.items():
        for value in (*values, np.nan, np.inf, -np.inf):
            row_F = good_F.copy()
            row_F[place] = value
            with pytest.raises(EngineGarbageError):
                judge(detector, row_F, 0.05, {9})
    for wrong_F in (good_F[:-1], np.append(good_F, np.float32(0)), good_F[None], good_F[:0]):
        with pytest.raises(EngineGarbageError, match="give both sides one detector"):
            judge(detector, wrong_F, 0.05, {9})
    huge_F = np.where(np.arange(good_F.size) < len(HEAD), good_F, np.float32(3e38))
    assert judge(detector, huge_F.astype(np.float32), 0.05, {9}).flagged
