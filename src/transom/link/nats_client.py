"""One connection to a NATS server, with the stream and the consumer that a party of a run needs there.

Nothing here is kept over a connection that breaks: `transom.link.nats` makes the next one from the beginning.
Threat model: whoever runs the server, and the network. Messages come sealed (`transom.link.seal`).
Does not protect: sizes and times of messages show to both; the server can lose, double and stop them.
Source: https://docs.nats.io/reference/reference-protocols and .../using-nats/developer/connecting/creds.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.errors import LinkError, LinkRefusedError, extra, system_errors
from transom.net.urls import split_url

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.js import JetStreamContext
    from nats.js.api import StreamConfig

_CONNECT_S = 5
_SHUT_S = 2
_DROP_S = 0.1
_KEPT_S = 86_400.0  # messages and consumers of a run that was given up
_DUPLICATES_S = 120.0
_PING_S = 5
_IN_THE_WAY = (10012, 10065)  # a consumer with other limits; another stream with the same subjects
_PART = re.compile(r"-----BEGIN [A-Z ]+-----\s+(\S+)\s+-+END")


@dataclass(frozen=True)
class Place:
    """Where messages of a job lie, and how one gets there. `stream_bytes` bounds what waits each way."""

    url: str
    job: str
    stream_bytes: int
    credentials: Path | None = None
    ca: Path | None = None

    def __post_init__(self) -> None:
        split_url(self.url, "the NATS server's URL", ("tls", "nats"))

    @property
    def wants_tls(self) -> bool:
        return self.ca is not None or self.url.startswith("tls:")

    def stream(self, to: str) -> str:
        return f"TRANSOM-{_token(self.job)}~{_token(to)}"

    def subject(self, run: str, to: str) -> str:
        return f"transom.{_token(self.job)}.{_token(run)}.{_token(to)}"


def _token(name: str) -> str:
    """A name in which a dot would begin another token of a subject; no name holds `=`."""
    return name.replace(".", "=")


async def connect(
    place: Place, on_error: Callable[[Exception], None], on_close: Callable[[], None]
) -> Client:
    """A client that is connected and does not connect again by itself.

    Raises LinkRefusedError for a server that is not the one wanted or does not want us, and whatever nats-py
    raises for one that is not there.
    """
    with extra("link", "nats-py"):
        from nats.aio.client import Client
    client = Client()

    async def error_cb(error: Exception) -> None:
        on_error(error)

    async def closed_cb() -> None:
        on_close()

    try:
        await client.connect(
            place.url,
            error_cb=error_cb,
            closed_cb=closed_cb,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=_CONNECT_S,
            ping_interval=_PING_S,
            pending_size=0,  # no forced flush: it swallows cancellation; the broker bounds what is in flight
            tls=_tls(place),
            **_credentials(place, client),
        )
        _require_tls(place, client)
    except BaseException as why:
        await _drop(client)
        if isinstance(why, ssl.SSLError) or "authoriz" in str(why).lower():
            raise LinkRefusedError(
                f"{place.url} is not the server wanted, or does not want us: {why}; check ca and credentials"
            ) from None
        raise
    return client


async def shut(client: Client) -> None:
    """Close once the server has read what was written, if it still reads."""
    try:
        with contextlib.suppress(Exception):
            await client.flush(_SHUT_S)
    finally:
        await _drop(client)


async def _drop(client: Client) -> None:
    """Close at once; the library alone would wait for a server that does not answer."""
    if (writer := _writer(client)) is not None:
        writer.transport.abort()
    with contextlib.suppress(Exception):
        async with asyncio.timeout(_DROP_S):
            await client.close()


def headers_size(headers: dict[str, str]) -> int:
    """Bytes of headers on the wire. The server counts them towards its max_payload, nats-py does not."""
    return len("NATS/1.0\r\n\r\n") + sum(len(f"{name}: {value}\r\n") for name, value in headers.items())


def _writer(client: Client) -> Any:
    """The library's inside, which nothing else reaches; None where it is not as we know it."""
    return getattr(getattr(client, "_transport", None), "_io_writer", None)


def tls_version(client: Client) -> str | None:
    """What the connection speaks; None without TLS."""
    writer = _writer(client)
    session = writer.get_extra_info("ssl_object") if writer is not None else None
    return session.version() if session is not None else None


def _tls(place: Place) -> ssl.SSLContext | None:
    if not place.wants_tls:  # a server that insists gets the library's own
        return None
    with system_errors(f"the CA file {place.ca} cannot be read", error=LinkError):
        return ssl.create_default_context(cafile=place.ca)


def _require_tls(place: Place, client: Client) -> None:
    """nats-py takes a server without TLS at a `tls:` address, too."""
    if place.wants_tls and tls_version(client) is None:
        raise LinkRefusedError(f"{place.url} does not speak TLS; nothing was sent to it")


def _credentials(place: Place, client: Client) -> dict[str, Any]:
    """How nats-py signs the server's challenge with the key of a credentials file, once TLS is there."""
    if place.credentials is None:
        return {}
    with system_errors(f"the credentials file {place.credentials} cannot be read", error=LinkError):
        parts = _PART.findall(place.credentials.read_text(encoding="ascii", errors="replace"))
    try:
        token, seed = parts
        key = _signing_key(seed)
    except ValueError:
        raise LinkError(
            f"{place.credentials} is not a NATS credentials file, which holds a user's token and seed; got "
            f"{len(parts)} parts"
        ) from None

    def signed(nonce: str) -> bytes:
        _require_tls(place, client)
        return base64.b64encode(key.sign(nonce.encode()))

    return {"user_jwt_cb": token.encode, "signature_cb": signed}


def _signing_key(seed: str) -> Any:
    """The Ed25519 key of an nkey: two bytes of kind, 32 of seed, two of checksum. Raises ValueError."""
    with extra("link", "cryptography"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
    return Ed25519PrivateKey.from_private_bytes(raw[2:-2])


async def prepare(js: JetStreamContext, place: Place, run: str, party: str, partner: str) -> tuple[str, int]:
    """Make the job's streams to both parties and this one's consumer where absent.

    The consumer's name, and the bytes that the partner's stream takes of one message with its headers (-1:
    all). Raises LinkError for a stream or a consumer that does not do.
    """
    from nats.js.api import ConsumerConfig

    await _stream(js, place, party)
    found = await _stream(js, place, partner)
    consumer = f"{_token(run)}~{_token(party)}"
    wanted = ConsumerConfig(
        durable_name=consumer, filter_subject=place.subject(run, party), inactive_threshold=_KEPT_S
    )
    with _made(f"the consumer {consumer} of {place.stream(party)}"):  # what can be changed becomes ours
        await js.add_consumer(place.stream(party), wanted)
    return consumer, found.max_msg_size or -1


async def _stream(js: JetStreamContext, place: Place, to: str) -> StreamConfig:
    from nats.js.api import DiscardPolicy, RetentionPolicy, StreamConfig
    from nats.js.errors import NotFoundError

    wanted = StreamConfig(
        name=place.stream(to),
        subjects=[place.subject("*", to)],
        retention=RetentionPolicy.WORK_QUEUE,
        discard=DiscardPolicy.NEW,
        max_bytes=place.stream_bytes,
        max_msgs_per_subject=-1,
        no_ack=False,
        max_age=_KEPT_S,
        duplicate_window=_DUPLICATES_S,
    )
    try:
        found = (await js.stream_info(place.stream(to))).config
    except NotFoundError:
        with _made(f"the stream {place.stream(to)}"):
            found = (await js.add_stream(wanted)).config
    _require_fit(place.stream(to), found, wanted)
    return found


@contextlib.contextmanager
def _made(what: str) -> Iterator[None]:
    """Raises LinkError where something that is there stands in the way, for good."""
    from nats.js.errors import APIError

    try:
        yield
    except APIError as why:
        if why.err_code not in _IN_THE_WAY:
            raise
        raise LinkError(f"{what} cannot be made: {why.description}; delete what is in its way") from None


def _require_fit(stream: str, found: StreamConfig, wanted: StreamConfig) -> None:
    """A stream that someone else made does if it keeps what was not taken; a smaller one fills sooner."""
    names = ("subjects", "retention", "discard", "max_msgs_per_subject", "no_ack")
    unlike = [name for name in names if getattr(found, name) != getattr(wanted, name)]
    if unlike:
        told = ", ".join(
            f"{name} {_plain(getattr(found, name))} (wanted {_plain(getattr(wanted, name))})"
            for name in unlike
        )
        raise LinkError(
            f"the stream {stream} is there with other limits: {told}; delete it or ask for the same"
        )


def _plain(value: object) -> object:
    return getattr(value, "value", value)
