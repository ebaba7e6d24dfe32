"""`transom chat` against a real gateway with an echoing engine: both sides, sessions, pictures, errors."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from transom import errors
from transom.cli import ask, main
from transom.cli.ask import Exchange, judged, printable, words_gateway
from transom.cli.options import WordOptions
from transom.net.listen import serve_in_thread
from transom.serving.engines.echo import EchoEngine

QUESTION = "Does Marguerite owe me 4815 euros for the quokka?"
SECRETS = ("Marguerite", "4815", "quokka")


@pytest.fixture(scope="module")
def engine() -> Iterator[tuple[str, EchoEngine]]:
    echo = EchoEngine(model="echo")
    with serve_in_thread(echo.app()) as url:
        yield url, echo


@pytest.fixture(scope="module")
def gateway(engine: tuple[str, EchoEngine]) -> Iterator[str]:
    with words_gateway(engine[0], "smollm2", WordOptions(preset="words").sanitizer()) as url:
        yield url


def chat(*arguments: str) -> int:
    return main.run(["chat", "--max-tokens", "24", *arguments])


def test_json_holds_both_sides(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("--gateway", gateway, QUESTION, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["question"] == QUESTION
    assert "[PERSON_1" in shown["host_saw"]
    assert not any(secret in shown["host_saw"] for secret in SECRETS)
    assert shown["guarantee"]["epsilon"] == shown["epsilon_spent"] > 0


def test_show_host_prints_two_columns(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("--gateway", gateway, QUESTION, "--show-host") == 0
    shown = capsys.readouterr().out
    top = next(line for line in shown.splitlines() if "your side" in line)
    assert "the host's side" in top
    assert "[NUMBER_1]" in shown
    assert "Marguerite" in shown


def test_without_show_host_the_answer_and_its_price(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("--gateway", gateway, QUESTION) == 0
    shown = capsys.readouterr().out
    assert "SmolLM" in shown  # the echo of the template's own words
    assert "epsilon" in shown
    assert "[PERSON_1" not in shown


def test_question_from_standard_input(gateway: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(QUESTION))
    assert chat("--gateway", gateway, "-", "--json") == 0
    assert json.loads(capsys.readouterr().out)["question"] == QUESTION


def test_repl_resends_its_history_at_no_cost(gateway: str, engine, capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{QUESTION}\n\nWhat of it?\n"))
    before = len(engine[1].seen)
    assert chat("--gateway", gateway, "--json") == 0
    first, second = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    assert len(engine[1].seen) == before + 2
    assert second["question"] == "What of it?"
    assert second["epsilon_spent"] == 0  # pass words alone; the first question's draws were paid for
    sanitised = first["host_saw"].split("<|im_start|>user\n")[1].split("<|im_end|>")[0]
    assert sanitised in second["host_saw"]


def test_named_session_is_shared_between_chats(gateway: str, capsys) -> None:
    spent = []
    for _ in range(2):
        assert chat("--gateway", gateway, QUESTION, "--session", "tea", "--json") == 0
        spent.append(json.loads(capsys.readouterr().out)["epsilon_spent"])
    assert spent[0] > 0
    assert spent[1] == 0


def test_own_gateway_before_a_running_engine_charges_the_ledger(engine, tmp_path: Path, capsys) -> None:
    ledger = tmp_path / "spent.sqlite"
    arguments = ["--engine", engine[0], "--preset", "words", "--ledger", str(ledger), QUESTION, "--json"]
    assert chat(*arguments) == 0
    shown = json.loads(capsys.readouterr().out)
    assert main.run(["ledger", "show", str(ledger), "--json"]) == 0
    booked = json.loads(capsys.readouterr().out)["accounts"]
    assert sum(booked.values()) == pytest.approx(shown["epsilon_spent"])
    assert chat(*arguments, "--cap", "1") == errors.LedgerSpentError.exit_code
    assert not any(secret in capsys.readouterr().err for secret in SECRETS)


def test_by_default_names_and_numbers_are_hidden_and_nothing_is_charged(
    engine, tmp_path: Path, capsys
) -> None:
    ledger = tmp_path / "spent.sqlite"
    assert chat("--engine", engine[0], "--ledger", str(ledger), QUESTION, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert "owe me" in shown["host_saw"]
    assert not any(secret in shown["host_saw"] for secret in SECRETS)
    assert (shown["epsilon_spent"], shown["epsilon_total"], shown["public"]) == (0, None, [])
    assert shown["guarantee"]["kind"] == "pure-dp"
    assert not ledger.exists()


def test_public_text_is_marked_in_what_the_host_saw(capsys: pytest.CaptureFixture[str]) -> None:
    seen = "system: Be brief.\nuser: [NAME_1]"
    exchange = Exchange("q", "a", seen, "words", None, 0.0, None, None, ["Be brief.", "absent"])
    text = ask._seen(exchange)
    assert text.plain == seen
    assert [seen[span.start : span.end] for span in text.spans if span.style == "green"] == ["Be brief."]


def test_what_a_gateway_says_of_an_answer_is_told_in_lines() -> None:
    """Whatever it says: what is of another kind is left out."""
    exchange = Exchange("q", "It is so. Is it\x1b?", "seen", "words", None, 0.0, None, None)
    sentence = {"start": 10, "end": 17, "risk": 0.9, "flagged": True}
    both = [{**sentence, "flagged": False}, sentence]
    note = {"risk": 0.71, "flagged": True, "why": ["check it"], "sentences": both}
    notes = [note, {"risk": None, "reason": "too long"}]
    told = judged(replace(exchange, annotations={"hallucination": notes}))
    assert told == ["risk of being made up 0.71: check it", "  0.90 Is it\ufffd?", "not judged: too long"]
    strange = [7, {**sentence, "start": "x"}, {**sentence, "risk": None}]
    odd = [1, {"risk": "high"}, {"risk": 0.5, "why": 3, "sentences": strange}]
    assert judged(replace(exchange, annotations={"hallucination": odd})) == [
        "not judged: None", "risk of being made up 0.50",
    ]  # fmt: skip
    assert judged(replace(exchange, annotations={"hallucination": "odd"})) == judged(exchange) == []


def test_picture_holds_what_was_shown(gateway: str, tmp_path: Path) -> None:
    picture = tmp_path / "chat.svg"
    assert chat("--gateway", gateway, QUESTION, "--show-host", "--svg", str(picture)) == 0
    drawn = picture.read_text()
    assert drawn.startswith("<svg")
    assert "[PERSON_1" in drawn
    assert "font-face" not in drawn
    assert "url(http" not in drawn


def test_contradicting_or_impossible_options_start_nothing(gateway: str, tmp_path: Path) -> None:
    assert chat("--gateway", gateway, "--engine", gateway) == errors.ReplaceableError.exit_code
    for own in (["--preset", "words"], ["--restore-words"], ["--lists", "x.yaml"]):
        assert chat("--gateway", gateway, *own, "x") == errors.ReplaceableError.exit_code
    missing = tmp_path / "absent" / "chat.svg"
    assert chat("--gateway", gateway, "--svg", str(missing)) == errors.MisconfiguredError.exit_code
    assert chat("--gateway", "http://192.0.2.1:8000", "x") == errors.MisconfiguredError.exit_code


def test_absent_gateway_is_engine_down(capsys: pytest.CaptureFixture[str]) -> None:
    assert chat("--gateway", "http://127.0.0.1:1", QUESTION) == errors.EngineDownError.exit_code
    shown = capsys.readouterr().err
    assert "is it running?" in shown
    assert "Marguerite" not in shown


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("privacy_budget_spent", 429, errors.LedgerSpentError),
        ("engine_timeout", 504, errors.EngineTimeoutError),
        ("no_such_code", 404, errors.RefusedError),
        ("no_such_code", 500, errors.EngineError),
        ("missing_extra", 501, errors.EngineError),
    ],
)
def test_reported_errors_keep_their_exit_code(code: str, status: int, expected, capsys) -> None:
    async def fail(_request: Request) -> JSONResponse:
        return JSONResponse({"error": {"message": "no\x1b[2J", "code": code}}, status_code=status)

    with serve_in_thread(Starlette(routes=[Route("/v1/chat/completions", fail, methods=["POST"])])) as url:
        assert chat("--gateway", url, QUESTION) == expected.exit_code
    assert "\x1b[2J" not in capsys.readouterr().err


def test_server_that_is_no_transom_gateway(engine: tuple[str, EchoEngine]) -> None:
    assert chat("--gateway", engine[0], "hello") == errors.EngineGarbageError.exit_code


def test_control_characters_never_reach_the_terminal() -> None:
    assert printable("a\x1b[31mb\rc\x07\x9bd") == "a\ufffd[31mb\ufffdc\ufffd\ufffdd"
    assert printable("tab\tline\nÅ 日本 🙂\u00a0.") == "tab\tline\nÅ 日本 🙂\u00a0."


def test_plain_mode_says_so_and_content_stays_out_of_reprs() -> None:
    exchange = Exchange("secret-1", "secret-2", "secret-3", "plain", None, 0.0, None, None)
    assert ask.figures(exchange) == ["mode plain: the host read everything"]
    assert "secret" not in repr(exchange)


@pytest.mark.parametrize(
    ("mode", "label"), [("obfuscated", "the text itself"), ("words+obfuscated", "the sanitised words")]
)
def test_beside_the_permuted_ids_stands_what_a_host_can_make_of_them(
    mode: str, label: str, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = Exchange(
        "question", "answer", "<17> <4>", mode, None, 0.0, None, None, (), "a clear\x1b[2J text"
    )
    console = Console(width=400)
    console.print(ask.render(exchange))
    shown = capsys.readouterr().out
    assert f"and can read if it has the base model: {label}" in shown
    assert "<17> <4>" in shown
    assert "a clear\ufffd[2J text" in shown
    assert vars(exchange)["host_can_read"] == exchange.host_can_read
    assert "clear" not in repr(exchange)
    console.print(ask.render(replace(exchange, host_can_read=None)))
    assert "can read" not in capsys.readouterr().out
