"""What the caller says is public passes as it is, costs nothing and is told; nothing else passes with it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from transom.errors import MisconfiguredError, RefusedError
from transom.privacy.claims import Claims
from transom.privacy.kinds import Span
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.marks import Mark, marks_of
from transom.serving.gateway.requests import ChatRequest, CompletionRequest, parse
from transom.serving.gateway.words import OWN_EXAMPLES, Veil

from .conftest import get, post
from .test_words import host_text

PROMPT = "You are Zyxwora's helper. Names look like [NAME_1]; costs are in GBP, 24 hours  a day."
PRIVATE = "Quentin Xyzzyq has diabetes and owes 4815 dollars."


@pytest.fixture(scope="module", params=PRESETS)
def sanitizer(request: pytest.FixtureRequest) -> Sanitizer:
    return Sanitizer(with_preset(load_policy(), request.param))


def part(text: str, *, public: bool = False) -> dict[str, Any]:
    return {"type": "text", "text": text} | ({"transom_public": True} if public else {})


def said(*messages: dict[str, Any], **config: Any) -> tuple[Any, tuple[Mark, ...]]:
    """The request's fields, and its marks."""
    request = parse(ChatRequest, json.dumps({"model": "m", "messages": messages}).encode())
    return request.fields, marks_of(request, GatewayConfig(mode="words", **config))


async def covered(veil: Veil, *messages: dict[str, Any], session: str | None = None, **config: Any) -> Any:
    fields, marks = said(*messages, **config)
    veiled = await veil.cover(fields, "a", session, marks=marks)
    veil.settle(veiled)
    return veiled


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


async def test_a_public_role_passes_to_the_byte_and_no_other(sanitizer: Sanitizer) -> None:
    veil = Veil(sanitizer, public=["system"])
    messages = [{"role": role, "content": PROMPT} for role in ("system", "developer", "user")]
    veiled = await covered(veil, *messages, public=("system",))
    assert veiled.texts[0] == PROMPT
    assert veiled.public == (PROMPT,)
    assert veiled.parts[0].epsilon == 0
    for text in veiled.texts[1:]:
        assert "Zyxwora" not in text
        assert "24" not in text
    assert "messages of role system, unchanged: they are public" in veil.guarantee().discloses
    assert veil.explain(veiled)["public"] == [PROMPT]
    assert (await covered(veil, *messages)).texts[0] != PROMPT


async def test_a_public_part_passes_and_what_stands_beside_it_does_not(sanitizer: Sanitizer) -> None:
    veil = Veil(sanitizer)
    parts = [part("Summarise for Zyxwora: ", public=True), part(PRIVATE), part("", public=True)]
    veiled = await covered(veil, user(*parts, part(" In 24 words.", public=True)))
    text = veiled.texts[0]
    assert text.startswith("Summarise for Zyxwora: ")
    assert text.endswith(" In 24 words.")
    assert not any(word in text for word in ("Quentin", "Xyzzyq", "4815"))
    assert veiled.placeholders.restore(text).startswith("Summarise for Zyxwora: Quentin Xyzzyq has ")
    alone = await covered(Veil(sanitizer), user(part(PRIVATE)))
    assert veiled.epsilon == alone.epsilon
    told = [line for line in veil.explain(veiled)["guarantee"]["discloses"] if "marks as public" in line]
    assert told == ["content parts that the caller marks as public (2), unchanged"]
    assert not [line for line in veil.guarantee().discloses if "marks as public" in line]


@pytest.mark.parametrize("cut", range(2, len("Xyzzyqwort4815")))
async def test_a_public_part_in_the_middle_of_a_word_shows_itself_alone(
    sanitizer: Sanitizer, cut: int
) -> None:
    word = "Xyzzyqwort4815"
    veiled = await covered(
        Veil(sanitizer), user(part("See " + word[:cut]), part("QQ", public=True), part(word[cut:] + "."))
    )
    before, _, after = veiled.texts[0].partition("QQ")
    assert word[:cut] not in before
    assert word[cut:] not in after
    assert veiled.placeholders.restore(veiled.texts[0]).endswith(f"{word[:cut]}QQ{word[cut:]}.")


async def test_a_place_that_was_public_has_forgotten_its_draw() -> None:
    """Private, public, private again: the word is drawn and charged each time that it is private."""
    sanitizer = Sanitizer(load_policy())
    veil, word = Veil(sanitizer), load_policy().words[5]
    costs, texts = [], []
    for public in (False, False, True, False):
        veiled = await covered(veil, user(part("the "), part(word, public=public)), session="s")
        costs.append(veiled.epsilon)
        texts.append(veiled.texts[0])
    once = sanitizer.word_epsilon
    assert costs == [once, 0, 0, once]
    assert texts[0] == texts[1]
    assert texts[2] == f"the {word}"


async def test_a_public_stretch_is_one_place_whatever_it_holds() -> None:
    """A date in public text changes from request to request; the words behind it keep their draws."""
    sanitizer, (first, second) = Sanitizer(load_policy()), load_policy().words[3:5]
    veil, costs = Veil(sanitizer), []
    for public in ("Today is Monday. ", "Today is the 24th of May, a Tuesday. ", "."):
        parts = [part(f"{first} "), part(public, public=True), part(f" the {second}")]
        costs.append((await covered(veil, user(*parts), session="s")).epsilon)
    assert costs == [2 * sanitizer.word_epsilon, 0, 0]


async def test_marks_make_another_conversation_and_another_answer_point(sanitizer: Sanitizer) -> None:
    """An answer is recalled after the messages it was given to, marked as they were."""
    veil = Veil(sanitizer)
    first = await covered(veil, user(part(PRIVATE)))
    host = "It is [PERSON_1], surely."
    veil.remember(first, first.placeholders.restore(host), host)
    answer = {"role": "assistant", "content": first.placeholders.restore(host)}
    assert (await covered(veil, user(part(PRIVATE)), answer)).texts[1] == host
    assert (await covered(veil, user(part(PRIVATE, public=True)), answer)).texts[1] == "[QUOTE_1]"


async def test_an_answer_that_is_resent_is_not_taken_as_public(sanitizer: Sanitizer) -> None:
    """A client that marks whatever it sends would else show the values restored in answers."""
    veil = Veil(sanitizer)
    first = await covered(veil, user(part(PRIVATE)))
    host = "It is [PERSON_1], surely."
    shown = first.placeholders.restore(host)
    veil.remember(first, shown, host)
    answer = {"role": "assistant", "content": [part(shown, public=True)]}
    assert (await covered(veil, user(part(PRIVATE)), answer)).texts[1] == host
    edited = {"role": "assistant", "content": [part("As I said: ", public=True), part(shown)]}
    assert (await covered(veil, user(part(PRIVATE)), edited)).texts[1] == "As I said: [QUOTE_1]"


async def test_claims_are_looked_for_between_public_parts() -> None:
    class Herons:
        def find(self, text: str) -> list[Span]:
            at = text.find("heron")
            return [Span(at, at + 5, "organisation")] if at >= 0 else []

    claims = Claims(recognisers={"herons": Herons()})
    sanitizer = Sanitizer(with_preset(load_policy(), "entities"), claims=claims)
    veiled = await covered(
        Veil(sanitizer), user(part("a heron, "), part("a heron", public=True), part(" and a heron"))
    )
    before, _, after = veiled.texts[0].partition("a heron")
    assert "heron" not in before + after
    assert veiled.placeholders.restore(veiled.texts[0]) == "a heron, a heron and a heron"


@pytest.mark.parametrize("engine", [IdsEngine, ChatEngine])
@pytest.mark.parametrize("stream", [False, True])
def test_over_http_marks_are_shown_counted_and_never_sent_on(
    serve: Any, sanitizer: Sanitizer, engine: Any, stream: bool
) -> None:
    config = GatewayConfig(mode="words", public=("system",))
    served = serve(config=config, sanitizer=sanitizer, engine=engine)
    messages = [
        {"role": "system", "content": "Be Zyxwora."},
        {"role": "user", "content": [part("Ask Vexqua: ", public=True), part("Quentin?")]},
        {"role": "assistant", "content": "Blorgul", "transom_example": True},
        {"role": "user", "content": "Go on."},
    ]
    body = {"model": "echo", "messages": messages, "stream": stream, "stop": "Blorgul", "max_tokens": 90}
    status, text = post(served.url, body, **{"X-Transom-Show-Host": "1"})
    assert status == 200, text
    raw = served.echo.seen[-1].decode()
    sent = host_text(served.echo.seen[-1]) if engine is IdsEngine else raw
    assert "transom" not in raw
    assert "Be Zyxwora." in sent
    assert "Ask Vexqua: " in sent
    assert not any(word in sent for word in ("Quentin", "Blorgul"))
    shown = json.loads(text)["transom"] if not stream else _last(text)["transom"]
    assert shown["public"] == ["Be Zyxwora.", "Ask Vexqua: "]
    assert "\ntransom_public_characters_total 23\n" in get(served.url, "/metrics")[1]


def _last(stream: str) -> Any:
    chunks = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    return chunks[-1]


def test_a_bare_prompt_has_no_marks() -> None:
    for prompt, count in (("Zyxwora", 1), (["a", "b"], 2), ([1, 2], 1), ([[1], [2], [3]], 3)):
        request = parse(CompletionRequest, json.dumps({"model": "m", "prompt": prompt}).encode())
        config = GatewayConfig(mode="words", public=("system",), examples="own")
        assert marks_of(request, config) == (Mark(),) * count


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "x", "transom_example": True},
        {"role": "user", "content": "x", "transom_public": True},
        {"role": "user", "content": [{"type": "text", "text": "x", "transom_public": 1}]},
        {"role": "user", "content": [{"type": "text", "text": "x", "transom_Public": True}]},
        {"role": "assistant", "content": "x", "transom_example": "yes"},
    ],
)
def test_a_mark_that_says_nothing_here_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(RefusedError):
        said(message)


def test_attested_rules_stay_and_marks_need_a_sanitiser() -> None:
    messages = [user(part("x", public=True))]
    request = parse(ChatRequest, json.dumps({"model": "m", "messages": messages}).encode())
    with pytest.raises(RefusedError, match="attested"):
        marks_of(request, GatewayConfig(mode="enclave"))
    engine = IdsEngine("http://127.0.0.1:1")
    for given in ({"public": ("system",)}, {"examples": "own"}, {"restore_words": True}):
        with pytest.raises(MisconfiguredError, match="sanitises no text"):
            create_gateway(GatewayConfig(**given), engine)
    chat = ChatEngine("http://127.0.0.1:1")
    with pytest.raises(MisconfiguredError, match="unknown public role"):
        create_gateway(
            GatewayConfig(mode="words", public=("sytem",)), chat, sanitizer=Sanitizer(load_policy())
        )


async def test_where_all_examples_are_the_callers_own_the_guarantee_says_so(sanitizer: Sanitizer) -> None:
    assert OWN_EXAMPLES in Veil(sanitizer, own_examples=True).guarantee().assumptions
    assert OWN_EXAMPLES not in Veil(sanitizer).guarantee().assumptions


@pytest.mark.parametrize(
    "form", ["[Document 1]", "[PERSON_1]", "<PERSON_1>", "PERSON_2", r"\[QUOTE\_1\]", "[ID-1]"]
)
async def test_no_value_comes_back_where_an_answer_repeats_public_text(
    sanitizer: Sanitizer, form: str
) -> None:
    """A prompt that numbers its sources: whoever cites one is not shown a passport number."""
    veil = Veil(sanitizer)
    messages = [
        user(part(f"Passport AB1234567 of Quentin Xyzzyq and Ada Quuxly, for Bob Zyzzel. {form}")),
        {"role": "assistant", "content": "I never said this to Quentin Xyzzyq."},
        user(part("Why? "), part(f"Cite as {form}.", public=True)),
    ]
    veiled = await covered(veil, *messages)
    held = veiled.placeholders
    assert veiled.texts[-1].endswith(f"Cite as {form}.")
    assert held.restore(f"It is {form}.") == f"It is {form}."
    restored = held.restore(veiled.texts[0])
    assert all(
        value in restored for value in ("AB1234567", "Quentin Xyzzyq", "Ada Quuxly", "Bob Zyzzel", form)
    )
    assert held.restore(veiled.texts[1]) == messages[1]["content"]
