"""EchoEngine: what it records, and its chat endpoint for clients that take only text."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from transom.checkpoint.load import Checkpoint
from transom.net.listen import serve_in_thread
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.job import Job

QUESTION = {"model": "echo", "messages": [{"role": "user", "content": "Is  this\nechoed, naïvely?"}]}


@pytest.mark.parametrize("record", [True, False])
def test_it_records_exactly_the_bytes_it_was_sent(post: Any, record: bool) -> None:
    echo = EchoEngine(record=record)
    sent = [b'{"model":"echo","prompt":[1] }', b"not even json"]
    with serve_in_thread(echo.app()) as url:
        for raw in sent:
            post(url, raw)
    assert echo.seen == (sent if record else [])


def test_chat_echoes_the_last_user_message_whole_and_streamed(post: Any, events: Any) -> None:
    with serve_in_thread(EchoEngine().app()) as url:
        whole = json.loads(post(url, QUESTION, "/v1/chat/completions")[1])
        streamed = post(
            url,
            QUESTION | {"stream": True, "stream_options": {"include_usage": True}},
            "/v1/chat/completions",
        )[1]
    *chunks, usage, done = events(streamed)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert whole["choices"][0]["message"]["content"] == text == QUESTION["messages"][0]["content"]  # type: ignore[index]
    assert len(chunks) > 3
    assert usage["usage"] == whole["usage"]
    assert done == "[DONE]"


@pytest.mark.parametrize("messages", [None, [], "hello", [1], [{"role": "user", "content": [1]}]])
def test_chat_without_a_user_text_is_refused(post: Any, messages: Any) -> None:
    with serve_in_thread(EchoEngine().app()) as url:
        status, raw = post(url, {"model": "echo", "messages": messages}, "/v1/chat/completions")
    assert (status, json.loads(raw)["error"]["param"]) == (400, "messages")


def test_with_a_tokenizer_text_goes_in_and_out(post: Any, events: Any, tiny: Checkpoint) -> None:
    assert tiny.tokenizer is not None
    text = "The fox läuft, naïvely: 漢字 😀."
    length = len(tiny.tokenizer.tokenizer.encode(text).ids)
    echo = EchoEngine(tokenizer=tiny.tokenizer.tokenizer, chunk_tokens=3)
    fields = {"model": "echo", "prompt": text, "max_tokens": length, "logprobs": 0}
    with serve_in_thread(echo.app()) as url:
        whole = json.loads(post(url, fields)[1])["choices"][0]
        *chunks, _done = events(post(url, fields | {"stream": True})[1])
    assert whole["text"] == text
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert len(chunks) == -(-length // 3)
    assert "token_ids" not in whole
    assert len(whole["logprobs"]["tokens"]) == length


def test_the_stop_token_is_left_out_of_the_text(post: Any, tiny: Checkpoint) -> None:
    assert tiny.tokenizer is not None
    ids = tiny.tokenizer.tokenizer.encode("The quick fox").ids
    echo = EchoEngine(tokenizer=tiny.tokenizer.tokenizer)
    fields = {"model": "echo", "prompt": ids, "stop_token_ids": [ids[-1]], "return_token_ids": True}
    with serve_in_thread(echo.app()) as url:
        (choice,) = json.loads(post(url, fields)[1])["choices"]
    assert choice["token_ids"] == ids
    assert choice["text"] == tiny.tokenizer.tokenizer.decode(ids[:-1])


async def test_delays_hold_back_the_first_and_the_later_steps() -> None:
    job = Job(max_tokens=2, prompt_ids=(1, 2))
    first = EchoEngine(first_token_s=3600).generate(job)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(first), 0.05)
    later = EchoEngine(token_s=3600).generate(job)
    assert (await anext(later)).ids == (1,)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(anext(later), 0.05)
