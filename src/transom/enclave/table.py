"""The embedding table in memory: decrypted shard by shard, looked up by id.

Threat model: runs inside the enclave; the bundle's folder is the host's. The bytes that are hashed are the
bytes that are decrypted, each shard straight to its place, so no second copy of a row is made.
Does not protect: memory that the platform lets others read, and swap: a virtual machine that keeps a table
must have none. Zeroing is best effort. Source: NIST SP 800-38D (AES-GCM).

Shapes: T tokens, D model width, V rows of the table.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from transom.enclave.manifest import ITEM_BYTES, NONCE_BYTES, Manifest, client_folder
from transom.enclave.owner import DATA_KEY_BYTES
from transom.errors import BundleError, system_errors

_NUMPY: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


def associated_data(manifest: Manifest, index: int) -> bytes:
    """What a shard's tag covers beside its rows: its place in one table of one model with one tokenizer."""
    shard = manifest.shards[index]
    value = {
        "domain": "transom/shard/v1",
        "bundle": manifest.bundle,
        "model": manifest.model,
        "index": index,
        "count": len(manifest.shards),
        "start": shard.start,
        "stop": shard.stop,
        "width": manifest.width,
        "dtype": manifest.dtype,
        "tokenizer_sha256": manifest.tokenizer_sha256,
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def seal(rows: bytes, key: bytes, data: bytes) -> tuple[bytes, bytes]:
    """(nonce, ciphertext and tag) of a shard's rows under `data`. Random nonces: a key serves one bundle."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(NONCE_BYTES)
    return nonce, AESGCM(key).encrypt(nonce, rows, data)


class EmbeddingTable:
    """The embedding rows of one model, in the checkpoint's own dtype. See `open_table`."""

    def __init__(self, table_VD: np.ndarray, dtype: str) -> None:
        self._table_VD: np.ndarray | None = table_VD
        self._wide = dtype == "BF16"
        self.rows_count, self.width = table_VD.shape

    def rows(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows of these ids, float32 [T, D], exactly the model's own. Raises BundleError."""
        if self._table_VD is None:
            raise BundleError("the embedding table is closed; open the bundle again")
        ids_T = np.asarray(ids if len(ids) else np.empty(0, np.int64))
        if ids_T.ndim != 1 or ids_T.dtype.kind not in "iu":
            raise BundleError(f"ids must be a list of whole numbers, got {ids_T.ndim} dimensions")
        if ids_T.size and not 0 <= int(ids_T.min()) <= int(ids_T.max()) < self.rows_count:
            raise BundleError(f"an id is outside the table of {self.rows_count} rows: another model's tokens")
        rows_TD: np.ndarray = self._table_VD[ids_T]
        if not self._wide:
            return rows_TD.astype(np.float32, copy=False)
        wide_TD = rows_TD.astype(np.uint32)
        wide_TD <<= 16  # a bfloat16 is the upper half of a float32
        return wide_TD.view(np.float32)

    def close(self) -> None:
        """Overwrite the table with zeros (best effort) and refuse further lookups."""
        if self._table_VD is not None:
            self._table_VD.fill(0)
            self._table_VD = None


def open_table(folder: str | Path, manifest: Manifest, data_key: bytes) -> EmbeddingTable:
    """Decrypt a bundle's table into memory; `manifest` must come from `load_manifest`.

    Raises BundleError when a shard is missing, truncated, altered, out of place, or the key is another's.
    """
    if len(data_key) != DATA_KEY_BYTES:
        raise BundleError(f"a data key has {DATA_KEY_BYTES} bytes, got {len(data_key)}")
    folder = client_folder(folder)
    row_bytes = manifest.width * ITEM_BYTES[manifest.dtype]
    try:
        memory = mmap.mmap(-1, manifest.rows * row_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise BundleError(f"no memory for a table of {manifest.rows * row_bytes} bytes") from None
    if hasattr(mmap, "MADV_DONTDUMP"):
        memory.madvise(mmap.MADV_DONTDUMP)  # a core file would hold the table
    table_VD: np.ndarray = np.frombuffer(memory, _NUMPY[manifest.dtype]).reshape(manifest.rows, -1)
    try:
        for index, shard in enumerate(manifest.shards):
            place = memoryview(memory)[shard.start * row_bytes : shard.stop * row_bytes]
            _open_shard(folder / shard.file, manifest, index, data_key, place)
    except BaseException:
        table_VD.fill(0)
        raise
    return EmbeddingTable(table_VD, manifest.dtype)


def _open_shard(path: Path, manifest: Manifest, index: int, key: bytes, target: memoryview) -> None:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    shard = manifest.shards[index]
    with system_errors(f"cannot read {path}", "fetch the bundle again", BundleError), path.open("rb") as file:
        raw = memoryview(file.read(shard.size_bytes + 1))
    if len(raw) != shard.size_bytes or hashlib.sha256(raw).hexdigest() != shard.sha256:
        raise BundleError(f"{path} is not the file the owner signed; fetch the bundle again")
    data = associated_data(manifest, index)
    try:
        AESGCM(key).decrypt_into(raw[:NONCE_BYTES], raw[NONCE_BYTES:], data, target)
    except InvalidTag:
        raise BundleError(f"{path} does not open: the data key is another bundle's") from None
