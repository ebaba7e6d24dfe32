"""What one party says of its link: who it is, who the partner is, where they meet.

Threat model: that of `transom.config`. The partner is whoever holds the key of `partner_certificate`.
Does not protect: a certificate that was swapped before it came here: compare its pin by another way.
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.link.broker import MAX_MESSAGE_BYTES, Broker
from transom.link.message import NAME
from transom.link.numbers import MAX_EXTRAS
from transom.net.urls import is_loopback

if TYPE_CHECKING:
    from transom.link.exchange import Agreement
    from transom.link.identity import Identity, Partner
    from transom.link.session import Session

Wire = Literal["fp32", "bf16", "fp8", "int8"]
_NAMED = Setting(pattern=NAME.pattern, wanted="be 1 to 64 letters, digits, dots and dashes")


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """One end of a link. `listen`, `connect` and `nats`: one of them says where the parties meet."""

    job: Annotated[str, _NAMED]
    run: Annotated[str, _NAMED]
    party: Annotated[str, _NAMED]
    partner: Annotated[str, _NAMED]
    identity: Annotated[Path | None, "Folder with this party's tls.pem and tls.key."] = None
    partner_certificate: Annotated[Path | None, "The partner's tls.pem."] = None
    listen: Annotated[str, "HOST:PORT to wait at."] = ""
    connect: Annotated[str, "HOST:PORT where the partner waits."] = ""
    nats: Annotated[str, "URL of a NATS server with JetStream."] = ""
    nats_credentials: Annotated[Path | None, "Credentials file for the NATS server."] = None
    nats_ca: Annotated[Path | None, "Certificate authority of the NATS server, PEM."] = None
    record: Annotated[Path | None, "Folder of what must survive a restart."] = None
    wire: Annotated[Wire, "How numbers travel."] = "fp32"
    window: Annotated[int, Setting("Messages on their way at most.", least=1, most=MAX_EXTRAS)] = 64
    window_mb: Annotated[int, Setting("Megabytes on their way at most.", least=1, most=65536)] = 256
    message_mb: Annotated[int, Setting("Megabytes of a message at most.", least=1, most=1024)] = (
        MAX_MESSAGE_BYTES // 2**20
    )
    timeout_s: Annotated[float, Setting("How long the partner may be silent.", above=0, most=1e6)] = 60.0

    def problems(self) -> Iterator[str]:
        """What several fields say together and must not."""
        ways = [way for way in ("listen", "connect", "nats") if getattr(self, way)]
        if len(ways) != 1:
            yield f"one of listen, connect and nats says where the parties meet, got {ways or 'none'}"
        for way in (self.listen, self.connect):
            if way:
                address(way)
        if self.party == self.partner:
            yield f"party and partner have one name, {self.party!r}"
        if (self.identity is None) != (self.partner_certificate is None):
            yield "identity and partner_certificate go together; one of them is missing"
        elif self.identity is None and len(ways) == 1 and not self._on_this_machine():
            yield "beyond this machine the parties need identity and partner_certificate (transom link keys)"
        elif self.identity is None and self.nats:
            yield "messages over NATS are sealed: give identity and partner_certificate (transom link keys)"

    def _on_this_machine(self) -> bool:
        return bool(self.nats) or is_loopback(address(self.listen or self.connect)[0])


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, of IPv6 [HOST]:PORT. Raises MisconfiguredError.

    >>> address("[::1]:7000")
    ('::1', 7000)
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise MisconfiguredError(f"an address looks like HOST:PORT or [IPV6]:PORT, got {text!r:.80}")
    return host, int(port)


@contextmanager
def opened(config: LinkConfig) -> Iterator[Broker]:
    """The broker that the configuration names, until the end of the block.

    Raises MisconfiguredError, LinkError, MissingExtraError.
    """
    broker = _nats(config) if config.nats else _tcp(config)
    try:
        yield broker
    finally:
        broker.close()


def _tcp(config: LinkConfig) -> Broker:
    from transom.link.tcp import TcpBroker

    identity, partner = _keys(config)
    return TcpBroker(
        identity,
        partner,
        listen=address(config.listen) if config.listen else None,
        connect=address(config.connect) if config.connect else None,
        capacity=config.window,
        max_bytes=config.message_mb * 2**20,
    )


def _nats(config: LinkConfig) -> Broker:
    from transom.link.nats import NatsBroker
    from transom.link.seal import Seal

    identity, partner = _keys(config)
    if identity is None or partner is None:
        raise MisconfiguredError("messages over NATS are sealed: give identity and partner_certificate")
    seal = Seal(
        identity.key(),
        partner.key(),
        job=config.job,
        run=config.run,
        party=config.party,
        partner=config.partner,
    )
    return NatsBroker(
        config.nats,
        seal,
        max_bytes=config.message_mb * 2**20,
        credentials=config.nats_credentials,
        ca=config.nats_ca,
    )


def _keys(config: LinkConfig) -> tuple[Identity | None, Partner | None]:
    from transom.link.identity import Identity, Partner

    if config.identity is None or config.partner_certificate is None:
        return None, None
    return Identity(config.identity), Partner(config.partner, config.partner_certificate)


@contextmanager
def connected(
    config: LinkConfig, terms: Mapping[str, str], *, run: str | None = None, meet_s: float | None = None
) -> Iterator[tuple[Session, Agreement, Broker]]:
    """A session with the partner that has agreed to the same terms; `run` in place of the file's. Who does
    not come in `meet_s`, or the link's timeout, is not waited for.

    Raises LinkError (a stranger, terms that differ, nobody came), MisconfiguredError.
    """
    from transom.link.record import Record
    from transom.link.session import Session

    config = config if run is None else replace(config, run=run)
    path = None if config.record is None else config.record / f"{config.run}-{config.party}.sqlite"
    record = Record(path, job=config.job, run=config.run, party=config.party, partner=config.partner)
    with closing(record), opened(config) as broker:
        session = Session(
            broker,
            record,
            {**terms, "wire": config.wire},
            wire=config.wire,
            window=config.window,
            window_bytes=config.window_mb * 2**20,
            timeout_s=config.timeout_s,
        )
        with closing(session):
            yield session, session.connect(meet_s), broker
