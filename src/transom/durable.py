"""A SQLite file of which nothing acknowledged is lost: a history that only grows, and tables that follow it.

One file in WAL mode with `synchronous=FULL`; what is written within one `writing()` is durable when it ends,
all of it or nothing. A new file is built aside and linked into place, so an empty or foreign file is never
mistaken for a fresh one. Threads share one connection behind a lock; processes share the file.
Opening reads it whole: each entry of the history carries a digest over the one before it and itself, and the
other tables must agree with it. SQLite drops what follows a damaged place of its write-ahead log without a
word, so a file beside it (`-mark`, not flushed, gone after a clean end) names the last entry that was
acknowledged: it must be there.
Threat model: crashes, kills, full disks, flipped bits and concurrent writers must not lose, alter or double
an entry. Does not protect against whoever may write the file: they can delete it or write another. WAL needs
a local disk, not a network share.
Source: SQLite documentation, "Atomic commit".
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from transom.errors import TransomError
from transom.files import whole

Row = tuple[Any, ...]
_DIGEST_BYTES = 16  # against accidents, not forgers
_START = (0, bytes(_DIGEST_BYTES))  # id and digest before the first entry


@dataclass(frozen=True, kw_only=True)
class Format:
    """One kind of file: what its tables are, and what is said of it.

    The table `history` has the columns `id`, `digest` and `columns`. `content` gives the bytes that an
    entry's digest covers, of (id, *columns). `agrees` says whether the entries are possible and the other
    tables follow from them; an entry that it leaves unread counts as damage. `upgrade` makes this version's
    tables of an earlier version's, and says whether what it found adds up; the digests of entries stay.
    """

    noun: str
    entries: str
    undone: str
    error: type[TransomError]
    application_id: int
    version: int
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    content: Callable[[Row], bytes]
    agrees: Callable[[Connection, Iterator[Row]], bool]
    upgrade: Callable[[Connection, int], bool] = lambda connection, version: True

    def append(self, connection: Connection, rows: Iterable[Row]) -> None:
        """Add entries, each the values of `columns`, to the history; within `writing()`."""
        entries: list[Row] = []
        last, digest = _last(connection)
        for number, row in enumerate(rows, last + 1):
            digest = _link(digest, self.content((number, *row)))
            entries.append((number, digest, *row))
        names = ", ".join(("id", "digest", *self.columns))
        values = ", ".join("?" * (2 + len(self.columns)))
        connection.executemany(f"INSERT INTO history ({names}) VALUES ({values})", entries)  # noqa: S608


class DurableFile:
    """A file of one format, made (mode 0600) when absent; every failure is the format's error.

    `timeout_s` bounds the wait for other threads and processes.
    """

    def __init__(self, path: str | Path, form: Format, timeout_s: float = 5.0) -> None:
        self.path = Path(path).expanduser().absolute()
        self.timeout_s = timeout_s
        self._form = form
        self._name = f"the {form.noun} {self.path}"
        self._lock = threading.Lock()
        self._owner_pid = os.getpid()
        with self._translated():
            if not self.path.exists():
                self._create()
            self._inode = _inode(self.path)
            self._connection = _connect(self.path, timeout_s)
            try:
                self._upgrade()
                self._verify()
            except BaseException:
                self._connection.close()
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """The connection, exclusively, after checking that it still is this process's and this path's."""
        deadline_s = time.monotonic() + self.timeout_s
        if not self._lock.acquire(timeout=self.timeout_s):
            raise self._form.error(f"{self._name} was busy for {self.timeout_s:g} s; {self._form.undone}")
        try:
            with self._translated():
                if os.getpid() != self._owner_pid:
                    noun = self._form.noun
                    raise self._form.error(f"a {noun} does not survive a fork; open it in each process")
                if _inode(self.path) != self._inode:
                    raise self._form.error(f"{self._name} was replaced while in use; reopen it")
                left_ms = max(1, int(1000 * (deadline_s - time.monotonic())))
                self._connection.execute(f"PRAGMA busy_timeout = {left_ms}")
                yield self._connection
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction that no other writer interleaves: all of it durable at the end, or nothing."""
        with self.reading() as connection:
            with _written(connection):
                yield connection
                last = _last(connection)
            self._mark(*last)

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            log = self.path.with_name(f"{self.path.name}-wal")
            if not log.exists():  # all is in the file: none else has it
                with contextlib.suppress(OSError):
                    self._mark_path.unlink()

    def _create(self) -> None:
        """Build a complete empty file aside and link it into place; whoever links first wins."""
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (
            contextlib.suppress(FileExistsError),
            whole(self.path, mode=0o600, put=os.link) as partial,
            contextlib.closing(sqlite3.connect(partial, isolation_level=None)) as connection,
        ):
            connection.execute(f"PRAGMA application_id = {self._form.application_id}")
            connection.execute(f"PRAGMA user_version = {self._form.version}")
            for table in self._form.tables:
                connection.execute(table)
            connection.execute("PRAGMA journal_mode = WAL")

    def _version(self) -> int | None:
        """The version of a file of this format; None for another database."""
        (application_id,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return version if application_id == self._form.application_id else None

    def _upgrade(self) -> None:
        """A file of an earlier version becomes one of this version if it adds up."""
        if not self._is_older():
            return
        with _written(self._connection):
            if not self._is_older():  # another process was first
                return
            if not self._form.upgrade(self._connection, self._version() or 0):
                raise self._corrupt()
            self._connection.execute(f"PRAGMA user_version = {self._form.version}")
            self._verify_contents()

    def _is_older(self) -> bool:
        version = self._version()
        return version is not None and 0 < version < self._form.version

    def _verify(self) -> None:
        """Read all of it in one snapshot. Raises unless every entry is there and all agrees."""
        if self._version() != self._form.version:
            raise self._form.error(
                f"{self.path} is not a Transom {self._form.noun} of version {self._form.version} or before; "
                "name another file or restore a backup"
            )
        acknowledged = self._marked()  # before the snapshot, which must hold it
        self._connection.execute("BEGIN")
        try:
            found = self._verify_contents(acknowledged[0] if acknowledged else 0)
        finally:
            self._connection.execute("ROLLBACK")
        if acknowledged is not None and found != acknowledged:
            raise self._form.error(
                f"{self._name} lacks {self._form.entries} that were recorded; restore it from a backup, or "
                f"delete {self._mark_path} to go on without them"
            )

    def _verify_contents(self, upto: int = 0) -> tuple[int, bytes]:
        """The tables, the chain and what follows from it. Entry number `upto` (the last one before it)."""
        tables = self._connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
        (verdict,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok" or tables != [(table,) for table in self._form.tables]:
            raise self._corrupt()
        found = _START

        def entries() -> Iterator[Row]:
            nonlocal found
            names = ", ".join(("id", "digest", *self._form.columns))
            number, digest = _START
            for row in self._connection.execute(f"SELECT {names} FROM history ORDER BY id"):  # noqa: S608
                number += 1
                entry = (row[0], *row[2:])
                digest = _link(digest, self._form.content(entry))
                if row[:2] != (number, digest):
                    raise self._corrupt()
                if number == upto:
                    found = number, digest
                yield entry

        rows = entries()
        if not self._form.agrees(self._connection, rows) or next(rows, None) is not None:
            raise self._corrupt()
        return found

    @property
    def _mark_path(self) -> Path:
        return self.path.with_name(f"{self.path.name}-mark")

    def _mark(self, number: int, digest: bytes) -> None:
        """Note the last entry acknowledged: not flushed, so after a crash it may name an earlier one, never a
        later one. A process's older note over a newer one is as harmless, and so is one that fails."""
        with contextlib.suppress(OSError):
            handle = os.open(self._mark_path, os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(handle, number.to_bytes(8, "big") + digest, 0)
            finally:
                os.close(handle)

    def _marked(self) -> tuple[int, bytes] | None:
        try:
            noted = self._mark_path.read_bytes()
        except FileNotFoundError:
            return None
        if len(noted) != 8 + _DIGEST_BYTES:
            return None  # killed while it was first written
        return int.from_bytes(noted[:8], "big"), noted[8:]

    def _corrupt(self) -> TransomError:
        return self._form.error(f"{self._name} is corrupt; restore it from a backup")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:  # the last two: damage while in use
            raise self._form.error(
                f"{self._name} cannot be used ({error}); {self._form.undone}. "
                f"Check that it is a {self._form.noun} file on a local, writable disk with free space."
            ) from error


def _connect(path: Path, timeout_s: float) -> Connection:
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=timeout_s, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _written(connection: Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _link(previous: bytes, content: bytes) -> bytes:
    """The digest of an entry: over the one before it, and itself."""
    return hashlib.blake2b(previous + content, digest_size=_DIGEST_BYTES).digest()


def _last(connection: Connection) -> tuple[int, bytes]:
    """Id and digest of the last entry."""
    query = "SELECT id, digest FROM history ORDER BY id DESC LIMIT 1"
    return connection.execute(query).fetchone() or _START


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
