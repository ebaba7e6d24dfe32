"""Annotators: told what was sent and what is delivered, heard in both forms of an answer, never trusted."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable
from typing import Any

import pytest

from transom.errors import MisconfiguredError, RefusedError
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.annotate import Asked, CountAnnotator, Heard, Note
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.echo import EchoEngine
from transom.serving.gateway.config import GatewayConfig

from .conftest import Served

Serve = Callable[..., Served]
SECRET = "zyzzyva-4711"
BODY = {"model": "echo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8}


def ask(url: str, path: str = "/v1/chat/completions", **fields: Any) -> tuple[int, dict[str, str], str]:
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        connection.request("POST", path, json.dumps(BODY | fields), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, headers, answer.read().decode()
    finally:
        connection.close()


def chunks(text: str) -> list[dict[str, Any]]:
    blocks = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    return [json.loads(block) for block in blocks if block != "[DONE]"]


def delivered(found: list[dict[str, Any]]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in found if c.get("choices"))


def without(value: Any) -> Any:
    """An answer without what differs between any two."""
    return {name: one for name, one in value.items() if name not in ("id", "created", "transom")}


def test_an_answer_is_the_same_and_the_note_stands_beside_it(serve: Serve) -> None:
    plain, noted = serve(), serve(annotators=[CountAnnotator()])
    _, bare, first = ask(plain.url)
    _, headers, second = ask(noted.url)
    answer = json.loads(second)
    assert without(json.loads(first)) == without(answer)
    said = {"tokens": 8, "chars": len(answer["choices"][0]["message"]["content"]), "features": 0.0}
    assert answer["transom"] == {"annotations": {"count": [said]}}
    assert headers.pop("x-transom-count") == "tokens=8"
    assert set(headers) == set(bare)
    assert "transom" not in json.loads(first)
    assert plain.echo.seen == noted.echo.seen


def test_a_stream_is_the_same_with_notes_live_and_in_its_last_chunk(serve: Serve) -> None:
    plain, noted = serve(), serve(annotators=[CountAnnotator(), CountAnnotator("other")])
    first, second = (chunks(ask(served.url, stream=True)[2]) for served in (plain, noted))
    assert delivered(first) == delivered(second)
    assert all("transom" not in chunk for chunk in first)
    *live, last = second
    assert [chunk["transom"]["annotations"]["count"]["tokens"] for chunk in live] == list(range(1, 9))
    assert last["choices"] == []
    notes = last["transom"]["annotations"]
    assert notes["count"] == notes["other"]
    assert notes["count"][0]["chars"] == len(delivered(second))


def test_each_choice_has_its_own_note(serve: Serve) -> None:
    served = serve(annotators=[CountAnnotator()])
    _, headers, text = ask(served.url, n=3, max_tokens=5)
    assert [note["tokens"] for note in json.loads(text)["transom"]["annotations"]["count"]] == [5, 5, 5]
    assert headers["x-transom-count"] == "tokens=5, tokens=5, tokens=5"


class Remembering(CountAnnotator):
    """Keeps what it hears."""

    def __init__(self) -> None:
        super().__init__("memory")
        self.heard: list[Heard] = []

    def watch(self, asked: Asked) -> Any:
        super().watch(asked)
        return self

    def hear(self, heard: Heard) -> None:
        self.heard.append(heard)

    def close(self) -> Note:
        return Note({})


def test_it_is_told_what_was_sent_and_what_is_delivered(serve: Serve) -> None:
    policy = load_policy()
    hiding = Sanitizer(policy.with_rules({"word": "placeholder", "stop": "placeholder"}))
    memory = Remembering()
    served = serve(config=GatewayConfig(mode="words"), sanitizer=hiding, annotators=[memory])
    question = "Ms Zyxwora owes 4711 crowns."
    ask(served.url, messages=[{"role": "user", "content": question}], max_tokens=400)
    (asked,) = memory.asked
    sent = json.loads(served.echo.seen[0])["prompt"]
    assert (asked.mode, asked.model, asked.prompts) == ("words", "echo", (tuple(sent),))
    assert not any(word in asked.texts[0] for word in ("Zyxwora", "4711", "crowns"))
    assert question in "".join(heard.text for heard in memory.heard)
    ends = sent.index(257) + 1  # the echo stops where the message does
    assert [i for heard in memory.heard for i in heard.ids] == sent[:ends]
    assert memory.heard[-1].finish_reason is not None
    for value in (asked, *memory.heard):
        assert "Zyxwora" not in repr(value)


def test_features_come_from_engines_that_tell_them_and_only_for_who_wants_them(serve: Serve) -> None:
    telling = EchoEngine(feature_size=3)
    wanted = serve(echo=telling, annotators=[CountAnnotator(features=True)])
    for fields in ({}, {"stream": True}, {"max_tokens": 900}):
        text = ask(wanted.url, **fields)[2]
        last = chunks(text)[-1] if fields.get("stream") else json.loads(text)
        (note,) = last["transom"]["annotations"]["count"]
        ids = json.loads(telling.seen[-1])["prompt"]
        echoed = (ids * note["tokens"])[: note["tokens"]]
        assert note["features"] == sum((i + place) % 97 for i in echoed for place in range(3))
    unwanted = serve(echo=EchoEngine(feature_size=3), annotators=[CountAnnotator()])
    ask(unwanted.url)
    assert b"features" not in unwanted.echo.seen[0]


@pytest.mark.parametrize("engine", [None, ChatEngine])
def test_features_that_no_engine_tells_are_a_marked_failure_or_a_refusal(serve: Serve, engine: Any) -> None:
    marked = serve(engine=engine, annotators=[CountAnnotator(features=True), CountAnnotator("other")])
    status, headers, text = ask(marked.url)
    notes = json.loads(text)["transom"]["annotations"]
    assert (status, headers["x-transom-count"]) == (200, "failed")
    assert notes["count"] == [{"error": "the engine tells nothing of its states"}]
    assert notes["other"][0]["chars"] > 0
    strict = serve(engine=engine, annotators=[CountAnnotator(features=True, required=True)])
    status, _, text = ask(strict.url)
    assert (status, json.loads(text)["error"]["code"]) == (400, "use_instead")
    assert strict.echo.seen == []


@pytest.mark.parametrize("fail_at", [1, 5, None])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_marked_without_a_word_of_it_and_the_answer_goes_on(
    serve: Serve, fail_at: int | None, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broken = CountAnnotator("broken", failure=ValueError(SECRET), fail_at=fail_at)
    noted, plain = serve(annotators=[broken, CountAnnotator()]), serve()
    status, headers, text = ask(noted.url, stream=stream)
    _, _, bare = ask(plain.url, stream=stream)
    last = chunks(text)[-1] if stream else json.loads(text)
    notes = last["transom"]["annotations"]
    assert status == 200
    assert notes["broken"] == [{"error": "the annotator failed (ValueError)"}]
    assert notes["count"][0]["tokens"] == 8
    assert stream or headers["x-transom-broken"] == "failed"
    if stream:
        assert delivered(chunks(text)) == delivered(chunks(bare))
    assert SECRET not in text + caplog.text + str(headers)
    assert "the annotator broken failed (ValueError)" in caplog.text


@pytest.mark.parametrize(
    ("annotator", "status", "code"),
    [
        (CountAnnotator(required=True, failure=ValueError(SECRET)), 500, "internal_error"),
        (CountAnnotator(required=True, failure=ValueError(SECRET), fail_at=3), 500, "internal_error"),
        (CountAnnotator(failure=RefusedError("withheld", status=403, code="withheld")), 403, "withheld"),
        (CountAnnotator(failure=RefusedError("no", status=403, code="withheld"), fail_at=3), 403, "withheld"),
    ],
)
def test_an_answer_is_withheld_in_both_forms(
    serve: Serve, annotator: CountAnnotator, status: int, code: str
) -> None:
    served = serve(annotators=[annotator])
    found, _, text = ask(served.url)
    assert (found, json.loads(text)["error"]["code"]) == (status, code)
    assert "hello" not in text
    found, _, text = ask(served.url, stream=True)
    assert chunks(text)[-1]["error"]["code"] == code
    assert "[DONE]" not in text
    assert SECRET not in text


class Odd(CountAnnotator):
    """Says whatever it is given."""

    def __init__(self, note: Any, live: Any = None) -> None:
        super().__init__("odd")
        self.note, self.live = note, live

    def watch(self, asked: Asked) -> Any:
        return self

    def hear(self, heard: Heard) -> Any:
        return self.live

    def close(self) -> Any:
        return self.note


@pytest.mark.parametrize(
    ("note", "live"),
    [
        (Note({"a": float("nan")}), None),
        (Note({"a": object()}), None),
        (Note({"a": "x" * 2**18}), None),
        (Note({}, "a\r\nx-evil: 1"), None),
        (Note({}, "\u00fc"), None),
        (Note({}, "x" * 201), None),
        (Note([1]), None),  # type: ignore[arg-type]
        (None, None),
        ({"field": {}}, None),
        (Note({}), {"a": float("inf")}),
        (Note({}), [1]),
        (Note({}), {1: {2}}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_written_is_a_marked_failure(serve: Serve, note: Any, live: Any, stream: bool) -> None:
    served = serve(annotators=[Odd(note, live), CountAnnotator()])
    status, headers, text = ask(served.url, stream=stream)
    last = chunks(text)[-1] if stream else json.loads(text)
    (odd,) = last["transom"]["annotations"]["odd"]
    assert (status, list(odd)) == (200, ["error"])
    assert last["transom"]["annotations"]["count"][0]["tokens"] == 8
    assert "x-evil" not in headers


def test_one_that_cannot_begin_is_marked_and_one_that_refuses_sends_nothing(serve: Serve) -> None:
    class Stuck(CountAnnotator):
        def watch(self, asked: Asked) -> Any:
            raise self.failure or ValueError

    marked = serve(annotators=[Stuck(failure=KeyError(SECRET))])
    status, headers, text = ask(marked.url)
    assert (status, headers["x-transom-count"]) == (200, "failed")
    assert SECRET not in text
    refused = serve(annotators=[Stuck(failure=RefusedError("a trigger", code="withheld"))])
    assert ask(refused.url)[0] == 400
    assert refused.echo.seen == []


@pytest.mark.parametrize(
    "names", [("Risk",), ("",), ("a b",), ("trust",), ("a" * 41,), ("risk", "risk"), ("a\n",)]
)
def test_names_that_cannot_stand_in_headers_are_refused(serve: Serve, names: tuple[str, ...]) -> None:
    with pytest.raises(MisconfiguredError, match="cannot be named"):
        serve(annotators=[CountAnnotator(name) for name in names])
