"""The official `openai` client against the gateway over real sockets, sync and async."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.echo import EchoEngine

from .conftest import Served

Serve = Callable[..., Served]


def asked(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


@pytest.fixture
def client(serve: Serve) -> Iterator[OpenAI]:
    with OpenAI(base_url=serve().url + "/v1", api_key="any", max_retries=0) as client:
        yield client


def test_chat_completion_with_usage_and_official_types(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=asked("Grüße, 世界 🙂"))
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "user\nGrüße, 世界 🙂"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len("<user\nGrüße, 世界 🙂>".encode())


def test_models_lists_the_published_model_and_the_alias_works(client: OpenAI) -> None:
    assert [model.id for model in client.models.list().data] == ["echo"]
    assert client.chat.completions.create(model="transom", messages=asked("x")).model == "echo"


def test_streamed_chunks_join_to_the_whole_answer(client: OpenAI) -> None:
    text = "Ein Käfer, zwei 🐞🐞 und 世界."
    chunks = list(client.chat.completions.create(model="echo", messages=asked(text), stream=True))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "user\n" + text
    assert [c.choices[0].finish_reason for c in chunks if c.choices[0].finish_reason] == ["stop"]
    assert not any("\ufffd" in (chunk.choices[0].delta.content or "") for chunk in chunks)


def test_stream_usage_comes_last_and_equals_the_unstreamed_one(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="echo", messages=asked("hello"))
    chunks = list(
        client.chat.completions.create(
            model="echo", messages=asked("hello"), stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("stop", "expected"), [("llo w", "user\nhe"), (["zzz", "rld"], "user\nhello wo")])
def test_stop_strings_split_over_chunks(client: OpenAI, stream: bool, stop: Any, expected: str) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=asked("hello world"), stop=stop, stream=stream
    )
    if stream:
        chunks = list(answer)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        reason = chunks[-1].choices[0].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (expected, "stop")


def test_stop_strings_are_never_sent_and_cancel_the_engine(serve: Serve) -> None:
    echo = EchoEngine(token_s=0.02)
    served = serve(echo=echo)
    client = OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0)
    messages = asked("secretstop " + "long " * 2000)
    answer = client.chat.completions.create(model="echo", messages=messages, stop="retst", max_tokens=5000)
    assert answer.choices[0].message.content == "user\nsec"
    body = json.loads(echo.seen[-1])
    assert "stop" not in body  # no engine ever gets a stop string
    client.close()


def test_max_tokens_ends_with_length(client: OpenAI) -> None:
    for limit in ({"max_tokens": 7}, {"max_completion_tokens": 7}):
        answer = client.chat.completions.create(model="echo", messages=asked("hello"), **limit)
        assert answer.choices[0].finish_reason == "length"
        assert answer.choices[0].message.content == "user\nh"


def test_n_choices_whole_and_streamed(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="echo", messages=asked("abc"), n=3)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert {choice.message.content for choice in answer.choices} == {"user\nabc"}
    texts = {0: "", 1: ""}
    for chunk in client.chat.completions.create(
        model="echo", messages=asked("abc"), n=2, stream=True, temperature=0
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == {0: "user\nabc", 1: "user\nabc"}


def test_logprobs_match_the_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="echo", messages=asked("abc"), logprobs=True, top_logprobs=1
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries if not entry.token.startswith("<|")) == "user\nabc"
    assert all(entry.logprob == 0.0 and entry.top_logprobs[0].token == entry.token for entry in entries)
    old = client.completions.create(model="echo", prompt="abcd", logprobs=1, max_tokens=3)
    assert old.choices[0].logprobs.tokens == ["a", "b", "c"]
    assert old.choices[0].logprobs.text_offset == [0, 1, 2]
    assert old.choices[0].logprobs.top_logprobs[0] == {"a": 0.0}


def test_completions_of_text_ids_and_several_prompts(client: OpenAI) -> None:
    answer = client.completions.create(model="echo", prompt="abc", max_tokens=6)
    assert (answer.object, answer.choices[0].text) == ("text_completion", "abcabc")
    several = client.completions.create(model="echo", prompt=["ab", "cd"], n=2, max_tokens=4)
    assert [choice.text for choice in several.choices] == ["abab", "abab", "cdcd", "cdcd"]
    ids = client.completions.create(model="echo", prompt=[64, 65], max_tokens=2)
    assert ids.choices[0].text == "ab"
    chunks = client.completions.create(model="echo", prompt="abc", max_tokens=6, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "abcabc"


def test_content_parts_are_joined(client: OpenAI) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    answer = client.chat.completions.create(model="echo", messages=[{"role": "user", "content": parts}])
    assert answer.choices[0].message.content == "user\none two"


def test_harmless_fields_are_accepted_and_dropped(serve: Serve) -> None:
    served = serve()
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        client.chat.completions.create(
            model="echo", messages=asked("x"), store=True, metadata={"k": "canary"}, user="canary",
            parallel_tool_calls=False, service_tier="auto", reasoning_effort="low", verbosity="low",
            prompt_cache_key="canary", safety_identifier="canary", presence_penalty=0, tools=[],
        )  # fmt: skip
    assert b"canary" not in served.echo.seen[0]


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"n": 0}, "n"),
        ({"temperature": 3.0}, "temperature"),
        ({"seed": 2**80}, "seed"),
        ({"max_tokens": True}, "max_tokens"),
        ({"extra_body": {"guided_regex": "x"}}, "guided_regex"),
        ({"extra_body": {"audio": {}}}, "audio"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
def test_what_cannot_be_protected_is_refused_by_name(serve: Serve, options: Any, param: str) -> None:
    served = serve()
    client = OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=asked("x"), **options)
    assert caught.value.param == param
    assert served.echo.seen == []


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "tool", "content": "x", "tool_call_id": "1"},
        {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": ""},
    ],
)
def test_messages_that_are_not_text_are_refused(serve: Serve, message: Any) -> None:
    served = serve()
    client = OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="echo", messages=[message])
    assert caught.value.param is not None
    assert caught.value.param.startswith("messages")
    assert served.echo.seen == []


def test_other_errors_have_their_status(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=asked("x"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="echo", input="x")


async def test_async_client_and_a_hundred_conversations_at_once(serve: Serve) -> None:
    served = serve(echo=EchoEngine(first_token_s=0.05))

    async def converse(client: AsyncOpenAI, number: int) -> None:
        text = f"conversation {number}: ä {number * 7}"
        whole = await client.chat.completions.create(model="echo", messages=asked(text))
        assert whole.choices[0].message.content == "user\n" + text
        stream = await client.chat.completions.create(model="echo", messages=asked(text), stream=True)
        assert "".join([c.choices[0].delta.content or "" async for c in stream]) == "user\n" + text

    async with AsyncOpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        await asyncio.gather(*(converse(client, number) for number in range(100)))
    assert len(served.echo.seen) == 200


class _CountingEcho(EchoEngine):
    """Counts the steps it really generates, and notices when it is cancelled."""

    steps = 0
    cancelled = False

    async def generate(self, job: Any) -> Any:
        try:
            async for step in super().generate(job):
                self.steps += 1
                yield step
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled = True
            raise


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"never happened: {what}"
        time.sleep(0.01)


def test_closing_a_stream_reaches_the_engine(serve: Serve) -> None:
    echo = _CountingEcho(token_s=0.02)
    served = serve(echo=echo)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        stream = client.completions.create(model="echo", prompt="abc", max_tokens=4000, stream=True)
        next(iter(stream))
        stream.close()
        wait_until(lambda: echo.cancelled, "the engine is cancelled")
    assert echo.steps < 4000


async def test_cancelling_an_unstreamed_call_reaches_the_engine(serve: Serve) -> None:
    echo = _CountingEcho(token_s=0.02)
    served = serve(echo=echo)
    async with AsyncOpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        call = asyncio.create_task(client.completions.create(model="echo", prompt="abc", max_tokens=4000))
        await asyncio.to_thread(wait_until, lambda: echo.steps > 0, "the engine begins")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.to_thread(wait_until, lambda: echo.cancelled, "the engine is cancelled")


def test_a_stop_string_cancels_the_engine(serve: Serve) -> None:
    echo = _CountingEcho(token_s=0.01)
    served = serve(echo=echo)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        answer = client.completions.create(model="echo", prompt="abcdef", max_tokens=4000, stop="ef")
    assert answer.choices[0].text == "abcd"
    wait_until(lambda: echo.cancelled, "the engine is cancelled")


def test_a_chat_endpoint_serves_plain_mode(serve: Serve) -> None:
    served = serve(engine=ChatEngine)
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        whole = client.chat.completions.create(model="echo", messages=asked("three short words"), n=2)
        assert [choice.message.content for choice in whole.choices] == ["three short words"] * 2
        stream = list(
            client.chat.completions.create(
                model="echo", messages=asked("three short words"), stream=True, stop="words",
                stream_options={"include_usage": True},
            )
        )  # fmt: skip
        assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices) == "three short "
        with pytest.raises(openai.BadRequestError, match="chat/completions"):
            client.completions.create(model="echo", prompt="x")
    assert all(b"stop" not in body for body in served.echo.seen)
