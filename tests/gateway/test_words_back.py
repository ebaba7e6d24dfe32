"""Drawn words are put back in answers, on the user's side, and the host learns nothing by it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from transom.privacy.kinds import Span
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.client import IdsEngine
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.marks import Mark
from transom.serving.gateway.words import Veil

from .conftest import post
from .test_words import host_text

POLICY = load_policy().with_rules({"word": 1.0})
STARTS = POLICY.partition.starts_G1
FIRSTS = [POLICY.words[STARTS[group]] for group in range(0, 240, 20)]  # no two in one group
QUESTION = "Zyxwora, the " + " of the ".join(FIRSTS) + "?"


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_echo_reads_as_it_was_asked(serve: Any, preset: str, stream: bool) -> None:
    sanitizer = Sanitizer(with_preset(POLICY, preset))
    served = serve(
        config=GatewayConfig(mode="words", restore_words=True), sanitizer=sanitizer, engine=IdsEngine
    )
    body = {"model": "echo", "messages": [{"role": "user", "content": QUESTION}], "stream": stream}
    for _ in range(2):  # the second from the memo
        status, text = post(served.url, body)
        assert status == 200, text
        if stream:
            chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
            shown = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        else:
            shown = json.loads(text)["choices"][0]["message"]["content"]
        assert shown == f"user\n{QUESTION}"
    sent = host_text(served.echo.seen[-1])
    if preset == "words":
        assert not all(word in sent for word in FIRSTS)


async def test_an_answer_is_recalled_only_where_the_host_wrote_no_other() -> None:
    """It could name a word and its draw, and see which of the two answers comes back."""
    veil = Veil(Sanitizer(POLICY), restore_words=True)
    first = await veil.cover([("user", QUESTION)], "a", None)
    drawn = veil.drawn(first)
    released, source = next((out, source) for out, source in drawn.items() if out != source)
    for host in (f"It is {released}.", f"It is {source}."):
        veil.remember(first, f"It is {source}.", host)
        second = await veil.cover([("user", QUESTION), ("assistant", f"It is {source}.")], "a", None)
        assert second.texts[1] == (host if released in host else "[QUOTE_1]")


async def test_a_word_that_stands_there_of_itself_is_left_alone() -> None:
    veil = Veil(Sanitizer(POLICY), restore_words=True)
    for _ in range(5):
        first = await veil.cover([("user", QUESTION)], "a", None)
        released = next(iter(veil.drawn(first)))
        marks = [Mark(public=(Span(0, len(released), "public"),)), Mark()]
        both = await veil.cover([("user", released), ("user", QUESTION)], "a", None, marks=marks)
        assert released not in veil.drawn(both)
    off = Veil(Sanitizer(POLICY))
    assert off.drawn(await off.cover([("user", QUESTION)], "a", None)) == {}
