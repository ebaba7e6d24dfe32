"""Event streams against a naive reader of the whole text, whatever the chunks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import EngineGarbageError
from transom.serving.engines.sse import EventParser

LINES = st.sampled_from(
    [
        b"",
        b"",
        b"data: a",
        b"data:b",
        b"data:  c:d",
        b"data",
        b": ping",
        b"event: x",
        b"id: 1",
        b"retry: 5",
        b"e",
    ]
)
STREAMS = st.lists(st.tuples(LINES, st.sampled_from([b"\n", b"\r", b"\r\n"])), max_size=12).map(
    lambda lines: b"".join(line + end for line, end in lines)
)


def whole(stream: bytes) -> list[bytes]:
    """The standard, read off the whole text."""
    events: list[bytes] = []
    data: list[bytes] = []
    *lines, _ = re.split(rb"\r\n|\r|\n", stream.removeprefix(b"\xef\xbb\xbf"))
    for line in lines:
        if not line:
            events += [b"\n".join(data)] if data else []
            data = []
        elif line == b"data" or line.startswith(b"data:"):
            value = line[5:]
            data.append(value[1:] if value.startswith(b" ") else value)
    return events


def chunked(stream: bytes, sizes: list[int]) -> list[bytes]:
    parser, events = EventParser(1000), []
    for size in [*sizes, len(stream)]:
        events += parser.feed(stream[:size])
        stream = stream[size:]
    return events


@given(st.sampled_from([b"", b"\xef\xbb\xbf"]), STREAMS, st.lists(st.integers(0, 4), max_size=60))
def test_chunks_read_like_the_whole(mark: bytes, stream: bytes, sizes: list[int]) -> None:
    assert chunked(mark + stream, sizes) == whole(mark + stream)


@given(st.binary(max_size=40), st.lists(st.integers(0, 3), max_size=40))
def test_any_bytes_read_alike_in_any_chunks(stream: bytes, sizes: list[int]) -> None:
    assert chunked(stream, sizes) == whole(stream)


@pytest.mark.parametrize("flood", [b"x", b"data: x\n", b"data\n", b"data: " + b"x" * 2000])
def test_what_never_ends_is_cut_off(flood: bytes) -> None:
    parser = EventParser(1000)
    with pytest.raises(EngineGarbageError):
        sum(len(parser.feed(flood)) for _ in range(2000))


def test_comments_and_complete_events_do_not_count_towards_the_limit() -> None:
    parser = EventParser(1000)
    assert sum(len(parser.feed(b": ping\n")) for _ in range(2000)) == 0
    assert sum(len(parser.feed(b"data: x\n\n")) for _ in range(2000)) == 2000
