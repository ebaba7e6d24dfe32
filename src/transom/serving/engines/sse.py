"""Server-sent events, read as the standard says, a piece at a time and in linear time.

Lines end with CR, LF or CRLF, also where a chunk ends between the two; the `data` lines of one event are
joined with LF; comments and the fields `event`, `id` and `retry` are dropped; an empty line ends an event.
Threat model: a host that sends lines or events without end; they are cut off at `limit_bytes`.
Does not protect: what stands in an event is the reader's business.
Source: WHATWG HTML, section 9.2.6, interpreting an event stream.
"""

from __future__ import annotations

import re

from transom.errors import EngineGarbageError

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class EventParser:
    """Chunks of a stream in, the data of complete events out."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._size_bytes = 0  # of what is kept below
        self._line: list[bytes] = []  # the parts of the line that has not ended
        self._data: list[bytes] = []  # the data lines of the event that has not ended
        self._first = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that `chunk` completes. Raises EngineGarbageError for one too large."""
        if not chunk:
            return []
        if self._after_cr:
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        *ends, rest = _LINE_END.split(chunk)
        events = []
        for end in ends:
            self._keep(end)
            line, self._line = b"".join(self._line), []
            if self._first:
                line, self._first = line.removeprefix(_BOM), False
            if line:
                self._field(line)
                continue
            if self._data:
                events.append(b"\n".join(self._data))
            self._data, self._size_bytes = [], 0
        self._keep(rest)
        return events

    def _keep(self, part: bytes) -> None:
        self._size_bytes += len(part)
        if self._size_bytes > self._limit_bytes:
            raise EngineGarbageError("an event of the engine's stream is larger than any; it was cut off")
        if part:
            self._line.append(part)

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        else:
            self._size_bytes -= len(line)
