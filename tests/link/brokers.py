"""Connected pairs of brokers of every kind, for `test_brokers.py`: a kind is one function with `@kind`."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from transom.link.broker import Broker
from transom.link.identity import Identity, Partner
from transom.link.memory import memory_pair
from transom.link.nats import NatsBroker
from transom.link.nats_server import local_server
from transom.link.seal import Seal
from transom.link.tcp import TcpBroker
from transom.net.pin import make_certificate


@dataclass(frozen=True)
class Sizes:
    """What a pair of the suite holds: `HELD_BYTES` bound what both ends and all between them keep."""

    capacity: int = 16
    max_bytes: int = 2**16


HELD_BYTES = 48 * 2**20
WAIT_S = 30.0  # for what must come
Party = tuple[Identity, Partner]
Pair = tuple[Broker, Broker]
Kind = Callable[[Path, Sizes], AbstractContextManager[Pair]]
KINDS: dict[str, Kind] = {}


def kind(make: Callable[[Path, Sizes], Iterator[Pair]]) -> Kind:
    """Register what yields a connected pair and closes both; it gets an empty folder of its own."""
    KINDS[make.__name__] = made = contextmanager(make)
    return made


def party(folder: Path, name: str) -> Party:
    """A party as it sees itself, and as others see it."""
    if not (folder / name).exists():
        make_certificate(folder / name, name)
    return Identity(folder / name), Partner(name, folder / name / "tls.pem")


def require_working(first: Broker, second: Broker) -> None:
    """Each gets what the other publishes; a few may be lost where a connection broke."""
    for sender, receiver in ((first, second), (second, first)):
        token, deadline_s = os.urandom(16), time.monotonic() + WAIT_S
        while True:
            assert time.monotonic() < deadline_s
            sender.publish(token, timeout_s=WAIT_S)
            taken = receiver.take(0.2)
            while taken not in (None, token):
                taken = receiver.take(0.2)
            if taken == token:
                break


def until(told: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S
    while not told():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def taken(broker: Broker, count: int) -> list[bytes | None]:
    return [broker.take(WAIT_S) for _ in range(count)]


@contextmanager
def tcp_pair(
    ours: Party | None,
    theirs: Party | None,
    host: str = "127.0.0.1",
    capacity: int = 16,
    max_bytes: int = 2**16,
    silence_s: float = 20.0,
) -> Iterator[tuple[TcpBroker, TcpBroker]]:
    """The one that listens, the one that connects; over TLS where the parties are given."""
    sizes = {"capacity": capacity, "max_bytes": max_bytes, "max_buffered_bytes": capacity * max_bytes}
    own, known = (ours[0], theirs[1]) if ours and theirs else (None, None)
    back, seen = (theirs[0], ours[1]) if ours and theirs else (None, None)
    with (
        closing(TcpBroker(own, known, listen=(host, 0), silence_s=silence_s, **sizes)) as listens,
        closing(TcpBroker(back, seen, connect=listens.address, silence_s=silence_s, **sizes)) as connects,
    ):
        yield listens, connects


@kind
def tcp_plain(folder: Path, sizes: Sizes) -> Iterator[Pair]:
    with tcp_pair(None, None, capacity=sizes.capacity, max_bytes=sizes.max_bytes) as pair:
        yield pair


@kind
def tcp_tls(folder: Path, sizes: Sizes) -> Iterator[Pair]:
    ours, theirs = party(folder, "ours"), party(folder, "theirs")
    with tcp_pair(ours, theirs, capacity=sizes.capacity, max_bytes=sizes.max_bytes) as pair:
        yield pair


@kind
def memory(folder: Path, sizes: Sizes) -> Iterator[Pair]:
    first, second = memory_pair(sizes.capacity, sizes.max_bytes)
    with closing(first), closing(second):
        yield first, second


@kind
def nats(folder: Path, sizes: Sizes) -> Iterator[Pair]:
    """At a real server, whose streams are bounded as the others."""
    names = ("ours", "theirs")
    parties = {name: party(folder, name) for name in names}
    with ExitStack() as stack:
        server = stack.enter_context(local_server(folder / "server"))
        ends: list[Broker] = []
        for name, other in (names, reversed(names)):
            seal = Seal(
                parties[name][0].key(),
                parties[other][1].key(),
                job="job",
                run="run",
                party=name,
                partner=other,
            )
            end = NatsBroker(
                server.url, seal, max_bytes=sizes.max_bytes, stream_bytes=sizes.capacity * sizes.max_bytes
            )
            ends.append(stack.enter_context(closing(end)))
        first, second = ends
        require_working(first, second)
        yield first, second
