"""The map file: what brings a sanitised file back, sealed for its owner alone.

    transom-words-map/1\\n | name of the key (8 bytes) | salt (32)
    then chunks: kind (1: 0 records, 1 end) | length (4) | nonce (12) | AES-256-GCM ciphertext and tag

The first chunks hold lines of JSON, one a record of the file, in order (`transom.privacy.recordmap`). The end
holds how the file is read and the SHA-256 of the sanitised file. A file's key is HKDF(secret, salt); each
chunk is bound to the head, to its number and to its kind, so chunks that are altered, exchanged, repeated or
missing are noticed, and so is a file without its end. A writer holds one chunk, a reader one record. A file
that was broken off is gone on with at the end of any `flush`.
Threat model: whoever reads or alters the file without the key. Mode 0600 besides.
Does not protect: how many bytes of texts there are; that two maps were made with one key, which its name
says. Who has key and map has the private values. A reader is told that a file was altered before it gets a
text, if nobody writes to it meanwhile.
Source: NIST SP 800-38D (AES-GCM), RFC 5869 (HKDF); chunks numbered and ended as in Hoang et al. 2015
(STREAM), with nonces drawn at random because a resumed file may write a chunk anew.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from transom.config import load_json
from transom.errors import MisconfiguredError, extra
from transom.files import file_sha256, read_private, write_new
from transom.privacy.recordmap import RecordMap

KEY_FORMAT, KEY_VERSION = "transom-words-key", 1
MAGIC = b"transom-words-map/1\n"
CHUNK_BYTES = 1 << 16
RECORD_BYTES = 1 << 28  # of one record's line
_SECRET_BYTES, _NAME_BYTES, _SALT_BYTES, _NONCE_BYTES, _TAG_BYTES = 32, 8, 32, 12, 16
_HEAD_BYTES = len(MAGIC) + _NAME_BYTES + _SALT_BYTES
_FRAME = struct.Struct(">BI")
_RECORDS, _END = 0, 1


def make_key(path: Path) -> None:
    """Write a new key to a file that must not exist yet, mode 0600. Raises MisconfiguredError."""
    secret = base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    record = {"format": KEY_FORMAT, "version": KEY_VERSION, "secret": secret}
    write_new(path, json.dumps(record, indent=2).encode() + b"\n", mode=0o600)


def read_key(path: Path) -> bytes:
    """The secret of a key file. Raises MisconfiguredError: absent, readable by others, damaged."""
    data = read_private(path, give="the key file that `transom words key` wrote")
    try:
        record = load_json(data)
        known = (record["format"], record["version"]) == (KEY_FORMAT, KEY_VERSION)
        secret = base64.b64decode(record["secret"], validate=True)
    except (KeyError, TypeError, ValueError):
        known, secret = False, b""
    if not known or len(secret) != _SECRET_BYTES:
        raise MisconfiguredError(
            f"{path} is not a key file of this version; make one: transom words key FILE"
        )
    return secret


def key_name(secret: bytes) -> str:
    """The 16 hex digits that name a key, in messages and at the head of its maps, without revealing it."""
    return _name(secret).hex()


class MapWriter:
    """Writes a map record by record. Without `close` it is unfinished: it can be gone on with, not read.

    As a context manager it lets go of the file and does not finish it.
    """

    def __init__(self, path: Path, secret: bytes) -> None:
        """Begin a file that must not exist yet. Raises MisconfiguredError, MissingExtraError."""
        self._path = path
        head = MAGIC + _name(secret) + secrets.token_bytes(_SALT_BYTES)
        self._seal = _Seal(secret, head)
        self._file = _open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._file.write(head)
        self._file.flush()  # so that what a kill leaves is a map, to be gone on with at its beginning
        self._buffer, self.records = bytearray(), 0

    @classmethod
    def resume(cls, path: Path, secret: bytes, records: int) -> MapWriter:
        """Go on with a file after its first `records`, which a `flush` ended; what follows them goes.

        Raises MisconfiguredError: absent, damaged before that, another key, finished with other records, or
        no `flush` there.
        """
        writer = cls.__new__(cls)
        writer._path, writer._buffer, writer.records = path, bytearray(), records
        with _reading(path) as file:
            writer._seal, end = _Seal(secret, _head(file, path, secret)), _HEAD_BYTES
            lines, rest = 0, b""
            while lines < records or rest:
                kind, data = writer._seal.read(file, path)
                if kind != _RECORDS:
                    break
                lines, rest, end = lines + data.count(b"\n"), data.rpartition(b"\n")[2], file.tell()
        if lines != records or rest or (not records and _finished(path, secret)):
            raise MisconfiguredError(
                f"{path} was not left after {records} records; begin anew with another map"
            )
        writer._file = _open(path, os.O_WRONLY)
        writer._file.truncate(end)
        writer._file.seek(end)
        return writer

    def add(self, record: RecordMap) -> None:
        """The next record. Raises MisconfiguredError."""
        line = record.to_line()
        if len(line) > RECORD_BYTES:
            raise MisconfiguredError(
                f"a record's map takes {len(line)} bytes, more than {RECORD_BYTES}; use shorter ones"
            )
        self._buffer += line
        self.records += 1
        if len(self._buffer) >= CHUNK_BYTES:
            self._write()

    def flush(self) -> None:
        """Make durable what was added; `resume` may go on here."""
        self._write()
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, sanitised_sha256: str, reading: Mapping[str, Any] | None = None) -> None:
        """Finish the map of a sanitised file with this hash; `reading` says how its texts are found."""
        self._write()
        about = {"records": self.records, "sha256": sanitised_sha256, "reading": dict(reading or {})}
        end = json.dumps(about).encode()
        self._file.write(self._seal.chunk(_END, end))
        self.flush()
        self._file.close()

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self) -> None:
        data = bytes(self._buffer)
        self._buffer.clear()
        for start in range(0, len(data), CHUNK_BYTES):
            self._file.write(self._seal.chunk(_RECORDS, data[start : start + CHUNK_BYTES]))


@dataclass(frozen=True)
class MapFile:
    """A map that was found whole. Iterating reads its records again, one at a time."""

    path: Path
    records: int
    sha256: str
    reading: Mapping[str, Any] = field(repr=False)
    _secret: bytes = field(repr=False)

    def __iter__(self) -> Iterator[RecordMap]:
        for line in _lines(self.path, self._secret):
            if isinstance(line, bytes):
                yield _record(line, self.path)


def open_map(path: Path, secret: bytes, sanitised: Path | None = None) -> MapFile:
    """A map, read through once: whole, unaltered, made with this key and, if given, for this sanitised file.

    Raises MisconfiguredError where any of that fails, MissingExtraError.
    """
    records, end = 0, dict[str, Any]()
    for line in _lines(path, secret):
        if isinstance(line, bytes):
            records += 1
        else:
            end = line
    if end.get("records") != records:
        raise MisconfiguredError(f"{path} is damaged; restore it from a backup")
    found = MapFile(path, records, str(end.get("sha256")), dict(end.get("reading", {})), secret)
    if sanitised is not None and (sha256 := file_sha256(sanitised)) != found.sha256:
        raise MisconfiguredError(
            f"{path} is the map of a file with SHA-256 {found.sha256}, and {sanitised} has {sha256}; "
            "give the map that was written with it"
        )
    return found


class _Seal:
    """The chunks of one file, in order."""

    def __init__(self, secret: bytes, head: bytes) -> None:
        with extra("enclave", "cryptography"):
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        self._cipher = AESGCM(_derive(secret, head[-_SALT_BYTES:], b"file", 32))
        self._head, self._number = head, 0

    def chunk(self, kind: int, data: bytes) -> bytes:
        """The next chunk, sealed."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, data, self._bound(kind))
        return _FRAME.pack(kind, len(sealed)) + sealed

    def read(self, file: BinaryIO, path: Path) -> tuple[int, bytes]:
        """The kind and data of the next chunk. Raises MisconfiguredError."""
        from cryptography.exceptions import InvalidTag

        frame = file.read(_FRAME.size)
        kind, size = _FRAME.unpack(frame) if len(frame) == _FRAME.size else (_RECORDS, 0)
        most = _NONCE_BYTES + CHUNK_BYTES + _TAG_BYTES
        sealed = file.read(size) if size <= most else b""
        if size <= most and len(sealed) < max(size, 1):
            raise MisconfiguredError(f"{path} is cut short: its end is missing; resume the run that wrote it")
        try:
            return kind, self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], self._bound(kind))
        except (InvalidTag, ValueError):
            raise MisconfiguredError(f"{path} was altered; restore it from a backup") from None

    def _bound(self, kind: int) -> bytes:
        self._number += 1
        return self._head + struct.pack(">BQ", kind, self._number)


def _lines(path: Path, secret: bytes) -> Iterator[bytes | dict[str, Any]]:
    """The line of each record, and at last the end's record. Raises MisconfiguredError."""
    with _reading(path) as file:
        seal, rest = _Seal(secret, _head(file, path, secret)), bytearray()
        while True:
            kind, data = seal.read(file, path)
            if kind == _END:
                break
            rest += data
            if b"\n" in data:
                *lines, last = bytes(rest).split(b"\n")
                rest = bytearray(last)
                yield from lines
            if len(rest) > RECORD_BYTES:
                raise MisconfiguredError(f"{path} is damaged; restore it from a backup")
        if rest or file.read(1):
            raise MisconfiguredError(f"{path} was altered; restore it from a backup")
        yield json.loads(data)


def _finished(path: Path, secret: bytes) -> bool:
    with suppress(MisconfiguredError):
        open_map(path, secret)
        return True
    return False


def _head(file: BinaryIO, path: Path, secret: bytes) -> bytes:
    head = file.read(_HEAD_BYTES)
    if len(head) < _HEAD_BYTES or not head.startswith(MAGIC):
        raise MisconfiguredError(f"{path} is not a map of this version; give the file that --map wrote")
    name = head[len(MAGIC) : -_SALT_BYTES]
    if name != _name(secret):
        raise MisconfiguredError(
            f"{path} was made with the key {name.hex()}, and this is the key {key_name(secret)}; "
            "give that key's file"
        )
    return head


def _record(line: bytes, path: Path) -> RecordMap:
    try:
        return RecordMap.from_line(line)
    except (KeyError, TypeError, ValueError):
        raise MisconfiguredError(
            f"{path} was written by another version; use the Transom that wrote it"
        ) from None


def _reading(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise MisconfiguredError(
            f"cannot read {path} ({error.strerror}); give the file that --map wrote"
        ) from None


def _open(path: Path, flags: int) -> BinaryIO:
    try:
        return os.fdopen(os.open(path, flags, 0o600), "wb")
    except FileExistsError:
        raise MisconfiguredError(
            f"cannot write {path}: it exists; resume its run or give another path"
        ) from None
    except OSError as error:
        raise MisconfiguredError(f"cannot write {path} ({error.strerror}); give another path") from None


def _name(secret: bytes) -> bytes:
    """What names a key without revealing it."""
    return _derive(secret, b"", b"name", _NAME_BYTES)


def _derive(secret: bytes, salt: bytes, use: bytes, size: int) -> bytes:
    with extra("enclave", "cryptography"):
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    info = b"transom/words-map/1/" + use
    made: bytes = HKDF(SHA256(), length=size, salt=salt or None, info=info).derive(secret)
    return made
