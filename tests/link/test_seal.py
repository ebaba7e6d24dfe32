"""A seal against `cryptography` by hand, and everything that must not open."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import LinkRefusedError
from transom.link.seal import OVERHEAD_BYTES, Seal

CURVE = ec.SECP256R1()
ANN, BOB, EVE = (ec.generate_private_key(CURVE) for _ in range(3))
NAMES = {"job": "job", "run": "run", "party": "ann", "partner": "bob"}


def seal(own: Any = ANN, theirs: Any = BOB, **names: str) -> Seal:
    return Seal(own, theirs.public_key(), **(NAMES | names))


def bobs(own: Any = BOB, theirs: Any = ANN, **names: str) -> Seal:
    return seal(own, theirs, **({"party": "bob", "partner": "ann"} | names))


@given(st.binary(max_size=2000))
def test_the_partner_opens_what_was_sealed(data: bytes) -> None:
    sealed = seal().seal(data)
    assert len(sealed) == len(data) + OVERHEAD_BYTES
    assert bobs().open(sealed) == data
    assert seal().open(bobs().seal(data)) == data


def test_a_sealed_message_is_what_the_docstring_says() -> None:
    points = b"".join(
        key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint) for key in (ANN, BOB)
    )
    secret = BOB.exchange(ec.ECDH(), ANN.public_key())
    info = b"transom/link/seal/1/job/run/ann/bob/" + points
    key = HKDF(SHA256(), length=32, salt=None, info=info).derive(secret)
    sealed = seal().seal(b"batch")
    assert AESGCM(key).decrypt(sealed[:12], sealed[12:], b"ann") == b"batch"
    assert bobs().open(bytes(12) + AESGCM(key).encrypt(bytes(12), b"batch", b"ann")) == b"batch"


@pytest.mark.parametrize(
    "other",
    [
        bobs(run="run2"),
        bobs(job="job2"),
        bobs(party="bob2"),
        bobs(partner="ann2"),
        bobs(own=EVE),
        bobs(theirs=EVE),
        seal(),  # reflected to who sealed it
        seal(BOB, ANN),  # the partner's key under the sender's name
    ],
    ids=["run", "job", "receiver", "sender", "receiver's key", "sender's key", "direction", "names"],
)
def test_nothing_opens_in_another_place(other: Seal) -> None:
    with pytest.raises(LinkRefusedError, match="no message that"):
        other.open(seal().seal(b"batch"))


def test_names_that_run_together_give_other_keys() -> None:
    seals = [bobs(job=job, run=run) for job, run in [("a", "b.c"), ("a.b", "c"), ("a-b", "c"), ("a", "b-c")]]
    for one, other in itertools.permutations(seals, 2):
        sealed = seal(job=one.job, run=one.run).seal(b"x")
        assert one.open(sealed) == b"x"
        with pytest.raises(LinkRefusedError):
            other.open(sealed)


@given(st.data())
def test_a_changed_bit_or_a_lost_byte_is_refused(data: st.DataObject) -> None:
    sealed = bytearray(seal().seal(b"some bytes of a batch"))
    at = data.draw(st.integers(0, len(sealed) - 1))
    cut = bytes(sealed[:at])
    sealed[at] ^= 1 << data.draw(st.integers(0, 7))
    for wrong in (bytes(sealed), cut, bytes(sealed) + b"\0"):
        with pytest.raises(LinkRefusedError):
            bobs().open(wrong)


@given(st.binary(max_size=100))
def test_a_strangers_bytes_are_refused_and_not_shown(data: bytes) -> None:
    with pytest.raises(LinkRefusedError, match=f"^{len(data)} bytes"):
        bobs().open(data)


def test_the_same_bytes_are_never_sealed_alike() -> None:
    one = seal()
    assert len({one.seal(b"") for _ in range(1000)}) == 1000


@pytest.mark.parametrize("names", [{"run": ""}, {"job": "a/b"}, {"party": "bob"}, {"partner": "x" * 65}])
def test_names_that_are_none_are_refused(names: dict[str, str]) -> None:
    with pytest.raises(LinkRefusedError):
        seal(**names)


def test_keys_must_be_two_on_the_curve() -> None:
    with pytest.raises(LinkRefusedError, match="two names with two keys"):
        seal(ANN, ANN)
    with pytest.raises(LinkRefusedError, match="secp384r1"):
        seal(ANN, ec.generate_private_key(ec.SECP384R1()))
    with pytest.raises(LinkRefusedError, match="Ed25519"):
        seal(ANN, Ed25519PrivateKey.generate())
