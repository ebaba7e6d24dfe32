"""The owner's keys: one Ed25519 key that signs bundles and releases, and one AES-256 key for each bundle.

    DIR/signing.key        PEM, mode 0600, made on first use
    DIR/owner.pub          PEM, to hand out: it is what makes a bundle the owner's
    DIR/keys/BUNDLE.key    32 bytes, mode 0600: whoever has it can decrypt that bundle

Threat model: the folder is the owner's alone; a key that others on the machine may read is refused.
Does not protect: against the owner's own root, or a lost backup: without DIR no bundle opens again.
Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from transom.errors import BundleError, MisconfiguredError, extra, system_errors
from transom.files import read_private, write_new, write_once

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DATA_KEY_BYTES = 32


class Owner:
    """The keys in one folder. With `create=False` a folder without a signing key is an error.

    Raises MisconfiguredError (unwritable, a broken key, a key that others may read), MissingExtraError.
    """

    def __init__(self, folder: str | Path, *, create: bool = True) -> None:
        self.folder = Path(folder)
        path = self.folder / "signing.key"
        if create and not path.exists():
            _make_key(self.folder)
        self._key = _private_key(path)
        if create and not (self.folder / "owner.pub").exists():
            from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

            public = self.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            write_once(self.folder / "owner.pub", public)

    @property
    def public_key(self) -> Ed25519PublicKey:
        """The key that verifies what this owner signs; `owner.pub` holds it too."""
        return self._key.public_key()

    def sign(self, data: bytes) -> bytes:
        """An Ed25519 signature, 64 bytes. `data` must begin with a domain of its own."""
        return self._key.sign(data)

    def data_key(self, bundle: str) -> bytes:
        """The 32 bytes that decrypt a bundle. Raises BundleError if this owner never packed it."""
        path = self._key_path(bundle)
        if not path.is_file():
            raise BundleError(f"the owner's folder {self.folder} has no key for the bundle {bundle}")
        value = read_private(path)
        if len(value) != DATA_KEY_BYTES:
            raise MisconfiguredError(f"{path} has {len(value)} bytes instead of {DATA_KEY_BYTES}; restore it")
        return value

    def keep_data_key(self, bundle: str, key: bytes) -> None:
        """Store a new bundle's key, durably. Raises MisconfiguredError if there is one already."""
        path = self._key_path(bundle)
        _make_folder(path.parent)
        write_new(path, key, mode=0o600)

    def _key_path(self, bundle: str) -> Path:
        if not re.fullmatch(r"[0-9a-f]{32}", bundle):
            raise BundleError(f"a bundle's name is 32 hex digits, got {len(bundle)} characters")
        return self.folder / "keys" / f"{bundle}.key"


def load_owner_key(path: str | Path) -> Ed25519PublicKey:
    """The owner's public key from `owner.pub`. Raises MisconfiguredError, MissingExtraError."""
    with extra("enclave", "cryptography"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    try:
        key = load_pem_public_key(Path(path).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise MisconfiguredError(
            f"cannot read the owner's public key {path} ({type(error).__name__}); it is a PEM file, owner.pub"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise MisconfiguredError(f"{path} is a {type(key).__name__}; an owner's key is Ed25519")
    return key


def _make_key(folder: Path) -> None:
    with extra("enclave", "cryptography"):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    if (folder / "owner.pub").exists():
        raise MisconfiguredError(
            f"{folder} has an owner.pub but no signing.key; restore it, or use a new folder"
        )
    _make_folder(folder)
    private = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_once(folder / "signing.key", private, mode=0o600)


def _private_key(path: Path) -> Ed25519PrivateKey:
    with extra("enclave", "cryptography"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    try:
        key = load_pem_private_key(read_private(path, give="the owner's folder"), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise MisconfiguredError(f"{path} is not an unencrypted PEM key; restore it") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise MisconfiguredError(f"{path} is a {type(key).__name__}; an owner's key is Ed25519")
    return key


def _make_folder(folder: Path) -> None:
    with system_errors(f"cannot make the folder {folder}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
