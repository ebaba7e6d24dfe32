"""Pack a model into a bundle: encrypted embedding shards for the user's side, the whole model for the engine.

    OUT/client/   manifest.json, manifest.sig, embedding-00001.enc ..., the tokenizer's files: hand this out
    OUT/server/   the model as the engine loads it: keep this

Everything is written to OUT.partial-RANDOM, made durable, and renamed at the end: OUT is whole or absent. A
run that was killed leaves that folder behind, which can be deleted.
Threat model: the user's host holds client/ and may alter it; it must not learn a row of the table.
Does not protect: server/, which holds the plain weights, and the tokenizer, which is public to the user.
Source: Yu et al., DASFAA 2025, arXiv 2509.09091 (the embedding layer stays with its owner).

Hard links in server/ share their bytes with the source: replace a source's files, never edit them in place.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from transom.checkpoint.source import Source, check, find
from transom.checkpoint.tokenizer import export_tokenizer, write_tokenizer
from transom.enclave.halves import EmbeddingFile, locate_embedding, write_server_half
from transom.enclave.manifest import (
    MANIFEST_FILE,
    SIGNATURE_DOMAIN,
    SIGNATURE_FILE,
    Manifest,
    Shard,
    client_folder,
    is_model_name,
    load_manifest,
    production_problem,
    tokenizer_digest,
)
from transom.enclave.owner import DATA_KEY_BYTES, Owner
from transom.enclave.policy import Rule
from transom.enclave.table import associated_data, seal
from transom.errors import BundleError, CheckpointError, MisconfiguredError, system_errors
from transom.files import sync
from transom.net.pin import parse_pin

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SHARD_BYTES = 32 * 2**20
EXTRACTION_SHARE = 0.25
_MAX_SHARD_BYTES = 2**30  # AES-GCM in one call takes less than 2 GiB


def pack(
    source: str | Path,
    out: str | Path,
    owner: Owner,
    *,
    production: bool,
    rules: Sequence[Rule],
    policy_sha256: str,
    name: str | None = None,
    server_pins: Sequence[str] = (),
    extraction_share: float = EXTRACTION_SHARE,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[float], None] | None = None,
) -> Manifest:
    """Write the bundle `out`, which must not exist, and keep its data key in the owner's folder.

    `progress` is called with the share done, 0 to 1. Memory stays at two shards, except for a GGUF.
    Raises CheckpointError, NotYetError (an unknown architecture or dtype), MisconfiguredError (an option, an
    existing `out`, a full or unwritable disk). On any error nothing is left at `out`.
    """
    out = Path(out)
    _check_options(production, tuple(rules), policy_sha256, tuple(server_pins), shard_bytes)
    if not 0 < extraction_share <= 1:
        raise MisconfiguredError(f"extraction_share must be above 0 and at most 1, got {extraction_share}")
    if os.path.lexists(out):
        raise MisconfiguredError(f"{out} exists; give a new folder, or delete it first")
    found = find(source)
    check(found)
    model = name if name is not None else _published_name(found)
    if not is_model_name(model):
        raise MisconfiguredError(f"a model's name has 1 to 200 printable characters, got {len(model)}")
    partial = out.with_name(f"{out.name}.partial-{secrets.token_hex(4)}")
    key = secrets.token_bytes(DATA_KEY_BYTES)
    try:
        partial.mkdir(parents=True)
        write_server_half(found, partial / "server")
        embedding = locate_embedding(partial / "server")
        files = _write_client_files(partial, embedding)
        draft = Manifest(
            bundle=secrets.token_hex(16),
            model=model,
            production=production,
            rows=embedding.rows,
            width=embedding.width,
            dtype=embedding.dtype,
            shards=_plan(embedding, shard_bytes),
            files=files,
            tokenizer_sha256=tokenizer_digest(files),
            policy_sha256=policy_sha256,
            rules=tuple(rules),
            server_pins=tuple(server_pins),
            extraction_share=float(extraction_share),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        manifest = _encrypt(embedding, partial / "client", key, draft, progress)
        _publish(partial, out, manifest, owner, key)
    except OSError as error:
        raise MisconfiguredError(
            f"cannot write the bundle {out} ({error.strerror}); free the disk or choose another folder. "
            "Nothing was left there"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def leftovers(out: str | Path) -> list[Path]:
    """Folders of packings of `out` that were killed, or still run. They can be deleted in the first case."""
    out = Path(out)
    return sorted(
        path for path in out.parent.glob("*.partial-*") if path.name.startswith(f"{out.name}.partial-")
    )


def verify_bundle(folder: str | Path, owner_key: Ed25519PublicKey) -> Manifest:
    """The manifest of a bundle whose every file is the one its owner signed, with no file beside them.

    Raises BundleError. Needs no data key. `open_table` checks again what it decrypts, and `copy_files` what
    it copies, so that what was checked is what is used.
    """
    manifest = load_manifest(folder, owner_key)
    folder = client_folder(folder)
    expected = dict(manifest.files) | {shard.file: shard.sha256 for shard in manifest.shards}
    present = {path.name for path in folder.iterdir()} - {MANIFEST_FILE, SIGNATURE_FILE}
    if present != set(expected):
        strange, missing = sorted(present - set(expected)), sorted(set(expected) - present)
        what = f"misses {missing[0]}" if missing else f"has the unsigned file {strange[0]}"
        raise BundleError(f"the bundle {folder} {what}; fetch it again")
    for name, sha256 in expected.items():
        if _sha256(folder / name) != sha256:
            raise BundleError(f"{folder / name} is not the file the owner signed; fetch the bundle again")
    return manifest


def copy_files(bundle: str | Path, manifest: Manifest, into: Path) -> None:
    """Copy the tokenizer's files, each checked against the manifest as it is copied. Raises BundleError."""
    folder = client_folder(bundle)
    for name, sha256 in manifest.files.items():
        with system_errors(f"cannot read {folder / name}", "fetch it again", BundleError):
            data = (folder / name).read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BundleError(f"{folder / name} is not the file the owner signed; fetch the bundle again")
        (into / name).write_bytes(data)


def _check_options(
    production: bool,
    rules: tuple[Rule, ...],
    policy_sha256: str,
    server_pins: tuple[str, ...],
    shard_bytes: int,
) -> None:
    problem = production_problem(production, rules, server_pins)
    if problem:
        raise MisconfiguredError(f"{problem}; see the evidence policy and the server pins")
    if not re.fullmatch(r"[0-9a-f]{64}", policy_sha256):
        raise MisconfiguredError(f"policy_sha256 must be 64 hex digits, got {len(policy_sha256)} characters")
    if not 0 < shard_bytes <= _MAX_SHARD_BYTES:
        raise MisconfiguredError(f"shard_bytes must be 1 to {_MAX_SHARD_BYTES}, got {shard_bytes}")
    for pin in server_pins:
        parse_pin(pin)


def _published_name(found: Source) -> str:
    given_path = Path(found.name).expanduser() == found.path
    return found.path.resolve().name if given_path else found.name


def _write_client_files(partial: Path, embedding: EmbeddingFile) -> Mapping[str, str]:
    """Write the tokenizer's files to client/ and return their hashes."""
    client, server = partial / "client", partial / "server"
    client.mkdir()
    files = export_tokenizer(server)
    largest = max(files.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= embedding.rows:
        raise CheckpointError(
            f"the tokenizer knows the id {largest}, the embedding has {embedding.rows} rows: "
            "they belong to different models"
        )
    return {name: _sha256(client / name) for name in write_tokenizer(files, client, server)}


def _plan(embedding: EmbeddingFile, shard_bytes: int) -> tuple[Shard, ...]:
    """Which rows go to which file; sizes and hashes are known once they are written."""
    step = max(1, shard_bytes // embedding.row_bytes)
    starts = range(0, embedding.rows, step)
    return tuple(
        Shard(f"embedding-{number:05d}.enc", start, min(start + step, embedding.rows), "", 0)
        for number, start in enumerate(starts, 1)
    )


def _encrypt(
    embedding: EmbeddingFile,
    client: Path,
    key: bytes,
    draft: Manifest,
    progress: Callable[[float], None] | None,
) -> Manifest:
    """Write the planned shards one by one; the manifest gets their hashes."""
    shards = []
    for index, shard in enumerate(draft.shards):
        rows = embedding.read(shard.start, shard.stop)
        shards.append(_write_shard(client, shard, seal(rows, key, associated_data(draft, index))))
        if progress is not None:
            progress(shard.stop / embedding.rows)
    return replace(draft, shards=tuple(shards))


def _write_shard(client: Path, shard: Shard, parts: Sequence[bytes]) -> Shard:
    hashed = hashlib.sha256()
    with (client / shard.file).open("xb") as file:
        for part in parts:
            file.write(part)
            hashed.update(part)
    return replace(shard, sha256=hashed.hexdigest(), size_bytes=sum(map(len, parts)))


def _publish(partial: Path, out: Path, manifest: Manifest, owner: Owner, key: bytes) -> None:
    """Sign, make everything durable, store the key, and only then give the bundle its name."""
    raw = manifest.to_bytes()
    (partial / "client" / MANIFEST_FILE).write_bytes(raw)
    (partial / "client" / SIGNATURE_FILE).write_bytes(owner.sign(SIGNATURE_DOMAIN + raw))
    for folder in (partial / "client", partial / "server"):
        for path in (folder, *folder.rglob("*")):
            sync(path)
    sync(partial)
    owner.keep_data_key(manifest.bundle, key)
    partial.rename(out)
    sync(out.parent)


def _sha256(path: Path) -> str:
    todo = "restore it, or fetch the bundle again"
    with system_errors(f"cannot read {path}", todo, BundleError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
