"""What the engine tests share: one tiny served checkpoint, and a bare HTTP client that hides nothing."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch

from transom.checkpoint.load import Checkpoint, load
from transom.checkpoint.tiny import tiny_llama

Post = Callable[..., tuple[int, bytes]]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return load(tiny_llama(tmp_path_factory.mktemp("tiny")))


def request(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.fixture
def get() -> Post:
    return lambda url, path: request(url, "GET", path)


@pytest.fixture
def post() -> Post:
    def send(url: str, body: Any, path: str = "/v1/completions", kind: str = "application/json") -> Any:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return request(url, "POST", path, raw, **{"content-type": kind})

    return send


@pytest.fixture
def events() -> Callable[[bytes], list[Any]]:
    """The data of a stream of server-sent events, [DONE] as the string it is."""

    def parse(raw: bytes) -> list[Any]:
        blocks = [block.removeprefix("data: ") for block in raw.decode().split("\n\n") if block]
        return [block if block == "[DONE]" else json.loads(block) for block in blocks]

    return parse
