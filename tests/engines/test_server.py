"""The engine's HTTP face over EchoEngine: the dialect, and everything a hostile client may try."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import pickle
import socket
import threading
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from transom.errors import EngineError
from transom.net.listen import serve_in_thread
from transom.serving.dialect import Limits
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.job import Job, Step
from transom.serving.engines.request import parse_completion
from transom.serving.engines.server import create_engine_app

CANARY = "zyzzyva-4711"


@pytest.fixture(scope="module")
def echo() -> EchoEngine:
    return EchoEngine(vocabulary_size=1000, context_tokens=64, embedding_size=4)


@pytest.fixture(scope="module")
def url(echo: EchoEngine) -> Iterator[str]:
    with serve_in_thread(echo.app(Limits(body_bytes=20_000, choices=8))) as base:
        yield base


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "echo", "prompt": [1, 2, 3], "max_tokens": 5, "return_token_ids": True} | fields


def embeds(array: np.ndarray, name: str = "prompt_embeds") -> str:
    return base64.b64encode(save({name: array})).decode()


def error_of(answer: tuple[int, bytes]) -> tuple[int, str | None, str]:
    status, raw = answer
    error = json.loads(raw)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if status < 500 else "server_error")
    return status, error["param"], error["code"]


def test_echoes_ids_cyclically_and_counts_them(url: str, post: Any) -> None:
    status, raw = post(url, body())
    answer = json.loads(raw)
    assert status == 200
    assert answer["choices"] == [
        {"index": 0, "text": "", "logprobs": None, "finish_reason": "length", "token_ids": [1, 2, 3, 1, 2]}
    ]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


def test_choices_are_numbered_over_prompts_then_n(url: str, post: Any) -> None:
    answer = json.loads(post(url, body(prompt=[[1], [2, 3]], n=2, max_tokens=2))[1])
    assert [(c["index"], c["token_ids"]) for c in answer["choices"]] == [
        (0, [1, 1]), (1, [1, 1]), (2, [2, 3]), (3, [2, 3]),
    ]  # fmt: skip
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_joins_to_the_whole_answer(url: str, post: Any, events: Any, n: int) -> None:
    whole = json.loads(post(url, body(n=n))[1])
    raw = post(url, body(n=n, stream=True, stream_options={"include_usage": True}))[1]
    *chunks, usage, done = events(raw)
    joined: dict[int, list[int]] = {i: [] for i in range(n)}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        joined[choice["index"]] += choice["token_ids"]
    assert joined == {c["index"]: c["token_ids"] for c in whole["choices"]}
    assert usage["usage"] == whole["usage"]
    assert usage["choices"] == []
    assert done == "[DONE]"
    assert sum(c["choices"][0]["finish_reason"] == "length" for c in chunks) == n


def test_a_stop_id_ends_the_answer_and_is_its_last_id(url: str, post: Any) -> None:
    (choice,) = json.loads(post(url, body(stop_token_ids=[2], logprobs=1))[1])["choices"]
    assert (choice["token_ids"], choice["finish_reason"]) == ([1, 2], "stop")
    assert choice["logprobs"]["tokens"] == ["token_id:1", "token_id:2"]
    assert choice["logprobs"]["top_logprobs"] == [{"token_id:1": 0.0}, {"token_id:2": 0.0}]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_embeddings_are_read_exactly_in_every_dense_dtype(dtype: torch.dtype) -> None:
    values_TD = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    encoded = base64.b64encode(save_torch({"prompt_embeds": values_TD})).decode()
    request = {"model": "echo", "max_tokens": 3, "prompt_embeds": encoded}
    (job,) = parse_completion(request, EchoEngine(embedding_size=4), Limits()).jobs
    assert np.array_equal(job.prompt_embeds, values_TD.float().numpy())


def test_embeddings_are_answered_by_their_positions(url: str, post: Any) -> None:
    encoded = embeds(np.ones((2, 4), np.float16))
    fields = {"model": "echo", "max_tokens": 3, "return_token_ids": True, "prompt_embeds": encoded}
    (choice,) = json.loads(post(url, fields)[1])["choices"]
    assert choice["token_ids"] == [0, 1, 0]


BAD_FIELDS: list[tuple[dict[str, Any], int, str]] = [
    ({"model": "other"}, 404, "model"),
    ({"model": None}, 400, "model"),
    ({"prompt": None}, 400, "prompt"),
    ({"prompt": []}, 400, "prompt"),
    ({"prompt": [[]]}, 400, "prompt"),
    ({"prompt": [1, True]}, 400, "prompt"),
    ({"prompt": [1, 2.0]}, 400, "prompt"),
    ({"prompt": [1000]}, 400, "prompt"),
    ({"prompt": [-1]}, 400, "prompt"),
    ({"prompt": CANARY}, 400, "prompt"),
    ({"prompt": {CANARY: 1}}, 400, "prompt"),
    ({"prompt": [1] * 60}, 400, "prompt"),
    ({"prompt": [[1]] * 9}, 400, "n"),
    ({"n": 0}, 400, "n"),
    ({"n": 9}, 400, "n"),
    ({"max_tokens": 0}, 400, "max_tokens"),
    ({"max_tokens": 10**30}, 400, "max_tokens"),
    ({"max_tokens": "5"}, 400, "max_tokens"),
    ({"temperature": -0.1}, 400, "temperature"),
    ({"temperature": True}, 400, "temperature"),
    ({"top_p": 0}, 400, "top_p"),
    ({"top_p": 1.1}, 400, "top_p"),
    ({"seed": 1.5}, 400, "seed"),
    ({"seed": 2**64}, 400, "seed"),
    ({"stop_token_ids": [1000]}, 400, "stop_token_ids"),
    ({"stop_token_ids": 7}, 400, "stop_token_ids"),
    ({"stop_token_ids": list(range(100))}, 400, "stop_token_ids"),
    ({"logprobs": 21}, 400, "logprobs"),
    ({"stream": 1}, 400, "stream"),
    ({"stream_options": {"include_usage": True}}, 400, "stream_options"),
    ({"stream": True, "stream_options": {"more": True}}, 400, "stream_options"),
    ({"stop": [CANARY]}, 400, "stop"),
    ({"max_token": 3}, 400, "max_token"),
    ({"cache_salt": 3}, 400, "cache_salt"),
    ({"prompt_embeds": embeds(np.ones((1, 4), np.float32))}, 400, "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "status", "param"), BAD_FIELDS)
def test_bad_fields_are_refused_by_name(url: str, post: Any, fields: Any, status: int, param: str) -> None:
    answer = post(url, body(**fields))
    assert error_of(answer)[:2] == (status, param)
    assert CANARY.encode() not in answer[1]


@pytest.mark.parametrize(
    ("encoded", "status"),
    [
        (17, 400),
        ("not base64!", 400),
        (base64.b64encode(b"\x00" * 40).decode(), 400),
        (base64.b64encode(pickle.dumps([1.0])).decode(), 415),
        (embeds(np.ones((2, 4), np.float32), "other"), 400),
        (embeds(np.ones((2, 5), np.float32)), 400),
        (embeds(np.ones((1, 2, 4), np.float32)), 400),
        (embeds(np.ones((0, 4), np.float32)), 400),
        (embeds(np.ones((2, 4), np.int64)), 400),
        (embeds(np.full((2, 4), np.nan, np.float32)), 400),
        (embeds(np.full((2, 4), np.inf, np.float16)), 400),
        (embeds(np.ones((2, 4), np.float32))[:-12], 400),
        (embeds(np.ones((62, 4), np.float32)), 400),
    ],
)
def test_bad_embeddings_are_refused(url: str, post: Any, encoded: Any, status: int) -> None:
    fields = {"model": "echo", "max_tokens": 5, "prompt_embeds": encoded}
    assert error_of(post(url, fields))[0] == status


def test_a_torch_saved_tensor_is_never_read(url: str, post: Any) -> None:
    buffer = io.BytesIO()
    torch.save(torch.ones(2, 4), buffer)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    fields = {"model": "echo", "prompt_embeds": encoded}
    assert error_of(post(url, fields)) == (415, "prompt_embeds", "unsupported_media")
    assert error_of(post(url, buffer.getvalue()))[0] == 415


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"null", 400),
        (b'{"model": "\xff"}', 400),
        (b'{"temperature": NaN}', 400),
        (b'{"model": "echo", "prompt": "\\ud800"}', 400),
        (b"[" * 5_000, 400),
        (b'{"seed": ' + b"9" * 5_000 + b"}", 400),
        (b" " * 20_001, 413),
        (pickle.dumps({"model": "echo"}), 415),
    ],
)
def test_bodies_that_are_not_our_json_are_refused(url: str, post: Any, raw: bytes, status: int) -> None:
    assert error_of(post(url, raw))[0] == status


def test_other_content_types_routes_and_methods_get_the_envelope(url: str, post: Any, get: Any) -> None:
    assert error_of(post(url, body(), kind="text/plain"))[0] == 415
    assert error_of(post(url, body(), path="/v1/embeddings"))[0] == 404
    assert error_of(get(url, "/v1/completions"))[0] == 405


def test_a_chunked_body_is_bounded_too(url: str) -> None:
    with socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=10) as sock:
        sock.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        sock.sendall(b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(3):
            sock.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        assert b" 413 " in sock.recv(4096).split(b"\r\n")[0]


def test_models_and_health(url: str, get: Any) -> None:
    (card,) = json.loads(get(url, "/v1/models")[1])["data"]
    assert (card["id"], card["max_model_len"], card["backend"]) == ("echo", 64, "echo")
    assert get(url, "/healthz")[0] == 200


class Waiting:
    """A generator that gives one step, then waits; it notes when it was cancelled."""

    model, context_tokens, vocabulary_size, embedding_size, tokenizer = "waiting", 64, 10, None, None
    feature_size, backend, sampling = 0, "none", {}

    def __init__(self, failure: Exception | None = None, *, late: bool = False) -> None:
        self.failure, self.late = failure, late
        self.cancelled = threading.Event()

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        try:
            if self.failure and not self.late:
                raise self.failure
            yield Step((job.prompt_ids or (0,))[:1])
            if self.failure:
                raise self.failure
            await asyncio.sleep(60)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 2}, {"stream": True, "n": 2}])
def test_a_client_that_leaves_cancels_its_generation(fields: dict[str, Any]) -> None:
    generator = Waiting()
    raw = json.dumps({"model": "waiting", "prompt": [1], "max_tokens": 3} | fields).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json"
    with serve_in_thread(create_engine_app(generator)) as base:
        port = urlsplit(base).port
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            sock.sendall(f"{head}\r\ncontent-length: {len(raw)}\r\n\r\n".encode() + raw)
            if fields.get("stream"):
                assert sock.recv(10)
            else:
                sock.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    sock.recv(10)
        assert generator.cancelled.wait(10)


@pytest.mark.parametrize("stream", [False, True])
def test_an_unexpected_failure_tells_nothing_of_its_cause(post: Any, stream: bool) -> None:
    fields = {"model": "waiting", "prompt": [1], "stream": stream}
    with serve_in_thread(create_engine_app(Waiting(ValueError(CANARY)))) as base:
        answer = post(base, fields)
    assert error_of(answer) == (502, None, "engine_error")
    assert CANARY.encode() not in answer[1]


def test_a_failure_in_mid_stream_is_an_event_without_done(post: Any, events: Any) -> None:
    with serve_in_thread(create_engine_app(Waiting(EngineError("out of memory"), late=True))) as base:
        status, raw = post(base, {"model": "waiting", "prompt": [1], "stream": True})
    first, last = events(raw)
    assert status == 200
    assert first["choices"]
    assert last["error"]["code"] == "engine_error"
