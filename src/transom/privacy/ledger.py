"""The budget ledger: how much epsilon each account has spent, kept on disk and never refunded.

A charge is durable before `charge` returns (`transom.durable`), so the caller charges first and sends
afterwards. Pure epsilons are whole nano-epsilons, each rounded up, and add up. Other releases are kept as
events; what an account has spent is the sum and the epsilon of its events together at the ledger's delta
(`transom.privacy.account`), so a charge is refused when the composed price would pass the cap.
Threat model: crashes, kills, full disks, flipped bits and concurrent writers must not lose, alter or double
a charge. Does not protect against whoever may write the file: they can delete it or write another. It holds
account names, times and amounts, never content. WAL needs a local disk, not a network share.
Source: sequential composition, Dwork and Roth 2014, theorem 3.16, also for the sum beside the events.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from sqlite3 import Connection

from transom.config import load_json
from transom.durable import DurableFile, Format, Row
from transom.errors import LedgerError, LedgerSpentError
from transom.privacy.account import Event, PureEvent, compose, event_from, merged

NANO = 10**9
ACCOUNT_LIMIT_CHARS = 200
_LARGEST_NANO = 2**62
_TABLES = (
    "CREATE TABLE accounts (account TEXT PRIMARY KEY, spent_nano INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE events (account TEXT NOT NULL, event TEXT NOT NULL, count INTEGER NOT NULL, "
    "PRIMARY KEY (account, event)) WITHOUT ROWID",
    "CREATE TABLE history (id INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, account TEXT NOT NULL, "
    "nano INTEGER NOT NULL, digest BLOB NOT NULL, events TEXT)",
)
Amount = float | Sequence[Event]


@dataclass(frozen=True)
class Charge:
    """One entry of the history: when (Unix seconds), who, how much.

    `epsilon` is the pure part; without one it is None, and the events alone are what was charged.
    """

    at_s: int
    account: str
    epsilon: float | None
    events: tuple[Event, ...] = ()


class Ledger:
    """Charges accounts up to `cap_epsilon` at `delta` each; a failure is a TransomError and charges nothing.

    `path` is created (mode 0600) when absent. `timeout_s` bounds the wait for other writers. At a `delta` of
    0 an account with events is refused, unless they are pure. Another process may open the file with another
    cap and delta: they belong to the one who asks, not to the file.
    """

    def __init__(
        self, path: str | Path, cap_epsilon: float, timeout_s: float = 5.0, *, delta: float = 0.0
    ) -> None:
        if math.isnan(cap_epsilon) or cap_epsilon < 0:
            raise LedgerError(f"the ledger's cap must be a non-negative epsilon, got {cap_epsilon}")
        compose([], delta)  # raises for a delta that it cannot use
        self.cap_epsilon = cap_epsilon
        self.delta = delta
        self._cap_nano = _nano(min(cap_epsilon, _LARGEST_NANO / NANO), ROUND_FLOOR)
        self._file = DurableFile(path, _FORMAT, timeout_s)
        self.path = self._file.path

    def charge(self, account: str, amount: Amount) -> float:
        """Add an epsilon, or events, to the account and return its new total; durable on return.

        Raises `LedgerSpentError` when the cap would be passed, `LedgerError` when nothing can be recorded,
        and what `account.compose` raises for events.
        """
        (outcome,) = self.charge_many([(account, amount)])
        if isinstance(outcome, LedgerSpentError):
            raise outcome
        return outcome

    def charge_many(self, charges: Sequence[tuple[str, Amount]]) -> list[float | LedgerSpentError]:
        """Charge in order within one durable transaction: one disk flush for many requests.

        An entry that would pass the cap yields a `LedgerSpentError` in its place and the others stand; any
        other failure raises and none of them is charged.
        """
        amounts = [(_checked(account), *_parts(amount)) for account, amount in charges]
        now_s = int(time.time())
        with self._file.writing() as connection:
            books = {account: _book(connection, account) for account in {name for name, _, _ in amounts}}
            outcomes: list[float | LedgerSpentError] = []
            rows: list[Row] = []
            for account, nano, events in amounts:
                past_nano, past = books[account]
                total_nano, total = past_nano + nano, past + events if events else past
                price = self._price(total_nano, total) if total else total_nano
                if price > self._cap_nano and (nano or events):
                    outcomes.append(self._refusal(self._price(past_nano, past), price))
                    continue
                books[account] = total_nano, total
                outcomes.append(price / NANO)
                if nano or events:
                    rows.append((now_s, account, nano, _text(events) if events else None))
            _FORMAT.append(connection, rows)
            _keep(connection, {account: books[account] for _, account, _, _ in rows})
            return outcomes

    def spent(self, account: str) -> float:
        """The epsilon at the ledger's delta that the account has spent so far."""
        with self._file.reading() as connection:
            book = _book(connection, _checked(account))
        return self._price(*book) / NANO

    def accounts(self) -> dict[str, float]:
        """Every account with its total."""
        with self._file.reading() as connection:
            rows = connection.execute(_BOOKS + " ORDER BY account").fetchall()
        books = {account: _totals(list(of)) for account, of in groupby(rows, itemgetter(0))}
        return {account: self._price(*book) / NANO for account, book in books.items()}

    def history(self, account: str, limit: int = 100) -> list[Charge]:
        """The account's latest charges, newest first."""
        query = "SELECT at_s, account, nano, events FROM history WHERE account = ? ORDER BY id DESC LIMIT ?"
        with self._file.reading() as connection:
            rows = connection.execute(query, (_checked(account), limit)).fetchall()
        return [Charge(at_s, who, nano / NANO if nano else None, _events(of)) for at_s, who, nano, of in rows]

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _price(self, nano: int, events: Counter[Event]) -> int:
        """Nano-epsilons at the ledger's delta."""
        if not events:
            return nano
        return nano + _amount(compose((event.times(count) for event, count in events.items()), self.delta))

    def _refusal(self, spent: int, asked: int) -> LedgerSpentError:
        at = f" at delta {self.delta:g}" if self.delta else ""
        more = (asked - spent) / NANO if asked < _LARGEST_NANO else math.inf
        return LedgerSpentError(
            f"the privacy budget is spent: {spent / NANO:g} of {self.cap_epsilon:g} epsilon used{at} and "
            f"{more:g} more was asked; nothing was charged or sent. "
            "What was said stays said: raise the cap only if you accept the larger loss."
        )


def _upgrade(connection: Connection, version: int) -> bool:
    """Version 1 had no digests, version 2 no events."""
    connection.execute(_TABLES[1])
    if version == 2:
        connection.execute("ALTER TABLE history ADD COLUMN events TEXT")
        return True
    old = connection.execute("SELECT at_s, account, nano, NULL FROM charges ORDER BY id").fetchall()
    connection.execute(_TABLES[2])
    _FORMAT.append(connection, old)
    connection.execute("DROP TABLE charges")
    return True


def _agrees(connection: Connection, charges: Iterator[Row]) -> bool:
    """Whether every charge is possible and they add up to the totals."""
    spent: Counter[str] = Counter()
    happened: Counter[tuple[str, str]] = Counter()
    for _, at_s, account, nano, text in charges:
        if not _plausible(at_s, account, nano, text):
            return False
        spent[account] += nano
        if text is not None:
            for event, count in merged(_events(text)).items():
                happened[account, _key(event)] += count
    totals = dict(connection.execute("SELECT account, spent_nano FROM accounts"))
    events = {row[:2]: row[2] for row in connection.execute("SELECT account, event, count FROM events")}
    return totals == spent and events == happened


def _plausible(at_s: object, account: object, nano: object, events: object) -> bool:
    if events is not None:
        return type(at_s) is int and type(account) is type(events) is str and type(nano) is int and nano >= 0
    return type(at_s) is int and type(account) is str and type(nano) is int and 0 < nano <= _LARGEST_NANO


def _content(charge: Row) -> bytes:
    number, at_s, account, nano, events = charge
    if events is None:
        return f"{number} {at_s} {nano} {account}".encode()
    return f"events {len(events)} {events} {number} {at_s} {nano} {account}".encode()


_FORMAT = Format(
    noun="ledger",
    entries="charges",
    undone="nothing was charged or sent",
    error=LedgerError,
    application_id=0x7472_6C67,  # "trlg": tells a ledger from any other SQLite file
    version=3,
    tables=_TABLES,
    columns=("at_s", "account", "nano", "events"),
    content=_content,
    agrees=_agrees,
    upgrade=_upgrade,
)
_Book = tuple[int, Counter[Event]]  # pure nano-epsilons, and how often each other release happened
_NONE: Counter[Event] = Counter()  # never changed
_BOOKS = "SELECT account, spent_nano, event, count FROM accounts LEFT JOIN events USING (account)"


def _book(connection: Connection, account: str) -> _Book:
    return _totals(connection.execute(_BOOKS + " WHERE account = ?", (account,)).fetchall())


def _totals(rows: Sequence[Row]) -> _Book:
    if not rows or rows[0][2] is None:
        return (rows[0][1] if rows else 0), _NONE
    return rows[0][1], Counter({_event(key): count for _, _, key, count in rows})


def _keep(connection: Connection, books: Mapping[str, _Book]) -> None:
    connection.executemany(
        "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET spent_nano = "
        "excluded.spent_nano",
        [(account, nano) for account, (nano, _) in books.items()],
    )
    happened = [
        (account, _key(event), count)
        for account, (_, events) in books.items()
        for event, count in events.items()
    ]
    if happened:
        connection.executemany(
            "INSERT INTO events VALUES (?, ?, ?) ON CONFLICT (account, event) DO UPDATE SET count = "
            "excluded.count",
            happened,
        )


def _parts(amount: Amount) -> _Book:
    """What is pure, as nano-epsilons, and the rest."""
    if isinstance(amount, (float, int)):
        return _amount(amount), _NONE
    counts = merged(amount)
    pure = {event: counts.pop(event) for event in list(counts) if isinstance(event, PureEvent)}
    return sum(_amount(event.epsilon) * count for event, count in pure.items()), counts


def _text(events: Counter[Event]) -> str:
    """As the history keeps them."""
    return json.dumps([event.times(count).to_dict() for event, count in events.items()], sort_keys=True)


def _events(text: str | None) -> tuple[Event, ...]:
    return tuple(map(event_from, load_json(text))) if text else ()


def _key(event: Event) -> str:
    """One spelling of a single release."""
    return json.dumps(event.to_dict(), sort_keys=True)


@lru_cache(maxsize=1024)
def _event(key: str) -> Event:
    return event_from(load_json(key))


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
