"""llama.cpp's own server, unmodified, behind the gateway: by ids, and by its chat endpoint."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from transom.checkpoint.source import packaged_smollm2
from transom.net.listen import serve_in_thread
from transom.serving.engines.base import Call, Delta
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.connect import client_of, detect
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import load_tokenizer

SERVER = """
import sys, time, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port = sys.argv[1], int(sys.argv[2])
p.hostnames, p.n_ctx, p.n_parallel, p.cpuparams.n_threads = ["127.0.0.1"], 1024, 1, 1
server = xllamacpp.Server(p)
sys.stdin.read()
"""


@contextmanager
def running_llamacpp(gguf: Path) -> Iterator[str]:
    """The URL of a llama.cpp server with that file, in its own process."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(gguf), str(port)]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while not healthy(port):
            assert process.poll() is None, "llama.cpp's server stopped while starting"
            assert time.monotonic() < deadline, "llama.cpp's server did not start"
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[str]:
    with running_llamacpp(packaged_smollm2()) as url:
        yield url


def healthy(port: int) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


QUESTION = [{"role": "user", "content": "Name the capital city of France."}]


def test_answers_by_ids(llamacpp: str) -> None:
    app = create_gateway(GatewayConfig(model="smollm2"), LlamaCppEngine(llamacpp), load_tokenizer("smollm2"))
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, logprobs=True, top_logprobs=2
        )
        text = answer.choices[0].message.content
        assert "Paris" in text
        assert answer.choices[0].finish_reason in ("stop", "length")
        entries = answer.choices[0].logprobs.content
        assert text.startswith("".join(entry.token for entry in entries[:3]))
        assert all(entry.logprob <= 0 and len(entry.top_logprobs) >= 2 for entry in entries)
        chunks = list(
            client.chat.completions.create(
                model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, stream=True
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == text
        stopped = client.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, stop="Paris", n=2
        )
        assert [choice.message.content for choice in stopped.choices] == [text.split("Paris")[0]] * 2


async def test_is_recognised_and_answers_by_its_chat_endpoint(llamacpp: str) -> None:
    assert await detect(llamacpp) == "llamacpp"
    assert isinstance(client_of("llamacpp", llamacpp), LlamaCppEngine)
    app = create_gateway(GatewayConfig(model="smollm2"), ChatEngine(llamacpp))
    with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="smollm2", messages=QUESTION, temperature=0, max_tokens=24
        )
        assert "Paris" in answer.choices[0].message.content
        assert answer.usage.completion_tokens > 0
        chunks = list(
            client.chat.completions.create(
                model="smollm2", messages=QUESTION, temperature=0, max_tokens=24, stream=True,
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert streamed == answer.choices[0].message.content
        assert chunks[-1].usage.total_tokens > 0


BEGUN = {  # the model goes on repeating
    "japanese": "こんにちは世界。" * 3,
    "chinese": "你好，世界。" * 3,
    "arabic": "سلام سلام سلام سلام سلام سل",
    "emoji": "🐞🎉" * 4,
}
TOKENS = 8


def told_by_the_server(url: str, prompt: Sequence[int], **more: Any) -> dict[str, Any]:
    """Its own unstreamed answer, asked for in one piece and without its cache."""
    body = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "return_tokens": True, "n_probs": 2}
    connection = HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.request("POST", "/completion", json.dumps(body | {"cache_prompt": False} | more))
    answer: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return answer


async def gathered(engine: LlamaCppEngine, call: Call) -> Delta:
    """All pieces of the one choice as one."""
    pieces = [piece async for piece in engine.generate(call)]
    assert len(pieces) == 1 or call.stream
    return Delta(
        0,
        tuple(i for piece in pieces for i in piece.ids),
        scores=tuple(score for piece in pieces for score in piece.scores),
        finish_reason=pieces[-1].finish_reason,
    )


@pytest.mark.parametrize("language", BEGUN)
async def test_a_stream_is_complete_and_equals_the_plain_answer(llamacpp: str, language: str) -> None:
    tokenizer, engine = load_tokenizer("smollm2"), LlamaCppEngine(llamacpp)
    prompt = tokenizer.encode_text(BEGUN[language]).ids
    call = Call(prompts=(prompt,), max_tokens=TOKENS, temperature=0, logprobs=2, stop_ids=tokenizer.eos_ids)
    plain, streamed = [await gathered(engine, replace(call, stream=stream)) for stream in (False, True)]
    await engine.close()
    told = told_by_the_server(llamacpp, prompt)
    assert plain == streamed
    assert list(plain.ids) == told["tokens"]
    assert [score.token for score in plain.scores] == told["tokens"]
    # The server tells the scores of the last token of each character; all of them are here, in their order.
    ours = [(score.token, score.logprob, score.top) for score in plain.scores]
    known = [
        (one["id"], one["logprob"], tuple((top["id"], top["logprob"]) for top in one["top_logprobs"]))
        for one in told["completion_probabilities"]
    ]
    rest = iter(ours)
    assert all(one in rest for one in known)
    assert len(known) < len(ours)  # so there were tokens that end inside a character
    assert all(score.token == score.top[0][0] and score.logprob == score.top[0][1] for score in plain.scores)
    text = tokenizer.detokenizer()
    ids = plain.ids[:-1] if plain.finish_reason == "stop" else plain.ids
    assert (text.feed(ids) + text.close()).startswith(told["content"])


async def test_a_stream_of_samples_equals_the_plain_answer(llamacpp: str) -> None:
    tokenizer, engine = load_tokenizer("smollm2"), LlamaCppEngine(llamacpp)
    prompt = tokenizer.encode_text(BEGUN["emoji"]).ids
    call = Call(prompts=(prompt,), max_tokens=TOKENS // 2, temperature=1.2, seed=7, n=2, logprobs=0,
                stop_ids=tokenizer.eos_ids)  # fmt: skip
    plain, streamed = [
        sorted(
            [(piece.index, i) async for piece in engine.generate(one) for i in piece.ids], key=lambda p: p[0]
        )
        for one in (call, replace(call, stream=True))
    ]
    await engine.close()
    assert plain == streamed
    assert [i for at, i in plain if at == 0] != [i for at, i in plain if at == 1]  # each choice has its seed


async def test_an_answer_ends_at_the_first_stop_id(llamacpp: str) -> None:
    tokenizer, engine = load_tokenizer("smollm2"), LlamaCppEngine(llamacpp)
    prompt = tokenizer.encode_chat([("user", "Count from one to nine.")]).ids
    call = Call(prompts=(prompt,), max_tokens=TOKENS, temperature=0)
    ids = (await gathered(engine, call)).ids
    assert len(ids) == TOKENS
    for stop in dict.fromkeys(ids[1:6]):
        stopped = await gathered(engine, replace(call, stop_ids=(stop, 49_000)))
        assert (stopped.ids, stopped.finish_reason) == (ids[: ids.index(stop) + 1], "stop")
    await engine.close()
