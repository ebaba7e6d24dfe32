"""The budget ledger: how much epsilon each account has spent, kept on disk and never refunded.

A charge is durable before `charge` returns (`transom.durable`), so the caller charges first and sends
afterwards. Amounts are whole nano-epsilons, each rounded up.
Threat model: crashes, kills, full disks, flipped bits and concurrent writers must not lose, alter or double
a charge. Does not protect against whoever may write the file: they can delete it or write another. It holds
account names, times and amounts, never content. WAL needs a local disk, not a network share.
Source: sequential composition, Dwork and Roth 2014, theorem 3.16.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from pathlib import Path
from sqlite3 import Connection

from transom.durable import DurableFile, Format, Row
from transom.errors import LedgerError, LedgerSpentError

NANO = 10**9
ACCOUNT_LIMIT_CHARS = 200
_LARGEST_NANO = 2**62
_TABLES = (
    "CREATE TABLE accounts (account TEXT PRIMARY KEY, spent_nano INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE history (id INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, account TEXT NOT NULL, "
    "nano INTEGER NOT NULL, digest BLOB NOT NULL)",
)


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
        self.cap_epsilon = cap_epsilon
        self._cap_nano = _nano(min(cap_epsilon, _LARGEST_NANO / NANO), ROUND_FLOOR)
        self._file = DurableFile(path, _FORMAT, timeout_s)
        self.path = self._file.path

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
        with self._file.writing() as connection:
            spent = {account: _spent_nano(connection, account) for account, _ in amounts}
            outcomes: list[float | LedgerSpentError] = []
            rows = []
            for account, nano in amounts:
                if nano and spent[account] + nano > self._cap_nano:
                    outcomes.append(self._refusal(spent[account], nano))
                    continue
                spent[account] += nano
                outcomes.append(spent[account] / NANO)
                if nano:
                    rows.append((now_s, account, nano))
            _FORMAT.append(connection, rows)
            _set_totals(connection, {account: spent[account] for _, account, _ in rows})
            return outcomes

    def spent(self, account: str) -> float:
        """The epsilon the account has spent so far."""
        with self._file.reading() as connection:
            return _spent_nano(connection, _checked(account)) / NANO

    def accounts(self) -> dict[str, float]:
        """Every account with its total."""
        with self._file.reading() as connection:
            rows = connection.execute("SELECT account, spent_nano FROM accounts ORDER BY account").fetchall()
        return {account: nano / NANO for account, nano in rows}

    def history(self, account: str, limit: int = 100) -> list[Charge]:
        """The account's latest charges, newest first."""
        query = "SELECT at_s, account, nano FROM history WHERE account = ? ORDER BY id DESC LIMIT ?"
        with self._file.reading() as connection:
            rows = connection.execute(query, (_checked(account), limit)).fetchall()
        return [Charge(at_s, name, nano / NANO) for at_s, name, nano in rows]

    def close(self) -> None:
        self._file.close()

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


def _upgrade(connection: Connection, version: int) -> bool:
    """Of version 1, whose charges have no digests."""
    old = connection.execute("SELECT at_s, account, nano FROM charges ORDER BY id").fetchall()
    connection.execute(_TABLES[1])
    _FORMAT.append(connection, old)
    connection.execute("DROP TABLE charges")
    return True


def _agrees(connection: Connection, charges: Iterator[Row]) -> bool:
    """Whether every charge is possible and they add up to the totals."""
    spent: Counter[str] = Counter()
    for _, at_s, account, nano in charges:
        if not _plausible(at_s, account, nano):
            return False
        spent[account] += nano
    return dict(connection.execute("SELECT account, spent_nano FROM accounts")) == spent


def _plausible(at_s: object, account: object, nano: object) -> bool:
    return type(at_s) is int and type(account) is str and type(nano) is int and 0 < nano <= _LARGEST_NANO


def _content(charge: Row) -> bytes:
    number, at_s, account, nano = charge
    return f"{number} {at_s} {nano} {account}".encode()


_FORMAT = Format(
    noun="ledger",
    entries="charges",
    undone="nothing was charged or sent",
    error=LedgerError,
    application_id=0x7472_6C67,  # "trlg": tells a ledger from any other SQLite file
    version=2,
    tables=_TABLES,
    columns=("at_s", "account", "nano"),
    content=_content,
    agrees=_agrees,
    upgrade=_upgrade,
)


def _set_totals(connection: Connection, totals: Mapping[str, int]) -> None:
    connection.executemany(
        "INSERT INTO accounts VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET spent_nano = "
        "excluded.spent_nano",
        totals.items(),
    )


def _spent_nano(connection: Connection, account: str) -> int:
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
