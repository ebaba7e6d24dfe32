"""The budget ledger: how much epsilon each account has spent, kept on disk and never refunded.

One SQLite file in WAL mode with `synchronous=FULL`; a charge is one `BEGIN IMMEDIATE` transaction that is
durable before `charge` returns, so the caller charges first and sends afterwards. Amounts are whole
nano-epsilons, each rounded up. A new file is built aside and linked into place, so an empty or foreign file
is never mistaken for a fresh budget. Threads share one connection behind a lock; processes share the file.
Opening reads it whole: each charge carries a digest over the one before it and itself, and the charges must
add up to the totals. SQLite drops what follows a damaged place of its write-ahead log without a word, so a
file beside it (`-mark`, not flushed, gone after a clean end) names the last charge that was acknowledged: it
must be there.
Threat model: crashes, kills, full disks, flipped bits and concurrent writers must not lose, alter or double
a charge. Does not protect against whoever may write the file: they can delete it or write another. It holds
account names, times and amounts, never content. WAL needs a local disk, not a network share.
Source: sequential composition, Dwork and Roth 2014, theorem 3.16; SQLite documentation, "Atomic commit".
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path

from transom.errors import LedgerError, LedgerSpentError

NANO = 10**9
ACCOUNT_LIMIT_CHARS = 200
_APPLICATION_ID = 0x7472_6C67  # "trlg": tells a ledger from any other SQLite file
_LARGEST_NANO = 2**62
_VERSION = 2
_TABLES = (
    "CREATE TABLE accounts (account TEXT PRIMARY KEY, spent_nano INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE history (id INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, account TEXT NOT NULL, "
    "nano INTEGER NOT NULL, digest BLOB NOT NULL)",
)
_DIGEST_BYTES = 16  # against accidents, not forgers
_START = (0, bytes(_DIGEST_BYTES))  # id and digest before the first charge


@dataclass(frozen=True)
class Charge:
    """One entry of the history: when (Unix seconds), who, how much."""

    at_s: int
    account: str
    epsilon: float


class Ledger:
    """Charges epsilon to accounts up to `cap_epsilon` each; a failure is a `LedgerError` and charges nothing.

    `path` is created (mode 0600) when absent. `timeout_s` bounds the wait for other writers.
    """

    def __init__(self, path: str | Path, cap_epsilon: float, timeout_s: float = 5.0) -> None:
        if math.isnan(cap_epsilon) or cap_epsilon < 0:
            raise LedgerError(f"the ledger's cap must be a non-negative epsilon, got {cap_epsilon}")
        self.path = Path(path).expanduser().absolute()
        self.cap_epsilon = cap_epsilon
        self.timeout_s = timeout_s
        self._cap_nano = _nano(min(cap_epsilon, _LARGEST_NANO / NANO), ROUND_FLOOR)
        self._lock = threading.Lock()
        self._owner_pid = os.getpid()
        with self._translated():
            if not self.path.exists():
                _create(self.path)
            self._inode = _inode(self.path)
            self._connection = _connect(self.path, timeout_s)
            try:
                _upgrade(self._connection, self.path)
                _verify(self._connection, self.path)
            except BaseException:
                self._connection.close()
                raise

    def charge(self, account: str, epsilon: float) -> float:
        """Add `epsilon` to the account and return its new total; durable on return.

        Raises `LedgerSpentError` when the cap would be passed, `LedgerError` when nothing can be recorded.
        """
        (outcome,) = self.charge_many([(account, epsilon)])
        if isinstance(outcome, LedgerSpentError):
            raise outcome
        return outcome

    def charge_many(self, charges: Sequence[tuple[str, float]]) -> list[float | LedgerSpentError]:
        """Charge in order within one durable transaction: one disk flush for many requests.

        An entry that would pass the cap yields a `LedgerSpentError` in its place and the others stand; any
        other failure raises `LedgerError` and none of them is charged.
        """
        amounts = [(_checked(account), _amount(epsilon)) for account, epsilon in charges]
        now_s = int(time.time())
        with self._transaction() as connection:
            spent = {account: _spent_nano(connection, account) for account, _ in amounts}
            number, digest = _last(connection)
            outcomes: list[float | LedgerSpentError] = []
            rows = []
            for account, nano in amounts:
                if nano and spent[account] + nano > self._cap_nano:
                    outcomes.append(self._refusal(spent[account], nano))
                    continue
                spent[account] += nano
                outcomes.append(spent[account] / NANO)
                if nano:
                    number += 1
                    digest = _link(digest, number, now_s, account, nano)
                    rows.append((number, now_s, account, nano, digest))
            _record(connection, rows, spent)
            return outcomes

    def spent(self, account: str) -> float:
        """The epsilon the account has spent so far."""
        with self._ready(self.timeout_s) as connection:
            return _spent_nano(connection, _checked(account)) / NANO

    def accounts(self) -> dict[str, float]:
        """Every account with its total."""
        with self._ready(self.timeout_s) as connection:
            rows = connection.execute("SELECT account, spent_nano FROM accounts ORDER BY account").fetchall()
        return {account: nano / NANO for account, nano in rows}

    def history(self, account: str, limit: int = 100) -> list[Charge]:
        """The account's latest charges, newest first."""
        query = "SELECT at_s, account, nano FROM history WHERE account = ? ORDER BY id DESC LIMIT ?"
        with self._ready(self.timeout_s) as connection:
            rows = connection.execute(query, (_checked(account), limit)).fetchall()
        return [Charge(at_s, name, nano / NANO) for at_s, name, nano in rows]

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if not self.path.with_name(
                f"{self.path.name}-wal"
            ).exists():  # all is in the file: none else has it
                with contextlib.suppress(OSError):
                    _mark_of(self.path).unlink()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refusal(self, spent: int, nano: int) -> LedgerSpentError:
        return LedgerSpentError(
            f"the privacy budget is spent: {spent / NANO:g} of {self.cap_epsilon:g} epsilon used and "
            f"{nano / NANO:g} more was asked; nothing was charged or sent. "
            "Raise the cap or start a new account."
        )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._ready(self.timeout_s) as connection:
            with _written(connection):
                yield connection
                last = _last(connection)
            _mark(self.path, *last)

    @contextlib.contextmanager
    def _ready(self, timeout_s: float) -> Iterator[sqlite3.Connection]:
        """The connection, exclusively, after checking that it still is this process's and this path's."""
        deadline_s = time.monotonic() + timeout_s
        if not self._lock.acquire(timeout=timeout_s):
            raise LedgerError(
                f"the privacy ledger {self.path} was busy for {timeout_s:g} s; nothing was charged"
            )
        try:
            with self._translated():
                if os.getpid() != self._owner_pid:
                    raise LedgerError("a ledger does not survive a fork; open it in each process")
                if _inode(self.path) != self._inode:
                    raise LedgerError(f"the privacy ledger {self.path} was replaced while in use; reopen it")
                left_ms = max(1, int(1000 * (deadline_s - time.monotonic())))
                self._connection.execute(f"PRAGMA busy_timeout = {left_ms}")
                yield self._connection
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, TypeError, ValueError) as error:  # the last two: damage while in use
            raise LedgerError(
                f"the privacy ledger {self.path} cannot be used ({error}); nothing was charged or sent. "
                "Check that it is a ledger file on a local, writable disk with free space."
            ) from error


def _create(path: Path) -> None:
    """Build a complete empty ledger aside and link it into place; whoever links first wins."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".ledger-")
    os.close(handle)
    try:
        with contextlib.closing(sqlite3.connect(name, isolation_level=None)) as connection:
            connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {_VERSION}")
            for table in _TABLES:
                connection.execute(table)
            connection.execute("PRAGMA journal_mode = WAL")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        Path(name).unlink()
    _flush_directory(path.parent)


def _flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
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
def _written(connection: sqlite3.Connection) -> Iterator[None]:
    """One transaction that no other writer interleaves: all of it durable at the end, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection) -> int | None:
    """The version of a ledger file; None for another database."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return version if application_id == _APPLICATION_ID else None


def _upgrade(connection: sqlite3.Connection, path: Path) -> None:
    """A file of version 1, whose charges have no digests, becomes one of this version if they add up."""
    if _version(connection) != 1:
        return
    with _written(connection):
        if _version(connection) != 1:  # another process was first
            return
        old = connection.execute("SELECT id, at_s, account, nano FROM charges ORDER BY id")
        connection.execute(_TABLES[1])
        number, digest = _START
        for _, at_s, account, nano in old:
            if not _plausible(at_s, account, nano):
                raise _corrupt(path)
            number += 1
            digest = _link(digest, number, at_s, account, nano)
            row = (number, at_s, account, nano, digest)
            connection.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?)", row)
        connection.execute("DROP TABLE charges")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        _verify_contents(connection, path)


def _verify(connection: sqlite3.Connection, path: Path) -> None:
    """Read all of it in one snapshot. Raises LedgerError unless every charge is there and adds up."""
    if _version(connection) != _VERSION:
        raise LedgerError(f"{path} is not a Transom ledger; name another file or restore a backup")
    acknowledged = _marked(path)  # before the snapshot, which must hold it
    connection.execute("BEGIN")
    try:
        found = _verify_contents(connection, path, acknowledged[0] if acknowledged else 0)
    finally:
        connection.execute("ROLLBACK")
    if acknowledged is not None and found != acknowledged:
        raise LedgerError(
            f"the privacy ledger {path} lacks charges that were recorded; restore it from a backup, or "
            f"delete {_mark_of(path)} to go on without them"
        )


def _verify_contents(connection: sqlite3.Connection, path: Path, upto: int = 0) -> tuple[int, bytes]:
    """The chain, the types and the sums. The charge number `upto` (the last one before it)."""
    tables = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok" or tables != [(table,) for table in _TABLES]:
        raise _corrupt(path)
    spent: Counter[str] = Counter()
    number, digest = found = _START
    for row in connection.execute("SELECT id, at_s, account, nano, digest FROM history ORDER BY id"):
        number += 1
        if row[0] != number or not _plausible(*row[1:4]) or row[4] != (digest := _link(digest, *row[:4])):
            raise _corrupt(path)
        spent[row[2]] += row[3]
        if number == upto:
            found = number, digest
    if dict(connection.execute("SELECT account, spent_nano FROM accounts")) != spent:
        raise _corrupt(path)
    return found


def _plausible(at_s: object, account: object, nano: object) -> bool:
    return type(at_s) is int and type(account) is str and type(nano) is int and 0 < nano <= _LARGEST_NANO


def _corrupt(path: Path) -> LedgerError:
    return LedgerError(f"the privacy ledger {path} is corrupt; restore it from a backup")


def _link(previous: bytes, number: int, at_s: int, account: str, nano: int) -> bytes:
    """The digest of a charge: over the one before it, and itself."""
    content = f"{number} {at_s} {nano} {account}".encode()
    return hashlib.blake2b(previous + content, digest_size=_DIGEST_BYTES).digest()


def _last(connection: sqlite3.Connection) -> tuple[int, bytes]:
    """Id and digest of the last charge."""
    query = "SELECT id, digest FROM history ORDER BY id DESC LIMIT 1"
    return connection.execute(query).fetchone() or _START


def _mark_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-mark")


def _mark(path: Path, number: int, digest: bytes) -> None:
    """Note the last charge acknowledged: not flushed, so after a crash it may name an earlier one, never a
    later one. A process's older note over a newer one is as harmless, and so is one that fails."""
    with contextlib.suppress(OSError):
        handle = os.open(_mark_of(path), os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.pwrite(handle, number.to_bytes(8, "big") + digest, 0)
        finally:
            os.close(handle)


def _marked(path: Path) -> tuple[int, bytes] | None:
    try:
        noted = _mark_of(path).read_bytes()
    except FileNotFoundError:
        return None
    if len(noted) != 8 + _DIGEST_BYTES:
        return None  # killed while it was first written
    return int.from_bytes(noted[:8], "big"), noted[8:]


def _inode(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _record(
    connection: sqlite3.Connection, rows: Sequence[tuple[int, int, str, int, bytes]], spent: Mapping[str, int]
) -> None:
    """Add the rows of the history and set the totals of their accounts."""
    totals = [(account, spent[account]) for account in {row[2] for row in rows}]
    connection.executemany(
        "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET spent_nano = "
        "excluded.spent_nano",
        totals,
    )
    connection.executemany("INSERT INTO history VALUES (?, ?, ?, ?, ?)", rows)


def _spent_nano(connection: sqlite3.Connection, account: str) -> int:
    row = connection.execute("SELECT spent_nano FROM accounts WHERE account = ?", (account,)).fetchone()
    return int(row[0]) if row else 0


def _checked(account: str) -> str:
    if not 0 < len(account) <= ACCOUNT_LIMIT_CHARS:
        raise LedgerError(f"an account name has 1 to {ACCOUNT_LIMIT_CHARS} characters, got {len(account)}")
    try:
        account.encode()
    except UnicodeEncodeError:
        raise LedgerError("an account name must be valid Unicode, without lone surrogates") from None
    return account


def _amount(epsilon: float) -> int:
    if math.isnan(epsilon) or epsilon < 0:
        raise LedgerError(f"a charge must be a non-negative epsilon, got {epsilon}")
    # An unbounded epsilon passes every cap: it is refused as spent, never stored.
    return _nano(min(epsilon, 2 * _LARGEST_NANO / NANO), ROUND_CEILING)


def _nano(epsilon: float, rounding: str) -> int:
    """Whole nano-epsilons of the shortest decimal that reads back as `epsilon`: 0.1 is 0.1, no more."""
    return int((Decimal(repr(float(epsilon))) * NANO).to_integral_value(rounding=rounding))
