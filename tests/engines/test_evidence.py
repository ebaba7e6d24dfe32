"""Evidence before the first byte: without any, or with any that does not convince, an engine hears nothing.

The engine in these tests would answer anything; only the guard stands before it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from starlette.responses import RedirectResponse, Response

from transom.enclave.evidence import Evidence, engine_fields, report_data
from transom.enclave.policy import EvidencePolicy, Rule
from transom.enclave.source import InsecureDevEvidence
from transom.errors import EvidenceError, MisconfiguredError
from transom.net.listen import serve_in_thread
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.evidence import EvidenceGuard, seconds_since_boot

from .tls_fixtures import Companion, Key, Noted, ask, background, engine, honest, make_key, port_of, shaped

POLICY = EvidencePolicy(allow=(Rule("insecure-dev"),), max_age_s=60.0)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Key, Key]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder / "a"), make_key(folder / "b")


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Stage:
    """An engine with a key, its companion, and a client that asks for evidence first."""

    served: Noted
    companion: Companion
    guard: EvidenceGuard
    client: IdsEngine
    clock: Clock

    async def refused(self, match: str | None = None) -> None:
        """The client's request raises EvidenceError, and the engine has heard nothing of it."""
        before = list(self.served.requests)
        with pytest.raises(EvidenceError, match=match):
            await ask(self.client)
        await self.client.close()
        assert self.served.requests == before


@asynccontextmanager
async def stage(
    key: Key,
    script: Callable[[bytes], Any],
    policy: EvidencePolicy = POLICY,
    *,
    allow_insecure_dev: bool = True,
    signed: list[bytes] | None = None,
    timeout_s: float = 5.0,
) -> AsyncIterator[Stage]:
    companion, clock = Companion(script), Clock()
    async with engine(key) as served, background(serve_in_thread(companion.app())) as url:
        guard = EvidenceGuard(
            url,
            policy,
            keys=signed,
            allow_insecure_dev=allow_insecure_dev,
            timeout_s=timeout_s,
            clock=clock,
        )
        yield Stage(served, companion, guard, IdsEngine(served.url, guard=guard), clock)


async def test_convincing_evidence_lets_requests_through_and_is_asked_for_once(keys: tuple[Key, Key]) -> None:
    async with stage(keys[0], honest(keys[0].pin)) as on:
        assert on.guard.claims is None
        assert [await ask(on.client) for _ in range(3)] == [(7, 8, 7)] * 3
        await on.client.close()
        assert len(on.companion.nonces) == 1
        assert on.guard.claims is not None
        assert on.guard.claims.trust == "none"


async def test_evidence_does_not_replace_the_owners_word_on_the_key(keys: tuple[Key, Key]) -> None:
    """Convincing evidence for a key that the bundle's owner did not sign lets nothing through."""
    async with stage(keys[0], honest(keys[0].pin), signed=[keys[1].pin.fingerprint]) as on:
        with pytest.raises(EvidenceError, match="did not sign"):
            await ask(on.client)
        assert on.served.requests == []
        await on.client.close()
    async with stage(keys[0], honest(keys[0].pin), signed=[keys[0].pin.fingerprint]) as on:
        assert await ask(on.client) == (7, 8, 7)
        await on.client.close()


async def test_the_log_says_what_the_evidence_proves(
    keys: tuple[Key, Key], caplog: pytest.LogCaptureFixture
) -> None:
    async with stage(keys[0], honest(keys[0].pin)) as on:
        assert on.guard.trust == "none"
        await ask(on.client)
        await on.client.close()
    assert "trust=none" in caplog.text


async def test_many_requests_at_once_ask_for_evidence_once(keys: tuple[Key, Key]) -> None:
    async with stage(keys[0], honest(keys[0].pin)) as on:
        await asyncio.gather(*[ask(on.client) for _ in range(8)])
        await on.client.close()
        assert len(on.companion.nonces) == 1


def text(body: str | bytes, status: int = 200) -> Callable[[bytes], Response]:
    return lambda _nonce: Response(body, status)


def claimed(**fields: Any) -> Callable[[bytes], dict[str, Any]]:
    return lambda _nonce: fields


DEV = InsecureDevEvidence().collect(bytes(64)).to_json()
GARBAGE: dict[str, Callable[[bytes], Any]] = {
    "missing": text("", 404),
    "busy": text("{}", 503),
    "moved": lambda _nonce: RedirectResponse("/elsewhere"),
    "empty": text(""),
    "cut short": text('{"evidence": {"kind"'),
    "a list": text("[]"),
    "a number": text("5"),
    "bytes": text(b"\xff\x00" * 50),
    "nested": text("[" * 100_000),
    "endless": text(b" " * (3 << 20)),
    "no key": claimed(evidence=DEV),
    "no evidence": claimed(spki_sha256="AAAA"),
    "null evidence": claimed(evidence=None, spki_sha256="A" * 43 + "="),
    "short key": claimed(evidence=DEV, spki_sha256="AAAA"),
    "key as number": claimed(evidence=DEV, spki_sha256=5),
    "unknown kind": claimed(evidence={"kind": "sev", "parts": {}}, spki_sha256="A" * 43 + "="),
    "missing parts": claimed(evidence={"kind": "tpm2", "parts": {}}, spki_sha256="A" * 43 + "="),
}


@pytest.mark.parametrize("what", GARBAGE)
async def test_what_is_not_evidence_opens_no_connection(keys: tuple[Key, Key], what: str) -> None:
    async with stage(keys[0], GARBAGE[what]) as on:
        await on.refused()
        assert on.served.requests == []
        assert on.companion.nonces


async def test_no_companion_at_all(keys: tuple[Key, Key]) -> None:
    async with background(serve_in_thread(Companion(honest(keys[0].pin)).app())) as url:
        pass
    async with engine(keys[0]) as served:
        client = IdsEngine(served.url, guard=EvidenceGuard(url, POLICY, allow_insecure_dev=True))
        with pytest.raises(EvidenceError, match="transom attest serve"):
            await ask(client)
        await client.close()
    assert served.requests == []


async def test_a_companion_that_hangs_is_given_up(keys: tuple[Key, Key]) -> None:
    async def hang(_nonce: bytes) -> Response:
        await asyncio.sleep(1.5)
        return Response()

    async with stage(keys[0], hang, timeout_s=0.2) as on:
        await on.refused("within 0.2 s")


async def test_evidence_for_another_key(keys: tuple[Key, Key]) -> None:
    async with stage(
        keys[0], honest(keys[1].pin)
    ) as on:  # genuine evidence, but the engine holds another key
        await on.refused("nothing was sent")


async def test_evidence_that_is_passed_off_as_for_this_key(keys: tuple[Key, Key]) -> None:
    def relabelled(nonce: bytes) -> dict[str, Any]:
        return honest(keys[1].pin)(nonce) | {"spki_sha256": honest(keys[0].pin)(nonce)["spki_sha256"]}

    async with stage(keys[0], relabelled) as on:
        await on.refused("another nonce, or speaks for another key")


async def test_recorded_evidence_for_an_older_nonce(keys: tuple[Key, Key]) -> None:
    recorded = honest(keys[0].pin)(bytes(32))
    async with stage(keys[0], lambda _nonce: recorded) as on:
        await on.refused("another nonce")


async def test_nonces_are_fresh(keys: tuple[Key, Key]) -> None:
    async with stage(keys[0], honest(keys[0].pin)) as on:
        for _ in range(3):
            await ask(on.client)
            on.clock.now_s += POLICY.max_age_s
        await on.client.close()
        assert len(set(on.companion.nonces)) == 3
        assert {len(nonce) for nonce in on.companion.nonces} == {32}


async def test_evidence_for_the_enclave_domain_does_not_count(keys: tuple[Key, Key]) -> None:
    def other_domain(nonce: bytes) -> dict[str, Any]:
        _, *fields = engine_fields(nonce, keys[0].pin.fingerprint)
        data = report_data("insecure-dev", "transom/enclave/v1", *fields)
        return shaped(Evidence("insecure-dev", {"report_data": data}), keys[0].pin.fingerprint)

    async with stage(keys[0], other_domain) as on:
        await on.refused("other report data")


async def test_old_evidence_is_renewed_and_without_renewal_refused(keys: tuple[Key, Key]) -> None:
    async with stage(keys[0], honest(keys[0].pin)) as on:
        await ask(on.client)
        on.clock.now_s = POLICY.max_age_s - 0.001
        await ask(on.client)
        assert len(on.companion.nonces) == 1
        on.clock.now_s = POLICY.max_age_s
        await ask(on.client)
        assert len(on.companion.nonces) == 2
        assert len(on.served.connections) == 1  # the key is the same, so its connection is too
        on.clock.now_s = 2 * POLICY.max_age_s
        on.companion.script = text("", 404)
        await on.refused("HTTP 404")
        assert on.guard.claims is None
        on.clock.now_s = 0.0  # what was refused once is not taken up again, whatever the clock says
        await on.refused("HTTP 404")


async def test_evidence_ages_from_the_moment_its_nonce_was_made(keys: tuple[Key, Key]) -> None:
    async with stage(keys[0], honest(keys[0].pin)) as on:

        def slow(nonce: bytes) -> dict[str, Any]:
            on.clock.now_s += POLICY.max_age_s
            return honest(keys[0].pin)(nonce)

        on.companion.script = slow
        await on.guard.ready()
        await on.guard.ready()
        assert len(on.companion.nonces) == 2


async def test_an_engine_that_swaps_its_key_after_attestation(keys: tuple[Key, Key]) -> None:
    companion, clock = Companion(honest(keys[0].pin)), Clock()
    async with background(serve_in_thread(companion.app())) as url:
        guard = EvidenceGuard(url, POLICY, allow_insecure_dev=True, clock=clock)
        async with engine(keys[0]) as first:
            client = IdsEngine(first.url, guard=guard)
            await ask(client)
        async with engine(keys[1], port_of(first.url)) as second:
            with pytest.raises(EvidenceError, match="nothing was sent"):
                await ask(client)
            assert second.requests == []
            companion.script = honest(keys[1].pin)  # once it proves the new key, it is served again
            clock.now_s = POLICY.max_age_s
            assert await ask(client) == (7, 8, 7)
        await client.close()


async def test_a_connection_under_older_evidence_is_not_used_for_another_key(keys: tuple[Key, Key]) -> None:
    """The host keeps the old connection open and offers evidence for a key it cannot use."""
    async with stage(keys[0], honest(keys[0].pin)) as on:
        await ask(on.client)
        on.companion.script = honest(keys[1].pin)
        on.clock.now_s = POLICY.max_age_s
        await on.refused("nothing was sent")


async def test_insecure_evidence_needs_the_flag_and_the_rule(keys: tuple[Key, Key]) -> None:
    async with stage(keys[0], honest(keys[0].pin), allow_insecure_dev=False) as on:
        await on.refused("insecure-dev")
    other = EvidencePolicy(allow=(Rule("snp", {"measurement": "00" * 48}),))
    async with stage(keys[0], honest(keys[0].pin), policy=other) as on:
        await on.refused("no rule allows")


async def test_a_guard_serves_one_event_loop_after_another(keys: tuple[Key, Key]) -> None:
    """As a command does that probes first and serves later."""
    async with stage(keys[0], honest(keys[0].pin)) as on:

        async def several() -> None:
            await asyncio.gather(*[on.guard.ready() for _ in range(4)])

        await asyncio.gather(*[asyncio.to_thread(asyncio.run, several())])
        await several()
        assert len(on.companion.nonces) == 1


@pytest.mark.parametrize("url", ["", "host:8443", "ftp://host", "https://"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(MisconfiguredError, match="https"):
        EvidenceGuard(url, POLICY)


def test_the_clock_does_not_stop() -> None:
    assert 0 < seconds_since_boot() <= seconds_since_boot()
