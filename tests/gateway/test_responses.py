"""`/v1/responses` with the official client, whole and streamed; names and unknown fields of all endpoints."""

from __future__ import annotations

import http.client
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from transom.errors import EngineError
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.job import Job, Step
from transom.serving.gateway.config import GatewayConfig

from .conftest import Served

Serve = Callable[..., Served]
TALK: list[Any] = [
    {"role": "user", "content": "one"},
    {"type": "reasoning", "id": "rs_1", "summary": []},
    {
        "type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
        "content": [{"type": "output_text", "text": "two", "annotations": []}],
    },
    {"role": "user", "content": [{"type": "input_text", "text": one} for one in ("three ", "🙂")]},
]  # fmt: skip


def fetched(
    url: str, path: str, body: Any = None, **headers: str
) -> tuple[int, str, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        data = None if body is None else json.dumps(body)
        kind = {"Content-Type": "application/json"}
        connection.request("POST" if data else "GET", path, data, kind | headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode(), answer.headers
    finally:
        connection.close()


class Failing(EchoEngine):
    """Ends in the middle of an answer."""

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        left = 4
        async for step in super().generate(job):
            yield step
            left -= 1
            if not left:
                raise EngineError("it broke")


@pytest.fixture
def client(serve: Serve) -> Iterator[OpenAI]:
    with OpenAI(base_url=serve().url + "/v1", api_key="any", max_retries=0) as client:
        yield client


def test_an_answer_is_that_of_the_same_chat(client: OpenAI) -> None:
    told = client.responses.create(model="echo", input=TALK, instructions="be brief")
    messages: list[Any] = [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"}, {"role": "user", "content": "three 🙂"},
    ]  # fmt: skip
    chat = client.chat.completions.create(model="echo", messages=messages)
    assert told.output_text == chat.choices[0].message.content
    assert (told.status, told.object, told.error, told.model) == ("completed", "response", None, "echo")
    assert told.usage is not None
    assert chat.usage is not None
    assert told.usage.input_tokens == chat.usage.prompt_tokens
    assert told.usage.output_tokens == chat.usage.completion_tokens
    assert told.usage.total_tokens == chat.usage.total_tokens


def test_streamed_events_make_the_whole_response(client: OpenAI) -> None:
    whole = client.responses.create(model="echo", input="Ein Käfer 🐞🐞")
    with client.responses.stream(model="echo", input="Ein Käfer 🐞🐞") as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert final.output_text == whole.output_text == "user\nEin Käfer 🐞🐞"
    assert final.usage == whole.usage
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = list(dict.fromkeys(event.type for event in events))
    begun = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
    ended = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds == [f"response.{kind}" for kind in (*begun, *ended)]


def test_events_are_named_and_the_stream_ends_without_done(serve: Serve) -> None:
    body = {"model": "echo", "input": "hello", "stream": True}
    text = fetched(serve().url, "/v1/responses", body)[1]
    events = [dict(line.split(": ", 1) for line in one.split("\n")) for one in text.strip().split("\n\n")]
    assert all(one["event"] == json.loads(one["data"])["type"] for one in events)
    assert "[DONE]" not in text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_was_cut_is_incomplete(client: OpenAI, stream: bool) -> None:
    answer = client.responses.create(model="echo", input="hello", max_output_tokens=7, stream=stream)
    if stream:
        last = list(answer)[-1]
        assert last.type == "response.incomplete"
        answer = last.response
    assert (answer.status, answer.output_text) == ("incomplete", "user\nh")
    assert answer.incomplete_details.reason == "max_output_tokens"


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"text": {"format": {"type": "json_object"}}}, "text"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": ""}]}, "input[0]"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content"),
        ({"extra_body": {"top_k": 3}}, "top_k"),
    ],
)
def test_what_is_not_there_is_refused_by_name(serve: Serve, options: Any, param: str) -> None:
    served = serve()
    client = OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0)
    with client, pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**({"model": "echo", "input": "x"} | options))
    assert caught.value.param == param
    assert served.echo.seen == []


def test_an_engine_that_fails_in_mid_stream_is_an_error_of_the_client(serve: Serve) -> None:
    url, told = serve(echo=Failing()).url, list[str]()
    with OpenAI(base_url=url + "/v1", api_key="any", max_retries=0) as client:
        stream = client.responses.create(model="echo", input="hello", stream=True)
        with pytest.raises(openai.APIError):
            told.extend(event.type for event in stream)
    assert told[-1] == "response.output_text.delta"
    events = fetched(url, "/v1/responses", {"model": "echo", "input": "hello", "stream": True})[1].strip()
    last = json.loads(events.rpartition("data: ")[2])
    assert (last["type"], last["code"]) == ("error", "engine_error")
    assert events.split("\n\n")[-1].startswith("event: error\n")
    assert "response.completed" not in told


def test_every_answer_has_a_number_of_its_own(serve: Serve) -> None:
    url = serve().url
    body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
    told = [fetched(url, "/v1/chat/completions", one) for one in (body, body, body | {"model": "no"})]
    told += [
        fetched(url, "/v1/models"),
        fetched(url, "/nowhere"),
        fetched(url, "/healthz", host="evil.example"),
    ]
    assert told[-1][0] == 403
    numbers = [headers["x-request-id"] for _, _, headers in told]
    assert len(set(numbers)) == len(numbers)


def test_a_model_is_found_by_its_names_and_no_other(serve: Serve) -> None:
    served = serve(config=GatewayConfig(aliases=("gpt-4o-mini", "maker/model")))
    with OpenAI(base_url=served.url + "/v1", api_key="any", max_retries=0) as client:
        for name in ("echo", "transom", "gpt-4o-mini", "maker/model"):
            assert client.models.retrieve(name).id == name
            answer = client.responses.create(model=name, input="x")
            assert (answer.model, answer.output_text) == ("echo", "user\nx")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("maker/other")
        assert [one.id for one in client.models.list().data] == ["echo"]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}], "top_kk": 3}, "top_kk"),
        (
            "chat/completions", {"messages": [{"role": "user", "content": "x", "cache_control": {}}]},
            "messages[0].cache_control",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache_control": {}}]}]},
            "messages[0].content[].cache_control",
        ),
        (
            "responses",
            {"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "odd": 1}]}]},
            "input[0].content[].odd",
        ),
        ("chat/completions", {"messages": [{"role": "user", "content": None}]}, "content is null"),
    ],
)  # fmt: skip
def test_a_message_names_the_field(serve: Serve, path: str, body: Any, field: str) -> None:
    answer = json.loads(fetched(serve().url, f"/v1/{path}", {"model": "echo"} | body)[1])
    assert field in answer["error"]["message"]


UNKNOWN: list[tuple[str, Any, str]] = [
    ("/v1/chat/completions",
     {"messages": [{"role": "user", "content": "x", "cache_control": "c"}], "guided_json": 3},
     "messages[].cache_control, guided_json"),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [
        {"type": "text", "text": "x", "cache_control": {"a": "c"}}]}]},
     "messages[].content[].cache_control"),
    ("/v1/completions", {"prompt": "x", "guided": {"c": 1}}, "guided"),
    ("/v1/responses", {"input": [{"role": "user", "content": [
        {"type": "input_text", "text": "x", "odd": "c", "annotations": ["c"]}]}], "Ünknown name\n": "c",
        "text": {"verbosity": "low"}},
     "?, input[].content[].annotations, input[].content[].odd, text.verbosity"),
    ("/v1/responses", {"input": [
        {"role": "user", "content": "x", "message": {"a": 1}, "foo": 1},
        {"type": "reasoning", "reasoning": "c", "foo": 1}, {"role": "user", "content": "y", "items": [3]}]},
     "input[].message, input[].foo, input[].reasoning, input[].items"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "named"), UNKNOWN)
def test_unknown_fields_are_refused_or_dropped_and_named(
    serve: Serve, path: str, body: Any, named: str
) -> None:
    body = {"model": "echo", "store": True} | body
    refusing = serve()
    status, answer, _ = fetched(refusing.url, path, body)
    assert (status, json.loads(answer)["error"]["type"]) == (400, "invalid_request_error")
    assert refusing.echo.seen == []
    dropping = serve(config=GatewayConfig(unknown="drop"))
    status, _, headers = fetched(dropping.url, path, body)
    assert status == 200
    told = headers["x-transom-dropped"]
    assert "store" in told
    assert all(name in told for name in named.split(", "))
    assert json.loads(dropping.echo.seen[0]).keys() <= {
        "model", "prompt", "max_tokens", "stream", "return_token_ids", "stop_token_ids", "temperature",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/responses", {"input": "x", "response_format": {"type": "json_object"}}),
        ("/v1/responses", {"input": "x", "stop": "end"}),
        ("/v1/responses", {"input": "x", "max_tokens": 3}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}], "instructions": "be kind"}),
        ("/v1/completions", {"prompt": "x", "tools": []}),
        ("/v1/completions", {"prompt": "x", **{f"odd{place}": 1 for place in range(65)}}),
    ],
)
def test_what_means_something_elsewhere_is_refused_there_too(serve: Serve, path: str, body: Any) -> None:
    served = serve(config=GatewayConfig(unknown="drop"))
    assert fetched(served.url, path, {"model": "echo"} | body)[0] == 400
    assert served.echo.seen == []


def test_what_is_known_and_wrong_is_refused_where_unknown_fields_are_dropped(serve: Serve) -> None:
    served = serve(config=GatewayConfig(unknown="drop"))
    chat = {"model": "echo", "messages": [{"role": "user", "content": "x"}], "odd": 1}
    for more in ({"tools": [{"type": "function"}]}, {"n": 0}, {"messages": [{"role": "tool", "odd": 2}]}):
        assert fetched(served.url, "/v1/chat/completions", chat | more)[0] == 400
    assert served.echo.seen == []


def test_a_name_of_who_speaks_is_refused_and_an_examples_mark_is_not(serve: Serve) -> None:
    served = serve()
    for name, status in (("Marguerite", 400), ("example_user", 200)):
        messages = [{"role": "user", "content": "x", "name": name}]
        body = {"model": "echo", "messages": messages}
        got, answer, _ = fetched(served.url, "/v1/chat/completions", body)
        assert got == status
        assert "Marguerite" not in answer
    assert len(served.echo.seen) == 1
