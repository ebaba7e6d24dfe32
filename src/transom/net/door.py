"""What a connection may do around a request: send it in time, name one host, and take the answer.

A request must be whole within `request_timeout_s` of its first byte, and a second more for every 16 KiB of it
that came; else 408 and the end of the connection. Its head has 64 KiB, or what comes in one piece; else 431.
A connection on which nothing comes ends as silently, and so does one whose client takes nothing of its answer
for as long. Of a target with an authority
(`GET http://other/path`) that authority is the host, whatever the `Host` header says.
Threat model: clients that open connections and send a request by halves, or never read; requests whose target
and `Host` header name two machines.
Does not protect against: many whole requests; TLS handshakes by halves, which asyncio ends after a minute.
Source: RFC 9112, sections 3.2.2 and 9.5; RFC 9110, section 15.5.9.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

RATE_BYTES_S = 16 * 1024
HEAD_BYTES = 64 * 1024
_UPGRADE = re.compile(rb"\r\nupgrade(?=[ \t]*:)", re.IGNORECASE)
_AUTHORITY = re.compile(rb"https?://([^/?#]*)", re.IGNORECASE)
_LATE = (
    b'{"error":{"message":"the request did not arrive in time; send it again","type":"invalid_request_error",'
    b'"param":null,"code":"request_timeout"}}'
)
_ANSWER = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%b" % (len(_LATE), _LATE)
)
_ENDLESS = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def _without_upgrade(data: bytes) -> bytes:
    """A piece of a request with an offer of another protocol in its head renamed, and so not taken.

    The parser drops the body of a request that offers one (RFC 9110, 7.8: the offer may be ignored).
    """
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    return _UPGRADE.sub(b"\r\nx-upgrade", head) + data[len(head) :]


class Door(HttpToolsProtocol):
    """uvicorn's protocol with these bounds."""

    def __init__(self, *args: Any, request_timeout_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timeout_s = request_timeout_s
        self._alarm: asyncio.TimerHandle | None = None  # while a request is due
        self._stuck: asyncio.TimerHandle | None = None  # while the client takes nothing
        self._since_s, self._came_bytes, self._in_head = 0.0, 0, True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in filter(None, (self._alarm, self._stuck)):
            timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._alarm is None:
            self._expect()
        self._came_bytes += len(data)
        super().data_received(_without_upgrade(data) if self._in_head else data)
        if self._in_head and self._came_bytes > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_ENDLESS)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._in_head = True
        if self._alarm is None:  # it begins behind another one, in the same piece
            self._expect()
            self._came_bytes = 1
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        if not self.url.startswith(b"/") and self.url != b"*":
            named = _AUTHORITY.match(self.url)
            if named is None:
                raise ValueError("a target of a form that only proxies take")  # answered 400
            self.headers[:] = [one for one in self.headers if one[0] != b"host"] + [(b"host", named[1])]
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        super().on_message_complete()

    def pause_writing(self) -> None:
        self._watch()
        super().pause_writing()

    def _watch(self, before: int | None = None) -> None:
        """End the connection if nothing of what waits, `before` bytes, has been taken since the last look."""
        waiting = self.transport.get_write_buffer_size()
        if before is not None and waiting >= before:
            self.transport.abort()
            return
        self._stuck = self.loop.call_later(self._timeout_s, self._watch, waiting)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        super().resume_writing()

    def _expect(self) -> None:
        """From now on a request is due."""
        self._since_s = self.loop.time()
        self._came_bytes = 0
        self._in_head = True
        self._alarm = self.loop.call_later(self._timeout_s, self._late)

    def _late(self) -> None:
        due_s = self._since_s + self._timeout_s + self._came_bytes / RATE_BYTES_S
        answering = self.cycle is not None and not self.cycle.response_complete
        if self.flow.read_paused or (answering and self._in_head):  # it waits for us
            due_s = self.loop.time() + self._timeout_s
        if self.loop.time() < due_s:
            self._alarm = self.loop.call_at(due_s, self._late)
            return
        unanswered = self._in_head or (answering and not self.cycle.response_started)
        if self._came_bytes and unanswered and not self.transport.is_closing():
            self.transport.write(_ANSWER)
        self.transport.close()
