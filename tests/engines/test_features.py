"""Features of states: told when asked for, one row a token, the row's own, and checked as they come."""

from __future__ import annotations

import asyncio
import base64
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.observe import Span
from transom.errors import EngineError, EngineGarbageError, MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.serving.dialect import FEATURES
from transom.serving.engines import checks
from transom.serving.engines.base import Call, Delta, EngineCard
from transom.serving.engines.bounds import Meter, fits_plain
from transom.serving.engines.client import IdsEngine, read_card
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.embeds import packed_floats
from transom.serving.engines.job import Job
from transom.serving.engines.server import create_engine_app


async def told(url: str, call: Call) -> tuple[EngineCard, list[Delta]]:
    engine = IdsEngine(url)
    try:
        return await engine.probe(), [delta async for delta in engine.generate(call)]
    finally:
        await engine.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_each_token_brings_its_own_features(stream: bool, n: int) -> None:
    echo = EchoEngine(vocabulary_size=1000, feature_size=5, chunk_tokens=2)
    call = Call(prompts=((7, 8, 9), (500,)), max_tokens=5, n=n, stream=stream, features=5, seed=1)
    with serve_in_thread(echo.app()) as url:
        card, deltas = asyncio.run(told(url, call))
    assert card.features == 5
    assert {delta.index for delta in deltas} == set(range(2 * n))
    for delta in deltas:
        assert delta.features_TF is not None
        assert delta.features_TF.dtype == np.float32
        wanted = [[(i + place) % 97 for place in range(5)] for i in delta.ids]
        assert delta.features_TF.tolist() == wanted


def test_who_does_not_ask_is_told_nothing_and_sends_what_it_always_sent() -> None:
    plain, telling = EchoEngine(), EchoEngine(feature_size=5)
    answers = []
    for echo in (plain, telling):
        with serve_in_thread(echo.app()) as url:
            card, deltas = asyncio.run(told(url, Call(prompts=((1, 2),), max_tokens=3)))
        assert card.features == echo.feature_size
        answers.append((echo.seen, deltas))
        assert all(delta.features_TF is None for delta in deltas)
    assert answers[0] == answers[1]
    assert b"features" not in plain.seen[0]


def test_an_engine_that_tells_nothing_refuses_to_be_asked(post: Any, get: Any) -> None:
    body = {"model": "echo", "prompt": [1], "max_tokens": 1, "return_state_features": True}
    with serve_in_thread(EchoEngine().app()) as url:
        status, raw = post(url, body)
        assert "state_features" not in json.loads(get(url, "/v1/models")[1])["data"][0]
    assert (status, json.loads(raw)["error"]["param"]) == (400, "return_state_features")


def test_an_engine_that_would_tell_too_much_is_not_served_and_not_believed() -> None:
    with pytest.raises(MisconfiguredError, match="at most 1024"):
        create_engine_app(EchoEngine(feature_size=FEATURES + 1))
    with pytest.raises(EngineGarbageError, match="more than 1024"):
        read_card({"data": [{"id": "m", "state_features": FEATURES + 1}]}, None)


@given(
    st.none() | st.integers() | st.text(max_size=8) | st.lists(st.floats()) | st.binary(max_size=64),
    st.integers(0, 3),
    st.integers(1, 3),
)
def test_what_is_no_row_a_token_is_garbage(value: Any, tokens: int, size: int) -> None:
    data = value if isinstance(value, bytes) else b""
    sent = base64.b64encode(value).decode() if isinstance(value, bytes) else value
    finite = np.isfinite(np.frombuffer(data[: len(data) // 4 * 4], "<f4")).all()
    if isinstance(sent, str) and len(data) == 4 * tokens * size and finite and (data or not sent):
        assert checks.features(sent, tokens, size).shape == (tokens, size)
    elif tokens:
        with pytest.raises(EngineGarbageError):
            checks.features(sent, tokens, size)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_feature_that_is_not_finite_is_garbage(number: float) -> None:
    with pytest.raises(EngineGarbageError, match="not finite"):
        checks.features(packed_floats(np.array([[0.0, number]])), 1, 2)


def test_bounds_grow_with_what_was_asked_for_and_no_further() -> None:
    few, many = (Meter(Call(max_tokens=10, features=features), 1) for features in (0, 300))
    sent = len(packed_floats(np.zeros((10, 300))))
    assert sent <= many.plain_bytes - few.plain_bytes <= 1.2 * sent
    assert sent <= many.answer_bytes - few.answer_bytes <= 1.2 * sent
    assert fits_plain(1024, None)
    assert not fits_plain(1024, None, 300)


class LastState:
    """Reads the first numbers of the last hidden state, and remembers the spans it was given."""

    def __init__(self, model: Any, size: int = 4) -> None:
        self.model, self.size = model, size
        self.spans: list[list[Span]] = []

    def run(self, forward: Callable[[], Any], spans: Sequence[Span]) -> tuple[Any, Any]:
        seen = []
        hook = self.model.model.norm.register_forward_hook(lambda _m, _i, out: seen.append(out[:, -1]))
        with hook:
            answer = forward()
        self.spans.append(list(spans))
        return answer, lambda _chosen: seen[0][:, : self.size].float().numpy()


PROMPTS = [(5, 6, 7), (300,), tuple(range(20, 60))]


async def collect(engine: EmbeddedEngine, prompt: tuple[int, ...], features: bool) -> tuple[list[int], Any]:
    job = Job(prompt_ids=prompt, max_tokens=6, temperature=0.0, ignore_eos=True, features=features)
    steps = [step async for step in engine.generate(job)]
    return [i for step in steps for i in step.ids], [step.features_TF for step in steps]


async def test_a_row_of_a_batch_gets_the_features_of_its_own_states(tiny: Checkpoint) -> None:
    watch = LastState(tiny.model)
    with EmbeddedEngine(tiny, max_batch=3, watch=watch) as engine:
        asked = [collect(engine, prompt, prompt != (300,)) for prompt in PROMPTS]
        answers = await asyncio.gather(*asked)
    for prompt, (ids, features) in zip(PROMPTS, answers, strict=True):
        if prompt == (300,):
            assert features == [None] * 6
            continue
        sequence = torch.tensor([[*prompt, *ids[:-1]]])
        with torch.inference_mode():
            states_TD = tiny.model(sequence, output_hidden_states=True).hidden_states[-1][0]
        wanted_TF = states_TD[len(prompt) - 1 :, : watch.size].float().numpy()
        np.testing.assert_allclose(np.concatenate(features), wanted_TF, rtol=1e-4, atol=1e-5)
    for prompt in (PROMPTS[0], PROMPTS[2]):
        own = [span[:2] for spans in watch.spans for span in spans if span.prompt == len(prompt)]
        assert own == [(len(prompt) + step, len(prompt)) for step in range(6)]


@pytest.mark.parametrize("of_logits", [True, False])
async def test_a_row_whose_numbers_are_not_finite_fails_alone(tiny: Checkpoint, of_logits: bool) -> None:
    """Its states, or what is told of them: the others of the batch go on."""
    watch, ruined = LastState(tiny.model), (7, 8, 9)

    def run(forward: Callable[[], Any], spans: Sequence[Span]) -> tuple[Any, Any]:
        answer, tell = LastState.run(watch, forward, spans)
        own = [place for place, one in enumerate(spans) if one.prompt == 3 and one.length > 4]
        if of_logits:
            answer.logits[own] = float("nan")

        def told(chosen: Sequence[int]) -> Any:
            found = tell(chosen)
            found[own] = found[own] if of_logits else np.nan
            return found

        return answer, told

    watch.run = run  # type: ignore[method-assign]
    with EmbeddedEngine(tiny, max_batch=3, watch=watch) as engine:
        prompts = ((300,), ruined, tuple(range(20, 60)))
        asked = [collect(engine, one, features=True) for one in prompts]
        one, two, three = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(two, EngineError)
    assert "not finite" in str(two)
    for other in (one, three):
        assert not isinstance(other, BaseException), other
        assert len(other[0]) == 6


async def test_nobody_asks_and_nothing_is_watched(tiny: Checkpoint) -> None:
    watch = LastState(tiny.model)
    with EmbeddedEngine(tiny, watch=watch) as engine:
        await collect(engine, (1, 2), features=False)
    assert watch.spans == []


@pytest.mark.parametrize("wrong", [np.zeros((1, 3)), np.full((1, 4), np.nan), np.zeros((2, 4))])
async def test_a_watch_that_tells_nonsense_fails_its_own_job_only(tiny: Checkpoint, wrong: Any) -> None:
    watch = LastState(tiny.model)
    watch.run = lambda forward, spans: (forward(), lambda _chosen: wrong)  # type: ignore[method-assign]
    with EmbeddedEngine(tiny, watch=watch) as engine:
        with pytest.raises(EngineError, match="failed on this job"):
            await collect(engine, (1, 2), features=True)
        assert len((await collect(engine, (1, 2), features=False))[0]) == 6
