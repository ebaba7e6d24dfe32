"""A host that writes its answers to unmask placeholders learns nothing from the history that comes back."""

from __future__ import annotations

import pytest
from openai import OpenAI

from transom.privacy.policy import Policy, load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.gateway.words import Veil, Veiled

QUESTION = "We pay Quentin 4815 dollars."


@pytest.fixture(scope="module")
def policy() -> Policy:
    return load_policy()


async def resent(veil: Veil, host: str, *, delivered: str | None = None, account: str = "a") -> Veiled:
    """The second request of a conversation in which the host answered `host` to the first."""
    first = await veil.cover([("user", QUESTION)], "a", None)
    shown = first.placeholders.restore(host)
    veil.remember(first, shown, host)
    history = [("user", QUESTION), ("assistant", delivered or shown), ("user", "Go on.")]
    return await veil.cover(history, account, None)


@pytest.mark.parametrize(
    "host",
    [
        "Candidates: Alice, Bob, Quentin, Zoe; 4814, 4815, 4816.",
        "[NAME_1].\n" * 60,
        "Dear [NAME_1], [NAME_9].",
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
    host = "Candidates: Alice, Bob, Quentin, Zoe; 4814, 4815, 4816. " + "[NAME_1].\n" * 60
    edited = None if account == "b" else "Quentin it is. [NAME_1] 4815"
    veiled = await resent(Veil(Sanitizer(policy)), host, delivered=edited, account=account)
    assert veiled.texts[1] == "[QUOTE_1]"
    assert "Quentin" in veiled.placeholders.restore(veiled.texts[1])
    assert "[PERSON_1]" in veiled.texts[0]


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
