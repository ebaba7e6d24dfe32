"""The attester's side against the real broker, and against hosts that are down, slow, changed or lying."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from transom.enclave import release
from transom.enclave.client import Released, obtain_key
from transom.enclave.evidence import Evidence, Kind
from transom.enclave.log import log_head
from transom.enclave.owner import Owner
from transom.enclave.source import InsecureDevEvidence
from transom.errors import BrokerError, EvidenceError, MisconfiguredError, TransomError
from transom.net.ask import JsonClient
from transom.net.listen import Tls, listen, serve_in_thread, url_of
from transom.net.pin import KeyPin, make_certificate

from .release_fixtures import WORDS, House, b64, make_house, new_manifest


@pytest.fixture
def house(tmp_path: Path) -> House:
    return make_house(tmp_path)


async def obtain(house: House, url: str, **changed: Any) -> Released:
    given: dict[str, Any] = {
        "manifest": house.manifest,
        "owner_key": house.owner.public_key,
        "source": InsecureDevEvidence(),
        "policy_sha256": WORDS,
        "ssl": house.pin,
        "timeout_s": 20.0,
        "allow_insecure_dev": True,
    }
    return await obtain_key(url, **given | changed)


async def test_the_data_key_arrives_and_is_not_shown(house: House) -> None:
    with house.broker() as url:
        got = await obtain(house, url + "/")
        again = await obtain(house, url)
    assert got == again == Released(house.data_key, got.measurement, "none")
    assert house.entries()[-1]["measurement"] == got.measurement
    assert log_head(house.log).entries == 2
    assert b64(house.data_key) not in repr(got)
    assert repr(house.data_key) not in repr(got)


@dataclass
class Watched:
    """A source that tells whether it was asked, and may hand out evidence for something else."""

    kind: Kind = "insecure-dev"
    edit: Callable[[bytes], bytes] = lambda bound: bound
    asked: list[bytes] = field(default_factory=list)

    def collect(self, report_data: bytes) -> Evidence:
        self.asked.append(report_data)
        return Evidence(self.kind, {"report_data": self.edit(report_data)})


async def test_the_brokers_refusal_is_passed_on(house: House) -> None:
    with house.broker() as url, pytest.raises(EvidenceError, match=r"refused: .* bound to other report data"):
        await obtain(house, url, source=Watched(edit=lambda bound: bound[::-1]))
    other = new_manifest()
    with house.broker() as url, pytest.raises(EvidenceError, match="holds no key for that bundle"):
        await obtain(house, url, manifest=other)


async def test_a_brokers_own_failure_is_no_refusal(house: House) -> None:
    with house.broker() as url:
        house.log.unlink()
        with pytest.raises(BrokerError, match="status 503"):
            await obtain(house, url)


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"allow_insecure_dev": False}, "allowed in so many words"),
        ({"manifest": new_manifest(production=True)}, "hardware evidence only; insecure-dev"),
        ({"manifest": new_manifest(production=True), "source": Watched("tpm2")}, "trust=boot-state"),
        ({"policy_sha256": "00" * 32}, "packed for the word policy"),
    ],
)
async def test_what_cannot_open_is_not_even_asked_for(
    house: House, changed: dict[str, Any], match: str
) -> None:
    with host() as (url, seen, pin):
        with pytest.raises(EvidenceError, match=match):
            await obtain(house, url, ssl=pin, **changed)
        assert seen.connections == 0


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:1",
        "127.0.0.1:1",
        "",
        "https://",
        "ftp://a",
        "https://a/?b",
        "https://u:p@a",
        "HTTP://a",
    ],
)
async def test_only_https_is_asked(house: House, url: str) -> None:
    source = Watched()
    with pytest.raises(MisconfiguredError, match="over https"):
        await obtain(house, url, source=source)
    assert source.asked == []


# --- hosts in the broker's place


@dataclass
class Seen:
    """What reached a host."""

    connections: int = 0
    paths: list[str] = field(default_factory=list)


Reply = Callable[[Request], Awaitable[Response]]
_FOLDERS: list[Path] = []


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> Iterator[None]:
    _FOLDERS.append(tmp_path)
    yield
    _FOLDERS.pop()


@contextlib.contextmanager
def host(reply: Reply | None = None, first: Reply | None = None) -> Iterator[tuple[str, Seen, KeyPin]]:
    """A TLS server of its own key that answers challenges with `first` and releases with `reply`."""
    folder = _FOLDERS[-1] / secrets.token_hex(4)
    pin, seen = make_certificate(folder), Seen()

    async def nonce(_: Request) -> Response:
        return JSONResponse({"nonce": b64(bytes(32)), "expires_s": 60.0})

    async def answer(request: Request) -> Response:
        seen.paths.append(request.url.path)
        kind = (first or nonce) if request.url.path.endswith("challenge") else (reply or nonce)
        return await kind(request)

    app = Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])

    async def counted(scope: Any, receive: Any, send: Any) -> None:
        seen.connections += scope["type"] == "http"
        await app(scope, receive, send)

    with serve_in_thread(counted, tls=Tls(folder / "tls.pem", folder / "tls.key")) as url:
        yield url, seen, pin


def says(value: object, status: int = 200) -> Reply:
    async def reply(_: Request) -> Response:
        if isinstance(value, bytes):
            return Response(value, status)
        return JSONResponse(value, status)

    return reply


RELEASED = {"sealed": b64(bytes(80)), "measurement": "00" * 32, "signature": b64(bytes(64))}
LIES: dict[str, tuple[Reply, type[TransomError], str]] = {
    "html": (says(b"<html>zyzzyva"), BrokerError, "outside its protocol"),
    "nothing": (says(b""), BrokerError, "outside its protocol"),
    "list": (says([1]), BrokerError, "outside its protocol"),
    "more fields": (says(RELEASED | {"zyzzyva": 1}), BrokerError, "1 unknown"),
    "other types": (says(RELEASED | {"sealed": 1}), BrokerError, "sealed must be a str"),
    "short seal": (says(RELEASED | {"sealed": b64(bytes(79))}), BrokerError, "80 bytes, got 79"),
    "short signature": (says(RELEASED | {"signature": b64(b"1")}), BrokerError, "64 bytes, got 1"),
    "measurement is no hex": (
        says(RELEASED | {"measurement": "zyzzyva"}),
        EvidenceError,
        "measurement has 32",
    ),
    "no signature": (says(RELEASED), EvidenceError, "not signed by the bundle's owner"),
    "too long": (says(b"x" * 40_000), BrokerError, "longer than 16384"),
    "error of another shape": (says({"detail": "zyzzyva"}, 403), BrokerError, "status 403"),
    "error that is no text": (says({"error": {"zyzzyva": 1}}, 403), BrokerError, "status 403"),
    "server error": (says({"error": "full"}, 500), BrokerError, r"failed \(status 500\): full"),
    "odd success": (says(RELEASED, 202), BrokerError, "status 202"),
}


@pytest.mark.parametrize("what", LIES)
async def test_an_answer_outside_the_protocol_is_refused(house: House, what: str) -> None:
    reply, kind, match = LIES[what]
    with host(reply) as (url, _, pin):
        with pytest.raises(kind, match=match) as caught:
            await obtain(house, url, ssl=pin)
        assert type(caught.value) is kind
        assert "zyzzyva" not in str(caught.value)


@pytest.mark.parametrize(
    "first",
    [
        {"nonce": b64(bytes(31)), "expires_s": 60.0},
        {"nonce": "", "expires_s": 60.0},
        {"nonce": b64(bytes(32))},
        {"nonce": b64(bytes(32)), "expires_s": "60"},
        RELEASED,
    ],
)
async def test_a_challenge_outside_the_protocol_gets_no_evidence(house: House, first: object) -> None:
    source = Watched()
    with (
        host(first=says(first)) as (url, seen, pin),
        pytest.raises(BrokerError, match="outside its protocol"),
    ):
        await obtain(house, url, ssl=pin, source=source)
    assert source.asked == []
    assert seen.paths == ["/v1/challenge"]


async def test_a_reason_from_the_network_cannot_paint_on_the_terminal(house: House) -> None:
    painting = says({"error": "\x1b[2Jé\n" + "A" * 5000}, 403)
    with host(painting) as (url, _, pin), pytest.raises(EvidenceError) as caught:
        await obtain(house, url, ssl=pin)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 450


async def test_a_redirect_is_not_followed(house: House) -> None:
    async def elsewhere(request: Request) -> Response:
        return RedirectResponse("/v1/elsewhere", 307)

    for where in ({"first": elsewhere}, {"reply": elsewhere}):
        with host(**where) as (url, seen, pin), pytest.raises(BrokerError, match=r"redirect \(307\)"):
            await obtain(house, url, ssl=pin)
        assert "/v1/elsewhere" not in seen.paths


async def test_a_changed_server_key_gets_no_request(house: House) -> None:
    source = Watched()
    with host() as (url, seen, _):
        with pytest.raises(BrokerError, match="not the pinned one; nothing was sent"):
            await obtain(house, url, source=source)
        assert (seen.connections, source.asked) == (0, [])


async def test_without_a_pin_a_self_signed_certificate_is_not_trusted(house: House) -> None:
    with host() as (url, seen, _):
        with pytest.raises(BrokerError, match="cannot be reached"):
            await obtain(house, url, ssl=None)
        assert seen.connections == 0


async def test_a_broker_that_is_down_or_speaks_plain_http(house: House) -> None:
    with listen("127.0.0.1", 0) as sock:
        url = url_of(sock).replace("http:", "https:")
    with pytest.raises(BrokerError, match="cannot be reached"):
        await obtain(house, url)
    with serve_in_thread(Starlette()) as url, pytest.raises(BrokerError, match="cannot be reached"):
        await obtain(house, url.replace("http:", "https:"))


async def test_a_broker_that_hangs(house: House) -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(BrokerError, match=r"did not answer within 0\.2 s"):
        await obtain(house, url_of(sock).replace("http:", "https:"), timeout_s=0.2)

    async def hang(request: Request) -> Response:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return Response()

    with host(hang) as (url, _, pin), pytest.raises(BrokerError, match=r"did not answer within 0\.5 s"):
        await obtain(house, url, ssl=pin, timeout_s=0.5)


# --- a relay between attester and broker


def relay(house: House, url: str, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Reply]:
    """Carries both requests to the broker and edits what comes back for a release."""

    async def forward(request: Request) -> Response:
        client = JsonClient(url, pin=house.pin, timeout_s=10, limit_bytes=2**20)
        async with contextlib.aclosing(client):
            status, body = await client.post(request.url.path, await request.json())
        value = json.loads(body)
        return JSONResponse(value if "nonce" in value else edit(value), status)

    return {"first": forward, "reply": forward}


async def test_a_relay_learns_nothing_it_can_use_and_changes_nothing_unseen(house: House) -> None:
    kept: list[dict[str, Any]] = []

    def keep(value: dict[str, Any]) -> dict[str, Any]:
        kept.append(value)
        return value

    def changed(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
        return lambda value: value | {name: kept[0][name]}

    with house.broker() as url:
        with host(**relay(house, url, keep)) as (between, _, pin):
            assert (await obtain(house, between, ssl=pin)).data_key == house.data_key
        assert b64(house.data_key) not in str(kept)
        edits = [changed("sealed"), changed("signature"), lambda _: kept[0]]
        edits.append(lambda value: value | {"measurement": "11" * 32})
        for edit in edits:
            with (
                host(**relay(house, url, edit)) as (between, _, pin),
                pytest.raises(EvidenceError, match="not signed by the bundle's owner"),
            ):
                await obtain(house, between, ssl=pin)


async def test_another_owners_broker_is_refused_before_anything_is_opened(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = release.seal

    def opened() -> Any:
        raise AssertionError("HPKE was used after the key was sealed")

    def seal_and_take_hpke_away(*given: Any) -> bytes:
        sealed = seal(*given)
        monkeypatch.setattr(release, "_suite", opened)
        return sealed

    stranger = Owner(tmp_path / "stranger")
    stranger.keep_data_key(house.manifest.bundle, secrets.token_bytes(32))
    monkeypatch.setattr(release, "seal", seal_and_take_hpke_away)
    with (
        replace(house, owner=stranger).broker() as url,
        pytest.raises(EvidenceError, match="nothing was opened"),
    ):
        await obtain(house, url)
    assert house.last()[0] == "released"


async def test_a_release_for_another_manifest_of_the_same_bundle_does_not_open(house: House) -> None:
    newer = replace(house.manifest, model="tiny-2")
    with house.broker(newer) as url, pytest.raises(EvidenceError, match="not signed by the bundle's owner"):
        await obtain(house, url)
