"""Known before words are drawn: a dead engine, refused evidence. And what clients are told of retries."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

import pytest
from openai import NotFoundError, OpenAI, RateLimitError

from transom.errors import EngineDownError, EvidenceError
from transom.net.listen import serve_in_thread
from transom.privacy.ledger import Ledger
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import EngineCard
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.llamacpp import LlamaCppEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig

from .conftest import chat_tokenizer, post

BODY = {"model": "echo", "messages": [{"role": "user", "content": "green horses sleep in kitchens"}]}


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def drawing() -> Sanitizer:
    return Sanitizer(load_policy(), epsilon=1.0)


@pytest.mark.parametrize("engine", [IdsEngine, ChatEngine])
def test_a_dead_engine_is_found_before_the_draw(engine: Any, drawing: Sanitizer, tmp_path: Path) -> None:
    """It answered before, so its card is known; now nothing listens: nothing is charged, until it is back."""
    port = free_port()
    client = engine(f"http://127.0.0.1:{port}", model="echo")
    with Ledger(tmp_path / "ledger", 1000.0) as ledger:
        app = create_gateway(GatewayConfig(mode="words"), client, chat_tokenizer(), drawing, ledger)
        with serve_in_thread(app) as url:
            with serve_in_thread(EchoEngine().app(), port=port):
                assert post(url, BODY)[0] == 200
            spent = ledger.spent("default")
            assert spent > 0
            client._answered_s = float("-inf")  # as after some seconds
            for serial in range(2):
                status, text = post(url, BODY | {"seed": serial})
                assert (status, json.loads(text)["error"]["code"]) == (502, "engine_down")
            assert ledger.spent("default") == spent
            with serve_in_thread(EchoEngine().app(), port=port):
                assert post(url, BODY | {"seed": 7})[0] == 200
            assert ledger.spent("default") > spent


async def test_an_engine_that_went_away_is_noticed_by_the_next_request() -> None:
    port = free_port()
    with serve_in_thread(EchoEngine().app(), port=port):
        client = IdsEngine(f"http://127.0.0.1:{port}")
        await client._get("/v1/models")
        await client._reach()
    with pytest.raises(EngineDownError):
        await client._get("/v1/models")
    with pytest.raises(EngineDownError):
        await client._reach()
    await client.close()


async def test_evidence_that_does_not_convince_is_known_without_a_connection() -> None:
    class Refusing:
        async def ready(self) -> Any:
            raise EvidenceError("no")

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        engine = IdsEngine(url, guard=Refusing())
        with pytest.raises(EvidenceError):
            await engine._reach()
        with pytest.raises(TimeoutError):
            server.accept()


async def test_llama_cpp_is_reached_too() -> None:
    engine = LlamaCppEngine(f"http://127.0.0.1:{free_port()}", model="m")
    engine._card = EngineCard("m")
    with pytest.raises(EngineDownError):
        await engine.probe()


def fetched(url: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}


def test_clients_are_told_whether_a_retry_can_help(drawing: Sanitizer, tmp_path: Path) -> None:
    with (
        Ledger(tmp_path / "ledger", 1.5) as ledger,
        serve_in_thread(EchoEngine().app()) as engine_url,
        serve_in_thread(
            create_gateway(
                GatewayConfig(mode="words"), IdsEngine(engine_url), chat_tokenizer(), drawing, ledger
            )
        ) as url,
    ):
        said = BODY["messages"][0]["content"]
        for path, body in (("responses", {"model": "echo", "input": said}), ("chat/completions", BODY)):
            found, headers = fetched(url, f"/v1/{path}", body)
            assert (found, headers.get("x-should-retry")) == (429, "false")
        assert "x-should-retry" not in fetched(url, "/v1/chat/completions", {"model": "other"})[1]


class Busy(IdsEngine):
    """Its host is busy."""

    async def generate(self, call: Any) -> Any:
        from transom.errors import EngineBusyError

        raise EngineBusyError("busy", retry_after_s=self.after_s)
        yield  # pragma: no cover

    after_s: int | None = 7


@pytest.mark.parametrize("after_s", [7, None])
def test_a_busy_host_stays_busy_with_its_own_delay(drawing: Sanitizer, after_s: int | None) -> None:
    with serve_in_thread(EchoEngine().app()) as engine_url:
        engine = Busy(engine_url)
        engine.after_s = after_s
        app = create_gateway(GatewayConfig(mode="words"), engine, chat_tokenizer(), drawing)
        with serve_in_thread(app) as url:
            status, headers = fetched(url, "/v1/chat/completions", BODY)
            assert (status, headers.get("retry-after")) == (429, None if after_s is None else str(after_s))


class FailsTwice(IdsEngine):
    """Fails on the first calls, and then answers."""

    calls = 0

    def generate(self, call: Any) -> Any:
        self.calls += 1
        return super().generate(call) if self.calls > 2 else self._failed()

    async def _failed(self) -> Any:
        raise EngineDownError("gone")
        yield  # pragma: no cover


def test_the_official_clients_retries_show_the_host_one_draw(drawing: Sanitizer, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", 1000.0) as ledger, serve_in_thread(EchoEngine().app()) as engine_url:
        engine = FailsTwice(engine_url)
        app = create_gateway(GatewayConfig(mode="words"), engine, chat_tokenizer(), drawing, ledger)
        with serve_in_thread(app) as url, OpenAI(base_url=url + "/v1", api_key="any") as client:
            answer: Any = client.chat.completions.create(
                **BODY,  # type: ignore[call-overload]
                extra_headers={"X-Transom-Show-Host": "1"},
            )
            assert engine.calls == 3
            assert answer.transom["repeats"] is True
            assert answer.transom["epsilon_spent"] == 0
            assert (
                ledger.spent("default") == len(ledger.history("default")) * answer.transom["bayes"]["words"]
            )
            assert len(ledger.history("default")) == 1
            with pytest.raises(NotFoundError):
                client.chat.completions.create(model="other", messages=[{"role": "user", "content": "a"}])


def test_the_official_client_does_not_retry_a_spent_budget(drawing: Sanitizer, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", 0.5) as ledger, serve_in_thread(EchoEngine().app()) as engine_url:
        app = create_gateway(
            GatewayConfig(mode="words"), IdsEngine(engine_url), chat_tokenizer(), drawing, ledger
        )
        with (
            serve_in_thread(app) as url,
            OpenAI(base_url=url + "/v1", api_key="any") as client,
            pytest.raises(RateLimitError),
        ):
            client.chat.completions.create(**BODY)  # type: ignore[call-overload]
        assert ledger.history("default") == []
