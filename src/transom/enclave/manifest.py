"""A bundle's manifest: what the owner signs, and who may have its data key.

`manifest.json` is canonical JSON (sorted keys, no spaces), `manifest.sig` is the owner's Ed25519 signature
over a domain and those exact bytes. The signature is checked first; nothing unsigned is parsed.
Threat model: the folder belongs to the user's host, which may change, drop, swap or add any file.
Does not protect: freshness; an old bundle of the same owner is as valid as a new one, and the broker decides
which one it releases a key for. Source: RFC 8032 (Ed25519).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from transom.config import Setting, from_plain, load_json, to_plain
from transom.enclave.evidence import digest
from transom.enclave.policy import Rule
from transom.errors import BundleError, system_errors
from transom.files import read_bounded
from transom.net.pin import parse_pin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TableDtype = Literal["F32", "F16", "BF16"]

MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
ITEM_BYTES: Mapping[TableDtype, int] = {"F32": 4, "F16": 2, "BF16": 2}
NONCE_BYTES, TAG_BYTES = 12, 16
SIGNATURE_DOMAIN = b"transom/manifest/v1\0"
_MAX_MANIFEST_BYTES = 4 * 2**20
_HEX64 = r"[0-9a-f]{64}"
Sha256 = Annotated[str, Setting(pattern=_HEX64)]
_Count = Annotated[int, Setting(least=1)]


@dataclass(frozen=True)
class Shard:
    """Rows start..stop of the table in one file: 12 bytes of nonce, the ciphertext, 16 bytes of tag."""

    file: str
    start: int
    stop: int
    sha256: Sha256
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds and whom it opens for.

    `bundle` is 32 random hex digits, `model` the published name, the table has `rows` x `width` of `dtype`.
    `files` are the tokenizer's files and their SHA-256, `tokenizer_sha256` a hash over all of them.
    `policy_sha256` is the word policy the enclave must run, `rules` the attesters that get the key,
    `server_pins` the engine's TLS keys, `extraction_share` the share of the rows that a gateway may use
    within a day, `created` an ISO time.
    """

    bundle: Annotated[str, Setting(pattern="[0-9a-f]{32}")]
    model: str
    production: bool
    rows: _Count
    width: _Count
    dtype: TableDtype
    shards: tuple[Shard, ...]
    files: Mapping[str, str]
    tokenizer_sha256: Sha256
    policy_sha256: Sha256
    rules: tuple[Rule, ...]
    server_pins: tuple[str, ...]
    extraction_share: Annotated[float, Setting(above=0, most=1)]
    created: str
    format: Literal["transom-bundle/1"] = "transom-bundle/1"

    def to_bytes(self) -> bytes:
        """The exact bytes of manifest.json."""
        value = to_plain(self)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of manifest.json, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def problems(self) -> Iterator[str]:
        """Why these values are no bundle, beyond what their types say."""
        names = [*self.files, *(shard.file for shard in self.shards), MANIFEST_FILE, SIGNATURE_FILE]
        if not is_model_name(self.model):
            yield "its model name is malformed"
        if len(set(names)) != len(names) or not all(map(_is_plain, names)):
            yield "its file names are not plain and distinct"
        if not all(re.fullmatch(_HEX64, text) for text in self.files.values()):
            yield "a SHA-256 is not 64 hex digits"
        elif self.tokenizer_sha256 != tokenizer_digest(self.files):
            yield "its tokenizer hash is not that of its files"
        if any(rule != rule.normal() for rule in self.rules):
            yield "a rule's hex is not in lower case"
        for pin in self.server_pins:
            parse_pin(pin)
        problem = production_problem(self.production, self.rules, self.server_pins)
        if problem:
            yield problem
        yield from self._table_problems()

    def _table_problems(self) -> Iterator[str]:
        row_bytes, at = self.width * ITEM_BYTES[self.dtype], 0
        for shard in self.shards:
            expected_bytes = NONCE_BYTES + (shard.stop - shard.start) * row_bytes + TAG_BYTES
            if shard.start != at or shard.stop <= shard.start or shard.size_bytes != expected_bytes:
                yield f"{shard.file} does not continue the table"
            at = shard.stop
        if at != self.rows:
            yield f"its shards hold {at} of {self.rows} rows"


def production_problem(production: bool, rules: tuple[Rule, ...], server_pins: tuple[str, ...]) -> str | None:
    """Why a production bundle cannot open for these rules, or send rows to these keys; None if it can."""
    if not production:
        return None
    if not rules:
        return "a production bundle needs at least one rule that says which enclave it opens for"
    weak = sorted({rule.kind for rule in rules if rule.kind in ("tpm2", "insecure-dev")})
    if weak:
        return f"a production bundle cannot open for {' or '.join(weak)}, which isolates nothing"
    if any(rule.debug for rule in rules):
        return "a production bundle cannot open for a debug enclave, whose owner can read its memory"
    if not server_pins:
        return "a production bundle names the engine's TLS key, or its user could receive the rows"
    return None


def tokenizer_digest(files: Mapping[str, str]) -> str:
    """One hash over the names and hashes of a tokenizer's files, in hex."""
    parts = [part for name in sorted(files) for part in (name.encode(), bytes.fromhex(files[name]))]
    return digest("transom/tokenizer/v1", *parts).hex()


def client_folder(bundle: str | Path) -> Path:
    """The folder with the manifest: `bundle` itself, or its `client` half."""
    bundle = Path(bundle)
    return bundle / "client" if (bundle / "client" / MANIFEST_FILE).is_file() else bundle


def load_manifest(folder: str | Path, owner_key: Ed25519PublicKey) -> Manifest:
    """The manifest of a bundle (its folder or client half), if the owner signed it. Raises BundleError."""
    from cryptography.exceptions import InvalidSignature

    folder = client_folder(folder)
    raw = _read(folder / MANIFEST_FILE, _MAX_MANIFEST_BYTES)
    signature = _read(folder / SIGNATURE_FILE, 64)
    try:
        owner_key.verify(signature, SIGNATURE_DOMAIN + raw)
    except InvalidSignature:
        raise BundleError(
            f"{folder / MANIFEST_FILE} is not signed by this owner's key; fetch the bundle again, "
            "or check which owner.pub you were given"
        ) from None
    head = f"{folder / MANIFEST_FILE} is signed but unusable; pack it again"
    try:
        manifest = from_plain(Manifest, load_json(raw), head, error=BundleError)
    except ValueError:
        raise BundleError(f"{head}: it is not JSON") from None
    if manifest.to_bytes() != raw:
        raise BundleError(f"{head}: it is not in canonical form")
    return manifest


def is_model_name(name: str) -> bool:
    """Whether `name` may be published as a model's name."""
    return 0 < len(name) <= 200 and name.isprintable()


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with system_errors(f"cannot read {path}", "give a bundle made by pack", BundleError):
            return read_bounded(path, limit_bytes)
    except ValueError:
        raise BundleError(f"{path} has more than {limit_bytes} bytes; fetch the bundle again") from None


def _is_plain(name: str) -> bool:
    return Path(name).name == name and name not in ("", ".", "..")
