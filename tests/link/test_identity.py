"""Who the parties are: keys that fit, keys that do not, clocks that are wrong."""

from __future__ import annotations

import contextlib
import logging
import shutil
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption

from transom.errors import MisconfiguredError
from transom.link.identity import Identity, Partner, client_context, server_context
from transom.net.pin import make_certificate, spki_sha256

from .brokers import party
from .certificates import write_certificate


def test_both_sides_see_one_key(tmp_path: Path) -> None:
    pin = make_certificate(tmp_path / "a", "a")
    identity, partner = Identity(tmp_path / "a"), Partner("a", tmp_path / "a" / "tls.pem")
    assert identity.pin == partner.pin == pin
    assert identity.key().public_key() == partner.key()
    assert spki_sha256(identity.certificate) == pin.fingerprint


def test_the_key_is_that_of_the_file_for_ecdh(tmp_path: Path) -> None:
    (a, as_a), (b, as_b) = party(tmp_path, "a"), party(tmp_path, "b")
    assert a.key().exchange(ec.ECDH(), as_b.key()) == b.key().exchange(ec.ECDH(), as_a.key())


@pytest.mark.parametrize("missing", ["tls.pem", "tls.key"])
def test_a_missing_file_is_named(tmp_path: Path, missing: str) -> None:
    make_certificate(tmp_path, "a")
    (tmp_path / missing).unlink()
    with pytest.raises(MisconfiguredError, match=missing):
        Identity(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"\0\xff", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
@pytest.mark.parametrize("broken", ["tls.pem", "tls.key"])
def test_a_file_that_holds_something_else_is_named(tmp_path: Path, broken: str, content: bytes) -> None:
    make_certificate(tmp_path, "a")
    (tmp_path / broken).write_bytes(content)
    with pytest.raises(MisconfiguredError, match=broken):
        Identity(tmp_path)


def test_the_key_of_another_certificate_does_not_fit(tmp_path: Path) -> None:
    for name in "ab":
        make_certificate(tmp_path / name, name)
    shutil.copy(tmp_path / "b" / "tls.key", tmp_path / "a" / "tls.key")
    with pytest.raises(MisconfiguredError, match="is not the key of"):
        Identity(tmp_path / "a")


def test_a_key_with_a_password_is_refused(tmp_path: Path) -> None:
    write_certificate(tmp_path, encryption=BestAvailableEncryption(b"secret"))
    with pytest.raises(MisconfiguredError, match=r"tls\.key"):
        Identity(tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(public_exponent=65537, key_size=2048),
        ed25519.Ed25519PrivateKey.generate(),
    ],
)
def test_keys_of_other_kinds_are_refused(tmp_path: Path, key: object) -> None:
    write_certificate(tmp_path, key=key)
    for make in (lambda: Identity(tmp_path), lambda: Partner("b", tmp_path / "tls.pem")):
        with pytest.raises(MisconfiguredError, match="P-256"):
            make()


def test_a_key_that_others_may_read_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_certificate(tmp_path, "a")
    with caplog.at_level(logging.WARNING):
        Identity(tmp_path)
        assert not caplog.records
        (tmp_path / "tls.key").chmod(0o644)
        Identity(tmp_path)
    assert "chmod 600" in caplog.text


def test_of_several_certificates_the_first_is_the_partner(tmp_path: Path) -> None:
    (_, a), (_, b) = party(tmp_path, "a"), party(tmp_path, "b")
    both = tmp_path / "both.pem"
    both.write_bytes(a.certificate_path.read_bytes() + b.certificate_path.read_bytes())
    assert Partner("a", both).pin == a.pin != b.pin


def handshake(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends after a handshake in memory, and one byte each way. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_side=False),
    )
    for _ in range(4):
        for end in reversed(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return ends


def test_each_sees_the_others_key(tmp_path: Path) -> None:
    (a, as_a), (b, as_b) = party(tmp_path, "a"), party(tmp_path, "b")
    server, client = handshake(server_context(a, as_b), client_context(b))
    assert server.version() == client.version() == "TLSv1.3"
    assert spki_sha256(server.getpeercert(binary_form=True) or b"") == as_b.pin.fingerprint
    assert spki_sha256(client.getpeercert(binary_form=True) or b"") == as_a.pin.fingerprint


@pytest.mark.parametrize("days", [(-900, -400), (400, 900)], ids=["past", "future"])
def test_a_wrong_clock_does_not_matter(tmp_path: Path, days: tuple[int, int]) -> None:
    write_certificate(tmp_path / "b", days=days)
    (a, _), (b, as_b) = party(tmp_path, "a"), party(tmp_path, "b")
    server, _ = handshake(server_context(a, as_b), client_context(b))
    assert spki_sha256(server.getpeercert(binary_form=True) or b"") == as_b.pin.fingerprint


def test_the_listening_side_turns_a_stranger_away(tmp_path: Path) -> None:
    (a, _), (_, as_b), (c, _) = (party(tmp_path, name) for name in "abc")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(a, as_b), client_context(c))


def test_a_certificate_that_an_authority_signed_is_its_own_anchor(tmp_path: Path) -> None:
    authority = ec.generate_private_key(ec.SECP256R1())
    write_certificate(tmp_path / "b", signer=authority)
    (a, _), (b, as_b) = party(tmp_path, "a"), party(tmp_path, "b")
    handshake(server_context(a, as_b), client_context(b))
    write_certificate(tmp_path / "c", signer=authority)  # and no other one of that authority passes
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server_context(a, as_b), client_context(Identity(tmp_path / "c")))
