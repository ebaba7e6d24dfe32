"""Pinned TLS to an engine: a server with another key reads not one byte of a request."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from transom.errors import EngineDownError, EvidenceError, MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.serving.engines.base import Call
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.connect import EngineKind, client_of, detect
from transom.serving.engines.echo import EchoEngine
from transom.serving.engines.http import Pinned
from transom.serving.engines.llamacpp import LlamaCppEngine

from .tls_fixtures import Key, ask, background, engine, make_key, port_of


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder / "a"), make_key(folder / "b")


async def test_the_pinned_key_is_served_on_kept_connections(keys: tuple[Key, Key]) -> None:
    async with engine(keys[0]) as served:
        client = IdsEngine(served.url, guard=Pinned(keys[0].pin))
        assert [await ask(client) for _ in range(3)] == [(7, 8, 7)] * 3
        await client.close()
    assert len(served.connections) == 1


async def test_a_streamed_answer_comes_over_pinned_tls_too(keys: tuple[Key, Key]) -> None:
    async with engine(keys[0]) as served:
        client = IdsEngine(served.url, guard=Pinned(keys[0].pin))
        call = Call(prompts=((7, 8), (9,)), max_tokens=3, stream=True)
        deltas = [delta async for delta in client.generate(call)]
        await client.close()
    found = [tuple(i for d in deltas if d.index == index for i in d.ids) for index in (0, 1)]
    assert found == [(7, 8, 7), (9, 9, 9)]


async def test_a_certificate_changed_between_two_requests_is_refused(keys: tuple[Key, Key]) -> None:
    async with engine(keys[0]) as first:
        client = IdsEngine(first.url, guard=Pinned(keys[0].pin))
        assert await ask(client) == (7, 8, 7)
    async with engine(keys[1], port_of(first.url)) as second:
        with pytest.raises(EvidenceError, match="nothing was sent"):
            await ask(client)
        await client.close()
    assert second.requests == []


@pytest.mark.parametrize("kind", ["transom", "vllm", "llamacpp", "chat"])
async def test_no_client_talks_to_another_key(keys: tuple[Key, Key], kind: EngineKind) -> None:
    async with engine(keys[1]) as served:
        client = client_of(kind, served.url, guard=Pinned(keys[0].pin), api_key="sk-secret")
        with pytest.raises(EvidenceError):
            await client.probe()
        with pytest.raises(EvidenceError):
            await detect(served.url, guard=Pinned(keys[0].pin), api_key="sk-secret")
        await client.close()
    assert served.requests == []


async def test_the_same_key_under_a_new_certificate_is_the_same_server(
    keys: tuple[Key, Key], tmp_path: Path
) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization

    old = x509.load_pem_x509_certificate(keys[0].tls.certificate.read_bytes())
    private = serialization.load_pem_private_key(keys[0].tls.key.read_bytes(), None)
    renewed = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(old.not_valid_before_utc)
        .not_valid_after(old.not_valid_after_utc)
        .sign(private, hashes.SHA256())  # type: ignore[arg-type]
    )
    (tmp_path / "tls.pem").write_bytes(renewed.public_bytes(serialization.Encoding.PEM))
    shutil.copy(keys[0].tls.key, tmp_path / "tls.key")
    tls = type(keys[0].tls)(tmp_path / "tls.pem", tmp_path / "tls.key")
    async with engine(Key(tls, keys[0].pin)) as served:
        client = IdsEngine(served.url, guard=Pinned(keys[0].pin))
        assert await ask(client) == (7, 8, 7)
        await client.close()


async def test_without_a_pin_a_self_signed_certificate_is_refused(keys: tuple[Key, Key]) -> None:
    async with engine(keys[0]) as served:
        client = IdsEngine(served.url)
        with pytest.raises(EngineDownError):
            await ask(client)
        await client.close()
    assert served.requests == []


@pytest.mark.parametrize("client", [IdsEngine, ChatEngine, LlamaCppEngine])
def test_plain_http_has_no_key_to_pin(keys: tuple[Key, Key], client: type) -> None:
    with pytest.raises(MisconfiguredError, match="https"):
        client("http://127.0.0.1:8000", guard=Pinned(keys[0].pin))


async def test_a_server_without_tls_gets_no_request(keys: tuple[Key, Key]) -> None:
    echo = EchoEngine()
    async with background(serve_in_thread(echo.app())) as url:
        client = IdsEngine(url.replace("http:", "https:"), guard=Pinned(keys[0].pin))
        with pytest.raises(EngineDownError):
            await ask(client)
        await client.close()
    assert echo.seen == []
