"""How tokens are drawn: against the processors of transformers, llama.cpp, and through the gateway."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.gateway.conftest import Served, get, post, serve  # noqa: F401
from tests.llamacpp import LlamaCpp
from transformers.generation import logits_process as theirs

from transom.checkpoint.generation import GGUF_SAMPLING, usual_sampling
from transom.checkpoint.load import load
from transom.checkpoint.source import find, packaged_smollm2
from transom.checkpoint.tiny import tiny_llama
from transom.errors import EngineGarbageError, RefusedError
from transom.serving.dialect import Limits
from transom.serving.engines.base import SAMPLING, Call
from transom.serving.engines.batch import Said, chances
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import read_card
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.job import Job
from transom.serving.engines.llamacpp_inside import LlamaCppGenerator
from transom.serving.engines.request import parse_completion

Serve = Callable[..., Served]
ALL = {
    "temperature": 0.7, "top_p": 0.9, "top_k": 12, "min_p": 0.02, "repetition_penalty": 1.2,
    "presence_penalty": 0.5, "frequency_penalty": -0.25,
}  # fmt: skip


def job(**more: Any) -> Job:
    return Job(max_tokens=1, prompt_ids=more.pop("prompt_ids", (1,)), **more)


@pytest.mark.parametrize(
    "more",
    [
        {"temperature": 0.3}, {"top_k": 1}, {"top_k": 7}, {"top_k": 10**6}, {"top_p": 0.5}, {"min_p": 0.1},
        {"min_p": 1.0}, {"temperature": 1.7, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    ],
)  # fmt: skip
def test_chances_are_those_of_transformers(more: dict[str, Any]) -> None:
    one = job(**more)
    warpers: list[Any] = [theirs.TemperatureLogitsWarper(one.temperature)]
    warpers += [theirs.TopKLogitsWarper(one.top_k)] if one.top_k else []
    warpers += [theirs.TopPLogitsWarper(one.top_p)] if one.top_p < 1 else []
    warpers += [theirs.MinPLogitsWarper(one.min_p)] if one.min_p else []
    draw = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits_V = torch.randn(300, generator=draw) * 4
        wanted_1V = logits_V[None].clone()
        for warper in warpers:
            wanted_1V = warper(torch.zeros(1, 1, dtype=torch.long), wanted_1V)
        found_V = chances(logits_V, one)
        torch.testing.assert_close(found_V / found_V.sum(), wanted_1V[0].softmax(-1), atol=1e-6, rtol=1e-4)


def penalised(logits_V: torch.Tensor, said: list[int], **more: Any) -> torch.Tensor:
    memory = Said(job(**more), logits_V)
    for token in said:
        memory.add(token)
    return memory.penalised(logits_V)


def test_of_equal_logits_no_more_than_top_k_are_left() -> None:
    assert int((chances(torch.zeros(1000), job(top_k=3)) > 0).sum()) == 3


@pytest.mark.parametrize("more", [{"temperature": 1e-300}, {"repetition_penalty": 0.01}, {"min_p": 1.0}])
def test_extreme_settings_leave_something_to_draw_from(more: dict[str, Any]) -> None:
    logits_V = torch.linspace(-80, 80, 500)
    one = job(**more, prompt_ids=tuple(range(500)))
    probs_V = chances(Said(one, logits_V).penalised(logits_V), one)
    assert bool(torch.isfinite(probs_V).all())
    assert float(probs_V.sum()) > 0


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_what_stands_there_is_less_likely_as_in_transformers(penalty: float) -> None:
    draw = torch.Generator().manual_seed(1)
    logits_V, prompt, said = torch.randn(50, generator=draw) * 3, (3, 4, 4), [9, 3, 9]
    made_V = penalised(logits_V, said, repetition_penalty=penalty, prompt_ids=prompt)
    whole = torch.tensor([[*prompt, *said]])
    wanted_V = theirs.RepetitionPenaltyLogitsProcessor(penalty)(whole, logits_V[None].clone())[0]
    torch.testing.assert_close(made_V, wanted_V)


def test_presence_counts_once_and_frequency_every_time_of_the_answer_alone() -> None:
    logits_V = torch.zeros(6)
    made_V = penalised(
        logits_V, [2, 3, 3, 3], presence_penalty=0.5, frequency_penalty=0.25, prompt_ids=(1, 2)
    )
    assert made_V.tolist() == [0.0, 0.0, -0.75, -1.25, 0.0, 0.0]
    assert logits_V.tolist() == [0.0] * 6


async def said(engine: Any, one: Job) -> list[int]:
    return [i async for step in engine.generate(one) for i in step.ids]


async def test_greedy_answers_with_a_penalty_are_those_of_generate(tmp_path: Path) -> None:
    found = load(tiny_llama(tmp_path / "model"))
    prompt = (5, 9, 14)
    wanted = found.model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=24, repetition_penalty=1.4, eos_token_id=None
    )[0, 3:].tolist()
    plain = Job(prompt_ids=prompt, max_tokens=24, temperature=0.0, ignore_eos=True)
    held = Job(prompt_ids=prompt, max_tokens=24, temperature=0.0, ignore_eos=True, repetition_penalty=1.4)
    with EmbeddedEngine(found) as engine:
        unpenalised = await said(engine, plain)
        assert await said(engine, held) == wanted != unpenalised


async def test_llama_cpp_s_penalty_is_of_prompt_and_answer_over_all_pieces() -> None:
    oracle = LlamaCpp(512)
    try:
        with LlamaCppGenerator(find("smollm2"), max_batch=1, context_tokens=512, threads=1) as engine:
            prompt = tuple(engine.tokenizer.encode("The sea, the sea, the sea").ids)  # type: ignore[union-attr]
            body = {"prompt": prompt, "n_predict": 40, "temperature": 0, "return_tokens": True,
                    "repeat_penalty": 1.3, "repeat_last_n": 512, "cache_prompt": False}  # fmt: skip
            wanted = oracle.ask(packaged_smollm2(), "/completion", body)["tokens"]
            one = Job(prompt_ids=prompt, max_tokens=40, temperature=0.0, repetition_penalty=1.3)
            assert await said(engine, one) == wanted
    finally:
        oracle.close()


def parsed(body: dict[str, Any], **usual: float) -> Job:
    engine = EchoEngine(vocabulary_size=1000, sampling=usual)
    return parse_completion({"model": "echo", "prompt": [1, 2]} | body, engine, Limits()).jobs[0]


def test_what_a_request_does_not_say_is_the_engines_own() -> None:
    assert {name: getattr(parsed(ALL, temperature=0.1, top_k=3), name) for name in SAMPLING} == ALL
    usual = parsed({"top_p": 0.5}, temperature=0.1, top_p=0.2, top_k=3)
    assert (usual.temperature, usual.top_p, usual.top_k) == (0.1, 0.5, 3)
    bare = parsed({})
    assert (bare.temperature, bare.top_p, bare.top_k, bare.min_p, bare.penalises) == (1.0, 1.0, 0, 0.0, False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -1), ("top_k", 2.5), ("min_p", 1.5), ("repetition_penalty", 1e-300),
        ("min_p", -0.1), ("repetition_penalty", 0),
        ("repetition_penalty", 2.5), ("presence_penalty", 2.1), ("frequency_penalty", -3), ("top_k", True),
    ],
)  # fmt: skip
def test_values_that_cannot_be_are_refused_by_name(serve: Serve, name: str, value: Any) -> None:  # noqa: F811
    with pytest.raises(RefusedError) as caught:
        parsed({name: value})
    assert caught.value.param == name
    served = serve()
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}], name: value}
    status, text = post(served.url, body)
    assert (status, json.loads(text)["error"]["param"]) == (400, name)
    assert served.echo.seen == []


def test_a_checkpoint_says_how_it_is_drawn(tmp_path: Path) -> None:
    folder = tiny_llama(tmp_path / "model")
    assert usual_sampling(load(folder)).get("top_k", 0) == 0
    file = folder / "generation_config.json"
    settings = json.loads(file.read_text()) if file.exists() else {}
    own = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1, "do_sample": True}
    file.write_text(json.dumps(settings | own))
    found = load(folder)
    assert usual_sampling(found).items() >= {name: own[name] for name in own if name != "do_sample"}.items()
    found.model.generation_config.top_p = 7.0
    assert "top_p" not in usual_sampling(found)


@pytest.mark.parametrize("engine", [None, ChatEngine])
def test_the_gateway_sends_what_was_asked_and_tells_what_is_usual(serve: Serve, engine: Any) -> None:  # noqa: F811
    echo = EchoEngine(sampling=dict(GGUF_SAMPLING))
    served = serve(echo=echo, engine=engine)
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    assert post(served.url, body | ALL)[0] == 200
    assert json.loads(echo.seen[-1]).items() >= ALL.items()
    assert post(served.url, body)[0] == 200
    assert not json.loads(echo.seen[-1]).keys() & ALL.keys()
    card = json.loads(get(served.url, "/v1/models/transom")[1])
    assert card["sampling"] == GGUF_SAMPLING


@pytest.mark.parametrize("told", [{"top_k": "5"}, {"top_p": None}, {"temperature": 1e300}, {"min_p": [1]}])
def test_an_engine_that_tells_nonsense_of_it_is_garbage(told: Any) -> None:
    with pytest.raises(EngineGarbageError):
        read_card({"data": [{"id": "m", "sampling": told}]}, None)
    for silent in (None, "x", {"odd": 1}):
        assert read_card({"data": [{"id": "m", "sampling": silent}]}, None).sampling == {}


def test_a_call_has_the_names_of_a_job() -> None:
    names: Sequence[str] = [name for name in SAMPLING if hasattr(job(), name)]
    assert tuple(names) == SAMPLING
    assert all(getattr(Call(max_tokens=1), name) is None for name in SAMPLING)
