"""Messages between two parties through a NATS server (JetStream) that either of them, or a third, runs.

Each message is sealed for the partner and lies in the job's stream to it until it is taken; one way does not
take the other's space. A connection that breaks is made again from the beginning; what the server has not
acknowledged by then is published again under the same id, which the server knows for two minutes. A message
that is handed over again is a new one.
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
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.errors import LinkError, LinkRefusedError, extra
from transom.link.broker import MAX_MESSAGE_BYTES
from transom.link.mailbox import LINGER_S, Mailbox
from transom.link.nats_client import Place, connect, headers_size, prepare, shut, tls_version
from transom.link.seal import OVERHEAD_BYTES, Seal

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext

_WINDOW = 8  # messages each way that are on their way to or from the server
_WINDOW_BYTES = 32 * 2**20  # of them, but for one; half of what a server lets pile up for a client
_CAPACITY = 64  # messages, and as many bytes as the window's, that wait here each way
_ACK_S = 30.0
_FETCH_S = 5.0
_AGAIN_S = (0.05, 1.0)  # between tries: at first, at most
_CANCEL_S = 0.2
_ID = "Nats-Msg-Id"
_Spawn = Callable[[Coroutine[Any, Any, None]], None]


class NatsBroker:
    """A `Broker` at a NATS server: `tls://HOST:PORT`, or `nats://` where sizes and times may show.

    `seal` names job, run and parties. The job's stream to each party is made if absent, for at most
    `stream_bytes` that are not taken. `ca` is a file of certificates that the server's must follow from,
    `credentials` a user's file as NATS writes it. It connects in the background: a server that is absent is
    waited for; one that refuses us or keeps other streams raises LinkError from `publish` and `take`. What
    waited when a server came that takes less is dropped, and the next `publish` raises LinkRefusedError.
    """

    def __init__(
        self,
        url: str,
        seal: Seal,
        *,
        max_bytes: int = MAX_MESSAGE_BYTES,
        stream_bytes: int = 2**30,
        credentials: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        with extra("link", "nats-py"):
            import nats  # noqa: F401
        self._place = Place(url, seal.job, stream_bytes, credentials, ca)
        self._seal, self._most_bytes = seal, max_bytes
        self._to = self._place.subject(seal.run, seal.partner)
        self._id = f"{seal.job}/{seal.run}/{seal.party}/{secrets.token_hex(8)}"
        self._mailbox = Mailbox(_CAPACITY, max_bytes, _WINDOW_BYTES, self._wake, held=True)
        self._refused: LinkRefusedError | None = None
        self._server: dict[str, str] = {}
        self._counts = Counter(published=0, taken=0, dropped=0, connections=0)
        # The loop's own.
        self._flights: dict[int, bytes] = {}  # what the server has not acknowledged, sealed
        self._number = 0
        self._stirred, self._closing, self._retrying = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._loop = _new_loop()
        self._thread = threading.Thread(target=self._run, name="transom-nats", daemon=True)
        self._thread.start()

    @property
    def max_bytes(self) -> int:
        """The largest message; what the server takes is known once it is connected."""
        return self._mailbox.max_bytes

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        """Hand over a message: it goes until the server has acknowledged it."""
        if (error := self._refused) is not None:
            self._refused = None
            raise error
        self._mailbox.publish(data, timeout_s=timeout_s)

    def take(self, timeout_s: float) -> bytes | None:
        """The next message that the partner sealed; others are dropped and counted."""
        return self._mailbox.take(timeout_s)

    def describe(self) -> Mapping[str, str]:
        """Server, its version, TLS, limits and counts of this end."""
        counts = {name: str(count) for name, count in self._counts.items()}
        seen = {"broker": "nats", "url": self._place.url, "state": self._mailbox.state}
        return seen | self._server | counts

    def close(self) -> None:
        """Wait a moment for the server to acknowledge what was published, then let go of everything."""
        self._mailbox.end()
        self._soon(self._closing.set)
        self._thread.join()

    def _wake(self) -> None:
        self._soon(self._stir)

    def _soon(self, act: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(act)

    # What follows runs in the loop's thread.

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._main())

    async def _main(self) -> None:
        serving = asyncio.create_task(self._serving())
        await self._closing.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_S):
                while not serving.done() and (self._flights or self._mailbox.waiting):
                    await self._stirred.wait()
        while not serving.done():
            serving.cancel()  # which nats-py may swallow
            await asyncio.wait([serving], timeout=_CANCEL_S)

    async def _serving(self) -> None:
        """One connection after the other."""
        while True:
            try:
                await self._serve()
            except LinkError as error:
                self._mailbox.tell(error, last=True)
                self._wake()
                return
            except Exception as why:  # whatever a server makes the library raise is a connection that broke
                self._tell(why)
            await asyncio.sleep(_AGAIN_S[0])

    def _stir(self) -> None:
        """Whoever waits for a change looks again."""
        self._stirred.set()
        self._stirred = asyncio.Event()

    def _tell(self, why: BaseException) -> None:
        if not isinstance(why, TimeoutError):  # which says less than what came before
            self._mailbox.state = f"the server {self._place.url} says {type(why).__name__}: {why}"[:300]

    async def _serve(self) -> None:
        """A connection until it breaks."""
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
            spawn(self._send(js, spawn))
            while not lost.is_set() and not client.is_closed:  # a dead peer may keep nats-py from telling
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await lost.wait()
        finally:
            await shut(client)  # first: what waits for it ends
            for task in list(tasks):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _arrive(
        self, client: Client
    ) -> tuple[JetStreamContext, JetStreamContext.PullSubscription, int]:
        """What a connection needs before messages go over it."""
        js = client.jetstream()
        consumer, largest = await prepare(
            js, self._place, self._seal.run, self._seal.party, self._seal.partner
        )
        pull = await js.pull_subscribe_bind(consumer, self._place.stream(self._seal.party))
        payload = client.max_payload if largest < 0 else min(client.max_payload, largest)
        limit_bytes = payload - headers_size({_ID: self._name(0)}) - OVERHEAD_BYTES
        self._mailbox.carries(min(self._most_bytes, limit_bytes))
        self._counts["connections"] += 1
        version = client.connected_server_version
        self._server = {
            "server": f"NATS {version.major}.{version.minor}.{version.patch}",
            "tls": tls_version(client) or "none: sizes and times of messages show to the network",
            "max_bytes": str(self.max_bytes),
        }
        return js, pull, max(1, min(_WINDOW, _WINDOW_BYTES // payload))

    async def _receive(self, pull: JetStreamContext.PullSubscription, batch: int) -> None:
        """Acknowledge at once: it is the partner's session that keeps a message until it is applied."""
        while True:
            while self._mailbox.full:
                await self._stirred.wait()
            try:
                messages = await pull.fetch(batch, timeout=_FETCH_S)
            except TimeoutError:  # none came
                continue
            for message in messages:
                await message.ack()
                try:
                    self._mailbox.deliver(self._seal.open(message.data))
                    self._counts["taken"] += 1
                except LinkRefusedError:
                    self._counts["dropped"] += 1

    async def _send(self, js: JetStreamContext, spawn: _Spawn) -> None:
        """What the last connection left unacknowledged, then what waits, a few at a time."""
        for number in list(self._flights):
            self._start(js, number, spawn)
        while True:
            while self._has_room() and (message := self._mailbox.next()) is not None:
                self._flights[self._number] = self._seal.seal(message)
                self._start(js, self._number, spawn)
                self._number += 1
            await self._stirred.wait()

    def _has_room(self) -> bool:
        return len(self._flights) < _WINDOW and sum(map(len, self._flights.values())) < _WINDOW_BYTES

    def _start(self, js: JetStreamContext, number: int, spawn: _Spawn) -> None:
        size = len(self._flights[number]) - OVERHEAD_BYTES
        if size <= self.max_bytes:
            spawn(self._deliver(js, number))
            return
        del self._flights[number]
        self._refused = LinkRefusedError(
            f"a message of {size} bytes waited, and {self._place.url} takes {self.max_bytes}; send smaller "
            "batches, or raise the server's max_payload"
        )

    async def _deliver(self, js: JetStreamContext, number: int) -> None:
        """Until the server has it. What it refuses for want of space goes again, one message at a time."""
        if not await self._stored(js, number):
            async with self._retrying:
                pause_s, longest_s = _AGAIN_S
                while not await self._stored(js, number):
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, longest_s)
        del self._flights[number]
        self._counts["published"] += 1
        self._mailbox.state = "connected"
        self._stir()

    async def _stored(self, js: JetStreamContext, number: int) -> bool:
        from nats.js.errors import APIError

        try:
            await js.publish(self._to, self._flights[number], _ACK_S, headers={_ID: self._name(number)})
        except (APIError, TimeoutError) as why:
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
