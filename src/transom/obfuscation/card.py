"""The card of an obfuscated checkpoint: `transom-card.json` in the output folder, signed with the key file.

It says which settings made the output, from which source, which files belong to it, and what the attacks on
it recovered. It holds no secret: the host may read it, and so may anybody the output is passed to.
Threat model: the host, or whoever carries the folder, edits the card or the weights. Against the client's key
file any edit shows. Without one only the card's agreement with itself is checked.
Does not protect: anything in the output. A card is a statement about it; read its findings.
Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transom.config import from_plain, load_json
from transom.errors import MisconfiguredError, extra
from transom.files import file_sha256, write_file
from transom.obfuscation.keyfile import KeyFile

CARD_FILE = "transom-card.json"
VERSION = 1
_DOMAIN = b"transom/obfuscation-card/v1\n"


@dataclass(frozen=True)
class Card:
    """What is known of an output. `outputs` maps each of its files to the SHA-256 of its bytes.

    `findings` are the records of attacks, empty before an audit; `private_against_base_model` is what they
    say of a host that has the public model, None before.
    """

    model_type: str
    settings: Mapping[str, Any]
    source: str
    vocabulary: int
    outputs: Mapping[str, str]
    findings: tuple[Mapping[str, Any], ...] = ()
    private_against_base_model: bool | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return dataclasses.asdict(self) | {"findings": list(self.findings)}


def write_card(folder: str | Path, card: Card, key: KeyFile) -> None:
    """Sign a card and put it into the output folder, over an earlier one. Raises MisconfiguredError."""
    record = {"version": VERSION, **card.to_json(), "public_key": key.public_key}
    record["signature"] = key.sign(_signed_bytes(record)).hex()
    write_file(Path(folder) / CARD_FILE, json.dumps(record, indent=2).encode() + b"\n")


def read_card(path: str | Path, key: KeyFile | None = None) -> Card:
    """The card of a folder, or in a file. With a key: signed by it, and made from its source and settings.

    Raises MisconfiguredError (absent, edited, another key's), MissingExtraError.
    """
    path = Path(path)
    path = path / CARD_FILE if path.is_dir() else path
    record = _read(path)
    if key is not None and record.get("public_key") != key.public_key:
        raise MisconfiguredError(f"{path} is not signed with this key file; give the one that made it")
    if not _signature_holds(record):
        raise MisconfiguredError(f"{path} was edited after it was signed; obfuscate again, or restore it")
    fields = {name: record[name] for name in sorted(set(record) - {"version", "public_key", "signature"})}
    card = from_plain(Card, fields, f"{path} is not a card of version {VERSION}; obfuscate again")
    if key is not None:
        key.require_source(card.source)
    return card


def verify_card(folder: str | Path, key: KeyFile | None = None, *, beside: Collection[str] = ()) -> Card:
    """As `read_card`, and every file of the folder is the one the card names, with none beside them but those
    that `beside` names."""
    folder = Path(folder)
    card = read_card(folder, key)
    present = {path.name for path in folder.iterdir()} - {CARD_FILE, *beside}
    if present != set(card.outputs):
        strange, missing = sorted(present - set(card.outputs)), sorted(set(card.outputs) - present)
        what = f"misses {missing[0]}" if missing else f"has {strange[0]}, which its card does not name"
        raise MisconfiguredError(f"{folder} {what}; restore the folder or obfuscate again")
    for name, sha256 in card.outputs.items():
        if file_sha256(folder / name) != sha256:
            raise MisconfiguredError(f"{folder / name} is not the file its card names; restore it")
    return card


def _read(path: Path) -> dict[str, Any]:
    try:
        record = load_json(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise MisconfiguredError(f"no readable card {path} ({type(error).__name__}); restore it") from None
    if not isinstance(record, dict) or record.get("version") != VERSION:
        raise MisconfiguredError(f"{path} is not a card of version {VERSION}; use the Transom that wrote it")
    return record


def _signed_bytes(record: Mapping[str, Any]) -> bytes:
    unsigned = {name: value for name, value in record.items() if name != "signature"}
    return _DOMAIN + json.dumps(unsigned, sort_keys=True, separators=(",", ":")).encode()


def _signature_holds(record: Mapping[str, Any]) -> bool:
    with extra("enclave", "cryptography"):
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(record["public_key"]))
        public.verify(bytes.fromhex(record["signature"]), _signed_bytes(record))
    except (InvalidSignature, KeyError, TypeError, ValueError):
        return False
    return True
