"""llama.cpp's own server, unmodified, behind the gateway: by ids, and by its chat endpoint."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path

import pytest
from openai import OpenAI

from transom.checkpoint.source import packaged_smollm2
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.connect import client_of, detect
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.local import serve_in_thread
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
