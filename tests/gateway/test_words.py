"""Mode words: what leaves is sanitised, charged first, restored on the way back; resent history is free."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from transom.errors import LedgerError, MisconfiguredError
from transom.privacy.ledger import Ledger
from transom.privacy.policy import Policy, load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig

from .conftest import Served, get, post

Serve = Callable[..., Served]
WORDS = GatewayConfig(mode="words")


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


@pytest.fixture
def hiding(policy: Policy) -> Sanitizer:
    """Every word and name becomes a placeholder; nothing is drawn."""
    return Sanitizer(policy.with_rules({"word": "placeholder", "stop": "placeholder"}))


@pytest.fixture
def drawing(policy: Policy) -> Sanitizer:
    return Sanitizer(policy, epsilon=1.0)


def ask(client: OpenAI, text: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="echo", messages=[{"role": "user", "content": text}],
        extra_headers={"X-Transom-Show-Host": "1"}, **options,
    )  # fmt: skip


def host_text(body: bytes) -> str:
    """What the byte tokenizer's ids spell, control tokens left out."""
    from .conftest import byte_tokenizer

    return byte_tokenizer().decode(json.loads(body)["prompt"])


def test_placeholders_leave_and_values_come_back_in_both_ways(serve: Serve, hiding: Sanitizer) -> None:
    served = serve(config=WORDS, sanitizer=hiding)
    question = "Ms Zyxwora owes 4711 crowns to Zyxwora."
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        whole = ask(client, question)
        chunks = list(ask(client, question, stream=True))
    assert whole.choices[0].message.content == "user\n" + question
    streamed = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert streamed == "user\n" + question
    shown = whole.transom
    assert chunks[-1].transom["host_saw"] == shown["host_saw"]
    assert shown["host_token_ids"] == json.loads(served.echo.seen[0])["prompt"]
    assert len(re.findall(r"\[(?:NAME|PERSON)_1\]", shown["host_saw"])) == 2
    for body in served.echo.seen:
        assert not any(word in host_text(body) for word in ("Zyxwora", "4711", "owes", "crowns"))


def test_the_response_says_nothing_of_the_host_unless_asked(serve: Serve, hiding: Sanitizer) -> None:
    served = serve(config=WORDS, sanitizer=hiding)
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    assert "transom" not in json.loads(post(served.url, body)[1])


def test_epsilon_is_charged_shown_and_counted(serve: Serve, drawing: Sanitizer, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger", 1000.0)
    served = serve(config=WORDS, sanitizer=drawing, ledger=ledger)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        first = ask(client, "the green horse sleeps in the kitchen").transom
        second = ask(client, "the green horse sleeps in the kitchen").transom
    assert first["epsilon_spent"] > 0
    assert first["epsilon_spent"] == pytest.approx(first["bayes"]["words"] * drawing.word_epsilon)
    assert second["epsilon_total"] == pytest.approx(first["epsilon_spent"] + second["epsilon_spent"])
    assert ledger.spent("default") == pytest.approx(second["epsilon_total"])
    assert first["guarantee"]["epsilon"] == first["epsilon_spent"]
    assert 0 < first["bayes"]["chance"] <= 1
    assert 0 < first["bayes"]["success"] <= 1
    metric = get(served.url, "/metrics")[1].split("\ntransom_epsilon_spent_total ")[1]
    assert float(metric.split()[0]) == pytest.approx(second["epsilon_total"])
    ledger.close()


def test_a_resent_history_costs_nothing_and_the_host_reads_its_own_words(
    serve: Serve, drawing: Sanitizer, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger", 1000.0)
    served = serve(config=WORDS, sanitizer=drawing, ledger=ledger)
    headers = {"X-Transom-Session": "s1", "X-Transom-Show-Host": "1"}
    history: list[Any] = [{"role": "user", "content": "Does Zyxwora like green horses?"}]
    with OpenAI(base_url=served.url + "/v1", api_key="any", default_headers=headers, max_retries=0) as client:
        first = client.chat.completions.create(model="echo", messages=history)
        history.append({"role": "assistant", "content": first.choices[0].message.content})
        spent = ledger.spent("default")
        again = client.chat.completions.create(model="echo", messages=history)
        assert again.transom["epsilon_spent"] == 0
        assert ledger.spent("default") == spent
        sent = [host_text(body) for body in served.echo.seen]
        assert sent[0].removesuffix("assistant\n") in sent[1]
        answer = sent[1].split("assistant\n")[1]
        assert answer.startswith(sent[0].split("\n")[0])
        assert "Zyxwora" not in sent[1]
        history[0] = {"role": "user", "content": "Does Zyxwora like brown horses?"}
        edited = client.chat.completions.create(model="echo", messages=history)
        assert edited.transom["epsilon_spent"] == pytest.approx(drawing.word_epsilon)
        other = client.chat.completions.create(
            model="echo", messages=history[:1], extra_headers={"X-Transom-Session": "s2"}
        )
        assert other.transom["epsilon_spent"] > drawing.word_epsilon
    ledger.close()


def test_a_spent_ledger_sends_nothing_and_a_retry_is_not_free(
    serve: Serve, drawing: Sanitizer, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger", 1.5)
    served = serve(config=WORDS, sanitizer=drawing, ledger=ledger)
    body = {"model": "echo", "messages": [{"role": "user", "content": "green horses sleep in kitchens"}]}
    for _ in range(2):
        status, text = post(served.url, body, **{"X-Transom-Session": "s"})
        assert (status, json.loads(text)["error"]["code"]) == (429, "privacy_budget_spent")
    assert served.echo.seen == []
    assert ledger.spent("default") == 0
    ledger.close()


def test_a_locked_or_corrupt_ledger_sends_nothing(serve: Serve, drawing: Sanitizer, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    ledger = Ledger(path, 1000.0, timeout_s=0.2)
    served = serve(config=WORDS, sanitizer=drawing, ledger=ledger)
    body = {"model": "echo", "messages": [{"role": "user", "content": "green horses"}]}
    lock = sqlite3.connect(path, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    status, text = post(served.url, body)
    lock.execute("ROLLBACK")
    lock.close()
    assert (status, json.loads(text)["error"]["code"]) == (503, "ledger_unavailable")
    path.unlink()
    path.write_bytes(b"not a database" * 1000)
    assert post(served.url, body)[0] == 503
    assert served.echo.seen == []
    ledger.close()


class _FullDisk:
    """A ledger whose every charge fails as on a full disk."""

    def charge_many(self, charges: Any) -> Any:
        raise LedgerError("database or disk is full")


def test_a_full_disk_sends_nothing(serve: Serve, drawing: Sanitizer) -> None:
    served = serve(config=WORDS, sanitizer=drawing, ledger=_FullDisk())
    status, _ = post(served.url, {"model": "echo", "messages": [{"role": "user", "content": "green horses"}]})
    assert status == 503
    assert served.echo.seen == []


def test_what_words_cannot_protect_is_refused(serve: Serve, drawing: Sanitizer) -> None:
    served = serve(config=WORDS, sanitizer=drawing)
    for prompt in ([1, 2], [[1], [2]]):
        assert post(served.url, {"model": "echo", "prompt": prompt}, "/v1/completions")[0] == 400
    assert served.echo.seen == []
    with pytest.raises(MisconfiguredError):
        create_gateway(WORDS, ChatEngine("http://127.0.0.1:1"))
    with pytest.raises(MisconfiguredError):
        create_gateway(GatewayConfig(), ChatEngine("http://127.0.0.1:1"), sanitizer=drawing)
    with pytest.raises(MisconfiguredError):
        create_gateway(GatewayConfig(), IdsEngine("http://127.0.0.1:1"))


def test_completions_are_sanitised_too(serve: Serve, hiding: Sanitizer) -> None:
    served = serve(config=WORDS, sanitizer=hiding)
    body = {"model": "echo", "prompt": ["Zyxwora sings", "4711"], "max_tokens": 13}
    answer = json.loads(post(served.url, body, "/v1/completions")[1])
    assert answer["choices"][0]["text"].startswith("Zyxwora ")
    assert b"Zyxwora" not in served.echo.seen[0]


class Canaries:
    """A unique secret for every request field."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self) -> str:
        number = len(self.made)
        self.made.append(f"Zorblax{'qwertyuiop'[number % 10]}{number:02d}vexing")
        return self.made[-1]

    def shaped(self) -> str:
        """A secret of each kind in turn: rare, name, number, foreign, identifier."""
        number = len(self.made)
        letters = "".join("bcdfghjklm"[int(digit)] for digit in f"{number:03d}")
        shapes = (f"zorb{letters}vex", f"Quax{letters}vex", f"48159{number:03d}9907", f"žorbč{letters}vex")
        self.made.append((*shapes, f"zq{number:03d}vexing")[number % 5])
        return self.made[-1]


def canary_request(secret: Canaries) -> dict[str, Any]:
    return {
        "model": "echo",
        "messages": [
            {"role": "system", "content": f"You are {secret.shaped()}."},
            {"role": "developer", "content": [{"type": "text", "text": secret.shaped()}]},
            {
                "role": "user",
                "content": f"{secret.shaped()} <|im_end|> {secret.shaped().upper()}!",
                "name": "example_user",
            },
            {
                "role": "assistant",
                "content": secret.shaped(),
                "refusal": secret.shaped(),
                "reasoning_content": secret.shaped(),
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "Here is: ", "transom_public": True},
                    {"type": "text", "text": secret.shaped()},
                ],
                "annotations": [secret.shaped()],
            },
            {"role": "assistant", "content": f"Dear {secret.shaped()},", "transom_example": True},
            {"role": "user", "content": " and ".join(secret.shaped() for _ in range(10))},
            {
                "role": "user",
                "content": f"my email is {secret.shaped()}@example.com, {secret.shaped().lower()}",
            },
        ],
        "stop": [secret(), secret()],
        "user": secret(),
        "metadata": {secret(): secret()},
        "prompt_cache_key": secret(),
        "safety_identifier": secret(),
        "service_tier": secret(),
        "reasoning_effort": secret(),
        "max_tokens": 60,
    }


def canary_response(secret: Canaries) -> dict[str, Any]:
    """The same of `/v1/responses`."""
    said = {"type": "output_text", "text": secret.shaped(), "annotations": [secret.shaped()]}
    return {
        "model": "echo",
        "instructions": f"You are {secret.shaped()}.",
        "input": [
            {"role": "user", "content": f"{secret.shaped()} and {secret.shaped()}", "id": secret.shaped()},
            {"type": "reasoning", "summary": [{"text": secret.shaped()}], "encrypted_content": secret()},
            {"type": "message", "role": "assistant", "content": [said], "status": secret()},
            {"role": "user", "content": [{"type": "input_text", "text": secret.shaped()}]},
        ],
        **{name: secret() for name in ("include", "metadata", "prompt_cache_key", "reasoning", "user")},
        "max_output_tokens": 60,
    }


@pytest.mark.parametrize("engine", [IdsEngine, ChatEngine])
@pytest.mark.parametrize("preset", PRESETS)
def test_no_canary_reaches_engine_logs_metrics_errors_or_files(
    serve: Serve, policy: Policy, preset: str, engine: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    caplog.set_level(logging.DEBUG)
    secret = Canaries()
    ledger = Ledger(tmp_path / "ledger", 1000.0)
    config = GatewayConfig(mode="words", max_body_bytes=100_000)
    sanitizer = Sanitizer(with_preset(policy, preset))
    served = serve(config=config, sanitizer=sanitizer, engine=engine, ledger=ledger)
    dropping = serve(
        config=replace(config, unknown="drop"), sanitizer=sanitizer, engine=engine, echo=served.echo
    )
    session = {"X-Transom-Session": secret(), "Authorization": "Bearer " + secret()}
    errors = []
    for stream in (False, True):
        status, text = post(served.url, canary_request(secret) | {"stream": stream}, **session)
        assert status == 200, text
        status, text = post(
            served.url, canary_response(secret) | {"stream": stream}, "/v1/responses", **session
        )
        assert status == 200, text
        more = {"stream": stream, secret(): secret(), "odd": {secret(): secret()}}
        assert post(dropping.url, canary_request(secret) | more, **session)[0] == 200
        assert post(dropping.url, canary_response(secret) | more, "/v1/responses", **session)[0] == 200
    prompt = {"model": "echo", "prompt": [secret()], "stop": secret(), "user": secret()}
    completion = post(served.url, prompt, "/v1/completions", **session)
    if engine is ChatEngine:  # which cannot complete a bare prompt
        errors.append(completion)
    else:
        assert completion[0] == 200
    good = canary_request(secret)
    for broken in (
        {"model": secret()}, {"tools": [{"type": secret()}]}, {"temperature": secret()}, {"n": secret()},
        {"stop": {"a": secret()}}, {"response_format": {"type": secret()}}, {"logit_bias": {secret(): 1}},
        {"messages": [{"role": secret(), "content": secret()}]}, {"prediction": secret()}, {"seed": secret()},
        {"messages": [{"role": "user", "content": {"text": secret()}}]}, {"stream_options": secret()},
        {"messages": [{"role": "user", "content": [{"type": secret(), "text": secret()}]}]},
        {"messages": [{"role": "user", "content": secret() * 100_000}]}, {"unknown_field": secret()},
        {"messages": [{"role": "user", "content": secret(), "transom_example": True}]},
        {"messages": [{"role": "user", "content": secret(), "transom_public": secret()}]},
        {"messages": [{"role": "user", "content": secret(), "name": secret()}]},
    ):  # fmt: skip
        errors.append(post(served.url, good | broken, **session))
    for broken in (
        {"input": [{"type": secret(), "content": secret()}]}, {"previous_response_id": secret()},
        {"input": [{"role": "user", "content": [{"type": secret(), "text": secret()}]}]},
        {"tools": [{"type": "function", "name": secret()}]}, {"text": {"format": {"type": secret()}}},
    ):  # fmt: skip
        errors.append(post(served.url, canary_response(secret) | broken, "/v1/responses", **session))
    errors.append(post(served.url, json.dumps(good).encode()[:-1], **session))
    errors.append(post(served.url, good, "/v1/responses", **session))
    assert all(status >= 400 for status, _ in errors), errors
    engine_bytes = b"\n".join(served.echo.seen).decode()
    engine_bytes += "".join(json.dumps(json.loads(body), ensure_ascii=False) for body in served.echo.seen)
    if engine is IdsEngine:
        engine_bytes += "\n".join(host_text(body) for body in served.echo.seen if b'"prompt"' in body)
    files = [path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    names = [str(path) for path in folder.rglob("*")]
    places = {
        "engine": engine_bytes, "logs": caplog.text + "".join(capfd.readouterr()),
        "files": "".join(files + names), "metrics": get(served.url, "/metrics")[1],
        "errors": "".join(text for _, text in errors),
    }  # fmt: skip
    assert served.echo.seen
    for place, text in places.items():
        for canary in secret.made:
            assert canary.lower() not in text.lower(), place
    ledger.close()


def test_an_infinite_epsilon_is_told_and_refused_by_a_ledger(
    serve: Serve, policy: Policy, tmp_path: Path
) -> None:
    class Unbounded(Sanitizer):
        """A mechanism without a finite epsilon."""

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._draws.cost = lambda kinds: float("inf")  # type: ignore[method-assign]

    body = {"model": "echo", "messages": [{"role": "user", "content": "green horses"}]}
    served = serve(config=WORDS, sanitizer=Unbounded(policy, epsilon=1.0))
    status, text = post(served.url, body, **{"X-Transom-Show-Host": "1"})
    assert (status, json.loads(text)["transom"]["epsilon_spent"]) == (200, "inf")
    with Ledger(tmp_path / "ledger", 1000.0) as ledger:
        capped = serve(config=WORDS, sanitizer=Unbounded(policy, epsilon=1.0), ledger=ledger)
        assert post(capped.url, body)[0] == 429
    assert capped.echo.seen == []


def test_long_prompts_are_sanitised_as_short_ones(serve: Serve, hiding: Sanitizer) -> None:
    served = serve(config=WORDS, sanitizer=hiding)
    text = "Zyxwora owes crowns. " * 1500
    body = {"model": "echo", "messages": [{"role": "user", "content": text}], "max_tokens": 40}
    assert post(served.url, body)[0] == 200
    assert "Zyxwora" not in host_text(served.echo.seen[0])
