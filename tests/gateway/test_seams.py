"""The seam between a draw and its charge: nothing a draw can influence is free, and no place is drawn twice
for one charge, whatever is refused, edited, repeated, begun anew or retried."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import pytest

from transom.errors import EngineDownError, LedgerSpentError, TransomError
from transom.privacy.mechanisms import partitioned
from transom.privacy.partition import PartitionedMechanism
from transom.privacy.policy import load_policy
from transom.privacy.presets import with_preset
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Call, Delta, EngineCard
from transom.serving.gateway.charge import Charger
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.deliver import Caller, Exchange, Gateway
from transom.serving.gateway.exchange import prepare
from transom.serving.gateway.metrics import Metrics
from transom.serving.gateway.requests import ChatRequest, CompletionRequest, parse
from transom.serving.gateway.words import REPEATS, Veil, is_long

from .conftest import chat_tokenizer
from .test_enclave import WIDTH, opened, random_table

EPSILON = 4.0


class Recording:
    """An engine that takes ids, and remembers every call."""

    takes = "ids"
    takes_embeds = True

    def __init__(self, context_tokens: int | None = None) -> None:
        self.context_tokens = context_tokens
        self.alive = True

    async def probe(self) -> EngineCard:
        if not self.alive:
            raise EngineDownError("nobody listens")
        return EngineCard("echo", "transom", self.context_tokens, WIDTH)

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        yield Delta(0, (1,), finish_reason="stop")

    async def close(self) -> None:
        pass


class Account:
    """A ledger in memory that counts what it is charged; it can be spent."""

    def __init__(self, cap: float = math.inf) -> None:
        self.spent, self.cap = 0.0, cap

    def charge_many(self, charges: Sequence[tuple[str, float]]) -> list[float | LedgerSpentError]:
        outcomes: list[float | LedgerSpentError] = []
        for _, epsilon in charges:
            if self.spent + epsilon > self.cap:
                outcomes.append(LedgerSpentError("spent"))
            else:
                self.spent += epsilon
                outcomes.append(self.spent)
        return outcomes


class Counting(PartitionedMechanism):
    """A mechanism that counts its draws."""

    draws = 0

    def sample(self, word_ids_N: Any) -> Any:
        Counting.draws += len(word_ids_N)
        return super().sample(word_ids_N)


@cache
def counting(preset: str = "words") -> Sanitizer:
    """The shipped policy with a mechanism that counts; its tables are made once."""
    policy = with_preset(load_policy(), preset)
    inner = partitioned("rnm", policy.partition, EPSILON)
    return Sanitizer(policy, Counting(inner.name, inner.partition, inner.promise, inner.make))


class Bench:
    """A gateway without a network, its account, and a count of its draws."""

    def __init__(
        self, *, cap: float = math.inf, context: int | None = None, preset: str = "words", **changes: Any
    ) -> None:
        self.account, self.engine = Account(cap), Recording(context)
        config = GatewayConfig(mode="words", **changes)
        self.veil = Veil(counting(preset), retry_s=60 * config.retry_minutes)
        charger = Charger(self.account)  # type: ignore[arg-type]
        self.gateway = Gateway(config, self.engine, chat_tokenizer(), self.veil, charger, Metrics())  # type: ignore[arg-type]
        self._before = Counting.draws

    @property
    def draws(self) -> int:
        return Counting.draws - self._before

    async def ask(self, body: bytes, *, session: str | None = None, account: str = "a") -> Exchange:
        model = CompletionRequest if b'"prompt"' in body else ChatRequest
        repeat = None
        if session is None:
            repeat = self.veil.repeatable(account, model.__name__, body)
        name = None if session is None else f"{account}:{session}"
        return await prepare(self.gateway, parse(model, body), Caller(account, name, True, repeat))

    async def text(self, body: bytes, **how: Any) -> str:
        return "\n".join((await self.ask(body, **how)).host_saw)


@cache
def pair(preset: str = "words") -> tuple[str, str]:
    """The shortest and the longest word of a group, of those that the preset draws, if it draws any."""
    policy = with_preset(load_policy(), preset)
    group = sorted(policy.words[: policy.partition.starts_G1[1]], key=len)
    drawn = [word for word in group if not isinstance(policy.rule(policy.kind_of[word]), str)] or group
    return drawn[0], drawn[-1]


SHORT, LONG = pair()


def chat(text: str | list[str], **more: Any) -> bytes:
    texts = [text] if isinstance(text, str) else text
    return json.dumps(
        {"model": "echo", "messages": [{"role": "user", "content": one} for one in texts], **more}
    ).encode()


def completion(prompt: str | list[str] | list[int], **more: Any) -> bytes:
    return json.dumps({"model": "echo", "prompt": prompt, **more}).encode()


# Every refusal on the way of a request: the gateway's settings, the request, and the code of the refusal.
REFUSALS: list[tuple[dict[str, Any], bytes, str]] = [
    ({}, chat(f"{SHORT} {LONG}", model="other"), "model_not_found"),
    (
        {},
        completion([SHORT] * 16, n=16),
        "invalid_value",
    ),
    ({}, completion([1, 2]), "cannot_protect"),
    ({}, chat(["\u200b\u2060", "\x07"]), "empty_prompt"),
    ({}, completion([f"{SHORT} {LONG}", "\u200b"]), "empty_prompt"),
    ({"max_prompt_chars": 5}, chat(f"{SHORT} {LONG}"), "context_length_exceeded"),
    ({"max_prompt_tokens": 30}, chat(f"{SHORT} " * 31), "context_length_exceeded"),
    ({"context": 60}, chat(SHORT, max_tokens=60), "context_length_exceeded"),
    ({"context": 60}, chat(f"{SHORT} " * 12, max_tokens=2), "context_length_exceeded"),
    ({"max_prompt_tokens": 44}, chat(LONG), "context_length_exceeded"),
    ({"max_prompt_tokens": 20}, chat(SHORT), "context_length_exceeded"),
    ({"cap": 5.0}, chat(f"{SHORT} {LONG}"), "privacy_budget_spent"),
    ({"template": "rejecting"}, chat(f"{SHORT} {LONG}"), "refused"),
    ({"template": "dropping"}, chat(f"{SHORT} {LONG}"), "template_alters_content"),
    ({"alive": False}, chat(f"{SHORT} {LONG}"), "engine_down"),
    ({"enclave": "of another model"}, chat(f"{SHORT} {LONG}"), "bad_bundle"),
    ({"enclave": "spent"}, chat(f"{SHORT} {LONG}"), "extraction_limit"),
    ({"controls": True}, completion(f"{SHORT} {LONG}"), "control_token"),
]


def prepared(changes: dict[str, Any]) -> Bench:
    changes = dict(changes)
    template, enclave = changes.pop("template", None), changes.pop("enclave", None)
    alive, controls = changes.pop("alive", True), changes.pop("controls", False)
    bench = Bench(**changes)
    bench.engine.alive = alive
    if template is not None:
        from transom.serving.tokenizer import ChatTokenizer

        from .conftest import byte_tokenizer

        source = {"rejecting": "{{ raise_exception('no') }}", "dropping": "nothing"}[template]
        bench.gateway = replace(bench.gateway, tokenizer=ChatTokenizer(byte_tokenizer(), source))
    if controls:  # as of a vocabulary in which every letter is a control token

        class Refusing(type(bench.gateway.tokenizer)):  # type: ignore[misc]
            def _refuse_controls(self, ids: Sequence[int], param: str) -> None:
                self._control_ids = frozenset(ids)
                super()._refuse_controls(ids, param)

        bench.gateway.tokenizer.__class__ = Refusing
    if enclave is not None:
        other = {"model": "another"} if enclave == "of another model" else {}
        bench.gateway = replace(bench.gateway, enclave=opened(random_table(), share=0.01, **other))
    return bench


@pytest.mark.parametrize("retry_minutes", [0.0, 10.0])
@pytest.mark.parametrize(("changes", "body", "code"), REFUSALS)
async def test_a_refusal_is_known_before_the_draw_or_charged_with_it(
    changes: dict[str, Any],
    body: bytes,
    code: str,
    retry_minutes: float,
) -> None:
    bench = prepared({**changes, "retry_minutes": retry_minutes})
    codes, draws = [], []
    for _ in range(3):
        try:
            await bench.ask(body)
            codes.append("accepted")
        except TransomError as error:
            codes.append(getattr(error, "error_code", error.code))
        draws.append(bench.draws)
        if code != "privacy_budget_spent":  # which charges nothing, keeps nothing and releases nothing
            assert bench.account.spent == EPSILON * bench.draws
    assert codes[0] == code or (code == "context_length_exceeded" and codes[0] == "accepted")
    if retry_minutes and code != "privacy_budget_spent":  # the draw is kept: the same outcome, at no cost
        assert set(codes) == {codes[0]}
        assert len(set(draws)) == 1
    if code == "privacy_budget_spent":
        assert bench.account.spent == 0


async def test_what_needs_no_draw_is_refused_without_one() -> None:
    for changes, body, code in REFUSALS:
        drawn = code in ("extraction_limit", "control_token", "privacy_budget_spent") or changes in (
            {"max_prompt_tokens": 44},
            {"max_prompt_tokens": 20},
            {"context": 60},
        )
        bench = prepared(changes)
        with suppress(TransomError):
            await bench.ask(body)
        assert drawn or not bench.draws, code


async def test_a_draw_that_is_too_long_is_charged_and_comes_back() -> None:
    """A limit at the length of the shortest word: a longer draw is refused, at its price, for good."""
    whole = len(chat_tokenizer().encode_chat([("user", "of the " + SHORT)]).ids)
    refused = accepted = 0
    for account in map(str, range(60)):
        bench = Bench(max_prompt_tokens=whole)
        outcomes = []
        for _ in range(3):
            try:
                outcomes.append(await bench.text(chat("of the " + LONG), account=account))
            except TransomError as error:
                outcomes.append(getattr(error, "error_code", ""))
        assert len(set(outcomes)) == 1
        assert (bench.account.spent, bench.draws) == (EPSILON, 1)
        refused += outcomes[0] == "context_length_exceeded"
        accepted += outcomes[0] != "context_length_exceeded"
    assert refused
    assert accepted + refused == 60


async def test_a_place_forgets_its_draw_when_it_holds_anything_else() -> None:
    for between in ("of the and", "", "Zyxwora the and", f"{LONG} the and", "the"):
        bench = Bench()
        texts, costs = [], []
        for text in (f"{SHORT} the and", f"{SHORT} the and", between or "the", f"{SHORT} the and"):
            before = bench.account.spent
            texts.append(await bench.text(chat(text), session="s"))
            costs.append(bench.account.spent - before)
        assert (costs[0], costs[1], costs[3]) == (EPSILON, 0.0, EPSILON)
        assert texts[0] == texts[1]


async def test_a_conversation_begun_anew_forgets_the_old_one() -> None:
    bench = Bench()
    history = ["the", SHORT, f"and {LONG}"]
    for texts, cost in (
        (history, 2),
        (history, 0),
        (["the"], 0),
        (history, 2),
        (history[:2], 0),
        (history, 1),
    ):
        before = bench.account.spent
        await bench.ask(chat(texts), session="s")
        assert bench.account.spent - before == EPSILON * cost


async def test_a_request_that_has_nothing_at_a_place_is_an_edit() -> None:
    """An assistant message alone holds no place at all; the word before it does not get its draw back."""
    bench = Bench()
    texts = []
    for role in ("user", "assistant", "user"):
        body = json.dumps(
            {"model": "echo", "messages": [{"role": role, "content": f"{SHORT} " * 20}]}
        ).encode()
        texts.append(await bench.text(body, session="s"))
    assert bench.account.spent == 40 * EPSILON
    assert texts[0] != texts[2]


async def test_an_identical_request_reuses_its_draw_and_says_so() -> None:
    bench = Bench()
    body = chat(f"the {SHORT} of {LONG} " * 10)
    first, second = await bench.ask(body), await bench.ask(body)
    assert (first.host_saw, bench.account.spent) == (second.host_saw, 20 * EPSILON)
    assert [one._shown()["repeats"] for one in (first, second)] == [False, True]
    for one in (first, second):
        assert REPEATS in one._shown()["guarantee"]["discloses"]
    for other in (
        await bench.ask(body, account="b"),
        await bench.ask(body[:-1] + b" }"),
        await bench.ask(body, session="s"),
    ):
        assert other.host_saw != first.host_saw
        assert not other._shown()["repeats"]
    assert bench.account.spent == 4 * 20 * EPSILON
    off = Bench(retry_minutes=0)
    texts = {await off.text(body) for _ in range(2)}
    assert len(texts) == 2
    assert REPEATS not in (await off.ask(body))._shown()["guarantee"]["discloses"]


async def test_a_retry_after_the_window_is_a_fresh_sample() -> None:
    bench = Bench(retry_minutes=1.0)
    now_s = [0.0]
    bench.veil._retries._clock = lambda: now_s[0]
    body = chat(f"the {SHORT} of {LONG} " * 10)
    texts = []
    for at_s in (0.0, 59.0, 118.0, 178.0):
        now_s[0] = at_s
        texts.append(await bench.text(body))
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert bench.account.spent == 40 * EPSILON


async def test_a_retry_while_the_first_is_on_its_way_shares_its_draw() -> None:
    bench = Bench()
    for how in ({}, {"session": "s"}):
        texts = await asyncio.gather(*(bench.text(chat(f"the {SHORT} " * 20), **how) for _ in range(8)))
        assert len(set(texts)) == 1
    assert bench.account.spent == 2 * 20 * EPSILON


@pytest.mark.parametrize(
    ("more", "streamed"),
    [
        ({"max_tokens": 1024}, False),
        ({"max_tokens": 1025}, True),
        ({"max_tokens": 128, "n": 8}, False),
        ({"max_tokens": 129, "n": 8}, True),
        ({"max_tokens": 512, "logprobs": True, "top_logprobs": 4}, False),
        ({"max_tokens": 513, "logprobs": True, "top_logprobs": 4}, True),
        ({"max_tokens": 4, "stop": "x"}, True),
        ({"max_tokens": 4, "stream": True}, True),
    ],
)
async def test_a_large_answer_is_asked_for_as_a_stream(more: dict[str, Any], streamed: bool) -> None:
    """An answer in one piece is parsed in one go, and others wait."""
    assert (await Bench().ask(chat("the", **more))).call.stream is streamed


async def test_many_short_messages_leave_the_event_loop() -> None:
    """Their number counts as their length does: each costs template, digest and look-up."""
    assert is_long([("user", "")] * 41)
    assert not is_long([("user", "the")] * 40)
    assert is_long([("user", "a" * 4001)])
