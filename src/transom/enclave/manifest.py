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
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from transom.config import load_json
from transom.enclave.evidence import digest
from transom.enclave.policy import Rule, parse_rules
from transom.errors import BundleError, MisconfiguredError
from transom.net.pin import parse_pin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

TableDtype = Literal["F32", "F16", "BF16"]

FORMAT = "transom-bundle/1"
MANIFEST_FILE, SIGNATURE_FILE = "manifest.json", "manifest.sig"
ITEM_BYTES: Mapping[TableDtype, int] = {"F32": 4, "F16": 2, "BF16": 2}
NONCE_BYTES, TAG_BYTES = 12, 16
SIGNATURE_DOMAIN = b"transom/manifest/v1\0"
_MAX_MANIFEST_BYTES = 4 * 2**20
_HEX64 = r"[0-9a-f]{64}"
_TYPES: Mapping[str, type] = {
    "production": bool, "created": str, "rows": int, "width": int, "extraction_share": float,
}  # fmt: skip
_SHARD_TYPES: Mapping[str, type] = {"start": int, "stop": int, "size_bytes": int}


@dataclass(frozen=True)
class Shard:
    """Rows start..stop of the table in one file: 12 bytes of nonce, the ciphertext, 16 bytes of tag."""

    file: str
    start: int
    stop: int
    sha256: str
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

    bundle: str
    model: str
    production: bool
    rows: int
    width: int
    dtype: TableDtype
    shards: tuple[Shard, ...]
    files: Mapping[str, str]
    tokenizer_sha256: str
    policy_sha256: str
    rules: tuple[Rule, ...]
    server_pins: tuple[str, ...]
    extraction_share: float
    created: str

    def to_bytes(self) -> bytes:
        """The exact bytes of manifest.json."""
        value = asdict(self) | {
            "format": FORMAT,
            "files": dict(self.files),
            "rules": [rule.to_json() for rule in self.rules],
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of manifest.json, in hex."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def problem(self) -> str | None:
        """Why these values are no bundle; None if they are consistent."""
        texts = (self.policy_sha256, self.tokenizer_sha256, *self.files.values())
        texts += tuple(shard.sha256 for shard in self.shards)
        names = [*self.files, *(shard.file for shard in self.shards)]
        reserved = {MANIFEST_FILE, SIGNATURE_FILE}
        if not re.fullmatch(r"[0-9a-f]{32}", self.bundle) or not is_model_name(self.model):
            return "its bundle or model name is malformed"
        if not all(re.fullmatch(_HEX64, text) for text in texts):
            return "a SHA-256 is not 64 hex digits"
        if len({*names, *reserved}) != len(names) + len(reserved) or not all(map(_is_plain, names)):
            return "its file names are not plain and distinct"
        if self.tokenizer_sha256 != tokenizer_digest(self.files):
            return "its tokenizer hash is not that of its files"
        if not 0 < self.extraction_share <= 1:
            return "its extraction share is not above 0 and at most 1"
        problem = production_problem(self.production, self.rules, self.server_pins)
        return self._table_problem() or problem

    def _table_problem(self) -> str | None:
        if self.dtype not in get_args(TableDtype) or self.rows < 1 or self.width < 1 or not self.shards:
            return "its table has no rows, or an unknown dtype"
        row_bytes, at = self.width * ITEM_BYTES[self.dtype], 0
        for shard in self.shards:
            expected_bytes = NONCE_BYTES + (shard.stop - shard.start) * row_bytes + TAG_BYTES
            if shard.start != at or shard.stop <= shard.start or shard.size_bytes != expected_bytes:
                return f"{shard.file} does not continue the table"
            at = shard.stop
        return None if at == self.rows else f"its shards hold {at} of {self.rows} rows"


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
    try:
        manifest = _parse(raw)
        problem = manifest.problem()
    except (TypeError, ValueError, KeyError, AttributeError, MisconfiguredError):
        manifest, problem = None, "it is not of the format this version reads"
    if manifest is None or problem or manifest.to_bytes() != raw:
        problem = problem or "it is not in canonical form"
        raise BundleError(f"{folder / MANIFEST_FILE} is signed but unusable: {problem}; pack it again")
    return manifest


def is_model_name(name: object) -> bool:
    """Whether `name` may be published as a model's name."""
    return isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()


def _parse(raw: bytes) -> Manifest:
    value: dict[str, Any] = load_json(raw)
    if value.pop("format") != FORMAT:
        raise ValueError("format")
    for entry, types in [(value, _TYPES), *((shard, _SHARD_TYPES) for shard in value["shards"])]:
        if any(type(entry[name]) is not wanted for name, wanted in types.items()):
            raise TypeError("a value has another type")
    for pin in value["server_pins"]:
        parse_pin(pin)
    return Manifest(
        shards=tuple(Shard(**shard) for shard in value.pop("shards")),
        rules=parse_rules(value.pop("rules")) if value["rules"] else tuple(value.pop("rules")),
        server_pins=tuple(value.pop("server_pins")),
        **value,
    )


def _read(path: Path, limit_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(limit_bytes + 1)
    except OSError as error:
        raise BundleError(f"cannot read {path} ({error.strerror}); give a bundle made by pack") from None
    if len(raw) > limit_bytes:
        raise BundleError(f"{path} has more than {limit_bytes} bytes; fetch the bundle again")
    return raw


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..")
