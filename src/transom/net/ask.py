"""JSON asked of another machine: one answer, bounded in time and size, no redirects, no cookies.

Threat model: the other machine and the network may answer anything, slowly, or without end.
Does not protect against: what the answer says; whoever asks checks it. See `http` for TLS and pins.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from transom.net.http import Site

if TYPE_CHECKING:
    from transom.net.pin import KeyPin


class JsonClient:
    """Posts JSON to one base URL, which must have been checked. Used from one event loop.

    `timeout_s` bounds each request, answer included. Without a `pin` the system's authorities decide, or
    nobody with `any_certificate`, for answers that prove themselves.
    """

    def __init__(
        self,
        url: str,
        *,
        pin: KeyPin | None = None,
        timeout_s: float,
        limit_bytes: int,
        any_certificate: bool = False,
    ) -> None:
        self._site = Site(url, connect_s=timeout_s, any_certificate=any_certificate)
        self._pin = pin
        self._timeout_s = timeout_s
        self._limit_bytes = limit_bytes

    async def post(self, path: str, body: Mapping[str, Any]) -> tuple[int, bytes]:
        """Status and body. Raises TimeoutError and other OSErrors, EvidenceError (another key than the
        pin's), LongAnswerError, and ValueError for what is no HTTP or is compressed."""
        request = self._site.request("POST", path, json.dumps(body).encode())
        async with asyncio.timeout(self._timeout_s):
            answer = await self._site.ask(request, self._pin)
            try:
                if answer.headers.get("content-encoding", "identity").lower() != "identity":
                    raise ValueError("compressed, though plain was asked for")
                return answer.status, await answer.whole(self._limit_bytes)
            finally:
                self._site.release(answer)

    async def aclose(self) -> None:
        """Close idle connections, and let the event loop close their sockets."""
        self._site.close()
        await asyncio.sleep(0)
