"""Evidence of a real (software) TPM before an engine: each kind of wrong evidence, and the right one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from transom.enclave import tpm2
from transom.enclave.policy import EvidencePolicy, Rule
from transom.enclave.source import Tpm2Source
from transom.errors import EvidenceError
from transom.net.listen import serve_in_thread
from transom.serving.attestor import create_attestor
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.evidence import EvidenceGuard

from ..enclave.swtpm_fixtures import SoftwareTpm, needs_tpm, software_tpm
from .tls_fixtures import Companion, Key, ask, background, engine, honest, make_key

pytestmark = needs_tpm
PCRS = "sha256:0,7,16"


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with software_tpm(tmp_path_factory.mktemp("tpm")) as running:
        yield running


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder / "a"), make_key(folder / "b")


@pytest.fixture
def source(tpm: SoftwareTpm) -> Tpm2Source:
    return Tpm2Source(tpm.tcti, tpm.key, PCRS)


@pytest.fixture
def policy(source: Tpm2Source) -> EvidencePolicy:
    """Accepts the boot state and the attestation key that the TPM has now."""
    evidence = source.collect(bytes(32))
    found = tpm2.claims(evidence, EvidencePolicy(allow=()), datetime.now(UTC))
    return EvidencePolicy(allow=(Rule("tpm2", found.registers),), max_age_s=60.0)


@asynccontextmanager
async def attested(
    key: Key, script: Callable[[bytes], Any], policy: EvidencePolicy
) -> AsyncIterator[tuple[IdsEngine, EvidenceGuard, list[tuple[int, str]]]]:
    """A client of an engine whose companion answers by `script`, and what has reached the engine."""
    async with engine(key) as served, background(serve_in_thread(Companion(script).app())) as url:
        guard = EvidenceGuard(url, policy)
        client = IdsEngine(served.url, guard=guard)
        yield client, guard, served.requests
        await client.close()


async def test_a_tpm_that_vouches_for_the_engines_key(
    keys: tuple[Key, Key], source: Tpm2Source, policy: EvidencePolicy
) -> None:
    attestor = create_attestor(source, keys[0].pin.fingerprint)
    async with engine(keys[0]) as served, background(serve_in_thread(attestor, tls=keys[0].tls)) as url:
        guard = EvidenceGuard(url, policy)
        client = IdsEngine(served.url, guard=guard)
        assert await ask(client) == (7, 8, 7)
        await client.close()
    assert guard.claims is not None
    assert guard.claims.trust == "boot-state"


async def test_missing(keys: tuple[Key, Key], policy: EvidencePolicy) -> None:
    async with attested(keys[0], lambda _nonce: Response("", 404), policy) as (client, _, requests):
        with pytest.raises(EvidenceError, match="HTTP 404"):
            await ask(client)
    assert requests == []


async def test_stale(keys: tuple[Key, Key], source: Tpm2Source, policy: EvidencePolicy) -> None:
    recorded = honest(keys[0].pin, source)(bytes(32))
    async with attested(keys[0], lambda _nonce: recorded, policy) as (client, _, requests):
        with pytest.raises(EvidenceError, match="another nonce"):
            await ask(client)
    assert requests == []


async def test_for_another_tls_key(keys: tuple[Key, Key], source: Tpm2Source, policy: EvidencePolicy) -> None:
    async with attested(keys[0], honest(keys[1].pin, source), policy) as (client, _, requests):
        with pytest.raises(EvidenceError, match="nothing was sent"):
            await ask(client)
    assert requests == []


async def test_for_another_tls_key_under_this_ones_name(
    keys: tuple[Key, Key], source: Tpm2Source, policy: EvidencePolicy
) -> None:
    def relabelled(nonce: bytes) -> dict[str, Any]:
        other = honest(keys[1].pin, source)(nonce)
        return {**other, "spki_sha256": honest(keys[0].pin)(nonce)["spki_sha256"]}

    async with attested(keys[0], relabelled, policy) as (client, _, requests):
        with pytest.raises(EvidenceError, match="another key"):
            await ask(client)
    assert requests == []


async def test_by_another_attestation_key(
    keys: tuple[Key, Key], tpm: SoftwareTpm, policy: EvidencePolicy
) -> None:
    other = Tpm2Source(tpm.tcti, tpm.make_key("0x81010002"), PCRS)
    async with attested(keys[0], honest(keys[0].pin, other), policy) as (client, _, requests):
        with pytest.raises(EvidenceError, match="attestation_key"):
            await ask(client)
    assert requests == []


async def test_of_another_measurement(
    keys: tuple[Key, Key], tpm: SoftwareTpm, source: Tpm2Source, policy: EvidencePolicy
) -> None:
    tpm.extend(16, bytes(range(32)))  # other software was started
    async with attested(keys[0], honest(keys[0].pin, source), policy) as (client, guard, requests):
        with pytest.raises(EvidenceError, match="pcr_digest"):
            await ask(client)
        assert guard.claims is None
    assert requests == []


async def test_of_fewer_pcrs(keys: tuple[Key, Key], tpm: SoftwareTpm, policy: EvidencePolicy) -> None:
    fewer = Tpm2Source(tpm.tcti, tpm.key, "sha256:0,7")
    async with attested(keys[0], honest(keys[0].pin, fewer), policy) as (client, _, requests):
        with pytest.raises(EvidenceError, match="pcrs is"):
            await ask(client)
    assert requests == []


async def test_a_lost_tpm(keys: tuple[Key, Key], tmp_path: Path, policy: EvidencePolicy) -> None:
    with software_tpm(tmp_path) as lost:
        attestor = create_attestor(Tpm2Source(lost.tcti, lost.key, PCRS), keys[0].pin.fingerprint)
        lost.stop()
        async with engine(keys[0]) as served, background(serve_in_thread(attestor)) as url:
            client = IdsEngine(served.url, guard=EvidenceGuard(url, policy))
            with pytest.raises(EvidenceError, match="no evidence"):
                await ask(client)
            await client.close()
    assert served.requests == []
