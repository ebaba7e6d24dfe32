"""How much of a way the link uses: TCP against a raw socket, NATS on a link of 200 Mbit/s.

    python benchmarks/link_throughput.py [--quick] [--json]

`share_of_socket`: messages of 1 MB through TcpBroker over mutual TLS, against `sendall` and `recv_into` of a
raw blocking socket with the same TLS context, both between two processes, by turns; the median of the ratios.
`share_with_codec`: the same with a tensor that is encoded, checked and decoded for each. `share_of_link`:
tensors through sealed NATS and a whole session (record on disk, status messages, several in flight), on a
relay that passes 200 Mbit/s. `session_of_socket` is the whole session over TCP with its record on disk: what
durability costs. `round_trip_ms` is for a message of 16 bytes.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import _bench
from _link_relay import relay
from _link_scene import FORK, free_port, make_keys
from transom.link.check import measure
from transom.link.codec import decode, encode
from transom.link.config import LinkConfig, connected, opened
from transom.link.identity import Identity, Partner, client_context, server_context
from transom.link.message import Header, Step
from transom.link.nats_server import local_server

SIZE = 10**6
LINK_BYTES_S = 200e6 / 8


def in_two(left: Callable[[], Any], right: Callable[[], float]) -> float:
    """Run `left` in a process of its own and `right` here; what `right` gives."""
    process = FORK.Process(target=left, daemon=True)
    process.start()
    try:
        return right()
    finally:
        process.join(10)
        process.kill()


def raw(keys: Path, count: int) -> float:
    """Bytes a second of a plain socket under the parties' TLS."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def send() -> None:
            context = client_context(Identity(keys / "alpha"))
            with socket.create_connection(("127.0.0.1", port)) as plain:
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with context.wrap_socket(plain) as sock:
                    block = memoryview(os.urandom(SIZE))
                    for _ in range(count):
                        sock.sendall(block)
                    sock.recv(1)

        def receive() -> float:
            context = server_context(Identity(keys / "beta"), Partner("alpha", keys / "alpha" / "tls.pem"))
            plain, _ = server.accept()
            with context.wrap_socket(plain, server_side=True) as sock:
                buffer = memoryview(bytearray(SIZE))
                start_s = 0.0
                for number in range(count):
                    filled = 0
                    while filled < SIZE:
                        filled += sock.recv_into(buffer[filled:])
                    if number == 0:
                        start_s = time.perf_counter()
                took_s = time.perf_counter() - start_s
                sock.sendall(b"x")
            return (count - 1) * SIZE / took_s

        return in_two(send, receive)


def config(keys: Path, name: str, other: str, **way: Any) -> LinkConfig:
    return LinkConfig(
        job="bench", run="r1", party=name, partner=other, identity=keys / name,
        partner_certificate=keys / other / "tls.pem", **way,
    )  # fmt: skip


def brokered(keys: Path, count: int, *, codec: bool) -> float:
    """Bytes a second through TcpBroker: of messages, or of tensors encoded and decoded on the way."""
    port = free_port()

    def send() -> None:
        x = torch.frombuffer(bytearray(os.urandom(SIZE)), dtype=torch.int32).float()
        with opened(config(keys, "alpha", "beta", connect=f"127.0.0.1:{port}")) as broker:
            ready = message(0, x)
            for number in range(count):
                broker.publish(message(number, x) if codec else ready, timeout_s=20)
            broker.take(20)

    def receive() -> float:
        with opened(config(keys, "beta", "alpha", listen=f"127.0.0.1:{port}")) as broker:
            start_s = 0.0
            for number in range(count):
                data = broker.take(20)
                assert data is not None
                if codec:
                    decode(data)
                if number == 0:
                    start_s = time.perf_counter()
            took_s = time.perf_counter() - start_s
            broker.publish(b"x" * 16, timeout_s=5)
            return (count - 1) * SIZE / took_s

    return in_two(send, receive)


def message(number: int, x: torch.Tensor) -> bytes:
    return encode(Header("bench", "r1", "alpha", number, Step(0, number, "forward")), {"x": x})


def session(folder: Path, keys: Path, count: int, ways: dict[str, dict[str, str]]) -> dict[str, float]:
    """Megabytes a second and round trip of two whole sessions with records on disk."""
    records = Path(tempfile.mkdtemp(dir=folder))

    def party(name: str, other: str) -> Any:
        with connected(config(keys, name, other, record=records, **ways[name]), {}) as (session, _, _broker):
            seen = measure(session, leads=name < other, messages=count)
            session.finish(30)
            return seen

    found: dict[str, float] = {}

    def here() -> float:
        seen = party("alpha", "beta")
        found.update(mb_s=seen.sent_mb_s, round_trip_ms=seen.round_trip_ms)
        return 0.0

    in_two(lambda: party("beta", "alpha"), here)
    return found


def both(url: str) -> dict[str, dict[str, str]]:
    return {name: {"nats": url} for name in ("alpha", "beta")}


def main() -> None:
    args = _bench.parser(__doc__).parse_args()
    torch.set_num_threads(1)
    count, rounds = (50, 3) if args.quick else (200, 9)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_keys(folder, ("alpha", "beta"))
        turns = [
            (raw(folder, count), brokered(folder, count, codec=False), brokered(folder, count, codec=True))
            for _ in range(rounds)
        ]
        port = free_port()
        ways = {"alpha": {"connect": f"127.0.0.1:{port}"}, "beta": {"listen": f"127.0.0.1:{port}"}}
        tcp = session(folder, folder, count // 4, ways)
        with local_server(folder / "nats") as server:
            loose = session(folder, folder, count // 4, both(server.url))
            target = ("127.0.0.1", int(server.url.rpartition(":")[2]))
            with relay(target, bytes_per_s=LINK_BYTES_S) as slow:
                far = {"nats": f"nats://127.0.0.1:{slow.port}"}
                shaped = session(folder, folder, count, {"alpha": far, "beta": {"nats": server.url}})
    socket_mb_s, broker_mb_s, codec_mb_s = (
        statistics.median(turn[way] for turn in turns) / 1e6 for way in range(3)
    )
    record = {
        "share_of_socket": statistics.median(turn[1] / turn[0] for turn in turns),
        "share_with_codec": statistics.median(turn[2] / turn[0] for turn in turns),
        "share_of_link": shaped["mb_s"] * 1e6 / LINK_BYTES_S,
        "session_of_socket": tcp["mb_s"] / socket_mb_s,
        "socket_mb_s": socket_mb_s,
        "round_trip_ms": {"tcp": tcp["round_trip_ms"], "nats": loose["round_trip_ms"]},
    }
    rows = [
        {"way": "raw TLS socket", "MB/s": socket_mb_s},
        {"way": "TCP broker", "MB/s": broker_mb_s},
        {"way": "TCP broker and codec", "MB/s": codec_mb_s},
        {"way": "session over TCP", "MB/s": tcp["mb_s"], "round trip, ms": tcp["round_trip_ms"]},
        {"way": "session over NATS", "MB/s": loose["mb_s"], "round trip, ms": loose["round_trip_ms"]},
        {"way": "session over NATS at 200 Mbit/s", "MB/s": shaped["mb_s"]},
    ]
    _bench.report("link_throughput", record, rows, args)


if __name__ == "__main__":
    sys.exit(main())
