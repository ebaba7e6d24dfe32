"""Mode enclave: rows leave instead of ids, over TLS to one key, and what they spell is what is shown."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from safetensors.numpy import load

from transom.cli.enclave import mark_log
from transom.enclave.table import EmbeddingTable
from transom.errors import EvidenceError, MisconfiguredError, RefusedError
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import make_certificate
from transom.privacy.ledger import Ledger
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.http import Pinned
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.enclave import Enclave, ExtractionMeter

from .conftest import chat_tokenizer, get, post

WIDTH = 8
ENCLAVE = GatewayConfig(mode="enclave")
SECRETS = ("Zyxwora", "4711", "quokkaish")
QUESTION = "Ms Zyxwora owes 4711 crowns to a quokkaish friend."


@dataclass(frozen=True)
class Served:
    """A gateway in mode enclave, the echo that is its engine, and the engine's table."""

    url: str
    echo: EchoEngine
    table_VD: np.ndarray

    def read(self, body: bytes) -> list[int]:
        """What the owner of the table reads from a request: the ids behind the rows."""
        rows_TD = load(base64.b64decode(json.loads(body)["prompt_embeds"]))["prompt_embeds"]
        distances_TV = ((rows_TD[:, None, :] - self.table_VD[None]) ** 2).sum(-1)
        assert distances_TV.min(axis=1).max() == 0
        return [int(i) for i in distances_TV.argmin(axis=1)]


def random_table() -> np.ndarray:
    rows = chat_tokenizer().vocab_size
    return np.random.default_rng(0).normal(size=(rows, WIDTH)).astype("<f4")


def opened(table_VD: np.ndarray, share: float = 1.0, **changes: Any) -> Enclave:
    table = EmbeddingTable(table_VD, "F32")
    enclave = Enclave(table, ExtractionMeter(len(table_VD), share), "echo", "none", "ab" * 32)
    return replace(enclave, **changes)


@pytest.fixture(scope="module")
def sanitizer() -> Sanitizer:
    return Sanitizer(load_policy())


@pytest.fixture
def serve(tmp_path: Path, sanitizer: Sanitizer) -> Iterator[Callable[..., Served]]:
    """Start a gateway over an echo with TLS; further options change its `Enclave`."""
    with ExitStack() as stack:

        def start(
            *, share: float = 1.0, echo: EchoEngine | None = None, pin: Any = None, config: Any = None,
            ledger: Any = None, **changes: Any,
        ) -> Served:  # fmt: skip
            echo, table_VD = echo or EchoEngine(embedding_size=WIDTH), random_table()
            real = make_certificate(tmp_path)
            tls = Tls(tmp_path / "tls.pem", tmp_path / "tls.key")
            engine_url = stack.enter_context(serve_in_thread(echo.app(), tls=tls))
            engine = IdsEngine(engine_url, guard=Pinned(pin or real))
            enclave = opened(table_VD, share, **changes)
            app = create_gateway(config or ENCLAVE, engine, chat_tokenizer(), sanitizer, ledger, enclave)
            return Served(stack.enter_context(serve_in_thread(app)), echo, table_VD)

        yield start


def question(text: str = QUESTION, **options: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **options}


def test_the_rows_spell_what_is_shown_and_no_secret(serve: Callable[..., Served]) -> None:
    served = serve()
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        for stream in (False, True):
            answer: Any = client.chat.completions.create(
                **question(), stream=stream, max_tokens=5, extra_headers={"X-Transom-Show-Host": "1"}
            )
            shown = list(answer)[-1].transom if stream else answer.transom
            body = served.echo.seen[-1]
            assert served.read(body) == shown["host_token_ids"]
            assert {"prompt", "messages"}.isdisjoint(json.loads(body))
            seen = chat_tokenizer().detokenizer().feed(shown["host_token_ids"])
            assert "[PERSON_1]" in seen
            assert not any(secret in seen for secret in SECRETS)
            assert (shown["mode"], shown["trust"]) == ("enclave", "none")
            assert shown["epsilon_spent"] > 0


def test_usage_counts_the_prompt_and_n_answers_come_back(serve: Callable[..., Served]) -> None:
    served = serve()
    status, text = post(served.url, question(n=3, max_tokens=4))
    answer = json.loads(text)
    assert (status, len(answer["choices"])) == (200, 3)
    assert answer["usage"]["prompt_tokens"] == len(served.read(served.echo.seen[0]))
    assert answer["usage"]["completion_tokens"] == 12


def test_completions_send_a_row_for_each_token_of_each_prompt(serve: Callable[..., Served]) -> None:
    served = serve()
    body = {"model": "echo", "prompt": ["one of Zyxwora", "two of Zyxwora's"], "max_tokens": 2}
    status, text = post(served.url, body, "/v1/completions")
    assert (status, len(json.loads(text)["choices"])) == (200, 2)
    assert len(json.loads(served.echo.seen[0])["prompt_embeds"]) == 2
    assert b"Zyxwora" not in served.echo.seen[0]


def test_token_ids_cannot_be_sanitised_and_are_refused(serve: Callable[..., Served]) -> None:
    served = serve()
    status, text = post(served.url, {"model": "echo", "prompt": [1, 2, 3]}, "/v1/completions")
    assert (status, json.loads(text)["error"]["code"]) == (400, "cannot_protect")
    assert served.echo.seen == []


def test_every_response_says_what_the_evidence_proves(serve: Callable[..., Served]) -> None:
    import http.client

    served = serve(trust="boot-state")
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=10)
    for method, path, body in (
        ("GET", "/healthz", None),
        ("GET", "/nowhere", None),
        ("POST", "/v1/chat/completions", b"{"),
        ("POST", "/v1/chat/completions", json.dumps(question()).encode()),
        ("POST", "/v1/chat/completions", json.dumps(question(stream=True)).encode()),
    ):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        assert answer.headers["x-transom-trust"] == "boot-state", path
    connection.request("GET", "/healthz", headers={"Host": "elsewhere"})
    assert connection.getresponse().headers["x-transom-trust"] == "boot-state"
    connection.close()


def test_an_engines_trust_is_shown_beside_the_gateways_own(sanitizer: Sanitizer) -> None:
    import http.client

    engine, tokenizer = IdsEngine("http://127.0.0.1:9"), chat_tokenizer()
    words = create_gateway(
        GatewayConfig(mode="words"), engine, tokenizer, sanitizer, engine_trust=lambda: "none"
    )
    for app, expected in ((words, "none"), (create_gateway(GatewayConfig(), engine, tokenizer), None)):
        with serve_in_thread(app) as url:
            connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            assert answer.headers["x-transom-engine-trust"] == expected
            assert "x-transom-trust" not in answer.headers
            connection.close()


def test_every_log_line_says_what_the_evidence_proves(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    try:
        mark_log("none")
        for name in ("transom.gateway", "uvicorn.error", "asyncio"):
            logging.getLogger(name).error("something")
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    lines = [line for line in capfd.readouterr().err.splitlines() if "something" in line]
    assert len(lines) == 3
    assert all("trust=none" in line for line in lines)


def test_the_meter_refuses_beyond_its_share_and_sends_nothing(serve: Callable[..., Served]) -> None:
    served = serve(share=0.2)
    status, _ = post(served.url, question("a b"))
    assert status == 200
    used = float(get(served.url, "/metrics")[1].split("\ntransom_embedded_rows ")[1].split()[0])
    assert used == len(set(served.read(served.echo.seen[0])))
    sent = len(served.echo.seen)
    status, text = post(served.url, question("".join(map(chr, range(33, 127))) * 2))
    assert (status, json.loads(text)["error"]["code"]) == (429, "extraction_limit")
    assert len(served.echo.seen) == sent
    assert post(served.url, question("a b"))[0] == 200  # rows that were used before are free


def test_the_meter_counts_distinct_rows_of_one_day() -> None:
    now = [0.0]
    meter = ExtractionMeter(100, 0.1, clock=lambda: now[0])
    meter.count([1, 1, 2, 3])
    meter.count(range(10))
    assert meter.distinct_rows == 10
    with pytest.raises(RefusedError):
        meter.count([10])
    assert meter.distinct_rows == 10
    now[0] = 50_000.0
    meter.count([1, 2])  # used again: they count for another day
    now[0] = 86_400.0
    assert meter.distinct_rows == 2
    meter.count(range(10, 18))
    with pytest.raises(RefusedError):
        meter.count([18])


def test_a_refused_charge_sends_nothing(serve: Callable[..., Served], tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", 1.0) as ledger:
        served = serve(ledger=ledger)
        status, text = post(served.url, question("the green horse sleeps in the old kitchen"))
    assert (status, json.loads(text)["error"]["code"]) == (429, "privacy_budget_spent")
    assert served.echo.seen == []


@pytest.mark.parametrize(
    ("echo", "changes"),
    [
        (EchoEngine(embedding_size=WIDTH + 1), {}),
        (EchoEngine(embedding_size=WIDTH, model="other"), {}),
        (EchoEngine(embedding_size=WIDTH), {"model": "another"}),
    ],
    ids=["width", "engine's model", "bundle's model"],
)
def test_an_engine_that_does_not_fit_the_bundle_gets_nothing(
    serve: Callable[..., Served], echo: EchoEngine, changes: dict[str, Any]
) -> None:
    served = serve(echo=echo, **changes)
    status, text = post(served.url, question() | {"model": "transom"})
    assert status == 400, text
    assert "bundle" in json.loads(text)["error"]["message"]
    assert echo.seen == []


def test_an_engine_with_another_key_gets_nothing(serve: Callable[..., Served], tmp_path: Path) -> None:
    served = serve(pin=make_certificate(tmp_path / "other"))
    status, text = post(served.url, question())
    assert (status, json.loads(text)["error"]["code"]) == (EvidenceError.http_status, EvidenceError.code)
    assert served.echo.seen == []


def test_combinations_that_could_not_protect_are_refused(sanitizer: Sanitizer) -> None:
    enclave, tokenizer = opened(random_table()), chat_tokenizer()
    engine = IdsEngine("http://127.0.0.1:9")
    for config, wrong_engine, cleaner, half in (
        (ENCLAVE, engine, sanitizer, None),
        (ENCLAVE, engine, None, enclave),
        (ENCLAVE, ChatEngine("http://127.0.0.1:9"), sanitizer, enclave),
        (GatewayConfig(mode="words"), engine, sanitizer, enclave),
        (GatewayConfig(), engine, None, enclave),
    ):
        with pytest.raises(MisconfiguredError):
            create_gateway(config, wrong_engine, tokenizer, cleaner, None, half)


def test_no_secret_in_logs_metrics_or_errors(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    served = serve(echo=EchoEngine(embedding_size=WIDTH, context_tokens=8))
    answers = [post(served.url, question())[1], get(served.url, "/metrics")[1]]
    answers.append(post(served.url, question(max_tokens=10**6))[1])
    for secret in SECRETS:
        assert secret not in caplog.text
        assert not any(secret in answer for answer in answers)
