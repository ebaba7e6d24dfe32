"""What is sealed opens for one question only, after the owner's signature, and messages are read strictly."""

from __future__ import annotations

import secrets
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.enclave import release
from transom.enclave.release import Binding, MessageError
from transom.errors import EvidenceError

from .release_fixtures import hashed

KEY = secrets.token_bytes(32)
OWNER = Ed25519PrivateKey.generate()


def asked() -> tuple[Any, Binding]:
    private, public = release.new_key()
    return private, Binding(secrets.token_bytes(32), public, secrets.token_hex(32), secrets.token_hex(32))


def test_a_released_key_opens_with_plain_hpke_and_ed25519_too() -> None:
    private, binding = asked()
    sealed = release.seal(KEY, binding)
    parts = bytes.fromhex(binding.measurement), bytes.fromhex(binding.manifest_sha256)
    info = hashed("transom/release/v1", binding.nonce, *parts)
    assert Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM).decrypt(sealed, private, info) == KEY
    assert len(sealed) == release.SEALED_BYTES
    signed = hashed("transom/release-signature/v1", binding.nonce, binding.hpke_public, sealed, *parts)
    assert release.open_sealed(sealed, OWNER.sign(signed), private, binding, OWNER.public_key()) == KEY


@pytest.mark.parametrize("name", ["nonce", "measurement", "manifest_sha256"])
def test_a_seal_for_another_question_does_not_open_even_if_the_owner_signed_it(name: str) -> None:
    private, binding = asked()
    other = replace(binding, **{name: secrets.token_bytes(32) if name == "nonce" else secrets.token_hex(32)})
    sealed = release.seal(KEY, other)
    signature = OWNER.sign(binding.signed(sealed))
    with pytest.raises(EvidenceError, match="does not open"):
        release.open_sealed(sealed, signature, private, binding, OWNER.public_key())


def test_a_seal_for_another_one_time_key_does_not_open() -> None:
    private, binding = asked()
    sealed = release.seal(KEY, replace(binding, hpke_public=release.new_key()[1]))
    with pytest.raises(EvidenceError, match="does not open"):
        release.open_sealed(sealed, OWNER.sign(binding.signed(sealed)), private, binding, OWNER.public_key())


@pytest.mark.parametrize("name", ["nonce", "hpke_public", "measurement", "manifest_sha256", "sealed"])
def test_a_signature_for_anything_else_is_refused_before_the_seal_is_touched(name: str) -> None:
    _, binding = asked()
    sealed = release.seal(KEY, binding)
    changed = secrets.token_bytes(32) if name in ("nonce", "hpke_public") else secrets.token_hex(32)
    other = binding if name == "sealed" else replace(binding, **{name: changed})
    signature = OWNER.sign(other.signed(sealed[::-1] if name == "sealed" else sealed))
    untouchable: Any = object()  # HPKE would raise TypeError on it
    with pytest.raises(EvidenceError, match="not signed by the bundle's owner"):
        release.open_sealed(sealed, signature, untouchable, binding, OWNER.public_key())


def test_another_owners_signature_is_refused_before_the_seal_is_touched() -> None:
    _, binding = asked()
    sealed, untouchable = release.seal(KEY, binding), object()
    signature = Ed25519PrivateKey.generate().sign(binding.signed(sealed))
    with pytest.raises(EvidenceError, match="nothing was opened"):
        release.open_sealed(sealed, signature, untouchable, binding, OWNER.public_key())  # type: ignore[arg-type]


@given(at=st.integers(0, release.SEALED_BYTES * 8 - 1))
@settings(max_examples=40, deadline=None)
def test_any_flipped_bit_of_the_seal_raises(at: int) -> None:
    private, binding = asked()
    sealed = bytearray(release.seal(KEY, binding))
    sealed[at // 8] ^= 1 << at % 8
    signature = OWNER.sign(binding.signed(bytes(sealed)))  # so that the seal itself has to notice
    # X25519 ignores the top bit of the sender's key, but HPKE hashes all of its bytes
    with pytest.raises(EvidenceError, match="does not open"):
        release.open_sealed(bytes(sealed), signature, private, binding, OWNER.public_key())


def test_a_data_key_of_another_length_is_not_handed_on() -> None:
    private, binding = asked()
    sealed = release.seal(KEY[:16], binding)
    with pytest.raises(EvidenceError, match="32 bytes, got 16"):
        release.open_sealed(sealed, OWNER.sign(binding.signed(sealed)), private, binding, OWNER.public_key())


def test_a_public_key_of_low_order_is_refused() -> None:
    _, binding = asked()
    with pytest.raises(EvidenceError, match="not usable"):
        release.seal(KEY, replace(binding, hpke_public=bytes(32)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("nonce", b"short"),
        ("hpke_public", b""),
        ("measurement", "zz" * 32),
        ("measurement", "AB" * 32),
        ("measurement", "ab " * 32),
        ("manifest_sha256", "00"),
    ],
)
def test_a_binding_of_other_lengths_cannot_be_made(name: str, value: Any) -> None:
    with pytest.raises(EvidenceError, match="bytes, got"):
        replace(asked()[1], **{name: value})


def test_one_time_keys_differ() -> None:
    assert len({release.new_key()[1] for _ in range(20)}) == 20


SECRET = b"zyzzyva-4711"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        SECRET,
        b"\xff" + SECRET,
        b"[1]",
        b'"' + SECRET + b'"',
        b'{"a": "%s"}' % SECRET,
        b'{"a": "x", "b": 1, "zyzzyva-4711": 2}',
        b'{"a": 1, "b": 1}',
        b'{"a": "x", "b": true}',
        b'{"a": "x", "a": "zyzzyva-4711", "b": 1}',
        b'{"a": "x", "b": ' + b"[" * 200_000,
        b'{"a": "x", "b": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: f"{body[:20]!r}",
)
def test_a_message_that_is_not_exactly_its_fields_is_refused_without_quoting_it(body: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        release.read_message(body, {"a": str, "b": int})
    assert SECRET.decode() not in str(caught.value)


def test_a_message_of_exactly_its_fields_is_read() -> None:
    assert release.read_message(b' {"b": 3, "a": "x"} ', {"a": str, "b": int}) == {"a": "x", "b": 3}


@pytest.mark.parametrize("text", ["", "AA==", "A" * 43, "!" * 44, "A" * 44 + "\n", "é" * 44])
def test_a_base64_field_of_another_length_or_alphabet_is_refused(text: str) -> None:
    with pytest.raises(MessageError, match="nonce"):
        release.unbase64("nonce", text, 32)


@given(text=st.text(max_size=900))
def test_another_sides_words_become_one_bounded_printable_line(text: str) -> None:
    line = release.short(text)
    assert len(line) <= 400
    assert line.isprintable()
    assert line.isascii()


def test_short_words_stay_as_they_are() -> None:
    assert release.short("the nonce is old") == "the nonce is old"
    assert release.short("a\n\x1b[31mb") == "a??[31mb"


@given(st.binary(max_size=40), st.integers(0, 40))
def test_a_field_of_so_many_bytes_is_read_as_bytes_or_refused(value: bytes, wanted: int) -> None:
    body = b'{"a": "%s", "b": "x"}' % release.base64_of(value).encode()
    fields: release.Fields = {"a": wanted, "b": str}
    if len(value) == wanted:
        assert release.read_message(body, fields) == {"a": value, "b": "x"}
    else:
        with pytest.raises(MessageError, match=f"a must have {wanted} bytes, got {len(value)}"):
            release.read_message(body, fields)


@pytest.mark.parametrize("value", [b"1", b"null", b'"%s"' % SECRET, b'["AAAA"]'])
def test_a_field_of_bytes_that_is_no_base64_is_refused_without_it(value: bytes) -> None:
    with pytest.raises(MessageError) as caught:
        release.read_message(b'{"a": %s}' % value, {"a": 9})
    assert SECRET.decode() not in str(caught.value)
