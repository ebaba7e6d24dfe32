"""For each preset: what any sequence of requests is charged, and that a host sees nothing beyond it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.audit.attacks.epsilon import judge
from transom.audit.draws import Draws
from transom.errors import TransomError
from transom.privacy.presets import PRESETS

from .conftest import chat_tokenizer
from .test_public import part
from .test_seams import EPSILON, Bench, chat, pair

SEPARATOR = " ; "  # joins no two words into one

Request = tuple[str | None, str, tuple[tuple[str, ...], ...]]


def requests(words: tuple[str, ...]) -> st.SearchStrategy[list[Request]]:
    place = st.sampled_from(words)
    message = st.lists(place, min_size=1, max_size=3).map(tuple)
    one = st.tuples(
        st.sampled_from([None, "s", "t"]),
        st.sampled_from("ab"),
        st.lists(message, min_size=1, max_size=2).map(tuple),
    )
    return st.lists(one, min_size=1, max_size=8)


@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_sequence_is_charged_as_promised(preset: str, data: Any) -> None:
    """Against a model: a place is free if its session's latest request had the word there, and only then.

    A word after `+` is a public part: it passes, is never drawn, and moves no other word's place.
    """
    short, long = pair(preset)
    drawable = {short, long} if preset != "entities" else set()
    asked = data.draw(requests((short, long, f"+{short}", "+Zyxwora 4711", "the", "Zyxwora", "4711")))
    bench = Bench(preset=preset)
    held: dict[Any, tuple[tuple[str, ...], ...]] = {}
    seen: dict[Any, list[list[str]]] = {}

    async def run() -> None:
        for session, account, messages in asked:
            key = (account, session) if session is not None else (account, messages)
            before_draws, before_spent = bench.draws, bench.account.spent
            exchange = await bench.ask(marked(messages), session=session, account=account)
            assert exchange.veiled is not None
            sent = [text.split(SEPARATOR) for text in exchange.veiled.texts]
            old, fresh = held.get(key, ()), 0
            for m, message in enumerate(messages):
                for p, word in enumerate(message):
                    same = m < len(old) and p < len(old[m]) and old[m][p] == word
                    if word in drawable:
                        fresh += not same
                        assert not same or sent[m][p] == seen[key][m][p]
                    if word[0] == "+":
                        assert sent[m][p] == word[1:]
                    assert word not in ("Zyxwora", "4711") or word not in sent[m][p]
            assert bench.draws - before_draws == fresh
            assert bench.account.spent - before_spent == EPSILON * fresh
            held[key], seen[key] = messages, sent

    asyncio.run(run())


def marked(messages: Sequence[Sequence[str]]) -> bytes:
    """A chat request of these words, each a part of its own; public after a `+`."""
    told = []
    for message in messages:
        parts = []
        for word in message:
            parts.append(part(word.removeprefix("+"), public=word[0] == "+"))
            parts.append(part(SEPARATOR))
        told.append({"role": "user", "content": parts[:-1]})
    return json.dumps({"model": "echo", "messages": told}).encode()


def outputs(texts: Sequence[Any]) -> np.ndarray:
    identities: dict[Any, int] = {}
    return np.array([identities.setdefault(text, len(identities)) for text in texts])


async def together(a: Sequence[Any], b: Sequence[Any]) -> Draws:
    both = outputs([*a, *b])
    return Draws(both[: len(a)], both[len(a) :])


SCENARIO_DRAWS = 1_000


@pytest.mark.parametrize("preset", ["sensitive", "words"])
async def test_the_distinguisher_finds_nothing_above_the_charge_in_retries(preset: str) -> None:
    """Three identical requests, the pattern of repeats held fixed: what the host saw costs one draw."""
    short, long = pair(preset)

    async def sent(word: str) -> list[Any]:
        bench = Bench(preset=preset)
        return [
            tuple([await bench.text(chat(word), account=str(i)) for _ in range(3)])
            for i in range(SCENARIO_DRAWS)
        ]

    drawn = await together(await sent(short), await sent(long))
    assert not judge(drawn, epsilon=EPSILON).rejected
    assert judge(drawn, epsilon=1.0).rejected


@pytest.mark.parametrize("preset", ["sensitive", "words"])
async def test_the_distinguisher_finds_nothing_above_the_charge_in_a_returning_word(preset: str) -> None:
    """The last place differs: it returns to the first word, or not, which equal draws do not tell."""
    short, long = pair(preset)

    async def sent(last: str) -> list[Any]:
        bench, seen = Bench(preset=preset), []
        for i in range(SCENARIO_DRAWS):
            texts = [
                await bench.text(chat(text), session="s", account=str(i))
                for text in (f"{short} the", "of the", f"{last} the")
            ]
            seen.append((texts[0] == texts[2], texts[2]))
        return seen

    drawn = await together(await sent(short), await sent(long))
    assert not judge(drawn, epsilon=EPSILON).rejected


@pytest.mark.parametrize("preset", ["sensitive", "words"])
async def test_the_distinguisher_finds_nothing_above_the_charge_in_refusals(preset: str) -> None:
    """A client that asks again until a draw passes the limit: what it gets, and how often it paid."""
    short, long = pair(preset)
    whole = len(chat_tokenizer().encode_chat([("user", "of the " + short)]).ids)

    async def sent(word: str) -> list[Any]:
        bench, seen = Bench(preset=preset, max_prompt_tokens=whole), []
        for i in range(SCENARIO_DRAWS):
            before, text = bench.account.spent, ""
            for _ in range(4):
                with suppress(TransomError):
                    text = text or await bench.text(chat("of the " + word), account=str(i))
            assert bench.account.spent - before == EPSILON
            seen.append(text)
        return seen

    drawn = await together(await sent(short), await sent(long))
    assert not judge(drawn, epsilon=EPSILON).rejected
    assert len(Counter(drawn.a.tolist())) > 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Ms Zyxwora owes 4711 crowns.", "Ms Quolbin owes 8215 crowns."),
        ("ask a@zyx.example or 4711 4711", "ask b@quo.example or 8215 8215"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_where_nothing_is_drawn_hidden_values_make_no_difference(
    one: str, other: str, stream: bool
) -> None:
    """The distinguisher of epsilon 0: texts that differ in hidden values alone are one to the host."""
    views = []
    for text in (one, other):
        bench = Bench(preset="entities")
        body = chat([text, f"Once more: {text}"], stream=stream)
        seen = [await bench.text(body, session=session) for session in ("s", "s", None)]
        assert (bench.draws, bench.account.spent) == (0, 0)
        views.append(seen)
    assert views[0] == views[1]
