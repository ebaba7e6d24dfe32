"""The demonstration: its own code runs, on the real model, and its secrets never reach the engine."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest

from transom.checkpoint.tokenizer import export_tokenizer
from transom.cli import demo, main
from transom.cli.ask import Exchange
from transom.cli.options import WordOptions
from transom.net.listen import serve_in_thread
from transom.privacy.presets import PRESETS
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.job import Job, Step


@pytest.fixture(scope="module")
def decode() -> Callable[[bytes], str]:
    """The text behind the token ids of a request body, control tokens included."""
    tokenizer = export_tokenizer("smollm2").tokenizer
    return lambda body: str(tokenizer.decode(json.loads(body)["prompt"], skip_special_tokens=False))


@pytest.fixture(scope="module", params=["entities", "words"])
def run(request: pytest.FixtureRequest) -> tuple[list[Exchange], list[bytes]]:
    """The demonstration's exchanges, cut short, and every body that its engine received."""
    seen: list[bytes] = []
    sanitizer = WordOptions(preset=request.param).sanitizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "ANSWER_TOKENS", 12)
        return list(demo.exchanges(sanitizer, on_body=seen.append)), seen


class Parrot(EchoEngine):
    """An echo that does not stop at the end-of-turn tokens of its own prompt."""

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        async for step in super().generate(replace(job, stop_ids=frozenset())):
            yield step


@pytest.fixture
def echo_for_the_model(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Exchange the model for an echo of the prompt; returns what it receives."""
    engine = Parrot(model="smollm2")

    def serve(_model: str, _on_body: object = None) -> object:
        return serve_in_thread(engine.app())

    monkeypatch.setattr(demo, "embedded_engine", serve)
    return engine.seen


SECRETS = [secret for secrets in demo.PRIVATE for secret in secrets]


def test_each_question_holds_its_secrets() -> None:
    for question, secrets in zip(demo.QUESTIONS, demo.PRIVATE, strict=True):
        assert secrets
        assert all(secret in question for secret in secrets)


def test_no_secret_reaches_the_engine(
    run: tuple[list[Exchange], list[bytes]], decode: Callable[[bytes], str]
) -> None:
    _, seen = run
    assert len(seen) == len(demo.QUESTIONS)
    for body in seen:
        received = decode(body) + body.decode()
        assert "<|im_start|>user" in received  # the prompt was read, so that an absence means something
        for secret in SECRETS:
            assert secret.lower() not in received.lower()


def test_what_is_shown_is_what_the_engine_received(
    run: tuple[list[Exchange], list[bytes]], decode: Callable[[bytes], str]
) -> None:
    exchanges, seen = run
    for exchange, body in zip(exchanges, seen, strict=True):
        assert decode(body) == exchange.host_saw


def test_every_answer_is_real_and_accounted_for(run: tuple[list[Exchange], list[bytes]]) -> None:
    exchanges, _ = run
    assert [exchange.question for exchange in exchanges] == list(demo.QUESTIONS)
    total = 0.0
    for exchange in exchanges:
        assert len(exchange.answer.split()) > 1
        assert exchange.guarantee is not None
        assert exchange.guarantee["epsilon"] == exchange.epsilon_spent
        total += exchange.epsilon_spent
        assert exchange.epsilon_total == pytest.approx(total)
        assert exchange.bayes is not None
        assert 0 <= exchange.bayes["recovered"] <= exchange.bayes["words"]
        for share in ("chance", "success"):
            assert (0 < exchange.bayes[share] <= 1) == (exchange.epsilon_spent > 0)


def test_placeholders_come_back_as_the_private_values(
    echo_for_the_model: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "ANSWER_TOKENS", 200)
    answers = [exchange.answer for exchange in demo.exchanges(WordOptions().sanitizer())]
    for secrets, answer in zip(demo.PRIVATE, answers, strict=True):
        assert all(secret in answer for secret in secrets)  # an echo of the placeholder, restored here


def test_json_is_one_object_on_the_last_line(
    echo_for_the_model: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["demo", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out.splitlines()[-1])
    fields = {"question", "host_saw", "answer", "guarantee", "epsilon_spent", "bayes"}
    assert [answer["question"] for answer in shown["answers"]] == list(demo.QUESTIONS)
    assert all(fields <= set(answer) for answer in shown["answers"])
    assert len(echo_for_the_model) == len(shown["answers"])
    assert list(shown["presets"]) == list(PRESETS)


def test_the_choice_of_presets_is_shown_and_hides_the_secrets_under_each() -> None:
    seen = demo.presets(demo.QUESTIONS[0])
    assert seen["entities"] != seen["sensitive"]  # a draw may keep every word
    assert "cancer" in seen["entities"]
    assert "cancer" not in seen["sensitive"]
    for text in seen.values():
        assert not any(secret in text for secret in SECRETS)


def test_terminal_shows_both_sides(
    echo_for_the_model: list[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["demo"]) == 0
    assert "attacker" not in capsys.readouterr().out  # of drawn words, of which there are none
    assert main.run(["demo", "--preset", "words"]) == 0
    shown = capsys.readouterr().out
    assert "attacker" in shown
    for part in ("the host saw", "Marguerite", "[PERSON_1]", "[HEALTH_1]", "guarantee", "epsilon spent"):
        assert part in shown


def test_missing_openai_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def never(_model: str, _on_body: object = None) -> None:
        pytest.fail("an engine started although the client is missing")

    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.setattr(demo, "embedded_engine", never)
    assert main.run(["demo"]) == 3
    assert ".[chat]" in capsys.readouterr().err
