"""Log-probabilities belong to what is delivered, however the host cut its tokens and whatever came back."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Delta, TokenScore
from transom.serving.gateway import scores as scores_module
from transom.serving.gateway.answer import Choice
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.scores import Alignment

from .conftest import Served

Serve = Callable[..., Served]
HOST = ("Dear ", "[PERSON_1]", ", pay ", "[NUMBER_1]", " or [sic] ", "[PERSON_9]", "]] [", "the river")
STOPS = (" or", "47", "river", "Vex")


@pytest.fixture
def hiding() -> Sanitizer:
    return Sanitizer(load_policy().with_rules({"word": "placeholder", "stop": "placeholder"}))


def placeholders() -> Placeholders:
    found = Placeholders()
    assert found.hide("person", "Zyxwora [Vex]") == "[PERSON_1]"
    assert found.hide("number", "4711") == "[NUMBER_1]"
    return found


def cut(text: str, places: list[int]) -> list[str]:
    ends = sorted({place % (len(text) + 1) for place in places} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


@given(
    st.lists(st.sampled_from(HOST), min_size=1, max_size=8).map("".join),
    st.lists(st.integers(0, 200), max_size=40), st.lists(st.sampled_from(STOPS), max_size=2),
    st.integers(0, 10**6), st.booleans(), st.booleans(),
)  # fmt: skip
def test_entries_are_of_what_is_delivered(
    text: str, places: list[int], stops: list[str], seed: int, words: bool, whole: bool
) -> None:
    """Over all cuts into tokens and of these into pieces."""
    draw, tokens = random.Random(seed), cut(text, places)
    scores = [TokenScore(token, -1.0 - place / 64, (("x", -3.0),)) for place, token in enumerate(tokens)]
    choice = Choice(0, None, placeholders(), stops, {"river": "mountain"} if words else {}, scored=True)
    delivered, entries, start = "", list[Any](), 0
    while start < len(tokens) and choice.finish_reason is None:
        end = len(tokens) if whole else min(len(tokens), start + draw.randint(1, 4))
        piece = choice.feed(
            Delta(
                0, text="".join(tokens[start:end]), scores=tuple(scores[start:end]),
                finish_reason="length" if end == len(tokens) else None,
            )
        )  # fmt: skip
        delivered, start = delivered + piece.text, end
        entries += piece.scores
    assert delivered == choice.text
    assert entries == choice.scores
    assert sum(entry.chars for entry in entries) == len(delivered)
    at = 0
    for entry in entries:
        said = delivered[at : at + entry.chars]
        at += entry.chars
        own = str(entry.score.token)
        assert own.startswith(said) if stops and at == len(delivered) else own == said
        assert "[PERSON_1]" not in own
    assert all(entry.score in scores or not entry.score.top for entry in entries)
    if choice.finish_reason == "length":
        assert math.isclose(sum(entry.score.logprob for entry in entries), sum(s.logprob for s in scores))
    if "[" not in text and not words and not stops:
        assert [entry.score for entry in entries] == scores


def test_a_placeholder_is_one_entry_and_its_neighbours_stay() -> None:
    tokens = ["Dear", " [", "NUMBER", "_1", "],", " hello", " there"]
    choice = Choice(0, None, placeholders(), (), {}, scored=True)
    for place, token in enumerate(tokens):
        ended = place == len(tokens) - 1
        choice.feed(
            Delta(0, text=token, scores=(TokenScore(token, -1.0),), finish_reason="stop" if ended else None)
        )
    told = [(entry.score.token, entry.score.logprob, entry.chars) for entry in choice.scores]
    assert told == [
        ("Dear", -1.0, 4), (" 4711,", -4.0, 6), (" hello", -1.0, 6), (" there", -1.0, 6),
    ]  # fmt: skip


def test_a_text_hosts_tokens_that_do_not_spell_its_text_are_one_entry() -> None:
    choice = Choice(0, None, placeholders(), ["END"], {}, scored=True)
    names = [TokenScore(name, -1.5e308) for name in ("Hi", " [NUMBER_1]", " END more?")]
    piece = choice.feed(Delta(0, text="Hi [NUMBER_1] END more", scores=tuple(names), finish_reason="stop"))
    assert piece.text == "Hi 4711 "
    (entry,) = piece.scores
    assert (entry.score.token, entry.chars, entry.score.top) == ("Hi 4711 ", 8, ())
    assert math.isfinite(entry.score.logprob)


def test_a_token_that_a_stop_string_cuts_is_told_as_far_as_it_was_delivered() -> None:
    choice = Choice(0, None, None, ["END"], {}, scored=True)
    piece = choice.feed(
        Delta(0, text="hello END secret", scores=(TokenScore("hello END secret", -2.0, (("x", -1.0),)),))
    )
    assert piece.text == "hello "
    assert [entry.score for entry in piece.scores] == [TokenScore("hello ", -2.0)]


@pytest.mark.parametrize("token", ["", "a"])
def test_many_tokens_behind_a_held_tail_are_bounded_work(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in characters that are compared, as a clock would be of the machine."""
    compared, suffix = 0, scores_module._common_suffix

    def counted(first: str, second: str) -> int:
        nonlocal compared
        compared += (found := suffix(first, second))
        return found

    monkeypatch.setattr(scores_module, "_common_suffix", counted)
    one = Alignment()
    one.take(TokenScore("?", -1.0), "[NUMBER_1]" + "a" * 50_000 + " [PERS", "4711" + "a" * 50_000 + " ", 5)
    for place in range(3000):
        one.take(TokenScore(token, -1.0), token, "", 5 + len(token) * (place + 1))
    assert compared <= 300 * 3001
    one.take(None, "", "[PERS" + token * 3000, 0)
    entries = one.deliver(10**6, last=True)
    assert sum(entry.chars for entry in entries) == 4 + 50_000 + 1 + 5 + 3000 * len(token)


@pytest.mark.parametrize("stream", [False, True])
def test_entries_of_an_answer_spell_it(serve: Serve, hiding: Sanitizer, stream: bool) -> None:
    served = serve(config=GatewayConfig(mode="words"), sanitizer=hiding)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        answer: Any = client.chat.completions.create(
            model="echo", messages=[{"role": "user", "content": "Zyxwora sings 4711 songs of Zyxwora"}],
            logprobs=True, top_logprobs=1, stream=stream,
        )  # fmt: skip
        choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
        text = "".join((one.delta if stream else one.message).content or "" for one in choices)
        entries = [entry for one in choices if one.logprobs for entry in one.logprobs.content or []]
    entries = [entry for entry in entries if not entry.token.startswith("<|")]
    assert text.count("Zyxwora") == 2
    assert "".join(entry.token for entry in entries) == text
    assert bytes(byte for entry in entries for byte in entry.bytes).decode() == text


def test_offsets_and_scores_end_at_the_stop_string(serve: Serve, hiding: Sanitizer) -> None:
    served = serve(config=GatewayConfig(mode="words"), sanitizer=hiding)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        answer = client.completions.create(
            model="echo", prompt="Zyxwora sings songs", logprobs=1, max_tokens=40, stop=" so"
        )
    choice = answer.choices[0]
    assert choice.text == "Zyxwora sings"
    assert choice.logprobs is not None
    assert choice.logprobs.tokens == ["Zyxwora", " ", "sings"]
    assert choice.logprobs.text_offset == [0, 7, 8]
