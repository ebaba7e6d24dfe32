"""Modes obfuscated and words+obfuscated: permuted ids leave, plain text returns, foreign ids are refused.

V vocabulary.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openai import OpenAI

from transom.cli.main import run
from transom.cli.obfuscated import ObfuscatedOptions, open_key
from transom.errors import EngineGarbageError, MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.obfuscation.card import CARD_FILE, Card, write_card
from transom.obfuscation.keyfile import KeyFile, new_key, save_key
from transom.obfuscation.keys import preset, token_map
from transom.privacy.ledger import Ledger
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Call, Delta, EngineCard, TokenScore
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.obfuscated import Substitution, placeholders

from .conftest import CHATML, Served, byte_tokenizer, chat_tokenizer, get, post

OBFUSCATED = GatewayConfig(mode="obfuscated")
BOTH = GatewayConfig(mode="words+obfuscated")
V = chat_tokenizer().vocab_size + 5  # a model may have more rows than its tokenizer has ids
TAU_V = np.random.default_rng(3).permutation(V)
SECRETS = ("Zyxwora", "4711", "quokkaish")
QUESTION = "Ms Zyxwora owes 4711 crowns to a quokkaish friend."


def question(text: str = QUESTION, **options: Any) -> dict[str, Any]:
    return {"model": "echo", "messages": [{"role": "user", "content": text}], **options}


def plain_ids(text: str = QUESTION) -> list[int]:
    return list(chat_tokenizer().encode_chat([("user", text)]).ids)


def sent(served: Served) -> dict[str, Any]:
    """The last body that the engine got."""
    return dict(json.loads(served.echo.seen[-1]))


@pytest.fixture(scope="module")
def sanitizer() -> Sanitizer:
    return Sanitizer(load_policy())


@pytest.fixture
def obfuscated(serve: Callable[..., Served]) -> Served:
    return serve(config=OBFUSCATED, substitution=Substitution(TAU_V))


@pytest.mark.parametrize("stream", [False, True])
def test_the_engine_gets_permuted_ids_alone_and_the_answer_comes_back(
    obfuscated: Served, stream: bool
) -> None:
    with OpenAI(base_url=obfuscated.url + "/v1", api_key="any", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            **question(), stream=stream, max_tokens=500, extra_headers={"X-Transom-Show-Host": "1"}
        )
        if stream:
            chunks = list(answer)
            shown, ends = chunks[-1].transom, [chunk.choices[0] for chunk in chunks if chunk.choices]
            text, reason = "".join(end.delta.content or "" for end in ends), ends[-1].finish_reason
        else:
            shown, end = answer.transom, answer.choices[0]
            text, reason = end.message.content, end.finish_reason
    ids = plain_ids()
    hidden = TAU_V[ids].tolist()
    body = sent(obfuscated)
    assert body["prompt"] == hidden != ids
    assert body["stop_token_ids"] == TAU_V[list(chat_tokenizer().eos_ids)].tolist()
    assert not any(value == ids for value in body.values())
    assert not any(secret.encode() in obfuscated.echo.seen[-1] for secret in SECRETS)
    # The echo repeats the prompt until the permuted stop id: all of the user's turn.
    assert (text, reason) == (f"user\n{QUESTION}", "stop")
    assert (shown["mode"], shown["host_token_ids"]) == ("obfuscated", hidden)
    assert shown["host_saw"] == " ".join(f"<{i}>" for i in hidden)
    # A host that has the base model undoes the permutation, and then reads the text itself.
    assert shown["host_can_read"] == chat_tokenizer().encode_chat([("user", QUESTION)]).text
    assert (shown["guarantee"]["kind"], shown["guarantee"]["epsilon"]) == ("empirical", None)


def test_usage_logprobs_and_n(obfuscated: Served) -> None:
    body = question(n=2, max_tokens=6, logprobs=True, top_logprobs=1)
    status, text = post(obfuscated.url, body)
    answer = json.loads(text)
    assert status == 200, text
    expected = chat_tokenizer().detokenizer().feed(plain_ids()[:6])
    tokens = [chat_tokenizer().token_text(i) for i in plain_ids()[:6]]
    assert [choice["message"]["content"] for choice in answer["choices"]] == [expected] * 2
    for choice in answer["choices"]:
        assert [entry["token"] for entry in choice["logprobs"]["content"]] == tokens
        assert [e["top_logprobs"][0]["token"] for e in choice["logprobs"]["content"]] == tokens
    assert answer["usage"]["prompt_tokens"] == len(plain_ids())
    assert answer["usage"]["completion_tokens"] == 12
    assert sent(obfuscated)["return_tokens_as_token_ids"] is True


def test_stop_strings_are_matched_here_and_split_over_chunks(serve: Callable[..., Served]) -> None:
    echo = EchoEngine(chunk_tokens=3)
    served = serve(config=OBFUSCATED, substitution=Substitution(TAU_V), echo=echo)
    for stop in ("owes", "4711 crowns", "kkai"):
        for stream in (False, True):
            body = question(max_tokens=400, stop=[stop], stream=stream)
            status, text = post(served.url, body)
            assert status == 200
            if stream:
                events = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
                deltas = [choice for event in events for choice in json.loads(event)["choices"]]
                text = "".join(choice["delta"].get("content", "") for choice in deltas)
            else:
                text = json.loads(text)["choices"][0]["message"]["content"]
            assert text == f"user\n{QUESTION}".split(stop)[0]
            assert "stop" not in sent(served)


def test_completions_take_text_and_ids(obfuscated: Served) -> None:
    for prompt, expected in (
        ("abcd", list(chat_tokenizer().encode_text("abcd").ids)),
        ([5, 6, 7], [5, 6, 7]),
        ([[5, 6], [7]], [[5, 6], [7]]),
    ):
        body = {"model": "echo", "prompt": prompt, "max_tokens": 2}
        status, text = post(obfuscated.url, body, "/v1/completions", **{"X-Transom-Show-Host": "1"})
        answer = json.loads(text)
        assert status == 200, text
        nested = isinstance(expected[0], list)
        hidden = [TAU_V[one].tolist() for one in expected] if nested else TAU_V[expected].tolist()
        assert sent(obfuscated)["prompt"] == answer["transom"]["host_token_ids"] == hidden
        first = expected[0] if nested else expected
        assert answer["choices"][0]["text"] == chat_tokenizer().detokenizer().feed((first * 2)[:2])
    outside = {"model": "echo", "prompt": [chat_tokenizer().vocab_size]}
    assert post(obfuscated.url, outside, "/v1/completions")[0] == 400


def test_words_are_sanitised_before_they_are_permuted(
    serve: Callable[..., Served], sanitizer: Sanitizer, tmp_path: Path
) -> None:
    with Ledger(tmp_path / "ledger", 1000.0) as ledger:
        served = serve(config=BOTH, substitution=Substitution(TAU_V), sanitizer=sanitizer, ledger=ledger)
        status, text = post(served.url, question(max_tokens=500), **{"X-Transom-Show-Host": "1"})
        shown = json.loads(text)["transom"]
        assert status == 200
        assert shown["epsilon_total"] == shown["epsilon_spent"] > 0
        assert shown["guarantee"]["epsilon"] == shown["epsilon_spent"]
    assert sent(served)["prompt"] == shown["host_token_ids"]
    assert shown["host_saw"] == placeholders(shown["host_token_ids"])
    assert "[PERSON_1]" in shown["host_can_read"]
    assert not any(secret in shown["host_can_read"] for secret in SECRETS)
    assert list(chat_tokenizer().encode_text(shown["host_can_read"]).ids) != sent(served)["prompt"]
    # Who recovers the whole permutation reads sanitised words, and the user reads the names restored.
    recovered = chat_tokenizer().detokenizer().feed(np.argsort(TAU_V)[sent(served)["prompt"]].tolist())
    assert "[PERSON_1]" in recovered
    assert not any(secret in recovered for secret in SECRETS)
    assert "Zyxwora" in json.loads(text)["choices"][0]["message"]["content"]
    status, text = post(served.url, {"model": "echo", "prompt": [1, 2, 3]}, "/v1/completions")
    assert (status, json.loads(text)["error"]["code"]) == (400, "cannot_protect")
    assert len(served.echo.seen) == 1


class Stray:
    """An engine that answers what it was made with."""

    takes, takes_embeds = "ids", False

    def __init__(self, delta: Delta) -> None:
        self._delta = delta

    async def probe(self) -> EngineCard:
        return EngineCard("echo")

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        yield self._delta

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    "delta",
    [
        Delta(0, (V,), finish_reason="length"),
        Delta(0, (1,), scores=(TokenScore(-1, 0.0),), finish_reason="length"),
        Delta(0, (1,), scores=(TokenScore(1, 0.0, ((V, -1.0),)),), finish_reason="length"),
        Delta(0, (1,), scores=(TokenScore(1, 0.0, (("token", -1.0),)),), finish_reason="length"),
    ],
    ids=["answer", "negative score", "alternative", "text"],
)
def test_an_id_outside_the_vocabulary_is_garbage(delta: Delta) -> None:
    app = create_gateway(OBFUSCATED, Stray(delta), chat_tokenizer(), substitution=Substitution(TAU_V))
    with serve_in_thread(app) as url:
        status, text = post(url, question(logprobs=True))
    error = json.loads(text)["error"]
    assert (status, error["code"]) == (EngineGarbageError.http_status, EngineGarbageError.code)


def test_combinations_that_could_not_protect_are_refused(sanitizer: Sanitizer) -> None:
    engine, tokenizer, substitution = IdsEngine("http://127.0.0.1:9"), chat_tokenizer(), Substitution(TAU_V)
    small = Substitution(np.arange(tokenizer.vocab_size - 1))
    for config, wrong_engine, cleaner, stage in (
        (OBFUSCATED, engine, None, None),
        (OBFUSCATED, engine, sanitizer, substitution),
        (OBFUSCATED, engine, None, small),
        (OBFUSCATED, ChatEngine("http://127.0.0.1:9"), None, substitution),
        (BOTH, engine, None, substitution),
        (BOTH, engine, sanitizer, None),
        (BOTH, ChatEngine("http://127.0.0.1:9"), sanitizer, substitution),
        (GatewayConfig(mode="words"), engine, sanitizer, substitution),
        (GatewayConfig(), engine, None, substitution),
    ):
        with pytest.raises(MisconfiguredError):
            create_gateway(config, wrong_engine, tokenizer, cleaner, substitution=stage)


@pytest.mark.parametrize("broken", [[0, 0, 1], [1, 2, 3], [-1, 0, 1]])
def test_a_map_that_is_no_permutation_is_refused(broken: list[int]) -> None:
    with pytest.raises(MisconfiguredError, match="permutation"):
        Substitution(np.array(broken))


def test_revealing_undoes_hiding() -> None:
    stage = Substitution(TAU_V)
    assert stage.reveal(stage.hide(range(V))) == tuple(range(V))
    call = Call(prompts=((1, 2), (3,)), stop_ids=(4,), max_tokens=1)
    assert stage.hide_call(call).prompts == (stage.hide((1, 2)), stage.hide((3,)))


def test_no_secret_in_logs_metrics_or_errors(
    serve: Callable[..., Served], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    echo = EchoEngine(context_tokens=len(plain_ids()) + 4)
    served = serve(config=OBFUSCATED, substitution=Substitution(TAU_V), echo=echo)
    post(served.url, question(max_tokens=4))
    pages = [get(served.url, "/metrics")[1], post(served.url, question(max_tokens=10**6))[1]]
    for secret in (*SECRETS, str(TAU_V[:5].tolist())[1:-1]):
        assert secret not in caplog.text
        assert not any(secret in page for page in pages)


@dataclass(frozen=True)
class House:
    """A key file, its client folder and its card, as `transom obfuscate` leaves them."""

    key_file: Path
    client: Path
    card: Path
    key: KeyFile

    def start(self, engine_url: str, **changes: Any) -> int:
        """The exit code of `transom gateway`."""
        options = {
            "--mode": "obfuscated", "--key": self.key_file, "--client": self.client, "--card": self.card,
            "--engine": engine_url, "--engine-kind": "transom", "--port": 0,
        }  # fmt: skip
        options |= {f"--{name.replace('_', '-')}": value for name, value in changes.items()}
        arguments = [str(part) for pair in options.items() if pair[1] is not None for part in pair]
        return run(["gateway", *arguments])


def make_house(folder: Path, source: str = "ab" * 32, passphrase: bytes | None = None) -> House:
    key = new_key(source, V, preset("exact"))
    save_key(folder / "key", key, passphrase)
    client = folder / "key.client"
    client.mkdir()
    byte_tokenizer().save(str(client / "tokenizer.json"))
    tokenizer_config = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
    (client / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    record = {"version": 1, "source": source, "vocabulary": V, "stop_ids": [7]}
    (client / "client.json").write_text(json.dumps(record))
    (folder / "out").mkdir()
    card = Card("llama", asdict(key.settings), source, V, {}, private_against_base_model=False)
    write_card(folder / "out", card, key)
    return House(folder / "key", client, folder / "out", key)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The apps that would have been served."""
    apps: list[Any] = []
    monkeypatch.setattr("transom.net.listen.serve", lambda app, sock, **_: apps.append(app))
    return apps


@pytest.fixture
def echo_url() -> Iterator[str]:
    with serve_in_thread(EchoEngine().app()) as url:
        yield url


def test_the_command_serves_what_the_key_says(
    tmp_path: Path, served: list[Any], echo_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    house = make_house(tmp_path)
    assert house.start(echo_url) == 0
    assert "not private against a host that has the base model" in capsys.readouterr().err
    assert house.start(echo_url, mode="words+obfuscated", card=None, client=None) == 0
    assert "not audited" in capsys.readouterr().err
    (house.client / CARD_FILE).write_bytes((house.card / CARD_FILE).read_bytes())  # as obfuscate leaves it
    assert house.start(echo_url, card=None) == 0
    assert "not private against a host that has the base model" in capsys.readouterr().err
    with serve_in_thread(served[0]) as url:
        status, text = post(url, question(max_tokens=3), **{"X-Transom-Show-Host": "1"})
    tau_V = token_map(house.key.secret, V)
    assert (status, json.loads(text)["transom"]["host_token_ids"]) == (200, tau_V[plain_ids()].tolist())


def test_all_stop_ids_of_the_checkpoint_stop(tmp_path: Path) -> None:
    house = make_house(tmp_path, passphrase=b"open sesame")
    passphrase = tmp_path / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text("open sesame\n")
    options = ObfuscatedOptions(house.key_file, house.client, None, passphrase)
    assert open_key(options)[1].eos_ids == tuple(sorted({7, *chat_tokenizer().eos_ids}))
    passphrase.write_text("wrong\n")
    with pytest.raises(MisconfiguredError):
        open_key(options)


def test_what_belongs_to_another_checkpoint_does_not_serve(
    tmp_path: Path, served: list[Any], echo_url: str
) -> None:
    for name in ("one", "two", "edited", "open", "kept", "foreign", "empty"):
        (tmp_path / name).mkdir()
    house, other = make_house(tmp_path / "one"), make_house(tmp_path / "two", source="cd" * 32)
    edited, exposed = make_house(tmp_path / "edited"), make_house(tmp_path / "open")
    card = edited.card / CARD_FILE
    verdict = '"private_against_base_model": '
    card.write_text(card.read_text().replace(f"{verdict}false", f"{verdict}true"))
    exposed.key_file.chmod(0o644)
    kept, foreign, empty = (make_house(tmp_path / name) for name in ("kept", "foreign", "empty"))
    (kept.client / CARD_FILE).write_bytes(card.read_bytes())
    (foreign.client / CARD_FILE).write_bytes((house.card / CARD_FILE).read_bytes())
    (empty.client / CARD_FILE).symlink_to(tmp_path / "nowhere")
    for one, changes in (
        (house, {"key": other.key_file}),
        (house, {"client": other.client}),
        (house, {"card": other.card}),
        (house, {"key": None}),
        (house, {"client": tmp_path}),
        (house, {"tokenizer": "smollm2"}),
        (house, {"engine_kind": "chat"}),
        (house, {"mode": "words"}),
        (edited, {}),
        (exposed, {}),
        (kept, {"card": None}),
        (foreign, {"card": None}),
        (empty, {"card": None}),
    ):  # fmt: skip
        assert one.start(echo_url, **changes) == MisconfiguredError.exit_code, changes
    assert served == []
