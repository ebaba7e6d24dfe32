"""What a party has sent and applied in a run, on disk: its step ledger.

A message is in the record before it is on its way, and stays (`held`) until the partner has applied it; what
the partner's messages change is committed together with the fact that they were applied. So a kill at any
moment leaves a state from which both go on, and what is sent again is the same bytes.
Opening reads it whole (`transom.durable`): what is held and the checkpoint must be what the history says.
Threat model: crashes, kills, full disks, flipped bits, two processes on one record, another run's record.
Does not protect: against whoever may write or read the file. It holds what was sent, the checkpoint and the
secret of the labelled noise: who reads it can take the noise off. That a file was restored from a backup
shows only when the partner is met.
Source: own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sqlite3 import Connection
from typing import IO

from transom.durable import DurableFile, Format, Row
from transom.errors import LinkError, LinkRefusedError, system_errors
from transom.link.message import Step, require_name
from transom.link.numbers import Numbers

SECRET_BYTES = 32
_BUSY_S = 600.0  # a large checkpoint keeps a slow disk so long, and a session's thread waits to send again
_TABLES = (
    "CREATE TABLE checkpoint (id INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE history (id INTEGER PRIMARY KEY, digest BLOB NOT NULL, kind TEXT NOT NULL, "
    "number INTEGER NOT NULL, step TEXT NOT NULL, content BLOB NOT NULL)",
    "CREATE TABLE outbox (number INTEGER PRIMARY KEY, data BLOB NOT NULL)",
    "CREATE TABLE owner (job TEXT NOT NULL, run TEXT NOT NULL, party TEXT NOT NULL, partner TEXT NOT NULL, "
    "secret BLOB NOT NULL)",
    "CREATE TABLE steps (kind TEXT NOT NULL, step TEXT NOT NULL, number INTEGER NOT NULL, "
    "PRIMARY KEY (kind, step)) WITHOUT ROWID",
)


@dataclass
class _State:
    """What follows from the history: changed within a transaction, taken over when it is durable."""

    applied: Numbers
    next_number: int
    sizes: dict[int, int]  # of what is held, by number

    def copy(self) -> _State:
        return _State(self.applied.copy(), self.next_number, dict(self.sizes))


class Writing:
    """What one transaction does; see `Record.writing`."""

    def __init__(self, connection: Connection, state: _State) -> None:
        self._connection, self.state = connection, state
        self.rows: list[Row] = []

    def apply(self, number: int, step: Step) -> None:
        """The partner's message has its effect. Raises LinkRefusedError for one that had it before."""
        if number in self.state.applied or not self._first("applied", step, number):
            raise LinkRefusedError(
                f"step {step}, message {number}, comes a second time; a step is applied once: a reassigned "
                "batch needs an attempt of its own"
            )
        self.state.applied.add(number)
        self.rows.append(("applied", number, str(step), b""))

    def send(self, step: Step, make: Callable[[int], bytes]) -> int:
        """Put the message that `make` makes of its number among what is held; the number.

        A step that was sent before keeps its number and bytes.
        """
        number = self.state.next_number
        if not self._first("sent", step, number):
            return _number(self._connection, step) or 0
        data = make(number)
        self._connection.execute("INSERT INTO outbox VALUES (?, ?)", (number, data))
        self.rows.append(("sent", number, str(step), _digest(data)))
        self.state.sizes[number], self.state.next_number = len(data), number + 1
        return number

    def checkpoint(self, data: bytes) -> None:
        """Keep the bytes in place of an earlier checkpoint."""
        self._connection.execute("INSERT OR REPLACE INTO checkpoint VALUES (1, ?)", (data,))
        self.rows.append(("checkpoint", 0, "", _digest(data)))

    def receipted(self, numbers: Iterable[int]) -> None:
        """The partner has applied these: they need not be held. Numbers that are not held change nothing."""
        for number in numbers:
            if self.state.sizes.pop(number, None) is not None:
                self._connection.execute("DELETE FROM outbox WHERE number = ?", (number,))
                self.rows.append(("receipted", number, "", b""))

    def _first(self, kind: str, step: Step, number: int) -> bool:
        inserted = "INSERT OR IGNORE INTO steps VALUES (?, ?, ?)"
        return bool(self._connection.execute(inserted, (kind, str(step), number)).rowcount)


class Record:
    """The record of one party's part in one run; made when absent, in memory alone for a `path` of None.

    Raises LinkRefusedError for a record of another job, run or party, and LinkError for one that another
    process has open or that is damaged. `secret` is made once a record, `boot` counts its sessions.
    """

    def __init__(self, path: str | Path | None, *, job: str, run: str, party: str, partner: str) -> None:
        owner = (job, run, party, partner)
        for name, what in zip(owner, _OWNER, strict=True):
            require_name(name, f"a {what}")
        self.job, self.run, self.party, self.partner = owner
        self._lock = _locked(Path(path).expanduser().absolute()) if path is not None else None
        try:
            self._file = DurableFile(path, _FORMAT, timeout_s=_BUSY_S) if path is not None else _InMemory()
            try:
                self.secret, self.boot = self._open(owner)
                self._state = self._load()
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            self._unlock()
            raise

    @property
    def id(self) -> str:
        """Of this record alone: one that is made anew has another. It tells nothing of the secret."""
        return hashlib.sha256(b"transom/record/1" + self.secret).hexdigest()[:16]

    def begin(self) -> int:
        """A session begins; its boot, from 1."""
        with self._file.writing() as connection:
            _FORMAT.append(connection, [("begun", self.boot + 1, "", b"")])
        self.boot += 1
        return self.boot

    def sent(self, step: Step) -> bytes | int | None:
        """The bytes of a step that was sent and is held, its number once it need not be, or None."""
        with self._file.reading() as connection:
            number = _number(connection, step)
            return number if number is None else _held(connection, number) or number

    def sent_steps(self) -> list[Step]:
        """Of all messages that were sent in the run, whether they are held or not."""
        with self._file.reading() as connection:
            found = connection.execute("SELECT step FROM steps WHERE kind = 'sent'").fetchall()
        return [Step.read(text) for (text,) in found]

    def message(self, number: int) -> bytes | None:
        """The bytes of a message that is held."""
        with self._file.reading() as connection:
            return _held(connection, number)

    @property
    def checkpoint(self) -> bytes | None:
        """The last one, or None."""
        with self._file.reading() as connection:
            row = connection.execute("SELECT data FROM checkpoint").fetchone()
        return None if row is None else bytes(row[0])

    @property
    def applied(self) -> Numbers:
        """The partner's messages that were applied."""
        return self._state.applied.copy()

    @property
    def next_number(self) -> int:
        """Of the next message to be sent."""
        return self._state.next_number

    @property
    def held(self) -> Mapping[int, int]:
        """Messages that were sent and not receipted: number to bytes."""
        return dict(self._state.sizes)

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writing]:
        """One transaction: all that is done within is durable at the end, or nothing is."""
        with self._file.writing() as connection:
            writing = Writing(connection, self._state.copy())
            yield writing
            _FORMAT.append(connection, writing.rows)
        self._state = writing.state

    def close(self) -> None:
        self._file.close()
        self._unlock()

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, owner: tuple[str, str, str, str]) -> tuple[bytes, int]:
        """The secret, and how many sessions began."""
        with self._file.writing() as connection:
            found = connection.execute("SELECT job, run, party, partner, secret FROM owner").fetchone()
            if found is None:
                found = (*owner, secrets.token_bytes(SECRET_BYTES))
                connection.execute("INSERT INTO owner VALUES (?, ?, ?, ?, ?)", found)
                _FORMAT.append(connection, [("made", 0, "", _owner_digest(found))])
            if found[:-1] != owner:
                differ = "; ".join(
                    f"its {what} is {theirs}, not {ours}"
                    for what, theirs, ours in zip(_OWNER, found, owner, strict=False)
                    if theirs != ours
                )
                raise LinkRefusedError(
                    f"the record is of another: {differ}; give each run a record of its own"
                )
            (boots,) = connection.execute("SELECT count(*) FROM history WHERE kind = 'begun'").fetchone()
        return bytes(found[-1]), boots

    def _load(self) -> _State:
        with self._file.reading() as connection:
            sizes = dict(connection.execute("SELECT number, length(data) FROM outbox").fetchall())
            (sent,) = connection.execute("SELECT count(*) FROM steps WHERE kind = 'sent'").fetchone()
            applied = connection.execute("SELECT number FROM steps WHERE kind = 'applied' ORDER BY number")
            return _State(Numbers(number for (number,) in applied), sent, sizes)

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.close()


class _InMemory:
    """What `DurableFile` is, for a record that nobody will open again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        for table in _TABLES:
            self._connection.execute(table)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        with self._lock:
            yield self._connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Connection]:
        with self._lock, self._connection:
            self._connection.execute("BEGIN")
            yield self._connection

    def close(self) -> None:
        self._connection.close()


def _locked(path: Path) -> IO[bytes]:
    """The lock of a record, held until it is closed. Raises LinkError where another has it."""
    beside = path.with_name(f"{path.name}-lock")
    with system_errors(f"cannot lock {path}", "give a path on a local, writable disk", LinkError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = beside.open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise LinkError(
            f"the record {path} is in use; a record has one process, end the other first"
        ) from None
    return lock


def _number(connection: Connection, step: Step) -> int | None:
    row = connection.execute(
        "SELECT number FROM steps WHERE kind = 'sent' AND step = ?", (str(step),)
    ).fetchone()
    return None if row is None else int(row[0])


def _held(connection: Connection, number: int) -> bytes | None:
    row = connection.execute("SELECT data FROM outbox WHERE number = ?", (number,)).fetchone()
    return None if row is None else bytes(row[0])


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=32).digest()


def _owner_digest(owner: Row) -> bytes:
    *names, secret = owner  # no name has a zero byte
    return _digest(*(str(name).encode() for name in names), bytes(secret))


def _content(entry: Row) -> bytes:
    number, kind, counted, step, content = entry
    return f"{number} {kind} {counted} {step} ".encode() + bytes(content)


def _agrees(connection: Connection, entries: Iterator[Row]) -> bool:
    """Whether the entries are possible, and the other tables follow from them."""
    made = next(entries, None)
    if made is None:
        return not any(connection.execute(f"SELECT 1 FROM {table}").fetchone() for table in _FOLLOWING)  # noqa: S608
    owners = connection.execute("SELECT job, run, party, partner, secret FROM owner").fetchall()
    if len(owners) != 1 or made[1:] != ("made", 0, "", _owner_digest(owners[0])):
        return False
    counts = {"sent": 0, "begun": 1}
    steps = 0
    held: dict[int, bytes] = {}
    applied = Numbers()
    checkpoint: list[bytes] = []
    for _, kind, number, _, content in entries:
        if kind in counts:
            if number != counts[kind]:
                return False
            counts[kind] += 1
        steps += kind in ("sent", "applied")
        if kind == "applied":
            if number in applied:
                return False
            applied.add(number)
        elif kind == "sent":
            held[number] = content
        elif kind == "receipted" and held.pop(number, None) is None:
            return False
        elif kind == "checkpoint":
            checkpoint = [content]
    (listed,) = connection.execute("SELECT count(*) FROM steps").fetchone()
    (found,) = connection.execute(
        "SELECT count(*) FROM history JOIN steps USING (kind, step, number)"
    ).fetchone()
    return (
        listed == found == steps  # one row an entry, as no number stands twice
        and {number: _digest(data) for number, data in connection.execute("SELECT * FROM outbox")} == held
        and [_digest(data) for (data,) in connection.execute("SELECT data FROM checkpoint")] == checkpoint
    )


_OWNER = ("job", "run", "party", "partner")
_FOLLOWING = ("checkpoint", "outbox", "owner", "steps")
_FORMAT = Format(
    noun="record",
    entries="steps",
    undone="nothing was sent or applied",
    error=LinkError,
    application_id=0x7472_6C6B,  # "trlk"
    version=1,
    tables=_TABLES,
    columns=("kind", "number", "step", "content"),
    content=_content,
    agrees=_agrees,
)
