"""The key file: the secret that every matrix and the token map come from, and the key that signs the card.

    {"format": "transom-obfuscation-key", "version": 1, "source": ..., "vocabulary": ..., "settings": {...},
     "public_key": ..., "secret": ..., "signing": ...}      or, with a passphrase, "sealed" for the last two

Mode 0600. Without it nothing decodes, and with it everything does: there is no other secret.
Threat model: whoever has the file is the client. With a passphrase a stolen file costs the thief one scrypt
(128 MiB) per guess, and what stands beside the sealed part cannot be altered unseen.
Does not protect: against the client's own root, a weak passphrase, or a lost backup. Without a passphrase the
file is trusted as it lies there.
Source: RFC 7914 (scrypt), NIST SP 800-38D (AES-GCM), RFC 8032 (Ed25519).
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.config import load_json
from transom.errors import MisconfiguredError, extra
from transom.files import read_private, write_new
from transom.obfuscation.keys import Settings

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT, VERSION = "transom-obfuscation-key", 1
SECRET_BYTES = 32
_SALT_BYTES, _NONCE_BYTES = 16, 12
_SCRYPT_N, _SCRYPT_R, _SCRYPT_P, _SCRYPT_MAX_BYTES = 2**17, 8, 1, 2**28
_HEAD = {"format", "version", "source", "vocabulary", "settings", "public_key"}


@dataclass(frozen=True)
class KeyFile:
    """One checkpoint's key. `source` is its fingerprint (64 hex digits), `vocabulary` its number of ids."""

    source: str
    vocabulary: int
    settings: Settings
    secret: bytes = field(repr=False)
    signing: bytes = field(repr=False)

    @property
    def public_key(self) -> str:
        """The 64 hex digits that verify the card; they also name this key without revealing it."""
        return _private(self.signing).public_key().public_bytes_raw().hex()

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes. `data` must begin with a domain of its own."""
        return _private(self.signing).sign(data)

    def require_source(self, fingerprint: str) -> None:
        """Raises MisconfiguredError unless this key was made for the checkpoint with that fingerprint."""
        if self.source != fingerprint:
            raise MisconfiguredError(
                f"this key belongs to the checkpoint {self.source[:12]}, not to {fingerprint[:12]}; "
                "give that checkpoint's key file, or a new path to have a key made"
            )


def new_key(source: str, vocabulary: int, settings: Settings) -> KeyFile:
    """A key from the system's random generator."""
    signing = secrets.token_bytes(SECRET_BYTES)
    return KeyFile(source, vocabulary, settings, secrets.token_bytes(SECRET_BYTES), signing)


def save_key(path: str | Path, key: KeyFile, passphrase: bytes | None = None) -> None:
    """Write a key file that must not exist yet, mode 0600, whole or not at all, and durable.

    Raises MisconfiguredError (it exists, cannot be written, an empty passphrase), MissingExtraError.
    """
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "source": key.source,
        "vocabulary": key.vocabulary,
        "settings": dataclasses.asdict(key.settings),
        "public_key": key.public_key,
    }
    body: dict[str, Any]
    if passphrase is None:
        body = {"secret": _encode(key.secret), "signing": _encode(key.signing)}
    else:
        body = {"sealed": _seal(key.secret + key.signing, passphrase, head)}
    write_new(Path(path), json.dumps(head | body, indent=2).encode() + b"\n", mode=0o600)


def load_key(path: str | Path, passphrase: bytes | None = None) -> KeyFile:
    """The key in a file.

    Raises MisconfiguredError: absent, readable by others, another version, damaged, sealed and no passphrase
    or the wrong one; MissingExtraError.
    """
    path = Path(path)
    record = _read(path)
    head = {name: record.pop(name) for name in sorted(_HEAD & set(record))}
    try:
        settings = Settings(**head["settings"])
        if "sealed" in record:
            secret, signing = _unseal(record.pop("sealed"), passphrase, head, path)
        else:
            secret, signing = _decode(record.pop("secret")), _decode(record.pop("signing"))
        key = KeyFile(head["source"], head["vocabulary"], settings, secret, signing)
        whole = not record and _well_formed(key) and key.public_key == head["public_key"]
    except (KeyError, TypeError, ValueError, AttributeError):
        whole = False
    if not whole:
        raise MisconfiguredError(f"{path} is a damaged key file; restore it from a backup")
    return key


def require_outside(path: str | Path, *folders: Path) -> None:
    """Raises MisconfiguredError when `path` lies in one of `folders`: those go to the host."""
    for folder in folders:
        if Path(path).resolve().is_relative_to(folder.resolve()):
            raise MisconfiguredError(
                f"{path} lies in {folder}, which goes to the host; keep keys and the client folder elsewhere"
            )


def read_passphrase(path: str | Path) -> bytes:
    """The first line of a file that only its owner may read. Raises MisconfiguredError."""
    value = read_private(Path(path)).split(b"\n", 1)[0].rstrip(b"\r")
    if not value:
        raise MisconfiguredError(f"{path} holds no passphrase on its first line; write one")
    return value


def _read(path: Path) -> dict[str, Any]:
    try:
        record = load_json(read_private(path))
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise MisconfiguredError(f"{path} is not an obfuscation key file; give the one that --key wrote")
    if record.get("version") != VERSION:
        raise MisconfiguredError(
            f"{path} has version {str(record.get('version'))[:20]}, this program reads {VERSION}; "
            "use the Transom that wrote it"
        )
    return record


def _well_formed(key: KeyFile) -> bool:
    return (
        re.fullmatch(r"[0-9a-f]{64}", key.source) is not None
        and type(key.vocabulary) is int
        and key.vocabulary > 0
        and len(key.secret) == len(key.signing) == SECRET_BYTES
    )


def _seal(data: bytes, passphrase: bytes, head: dict[str, Any]) -> dict[str, str]:
    salt, nonce = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(passphrase, salt).encrypt(nonce, data, _associated(head))
    return {"salt": _encode(salt), "nonce": _encode(nonce), "ciphertext": _encode(sealed)}


def _unseal(
    sealed: dict[str, str], passphrase: bytes | None, head: dict[str, Any], path: Path
) -> tuple[bytes, bytes]:
    if passphrase is None:
        raise MisconfiguredError(f"{path} is sealed; give its passphrase (--passphrase-file)")
    from cryptography.exceptions import InvalidTag

    salt, nonce, ciphertext = (_decode(sealed[name]) for name in ("salt", "nonce", "ciphertext"))
    try:
        data = _cipher(passphrase, salt).decrypt(nonce, ciphertext, _associated(head))
    except InvalidTag:
        raise MisconfiguredError(
            f"{path} does not open: the passphrase is wrong, or the file was altered; try again or restore it"
        ) from None
    return data[:SECRET_BYTES], data[SECRET_BYTES:]


def _cipher(passphrase: bytes, salt: bytes) -> Any:
    with extra("enclave", "cryptography"):
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    if not passphrase:
        raise MisconfiguredError("the passphrase is empty; give one, or leave --passphrase-file out")
    sizes = {"n": _SCRYPT_N, "r": _SCRYPT_R, "p": _SCRYPT_P, "maxmem": _SCRYPT_MAX_BYTES}
    return AESGCM(hashlib.scrypt(passphrase, salt=salt, dklen=32, **sizes))


def _associated(head: dict[str, Any]) -> bytes:
    return b"transom/obfuscation-key/v1" + json.dumps(head, sort_keys=True).encode()


def _private(signing: bytes) -> Ed25519PrivateKey:
    with extra("enclave", "cryptography"):
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    return Ed25519PrivateKey.from_private_bytes(signing)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text, validate=True)
