"""Messages between two parties through a NATS server (JetStream) that either of them, or a third, runs.

Each message is sealed for the partner and lies in the job's stream until it is taken. A connection that
breaks is made again from the beginning; what the server has not acknowledged by then is published again
under the same id, which the server knows for two minutes. A message that is handed over again is a new one.
Threat model: whoever runs the server or reaches it, and the network: all may lose, double, reorder, alter
and send messages. What the partner did not seal is dropped and counted.
Does not protect: sizes and times of messages show to the server, and without TLS to the network; the server
can stop the run. No acknowledgement of it is durable: `transom.link.session` goes by the partner's.
Source: https://docs.nats.io/nats-concepts/jetstream; limits of the server as its tests here show them.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError, extra
from transom.link.broker import MAX_MESSAGE_BYTES
from transom.link.nats_client import Place, connect, headers_size, prepare, shut, tls_version
from transom.link.seal import OVERHEAD_BYTES, Seal

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

_WINDOW = 8  # messages each way that are on their way to or from the server
_WINDOW_BYTES = 32 * 2**20  # of them, but for one; half of what a server lets pile up for a client
_INBOX = 64  # messages, and as many bytes as the window's, that wait to be taken here
_ACK_S = 30.0
_FETCH_S = 5.0
_AGAIN_S = (0.05, 1.0)  # between tries: at first, at most
_LINGER_S = 2.0
_CANCEL_S = 0.2
_ID = "Nats-Msg-Id"


class NatsBroker:
    """A `Broker` at a NATS server: `tls://HOST:PORT`, or `nats://` where sizes and times may show.

    `seal` names job, run and parties. The job's stream is made if absent, for at most `stream_bytes` that
    are not taken. `ca` is a file of certificates that the server's must follow from, `credentials` a user's
    file as NATS writes it. It connects in the background: a server that is absent is waited for; one that
    refuses us or keeps another stream raises LinkError from `publish` and `take`.
    """

    def __init__(
        self,
        url: str,
        seal: Seal,
        *,
        stream_bytes: int = 2**30,
        credentials: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        with extra("link", "nats-py"):
            import nats  # noqa: F401
        self._place = Place(url, seal.job, stream_bytes, credentials, ca)
        self._seal = seal
        self._to = self._place.subject(seal.run, seal.partner)
        self._id = f"{seal.job}/{seal.run}/{seal.party}/{secrets.token_hex(8)}"
        self._told = "nothing"  # by the server, or about it
        self._server: dict[str, str] = {}
        self._limit_bytes = 0  # of a sealed message; 0 until the server told it
        # The caller's threads and the loop's share these under the condition.
        self._arrived = threading.Condition()
        self._inbox: deque[bytes] = deque()
        self._counts = {"published": 0, "taken": 0, "dropped": 0, "connections": 0}
        self._failed: LinkError | None = None
        self._closed = False
        # The loop's own.
        self._client: Client | None = None
        self._flights: dict[int, bytes] = {}  # what the server has not acknowledged
        self._number = 0
        self._start: Callable[[int], object] = lambda number: None  # while not connected
        self._changed, self._retrying = asyncio.Condition(), asyncio.Lock()
        self._room, self._closing = asyncio.Event(), asyncio.Event()
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="transom-nats", daemon=True)
        self._thread.start()

    @property
    def max_bytes(self) -> int:
        """The largest message; what the server takes is known once it is connected."""
        return min(MAX_MESSAGE_BYTES, (self._limit_bytes or 2 * MAX_MESSAGE_BYTES) - OVERHEAD_BYTES)

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        """Hand over a message: it is on its way when this returns, and goes again until acknowledged."""
        self._require_fit(len(data))
        sealed = self._seal.seal(data)
        with self._arrived:
            self._require_usable()
            admitted = asyncio.run_coroutine_threadsafe(self._admit(sealed), self._loop)
        try:
            admitted.result(timeout_s)
        except TimeoutError:
            admitted.cancel()
            raise LinkTimeoutError(
                f"{self._place.url} took no message of {len(data)} bytes within {timeout_s:g} s; last told: "
                f"{self._told}. Is it up, and does the partner take its messages?"
            ) from None
        except CancelledError:
            raise _closed() from None

    def take(self, timeout_s: float) -> bytes | None:
        """The next message that the partner sealed; others are dropped and counted."""
        deadline_s = time.monotonic() + timeout_s
        while (sealed := self._next(deadline_s - time.monotonic())) is not None:
            try:
                data = self._seal.open(sealed)
            except LinkRefusedError:
                self._count("dropped")
            else:
                self._count("taken")
                return data
            if time.monotonic() > deadline_s:
                break
        return None

    def describe(self) -> Mapping[str, str]:
        """Server, its version, TLS, limits and counts of this end."""
        with self._arrived:
            counts = {name: str(count) for name, count in self._counts.items()}
        seen = {"kind": "nats", "url": self._place.url, "stream": self._place.stream, "last told": self._told}
        return seen | self._server | counts

    def close(self) -> None:
        """Wait a moment for the server to acknowledge what is on its way, then let go of everything."""
        with self._arrived:
            if self._closed:
                return
            self._closed = True
            self._arrived.notify_all()
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    def _require_usable(self) -> None:
        if self._failed is not None:
            raise type(self._failed)(str(self._failed))
        if self._closed:
            raise _closed()

    def _require_fit(self, size: int) -> None:
        if size > self.max_bytes:
            raise LinkRefusedError(
                f"a message of {size} bytes is larger than the {self.max_bytes} that {self._place.url} "
                "takes; send smaller batches, or raise the server's max_payload"
            )

    def _next(self, timeout_s: float) -> bytes | None:
        with self._arrived:
            self._arrived.wait_for(
                lambda: self._inbox or self._failed or self._closed, timeout=max(0.0, timeout_s)
            )
            if self._inbox:
                sealed = self._inbox.popleft()
                if not self._closed and not self._is_full():
                    self._loop.call_soon_threadsafe(self._room.set)
                return sealed
            if self._failed is not None:
                self._require_usable()
            return None

    def _is_full(self) -> bool:
        return len(self._inbox) >= _INBOX or sum(map(len, self._inbox)) >= _WINDOW_BYTES

    def _count(self, name: str) -> None:
        with self._arrived:
            self._counts[name] += 1

    # What follows runs in the loop's thread.

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        serving = asyncio.create_task(self._serving())
        await self._closing.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S), self._changed:
                await self._changed.wait_for(lambda: not self._flights or self._client is None)
        while not serving.done():
            serving.cancel()  # which nats-py may swallow
            await asyncio.wait([serving], timeout=_CANCEL_S)

    async def _serving(self) -> None:
        """One connection after the other."""
        while not self._closing.is_set():
            try:
                await self._serve()
            except LinkError as error:
                await self._fail(error)
                return
            except Exception as why:  # whatever a server makes the library raise is a connection that broke
                self._tell(why)
            await asyncio.sleep(_AGAIN_S[0])

    async def _fail(self, error: LinkError) -> None:
        with self._arrived:
            self._failed = error
            self._arrived.notify_all()
        async with self._changed:
            self._changed.notify_all()

    def _tell(self, why: BaseException) -> None:
        if not isinstance(why, TimeoutError):  # which says less than what came before
            self._told = f"{type(why).__name__}: {why}"[:300]

    async def _serve(self) -> None:
        """A connection until it breaks: what is unacknowledged goes first."""
        lost, tasks = asyncio.Event(), set[asyncio.Task[None]]()

        def done(task: asyncio.Task[None]) -> None:
            tasks.discard(task)
            if not task.cancelled() and (why := task.exception()) is not None:
                self._tell(why)
                lost.set()

        def spawn(work: Coroutine[Any, Any, None]) -> None:
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(done)

        client = await connect(self._place, self._tell, lost.set)
        try:
            js, pull, batch = await self._arrive(client)
            spawn(self._receive(pull, batch))
            self._start = lambda number: spawn(self._deliver(js, number))
            for number in self._flights:
                self._start(number)
            while not lost.is_set() and not client.is_closed:  # a dead peer may keep nats-py from telling
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await lost.wait()
        finally:
            self._client, self._start = None, lambda number: None
            await shut(client)  # first: what waits for it ends
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _arrive(
        self, client: Client
    ) -> tuple[JetStreamContext, JetStreamContext.PullSubscription, int]:
        """What a connection needs before messages go over it."""
        js = client.jetstream()
        consumer, largest = await prepare(js, self._place, self._seal.run, self._seal.party)
        pull = await js.pull_subscribe_bind(consumer, self._place.stream)
        payload = client.max_payload if largest < 0 else min(client.max_payload, largest)
        self._limit_bytes = payload - headers_size({_ID: self._name(0)})
        self._client, self._told = client, "nothing"
        self._count("connections")
        version = client.connected_server_version
        self._server = {
            "server": f"NATS {version.major}.{version.minor}.{version.patch}",
            "tls": tls_version(client) or "none: sizes and times of messages show to the network",
            "max_bytes": str(self.max_bytes),
        }
        async with self._changed:
            self._changed.notify_all()
        return js, pull, max(1, min(_WINDOW, _WINDOW_BYTES // payload))

    async def _receive(self, pull: JetStreamContext.PullSubscription, batch: int) -> None:
        """Acknowledge at once: it is the partner's session that keeps a message until it is applied."""
        while True:
            with self._arrived:
                if self._is_full():
                    self._room.clear()
                else:
                    self._room.set()
            await self._room.wait()
            try:
                messages = await pull.fetch(batch, timeout=_FETCH_S)
            except TimeoutError:  # none came
                continue
            for message in messages:
                await message.ack()
            with self._arrived:
                self._inbox.extend(message.data for message in messages)
                self._arrived.notify_all()

    async def _admit(self, sealed: bytes) -> None:
        """Send once there is room for one more on its way."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failed is not None or self._has_room(len(sealed)))
        self._require_usable()
        self._require_fit(len(sealed) - OVERHEAD_BYTES)
        number, self._number = self._number, self._number + 1
        self._flights[number] = sealed
        self._start(number)

    def _has_room(self, size: int) -> bool:
        if not self._flights:
            return self._limit_bytes > 0
        return len(self._flights) < _WINDOW and size + sum(map(len, self._flights.values())) <= _WINDOW_BYTES

    async def _deliver(self, js: JetStreamContext, number: int) -> None:
        """Until the server has it. What it refuses for want of space goes again, one message at a time."""
        if not await self._stored(js, number):
            async with self._retrying:
                pause_s, longest_s = _AGAIN_S
                while not await self._stored(js, number):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
        del self._flights[number]
        self._count("published")
        async with self._changed:
            self._changed.notify_all()

    async def _stored(self, js: JetStreamContext, number: int) -> bool:
        from nats.errors import TimeoutError as NoAnswerError
        from nats.js.errors import APIError

        try:
            await js.publish(
                self._to, self._flights[number], timeout=_ACK_S, headers={_ID: self._name(number)}
            )
        except (APIError, NoAnswerError) as why:
            self._tell(why)
            return False
        return True

    def _name(self, number: int) -> str:
        """The id by which the server knows a duplicate: of this hand-over, not of the message, for one that
        was purged is still known. Always of one length."""
        return f"{self._id}/{number:016d}"


def _new_loop() -> asyncio.AbstractEventLoop:
    """A fast one where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def _closed() -> LinkError:
    return LinkError("this end of the link is closed; open another one")
