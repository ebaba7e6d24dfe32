"""What must go wrong well: hostile requests, engines that are down, hang, lie or die, clients that vanish."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import EngineBusyError, MisconfiguredError, RefusedError
from transom.net.urls import check_url
from transom.serving.engines.base import Call, EngineCard
from transom.serving.engines.chat import LIMIT_FIELDS, ChatEngine, read_key
from transom.serving.engines.client import IdsEngine, check_vllm_version
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.engines.refusal import retry_after_s
from transom.serving.gateway.config import GatewayConfig, load_keys
from transom.serving.gateway.requests import ChatRequest, parse

from .conftest import Served, get, post
from .raw_engine import MODELS, PROPS, answer, raw_engine

Serve = Callable[..., Served]
CHAT = {"model": "m", "messages": [{"role": "user", "content": "PRIVATE words"}]}


ASKED = b'{"model": "echo", "messages": [{"role": "user", "content": "x"}]'
BAD_BODIES = [
    b"", b"{", b"[]", b"null", b"\xff\xfe",
    b'{"model": "echo", "messages": [{"role": "user", "content": "\xc3("}]}',
    b'{"model": "echo", "messages": []}', b'{"model": "echo"}', b'{"model": 5, "messages": []}',
    ASKED + b', "temperature": NaN}', ASKED + b', "temperature": 1e999}',
    ASKED + b', "max_tokens": 99999999}',
    ASKED + b', "seed": 1' + b"0" * 5000 + b"}",
    ASKED + b', "metadata": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_001,
    b'{"model": "echo", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "echo", "messages": [{"role": "user", "content": ' + b"[" * 100_000 + b"]" * 100_000 + b"}]}",
    b'{"model": "echo", "messages": [{"role": "user", "content": ""}]}',
]  # fmt: skip


def test_bad_bodies_get_400_and_send_nothing(serve: Serve) -> None:
    served = serve()
    for body in BAD_BODIES:
        status, text = post(served.url, body)
        assert status == 400, (body[:80], text)
        assert set(json.loads(text)["error"]) == {"message", "type", "param", "code"}
    for body in (b'{"model": "echo", "prompt": ""}', b'{"model": "echo", "prompt": []}',
                 b'{"model": "echo", "prompt": [[]]}', b'{"model": "echo", "prompt": [999999]}',
                 b'{"model": "echo", "prompt": [-1]}', b'{"model": "echo", "prompt": [1, "a"]}'):  # fmt: skip
        assert post(served.url, body, "/v1/completions")[0] == 400, body
    assert served.echo.seen == []


def test_sizes_media_types_and_routes(serve: Serve) -> None:
    served = serve(config=GatewayConfig(max_body_bytes=2000, max_prompt_tokens=100))
    assert post(served.url, CHAT | {"user": "u" * 3000})[0] == 413
    long = {"model": "echo", "messages": [{"role": "user", "content": "x" * 200}]}
    status, text = post(served.url, long)
    assert (status, json.loads(text)["error"]["code"]) == (400, "context_length_exceeded")
    assert post(served.url, CHAT, **{"Content-Type": "text/plain"})[0] == 415
    assert post(served.url, CHAT, "/v1/nothing")[0] == 404
    assert post(served.url, CHAT, "/v1/models")[0] == 405
    assert served.echo.seen == []


def test_an_oversized_body_without_a_length_is_cut_off(serve: Serve) -> None:
    served = serve(config=GatewayConfig(max_body_bytes=2000))
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 413")


def test_keys_are_required_everywhere_but_health(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# who\nalice:alice-key-0123456789\nbob:bob-key-0123456789ab\n")
    served = serve(config=GatewayConfig(key_digests=load_keys(path)))
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    for wrong in ("", "Bearer", "Bearer wrong", "Basic alice-key-0123456789"):
        assert post(served.url, body, Authorization=wrong)[0] == 401
    assert post(served.url, body, Authorization="Bearer bob-key-0123456789ab")[0] == 200
    for page, status in (("/healthz", 200), ("/metrics", 401), ("/v1/models", 401)):
        assert get(served.url, page)[0] == status
    for text in ("", "nokey", "a:short", "a:0123456789abcdefg\na:0123456789abcdefg", "\xff"):
        path.write_text(text, "latin-1")
        with pytest.raises(MisconfiguredError):
            load_keys(path)


FORGED = [
    {"Host": "evil.example"},
    {"Host": "evil.example:8000"},
    {"Host": "127.0.0.1.evil.example"},
    {"Host": "localhost@evil.example"},
    {"Host": ""},
    {"Origin": "http://evil.example"},
    {"Origin": "https://localhost.evil.example:8000"},
    {"Origin": "null"},
]
PAGES = ("/v1/models", "/healthz", "/metrics", "/openapi.json", "/v1/nothing")


@pytest.mark.parametrize("headers", FORGED, ids=str)
def test_a_foreign_host_or_origin_reaches_nothing(serve: Serve, headers: dict[str, str]) -> None:
    served = serve()
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses"):
        status, text = post(served.url, CHAT | {"model": "echo"}, path, **headers)
        assert (status, json.loads(text)["error"]["code"]) == (403, "forbidden_host")
    for page in PAGES:
        status, text = get(served.url, page, **headers)
        assert (status, json.loads(text)["error"]["code"]) == (403, "forbidden_host")
    assert served.echo.seen == []


def test_a_foreign_host_is_refused_before_the_body_is_read(serve: Serve) -> None:
    host, port = serve().url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: evil.example\r\n"
            b"Content-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        )
        assert sock.recv(4096).startswith(b"HTTP/1.1 403")


@pytest.mark.parametrize(
    "headers",
    [{"Host": "LocalHost"}, {"Host": "[::1]:8000"}, {"Host": "[::1]"}, {"Origin": "http://localhost:3000"}],
    ids=str,
)
def test_names_of_this_machine_are_served(serve: Serve, headers: dict[str, str]) -> None:
    assert post(serve().url, CHAT | {"model": "echo"}, **headers)[0] == 200


def test_configured_names_are_the_only_ones(serve: Serve) -> None:
    named, any_name = (serve(config=GatewayConfig(hosts=hosts)) for hosts in (("gate.example",), None))
    assert get(named.url, "/healthz", Host="gate.example")[0] == 200
    assert get(named.url, "/healthz")[0] == 403
    assert get(any_name.url, "/healthz", Host="evil.example", Origin="http://evil.example")[0] == 200


def test_metrics_count_without_content(serve: Serve) -> None:
    served = serve()
    post(served.url, {"model": "echo", "messages": [{"role": "user", "content": "canary"}]})
    post(served.url, b"{canary")
    text = get(served.url, "/metrics")[1]
    assert 'transom_requests_total{endpoint="chat",status="200"} 1' in text
    assert 'transom_requests_total{endpoint="chat",status="400"} 1' in text
    assert 'transom_tokens_total{kind="prompt"} 25' in text
    assert "canary" not in text


SECRET = "ENGINE-SAID-THIS"
CALL = Call(prompts=((1,),), messages=(("user", "x"),), max_tokens=1)
GARBAGE = [
    SECRET, "[]", "{}", '{"choices": []}', '{"choices": 5}', '{"choices": [{"index": 0}]}',
    '{"choices": [{"index": 7, "token_ids": [1], "finish_reason": "stop"}]}',
    '{"choices": [{"index": 0, "token_ids": ["' + SECRET + '"], "finish_reason": "stop"}]}',
    '{"choices": [{"index": 0, "token_ids": [-5], "finish_reason": "stop"}]}',
    '{"choices": [{"index": 0, "token_ids": [99999999999999], "finish_reason": "stop"}]}',
    '{"choices": [{"index": 0, "token_ids": [1], "finish_reason": null}]}',
    "[" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("engine", [IdsEngine, ChatEngine, LlamaCppEngine])
def test_garbage_is_a_502_that_quotes_nothing(serve: Serve, engine: Any) -> None:
    bodies = iter(GARBAGE)

    def script(connection: socket.socket, path: str) -> None:
        fixed = {"/v1/models": MODELS, "/props": PROPS}
        answer(connection, fixed[path] if path in fixed else next(bodies))

    with raw_engine(script) as url:
        served = serve(engine=lambda _: engine(url))
        for body in GARBAGE:
            status, text = post(served.url, CHAT)
            assert status == 502, (body[:60], text)
            assert SECRET not in text


@pytest.mark.parametrize("usage", [{}, {"usage": None}])
def test_a_chat_endpoint_need_not_report_usage(serve: Serve, usage: dict[str, None]) -> None:
    choice = {"index": 0, "message": {"content": "fine"}, "finish_reason": "stop"}

    def script(connection: socket.socket, path: str) -> None:
        answer(connection, MODELS if path == "/v1/models" else json.dumps({"choices": [choice]} | usage))

    with raw_engine(script) as url:
        status, text = post(serve(engine=lambda _: ChatEngine(url)).url, CHAT)
    assert status == 200, text
    assert json.loads(text)["choices"][0]["message"]["content"] == "fine"
    assert json.loads(text)["usage"]["total_tokens"] == 0


@pytest.mark.parametrize("name", LIMIT_FIELDS)
def test_the_limit_field_of_a_chat_endpoint_is_configurable(serve: Serve, name: str) -> None:
    served = serve(engine=lambda url: ChatEngine(url, limit_field=name))
    post(served.url, CHAT | {"model": "echo", "max_tokens": 7})
    assert {field: json.loads(served.echo.seen[-1]).get(field) for field in LIMIT_FIELDS} == {
        field: 7 if field == name else None for field in LIMIT_FIELDS
    }


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("500 Oops", 502),
        ("302 Found\r\nLocation: http://127.0.0.1:9/", 502),
        ("401 No", 502),
        ("429 Busy", 429),
    ],
)
def test_engine_statuses_are_translated_and_redirects_not_followed(
    serve: Serve, status: str, expected: int
) -> None:
    def script(connection: socket.socket, path: str) -> None:
        if path == "/v1/models":
            answer(connection, MODELS)
        else:
            answer(connection, SECRET, status)

    with raw_engine(script) as url:
        code, text = post(serve(engine=lambda _: IdsEngine(url)).url, CHAT)
    assert code == expected
    assert SECRET not in text


@pytest.mark.parametrize(
    ("header", "low", "high"),
    [
        ("7", 7, 7), (" 0 ", 0, 0), ("0" * 50 + "12", 12, 12), ("9" * 5000, 3600, 3600),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0), ("Fri, 31 Dec 9999 23:59:59 GMT", 3600, 3600),
    ],
)  # fmt: skip
def test_how_long_a_busy_engine_asks_to_wait(header: str, low: int, high: int) -> None:
    wait_s = retry_after_s(header)
    assert wait_s is not None
    assert low <= wait_s <= high


def test_a_busy_engine_may_name_a_date() -> None:
    then = format_datetime(datetime.now(UTC) + timedelta(minutes=30), usegmt=True)
    assert 1700 < (retry_after_s(then) or 0) <= 1800


@given(
    st.text(max_size=40) | st.sampled_from(["-1", "1.5", "1e9", "\u0663", "Fri, 99 Dec 2026 99:99:99 GMT"])
)
def test_any_retry_after_is_bounded_or_none(header: str) -> None:
    assert (wait_s := retry_after_s(header)) is None or 0 <= wait_s <= 3600


@pytest.mark.parametrize("engine", [IdsEngine, ChatEngine, LlamaCppEngine])
@pytest.mark.parametrize(("header", "expected"), [("Retry-After: 7\r\n", 7), ("", None)])
async def test_a_busy_engine_says_how_long_to_wait(engine: Any, header: str, expected: int | None) -> None:
    def script(connection: socket.socket, path: str) -> None:
        fixed = {"/v1/models": MODELS, "/props": PROPS}
        answer(connection, fixed.get(path, ""), "200 OK" if path in fixed else f"429 Busy\r\n{header}X: y")

    with raw_engine(script) as url:
        client = engine(url)
        with pytest.raises(EngineBusyError) as caught:
            async for _ in client.generate(CALL):
                pass
        await client.close()
    assert caught.value.retry_after_s == expected


def test_an_engine_that_is_down_or_hangs(serve: Serve) -> None:
    with socket.socket() as taken:  # held, and nobody listens: one that is let go may be the echo's next
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        status, text = post(serve(engine=lambda _: IdsEngine(url)).url, CHAT)
    assert (status, json.loads(text)["error"]["code"]) == (502, "engine_down")
    served = serve(
        echo=EchoEngine(model="m", first_token_s=60), engine=lambda url: IdsEngine(url, timeout_s=0.3)
    )
    for stream in (False, True):
        status, text = post(served.url, CHAT | {"stream": stream})
        assert (status, json.loads(text)["error"]["code"]) == (504, "engine_timeout")


@pytest.mark.parametrize(
    "ending", ["", "data: {broken\n\n", 'data: {"error": {"message": "' + SECRET + '"}}\n\n']
)
def test_dying_in_mid_stream_is_an_error_event_without_done(serve: Serve, ending: str) -> None:
    first = {"choices": [{"index": 0, "text": "", "token_ids": [64], "finish_reason": None}]}

    def script(connection: socket.socket, path: str) -> None:
        if path == "/v1/models":
            answer(connection, MODELS)
        else:
            answer(connection, f"data: {json.dumps(first)}\n\n{ending}", kind="text/event-stream")

    with raw_engine(script) as url:
        status, text = post(serve(engine=lambda _: IdsEngine(url)).url, CHAT | {"stream": True})
    events = [line for line in text.split("\n\n") if line]
    assert status == 200
    assert "a" in events[0]
    assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
    assert "[DONE]" not in text
    assert SECRET not in text


def test_an_endless_answer_is_cut_off(monkeypatch: pytest.MonkeyPatch, serve: Serve) -> None:
    monkeypatch.setattr("transom.serving.engines.http._ANSWER_BYTES", 10_000)

    def script(connection: socket.socket, path: str) -> None:
        answer(connection, MODELS if path == "/v1/models" else " " * 20_000 + "{}")

    with raw_engine(script) as url:
        gateway = serve(engine=lambda _: IdsEngine(url))
        for stream in (False, True):
            assert post(gateway.url, CHAT | {"stream": stream})[0] == 502


def test_clients_that_vanish_leave_the_gateway_well(serve: Serve) -> None:
    served = serve(echo=EchoEngine(token_s=0.05))
    host, port = served.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "echo", "prompt": "abc", "max_tokens": 2000, "stream": True}).encode()
    head = (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    for sent in (head, head + body[:10], head + body):
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(sent)
            time.sleep(0.1)
    assert post(served.url, {"model": "echo", "prompt": "abc", "max_tokens": 2}, "/v1/completions")[0] == 200


@pytest.mark.parametrize(
    "url",
    ["http://example.com", "http://10.0.0.1:8000", "ftp://127.0.0.1", "127.0.0.1:80", "http://user:pw@127.0.0.1",
     "https://example.com/?q=1", "http://127.0.0.1.example.com", "http://127.0.0.1:99999", "http://[::2]"],
)  # fmt: skip
def test_urls_that_would_expose_prompts_are_refused(url: str) -> None:
    with pytest.raises(MisconfiguredError) as caught:
        check_url(url)
    assert "pw" not in str(caught.value)


def test_urls_that_are_fine() -> None:
    assert check_url("https://api.example.com/v1/") == "https://api.example.com"
    for url in ("http://localhost:1", "http://127.0.0.2", "http://[::1]:8000"):
        assert check_url(url) == url


def test_old_vllm_is_refused() -> None:
    for version in ("0.24.0", "0.32.1rc1", "v1.0"):
        check_vllm_version({"version": version})
    with pytest.raises(MisconfiguredError, match=r"0\.24"):
        check_vllm_version({"version": "0.23.9"})


def test_engine_keys_come_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRANSOM_ENGINE_KEY", raising=False)
    assert read_key(None) is None
    monkeypatch.setenv("TRANSOM_ENGINE_KEY", "from-environment")
    assert read_key(None) == "from-environment"
    path = tmp_path / "key"
    path.write_text("from-file\n")
    assert read_key(path) == "from-file"
    path.write_text("two keys\n")
    with pytest.raises(MisconfiguredError) as caught:
        read_key(path)
    assert "two keys" not in str(caught.value)


def test_vllm_gets_a_cache_salt_per_tenant() -> None:
    engine = IdsEngine("http://127.0.0.1:1", vllm=True)
    salts = [
        engine._body(Call(prompts=((1,),), max_tokens=1, tenant=tenant), EngineCard("m"))["cache_salt"]
        for tenant in ("alice", "alice", "bob")
    ]
    assert salts[0] == salts[1] != salts[2]
    assert "alice" not in salts[0]
    asyncio.run(engine.close())


@pytest.mark.parametrize("content", [None, []])
def test_content_of_nothing_is_called_nothing(content: object) -> None:
    """And not an image."""
    messages: list[dict[str, object]] = [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": content},
    ]
    with pytest.raises(RefusedError, match="null or empty") as caught:
        parse(ChatRequest, json.dumps({"model": "m", "messages": messages}).encode())
    assert caught.value.param == "messages[1].content"
    messages[1]["content"] = 5
    with pytest.raises(RefusedError, match="must be text"):
        parse(ChatRequest, json.dumps({"model": "m", "messages": messages}).encode())
