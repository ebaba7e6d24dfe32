"""A tiny tokenizer with a chat template, and a gateway over an echo on real sockets."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from transom.net.listen import serve_in_thread
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import ChatTokenizer

collect_ignore = ["vllm_connector"]  # which a vLLM imports

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """One id a byte, and ChatML's control tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|im_start|>"), AddedToken("<|im_end|>")])
    return tokenizer


def chat_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(byte_tokenizer(), CHATML, {"eos_token": "<|im_end|>"})


@dataclass(frozen=True)
class Served:
    """A gateway and the echo behind it."""

    url: str
    echo: EchoEngine
    engine_url: str


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Start a gateway over an echo: `serve(config=..., sanitizer=..., ledger=..., echo=..., engine=...)`."""
    with ExitStack() as stack:

        def start(
            *,
            config: GatewayConfig | None = None,
            echo: EchoEngine | None = None,
            engine: Any = None,
            request_timeout_s: float = 30.0,
            **rest: Any,
        ) -> Served:
            echo = echo or EchoEngine()
            engine_url = stack.enter_context(serve_in_thread(echo.app(), request_timeout_s=request_timeout_s))
            engine = engine(engine_url) if engine else IdsEngine(engine_url)
            app = create_gateway(config or GatewayConfig(), engine, chat_tokenizer(), **rest)
            url = stack.enter_context(serve_in_thread(app, request_timeout_s=request_timeout_s))
            return Served(url, echo, engine_url)

        yield start


def post(
    url: str, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", **headers: str
) -> tuple[int, str]:
    """(status, text) of a POST."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return _fetch(url, "POST", path, data, {"Content-Type": "application/json", **headers})


def get(url: str, path: str, **headers: str) -> tuple[int, str]:
    """(status, text) of a GET."""
    return _fetch(url, "GET", path, None, headers)


def _fetch(url: str, method: str, path: str, data: bytes | None, headers: dict[str, str]) -> tuple[int, str]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request(method, path, data, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()
