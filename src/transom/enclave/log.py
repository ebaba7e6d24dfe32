"""The release log: one line for each time somebody asked for a key, chained by hashes, synced before the key.

Each line is a JSON object {seq, time, bundle, kind, trust, measurement, decision, reason, previous, hash}.
`hash` covers the other fields, `previous` is the hash of the line before, so a line that was changed, removed
or moved breaks the chain. Several processes may append to one log; each append holds the file's lock.
Threat model: someone edits the log afterwards, or the disk is full. Does not protect: whoever can write the
file can cut off its end, or write all of it anew; note `log_head` elsewhere now and then to notice that.
Source: Schneier and Kelsey 1999, Secure Audit Logs to Support Computer Forensics, section 3.1 (hash chains).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from transom.config import load_json
from transom.enclave.evidence import Trust, digest
from transom.errors import MisconfiguredError, system_errors
from transom.files import sync

Decision = Literal["released", "refused"]
_FIELDS = ("seq", "time", "bundle", "kind", "trust", "measurement", "decision", "reason", "previous", "hash")
_START = "0" * 64


@dataclass(frozen=True)
class Attempt:
    """One request for a key. Fields stay empty, and `trust` none, until they have been checked."""

    bundle: str = ""
    kind: str = ""
    trust: Trust = "none"
    measurement: str = ""
    decision: Decision = "refused"
    reason: str = ""


@dataclass(frozen=True)
class Head:
    """The end of a chain: how many entries, the last one's hash, and the bytes they take."""

    entries: int = 0
    sha256: str = _START
    size_bytes: int = 0


class ReleaseLog:
    """An append-only log in the file `path`, made (mode 0600) if absent and verified when opened.

    Raises MisconfiguredError when the file cannot be used or its chain is broken.
    """

    def __init__(self, path: str | Path, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.path, self._now = Path(path), now
        if not self.path.exists():
            with system_errors(f"cannot make the release log {self.path}"):
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600))
                sync(self.path.parent)
        self._head = log_head(self.path)

    def append(self, attempt: Attempt) -> Head:
        """Write and sync one entry; the log's new head. Raises MisconfiguredError, with nothing written."""
        refused = system_errors(f"cannot write the release log {self.path}", "no key is released without it")
        with refused, self.path.open("r+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size_bytes = os.fstat(file.fileno()).st_size
            if size_bytes < self._head.size_bytes:
                raise _broken(self.path, self._head.entries, "it is gone; the file was cut")
            file.seek(self._head.size_bytes)
            head = _follow(self.path, self._head, file.read())  # what other processes wrote since
            time = self._now().astimezone(UTC).isoformat(timespec="milliseconds")
            entry = {"seq": head.entries + 1, "time": time, **asdict(attempt), "previous": head.sha256}
            sha256 = _hash(entry)
            line = _dump({**entry, "hash": sha256}) + b"\n"
            _write(file.fileno(), line, size_bytes)
            self._head = Head(head.entries + 1, sha256, head.size_bytes + len(line))
        return self._head


def log_head(path: str | Path) -> Head:
    """Verify a whole log and return its end. Raises MisconfiguredError, which names the first broken line."""
    path = Path(path)
    with system_errors(f"cannot read the release log {path}"), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return _follow(path, Head(), file.read())


def _follow(path: Path, head: Head, data: bytes) -> Head:
    for line in data.splitlines(keepends=True):
        number = head.entries + 1
        if not line.endswith(b"\n"):
            raise _broken(path, number, "it is torn, as by a power failure; look at it and remove it")
        try:
            entry = load_json(line)
        except ValueError:
            raise _broken(path, number, "it is not JSON") from None
        if not isinstance(entry, dict) or tuple(entry) != _FIELDS:
            raise _broken(path, number, "it does not have the fields of an entry")
        found = entry.pop("hash")
        if entry["seq"] != number or entry["previous"] != head.sha256:
            raise _broken(path, number, "it does not follow the line before; a line was removed or moved")
        if found != _hash(entry) or line != _dump({**entry, "hash": found}) + b"\n":
            raise _broken(path, number, "its hash does not match; it was changed")
        head = Head(number, found, head.size_bytes + len(line))
    return head


def _write(descriptor: int, line: bytes, size_bytes: int) -> None:
    """Append whole and synced, or leave the file as it was."""
    try:
        written = os.pwrite(descriptor, line, size_bytes)
        while written < len(line):  # a disk that fills up writes a part first, and says so the second time
            written += os.pwrite(descriptor, line[written:], size_bytes + written)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size_bytes)
        raise


def _hash(entry: dict[str, Any]) -> str:
    return digest("transom/release-log/v1", _dump(entry)).hex()


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def _broken(path: Path, number: int, why: str) -> MisconfiguredError:
    return MisconfiguredError(f"the release log {path} is broken at line {number}: {why}")
