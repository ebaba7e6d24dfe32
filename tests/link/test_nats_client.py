"""Getting to a server: names that never run together, streams that do, TLS, users that sign."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nats
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from nats.js.api import ConsumerConfig, StreamConfig

from transom.errors import LinkError, LinkRefusedError, MisconfiguredError
from transom.link.message import NAME
from transom.link.nats import NatsBroker
from transom.link.nats_client import Place, headers_size
from transom.link.nats_server import local_server
from transom.link.seal import Seal
from transom.net.pin import make_certificate

ANN, BOB = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
OPERATOR, ACCOUNT, USER, SEED = 14 << 3, 0, 20 << 3, 18 << 3
names = st.text("ab.-_", min_size=1, max_size=4).filter(NAME.fullmatch)


@contextlib.contextmanager
def broker(url: str, *, opposite: bool = False, **options: Any) -> Iterator[NatsBroker]:
    (name, own), (other, theirs) = (("bob", BOB), ("ann", ANN)) if opposite else (("ann", ANN), ("bob", BOB))
    seal = Seal(own, theirs.public_key(), job="job.1", run="run", party=name, partner=other)
    with contextlib.closing(NatsBroker(url, seal, **options)) as made:
        yield made


@given(st.lists(st.tuples(names, names, names), min_size=2, max_size=2, unique=True))
def test_no_two_parties_share_a_subject(places: list[tuple[str, str, str]]) -> None:
    one, other = (Place("nats://h", job, 1).subject(run, party) for job, run, party in places)
    assert one != other
    assert one.count(".") == other.count(".") == 3
    assert not set(one) & set(" *>\r\n")


@pytest.mark.parametrize("url", ["http://h", "nats://user:pw@h", "nats://", "h:4222", "nats://h?x=1"])
def test_an_address_is_one_of_a_nats_server(url: str) -> None:
    with pytest.raises(MisconfiguredError, match="NATS server's URL"):
        Place(url, "job", 1)


def test_headers_are_counted_as_they_are_written() -> None:
    assert headers_size({"A": "xy", "B-C": ""}) == len(b"NATS/1.0\r\nA: xy\r\nB-C: \r\n\r\n")


def nkey(kind: bytes, raw: bytes) -> str:
    data, crc = kind + raw, 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ (0x1021 if crc & 0x8000 else 0)) & 0xFFFF
    return base64.b32encode(data + crc.to_bytes(2, "little")).decode().rstrip("=")


def public(kind: int, key: Ed25519PrivateKey) -> str:
    return nkey(bytes([kind]), key.public_key().public_bytes_raw())


def token(signer: Ed25519PrivateKey, issuer: str, subject: str, claims: dict[str, Any]) -> str:
    def part(data: bytes) -> str:
        return base64.urlsafe_b64encode(data).decode().rstrip("=")

    body = {"iat": 1_700_000_000, "iss": issuer, "name": subject[:1], "sub": subject, "nats": claims}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode().rstrip("=")
    head = part(b'{"typ":"JWT","alg":"ed25519-nkey"}') + "." + part(json.dumps(body).encode())
    return head + "." + part(signer.sign(head.encode()))


def user_file(path: Path, account: Ed25519PrivateKey) -> Path:
    user = Ed25519PrivateKey.generate()
    claims = {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "pub": {}, "sub": {}}
    jwt = token(account, public(ACCOUNT, account), public(USER, user), claims)
    seed = nkey(bytes([SEED | USER >> 5, (USER & 31) << 3]), user.private_bytes_raw())
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\nkeep it secret\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
    )
    return path


def test_a_credentials_file_opens_a_server_that_strangers_do_not_enter(tmp_path: Path) -> None:
    operator, account, system, stranger = (Ed25519PrivateKey.generate() for _ in range(4))
    lines = []
    for key in (account, system):
        counts = ("subs", "data", "payload", "imports", "exports", "conn", "leaf")
        stores = ("mem_storage", "disk_storage", "streams", "consumer") if key is account else ()
        limits = dict.fromkeys((*counts, *stores), -1) | {"wildcards": True}
        claims = {"type": "account", "version": 2, "limits": limits}
        jwt = token(operator, public(OPERATOR, operator), public(ACCOUNT, key), claims)
        lines.append(f"{public(ACCOUNT, key)}: {jwt}")
    own = token(
        operator,
        public(OPERATOR, operator),
        public(OPERATOR, operator),
        {"type": "operator", "version": 2, "system_account": public(ACCOUNT, system)},
    )
    settings = "\n".join((f"operator: {own}", "resolver: MEMORY", "resolver_preload: {", *lines, "}"))
    good, bad = user_file(tmp_path / "good", account), user_file(tmp_path / "bad", stranger)
    (tmp_path / "none").write_text("nothing\n")
    with local_server(tmp_path / "nats", settings=settings) as server:
        with broker(server.url, credentials=good) as made:
            made.publish(b"x", timeout_s=30)
        for credentials in (bad, None):
            with (
                broker(server.url, credentials=credentials) as made,
                pytest.raises(LinkRefusedError, match="Authorization Violation"),
            ):
                made.publish(b"x", timeout_s=30)
        for name, told in (("none", "not a NATS credentials file"), ("absent", "cannot be read")):
            with (
                broker(server.url, credentials=tmp_path / name) as made,
                pytest.raises(LinkError, match=told),
            ):
                made.publish(b"x", timeout_s=30)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_bytes": 1000}, None),
        ({"retention": "limits"}, r"retention limits \(wanted workqueue\)"),
        ({"discard": "old", "no_ack": True}, r"discard old \(wanted new\), no_ack True"),
        ({"max_bytes": 2**31, "max_msg_size": 1000}, None),
        ({"max_bytes": -1, "storage": "memory"}, None),
        ({"name": "TRANSOM-job=1"}, "stream TRANSOM-job=1~bob cannot be made: subjects overlap"),
    ],
)
def test_a_stream_that_is_there_is_used_if_it_does(limits: dict[str, Any], told: str | None) -> None:
    wanted = {"name": "TRANSOM-job=1~bob", "retention": "workqueue", "discard": "new", "max_bytes": 2**30}
    config = StreamConfig(subjects=["transom.job=1.*.bob"], **(wanted | limits))

    async def make(url: str) -> None:
        async with await nats.connect(url) as client:
            await client.jetstream().add_stream(config)

    with local_server() as server, contextlib.ExitStack() as stack:
        asyncio.run(make(server.url))
        ann = stack.enter_context(broker(server.url))
        if told is None:
            ann.publish(b"x", timeout_s=30)
            assert ann.max_bytes < limits.get("max_msg_size", 2**30)
            return
        for _ in range(2):
            with pytest.raises(LinkError, match=told):
                ann.publish(b"x", timeout_s=30)
        with pytest.raises(LinkError, match=told):
            ann.take(30)


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_deliver": 1, "max_ack_pending": 1, "headers_only": True}, None),  # the server makes them ours
        ({"filter_subject": "transom.job=1.other.ann"}, None),
        ({"replay_policy": "original"}, "replay policy"),
        ({"deliver_subject": "elsewhere"}, "push consumer"),
    ],
)
def test_a_consumer_that_is_there_becomes_ours_or_is_told(limits: dict[str, Any], told: str | None) -> None:
    stream = StreamConfig(
        name="TRANSOM-job=1~ann", subjects=["transom.job=1.*.ann"], retention="workqueue", discard="new",
        max_bytes=2**30,
    )  # fmt: skip
    wanted = {"durable_name": "run~ann", "filter_subject": "transom.job=1.run.ann"} | limits

    async def make(url: str) -> None:
        async with await nats.connect(url) as client:
            await client.jetstream().add_stream(stream)
            await client.jetstream().add_consumer(stream.name, ConsumerConfig(**wanted))

    with local_server() as server:
        asyncio.run(make(server.url))
        with broker(server.url) as ann, broker(server.url, opposite=True) as bob:
            if told is not None:
                with pytest.raises(LinkError, match=rf"consumer run~ann .*cannot be made.*{told}"):
                    ann.take(30)
                return
            for data in (b"one", b"two"):
                bob.publish(data, timeout_s=30)
            assert [ann.take(30), ann.take(30)] == [b"one", b"two"]


def test_tls_is_to_the_certificate_that_was_named(tmp_path: Path) -> None:
    make_certificate(tmp_path / "server")
    make_certificate(tmp_path / "other")
    files = {name: tmp_path / "server" / f"tls.{name}" for name in ("pem", "key")}
    with (
        local_server(
            tmp_path, settings=f'tls {{ cert_file: "{files["pem"]}", key_file: "{files["key"]}" }}'
        ) as s,
        broker(f"tls://localhost:{s.url.rpartition(':')[2]}", ca=files["pem"]) as ann,
        broker(f"nats://localhost:{s.url.rpartition(':')[2]}", ca=tmp_path / "other" / "tls.pem") as wrong,
    ):
        ann.publish(b"x", timeout_s=30)
        assert ann.describe()["tls"] == "TLSv1.3"
        with pytest.raises(LinkRefusedError, match="not the server wanted"):
            wrong.publish(b"x", timeout_s=30)
        with pytest.raises(LinkRefusedError, match="not the server wanted"):
            wrong.take(30)


def test_a_server_that_takes_tls_away_is_refused() -> None:
    with (
        local_server() as server,
        broker(server.url.replace("nats:", "tls:")) as ann,
        pytest.raises(LinkRefusedError, match="does not speak TLS"),
    ):
        ann.publish(b"x", timeout_s=30)
