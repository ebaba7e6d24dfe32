"""A host that writes its answers to unmask placeholders learns nothing from the history that comes back."""

from __future__ import annotations

import re

import pytest
from openai import OpenAI

from transom.privacy.policy import Policy, load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer
from transom.serving.gateway.marks import Mark
from transom.serving.gateway.words import Veil, Veiled

PLAIN = Mark()
QUESTION = "We pay Quentin 4815 dollars."


@pytest.fixture(scope="module", params=PRESETS)
def policy(request: pytest.FixtureRequest) -> Policy:
    return with_preset(load_policy(), request.param)


async def resent(
    veil: Veil,
    host: str,
    *,
    delivered: str | None = None,
    account: str = "a",
    question: str = QUESTION,
    mark: Mark = PLAIN,
) -> Veiled:
    """The second request of a conversation in which the host answered `host` to the first."""
    first = await veil.cover([("user", question)], "a", None)
    shown = first.placeholders.restore(host)
    veil.remember(first, shown, host)
    history = [("user", question), ("assistant", delivered or shown), ("user", "Go on.")]
    return await veil.cover(history, account, None, marks=[PLAIN, mark, PLAIN])


@pytest.mark.parametrize(
    "host",
    [
        "Candidates: Alice, Bob, Quentin, Zoe; 4814, 4815, 4816.",
        "[PERSON_1].\n" * 60,
        "Dear [PERSON_1], [NAME_9].",
    ],
)
async def test_an_answer_goes_back_in_the_hosts_own_words_at_no_cost(policy: Policy, host: str) -> None:
    veil = Veil(Sanitizer(policy))
    first = await veil.cover([("user", QUESTION)], "a", None)
    second = await resent(veil, host)
    assert second.texts[1] == host
    assert sum(part.drawn for part in second.parts) <= first.parts[0].drawn + 2  # the two user messages alone


@pytest.mark.parametrize("account", ["a", "b"])
async def test_an_answer_that_is_not_recognised_is_hidden_whole(policy: Policy, account: str) -> None:
    host = "Candidates: Alice, Bob, Quentin, Zoe; 4814, 4815, 4816. " + "[PERSON_1].\n" * 60
    edited = None if account == "b" else "Quentin it is. [PERSON_1] 4815"
    veiled = await resent(Veil(Sanitizer(policy)), host, delivered=edited, account=account)
    assert veiled.texts[1] == "[QUOTE_1]"
    assert "Quentin" in veiled.placeholders.restore(veiled.texts[1])
    assert "[PERSON_1]" in veiled.texts[0]


CANDIDATES = "Candidates: Alice, Bob, Quentin, Zoe; 4814, 4815, 4816. "


@pytest.mark.parametrize("value", ["Alice", "Quentin", "Zoe", "Yorick"])
@pytest.mark.parametrize("shortened", [False, True])
async def test_candidates_in_an_answer_that_was_edited_are_never_singled_out(
    policy: Policy, value: str, shortened: bool
) -> None:
    """By default, whatever the hidden value is, the host sees the same of an answer that is not recognised:
    of one that was edited, and of one in a history that was cut at its beginning.
    """
    veil = Veil(Sanitizer(policy.with_rules({"word": "placeholder", "stop": "placeholder"})))
    question = f"We pay {value} 4815 dollars."
    if shortened:
        early = [("user", "Hello."), ("assistant", "Hi."), ("user", question)]
        first = await veil.cover(early, "a", None)
        veil.remember(first, first.placeholders.restore(CANDIDATES + "[PERSON_1]"), CANDIDATES + "[PERSON_1]")
        history = [("user", question), ("assistant", CANDIDATES + value), ("user", "Go on.")]
        veiled = await veil.cover(history, "a", None)
    else:
        veiled = await resent(veil, CANDIDATES, delivered=CANDIDATES + value, question=question)
    assert veiled.texts[1] == "[QUOTE_1]"


@pytest.mark.parametrize(
    "host", [CANDIDATES, "[PERSON_1] and [PERSON_1]. " * 30, "Mr [PERSON_1], [NUMBER_1]/[MONEY_1]."]
)
async def test_where_all_are_said_to_be_examples_hidden_values_are_linked_with_nothing(
    policy: Policy, host: str
) -> None:
    """Even if that word is wrong: no two placeholders of the answer are equal, none is one of the user's or
    tells a type, and what is drawn is charged.
    """
    mark = Mark(unnamed=True)
    sanitizer = Sanitizer(policy)
    veiled = await resent(Veil(sanitizer, own_examples=True), host, account="b", mark=mark)
    shown = re.findall(r"\[[A-Z]+_\d+\]", veiled.texts[1])
    assert shown == [f"[QUOTE_{number}]" for number in range(1, len(shown) + 1)]
    assert len(shown) >= host.count("Quentin") + host.count("[PERSON_1]")
    assert "Quentin" not in veiled.texts[1]
    assert "4815" not in veiled.texts[1]
    answer = veiled.parts[1]
    assert answer.epsilon == answer.drawn * sanitizer.word_epsilon
    assert veiled.placeholders.restore(answer.text).count("Quentin") == answer.text.count("QUOTE") - sum(
        value != "Quentin" for value in quoted(veiled)
    )


def quoted(veiled: Veiled) -> list[str]:
    found = re.findall(r"\[QUOTE_\d+\]", veiled.texts[1])
    return [veiled.placeholders.restore(one) for one in found]


@pytest.mark.parametrize("mark", [Mark(example=True), Mark(unnamed=True)])
async def test_an_answer_that_is_recognised_is_never_an_example(policy: Policy, mark: Mark) -> None:
    veil = Veil(Sanitizer(policy))
    host = CANDIDATES + "[PERSON_1]."
    first = await veil.cover([("user", QUESTION)], "a", None)
    shown = first.placeholders.restore(host)
    veil.remember(first, shown, host)
    veiled = await veil.cover([("user", QUESTION), ("assistant", shown)], "a", None, marks=[Mark(), mark])
    assert veiled.texts[1] == host
    assert sum(part.drawn for part in veiled.parts) == veiled.parts[0].drawn


async def test_an_example_by_its_own_word_reads_like_the_users_text(policy: Policy) -> None:
    """A few-shot pair: the values of both sides are one, and the rest is as the policy says."""
    pair = [("user", "Quentin Xyzzyq called."), ("assistant", "Caller: Quentin Xyzzyq"), ("user", "Zoe did.")]
    marks = [Mark(), Mark(example=True), Mark()]
    veiled = await Veil(Sanitizer(policy)).cover(pair, "a", None, marks=marks)
    names = re.findall(r"\[PERSON_\d+\]", veiled.texts[0])
    assert names
    assert all(name in veiled.texts[1] for name in names)
    assert "QUOTE" not in veiled.texts[1]


async def test_equal_quotes_are_not_linked(policy: Policy) -> None:
    veil = Veil(Sanitizer(policy))
    history = [("assistant", "Quentin"), ("user", "Hello"), ("assistant", "Quentin"), ("user", "[QUOTE_1]")]
    veiled = await veil.cover(history, "a", None)
    assert [veiled.texts[0], veiled.texts[2]] == ["[QUOTE_1]", "[QUOTE_2]"]
    assert veiled.texts[3] == "[ID_1]"  # what the user writes is never taken for one of ours


def test_every_choice_is_recalled_over_http(serve, policy: Policy) -> None:  # type: ignore[no-untyped-def]
    """Without a session: both answers of a request come back verbatim in the next one's prompt."""
    from transom.serving.gateway.config import GatewayConfig

    from .test_words import host_text

    hiding = Sanitizer(policy.with_rules({"word": "placeholder", "stop": "placeholder"}))
    served = serve(config=GatewayConfig(mode="words"), sanitizer=hiding)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        opening = {"role": "user", "content": QUESTION}
        choices = client.chat.completions.create(
            model="echo", messages=[opening], n=2, temperature=0.5
        ).choices
        for choice in choices:
            answer = {"role": "assistant", "content": choice.message.content}
            client.chat.completions.create(model="echo", messages=[opening, answer, opening])  # type: ignore[list-item]
            sent = host_text(served.echo.seen[-1])
            assert "QUOTE" not in sent
            assert "Quentin" not in sent
