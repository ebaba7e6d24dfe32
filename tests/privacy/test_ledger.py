"""The ledger under processes, kills, full disks and bad files: nothing lost, nothing above the cap."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import LedgerError, LedgerSpentError
from transom.privacy.account import GaussianEvent
from transom.privacy.ledger import Ledger, _amount

CHARGER = """
import sys
from transom.errors import LedgerSpentError
from transom.privacy.ledger import Ledger
ledger = Ledger(sys.argv[1], cap_epsilon=float(sys.argv[2]), timeout_s=60)
for _ in range(int(sys.argv[3])):
    try:
        ledger.charge("shared", 0.5)
        print("charged", flush=True)
    except LedgerSpentError:
        print("refused", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def start_charger(path: Path, cap: float, times: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHARGER, str(path), str(cap), str(times)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_charges_add_up_per_account_and_survive_reopening(path: Path) -> None:
    with Ledger(path, cap_epsilon=10) as ledger:
        assert ledger.charge("a", 1.5) == 1.5
        assert ledger.charge("a", 2.0) == 3.5
        assert ledger.charge("b", 1.0) == 1.0
    with Ledger(path, cap_epsilon=10) as ledger:
        assert ledger.accounts() == {"a": 3.5, "b": 1.0}
        assert ledger.spent("nobody") == 0
        assert [entry.epsilon for entry in ledger.history("a")] == [2.0, 1.5]
        assert [entry.epsilon for entry in ledger.history("a", limit=1)] == [2.0]


def test_cap_may_be_reached_and_not_passed(path: Path) -> None:
    with Ledger(path, cap_epsilon=1.0) as ledger:
        for _ in range(10):
            ledger.charge("a", 0.1)
        with pytest.raises(LedgerSpentError, match="1 of 1 epsilon"):
            ledger.charge("a", 1e-9)
        assert ledger.spent("a") == 1.0
        assert ledger.charge("a", 0.0) == 1.0
        assert len(ledger.history("a")) == 10


def test_infinite_charge_is_refused_even_without_a_cap(path: Path) -> None:
    with Ledger(path, cap_epsilon=math.inf) as ledger:
        ledger.charge("a", 1e6)
        with pytest.raises(LedgerSpentError):
            ledger.charge("a", math.inf)
        assert ledger.spent("a") == 1e6


@pytest.mark.parametrize("epsilon", [-1.0, math.nan])
def test_nonsense_amounts_are_refused(path: Path, epsilon: float) -> None:
    with Ledger(path, cap_epsilon=1) as ledger, pytest.raises(LedgerError, match="non-negative"):
        ledger.charge("a", epsilon)


def test_bad_account_and_cap_are_refused(path: Path) -> None:
    with Ledger(path, cap_epsilon=1) as ledger:
        for account in ("", "x" * 201):
            with pytest.raises(LedgerError, match="account name"):
                ledger.charge(account, 0.1)
    with pytest.raises(LedgerError, match="cap"):
        Ledger(path, cap_epsilon=math.nan)


@given(st.floats(0, 1e6))
def test_amounts_are_never_rounded_down(epsilon: float) -> None:
    nano = _amount(epsilon)
    exact = Fraction(repr(epsilon)) * 10**9
    assert exact <= nano < exact + 1


def test_many_charges_share_one_transaction_and_refuse_singly(path: Path) -> None:
    with Ledger(path, cap_epsilon=2) as ledger:
        outcomes = ledger.charge_many([("a", 1.5), ("a", 1.0), ("b", 2.0), ("a", 0.5)])
        assert outcomes[0] == 1.5
        assert isinstance(outcomes[1], LedgerSpentError)
        assert outcomes[2:] == [2.0, 2.0]
        with pytest.raises(LedgerError):
            ledger.charge_many([("c", 1.0), ("c", -1.0)])
        assert ledger.spent("c") == 0


def test_threads_share_one_ledger(path: Path) -> None:
    with Ledger(path, cap_epsilon=50) as ledger, ThreadPoolExecutor(8) as pool:
        totals = list(pool.map(lambda _: ledger.charge("a", 1.0), range(50)))
        assert sorted(totals) == [float(i) for i in range(1, 51)]


def test_eight_processes_never_pass_the_cap_and_lose_nothing(path: Path) -> None:
    chargers = [start_charger(path, cap=50.0, times=15) for _ in range(8)]
    lines = [line for charger in chargers for line in charger.communicate()[0].split()]
    assert all(charger.returncode == 0 for charger in chargers)
    assert lines.count("charged") == 100
    assert lines.count("refused") == 20
    with Ledger(path, cap_epsilon=50) as ledger:
        assert ledger.spent("shared") == 50.0
        assert len(ledger.history("shared", limit=1000)) == 100


def test_kill_in_mid_run_loses_no_acknowledged_charge(path: Path) -> None:
    charger = start_charger(path, cap=1e6, times=10**6)
    assert charger.stdout is not None
    for _ in range(20):
        charger.stdout.readline()
    charger.send_signal(signal.SIGKILL)
    rest, _ = charger.communicate()
    acknowledged = 20 + rest.count("charged")
    with Ledger(path, cap_epsilon=1e6) as ledger:
        recorded = ledger.history("shared", limit=10**6)
        assert ledger.spent("shared") == 0.5 * len(recorded)
        assert acknowledged <= len(recorded) <= acknowledged + 1
        ledger.charge("shared", 0.5)


def test_locked_file_raises_within_the_timeout_and_recovers(path: Path) -> None:
    with Ledger(path, cap_epsilon=5, timeout_s=0.1) as ledger:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started_s = time.monotonic()
        with pytest.raises(LedgerError, match="locked") as caught:
            ledger.charge("a", 1.0)
        assert time.monotonic() - started_s < 60  # it returned at all; not a speed claim
        assert not isinstance(caught.value, LedgerSpentError)
        other.execute("ROLLBACK")
        other.close()
        assert ledger.charge("a", 1.0) == 1.0


def test_busy_thread_raises_ledger_error(path: Path) -> None:
    with Ledger(path, cap_epsilon=5, timeout_s=0.05) as ledger:
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with ledger._file.reading():
                held.set()
                release.wait()

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait()
        with pytest.raises(LedgerError, match="busy"):
            ledger.charge("a", 1.0)
        release.set()
        holder.join()
        assert ledger.spent("a") == 0


def test_full_disk_charges_nothing_and_says_so(path: Path) -> None:
    with Ledger(path, cap_epsilon=1e9) as ledger:
        ledger.charge("a", 1.0)
        (pages,) = ledger._file._connection.execute("PRAGMA page_count").fetchone()
        ledger._file._connection.execute(f"PRAGMA max_page_count = {pages}")
        acknowledged = 1

        def fill() -> None:
            nonlocal acknowledged
            while acknowledged < 10**6:
                acknowledged += len(ledger.charge_many([("a", 1.0)] * 50))

        with pytest.raises(LedgerError, match="full"):
            fill()
        total = ledger.spent("a")
        assert total == acknowledged
        assert len(ledger.history("a", limit=10**6)) == total


def test_read_only_file_is_refused(path: Path) -> None:
    with Ledger(path, cap_epsilon=1) as ledger:
        ledger._file._connection.execute("PRAGMA query_only = ON")
        with pytest.raises(LedgerError, match="readonly"):
            ledger.charge("a", 0.5)
        assert ledger.spent("a") == 0


@pytest.mark.parametrize("content", [b"", b"hello, I am no database\n" * 100, os.urandom(8192)])
def test_foreign_or_empty_file_is_never_taken_for_a_fresh_budget(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(LedgerError):
        Ledger(path, cap_epsilon=1)
    assert path.read_bytes() == content


def test_other_database_is_refused(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE accounts (account TEXT, spent_nano INTEGER)")
    connection.close()
    with pytest.raises(LedgerError, match="not a Transom ledger"):
        Ledger(path, cap_epsilon=1)


def test_damaged_pages_are_found_at_opening(path: Path) -> None:
    with Ledger(path, cap_epsilon=1e9) as ledger:
        ledger.charge_many([(f"account {i}", 1.0) for i in range(500)])
    content = bytearray(path.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(LedgerError):
        Ledger(path, cap_epsilon=1)


def test_directory_and_unwritable_place_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LedgerError):
        Ledger(tmp_path, cap_epsilon=1)
    (tmp_path / "file").touch()
    with pytest.raises(LedgerError):
        Ledger(tmp_path / "file" / "ledger.db", cap_epsilon=1)


def test_replaced_file_is_noticed(path: Path) -> None:
    with Ledger(path, cap_epsilon=1) as ledger:
        path.unlink()
        with pytest.raises(LedgerError):
            ledger.charge("a", 0.5)
        path.write_bytes(b"something else")
        with pytest.raises(LedgerError, match="replaced"):
            ledger.charge("a", 0.5)


def test_file_is_private_and_leaves_nothing_beside_it(path: Path) -> None:
    with Ledger(path, cap_epsilon=1) as ledger:
        ledger.charge("a", 0.5)
        assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["ledger.db"]


def test_a_charge_of_nothing_passes_any_cap(path: Path) -> None:
    with Ledger(path, cap_epsilon=5) as ledger:
        ledger.charge("a", 3.0)
    with Ledger(path, cap_epsilon=1) as ledger:
        assert ledger.charge("a", 0.0) == 3.0
        assert ledger.charge_many([("a", 0.0), ("b", 0.0)]) == [3.0, 0.0]
        with pytest.raises(LedgerSpentError):
            ledger.charge("a", 1e-9)


def test_an_account_that_is_no_text_is_refused(path: Path) -> None:
    with Ledger(path, cap_epsilon=1) as ledger, pytest.raises(LedgerError, match="Unicode"):
        ledger.charge("\udc80", 0.5)


def told(path: Path) -> object:
    """All that a ledger says."""
    with Ledger(path, cap_epsilon=1e9) as ledger:
        accounts = ledger.accounts()
        return accounts, [ledger.history(account, limit=1000) for account in accounts]


@pytest.mark.parametrize("closed", [True, False])
def test_a_flipped_bit_is_found_or_changes_nothing(path: Path, tmp_path: Path, closed: bool) -> None:
    """Also in what a killed process leaves: the write-ahead log and the mark."""
    ledger = Ledger(path, cap_epsilon=1e9)
    for number in range(12):
        ledger.charge("abc"[number % 3], 1.25 * number + 0.5)
    if closed:
        ledger.close()
    left = {file.name: file.read_bytes() for file in path.parent.iterdir() if file.suffix != ".db-shm"}
    ledger.close()
    copy = tmp_path / "copy"
    copy.mkdir()

    def put(files: dict[str, bytes]) -> None:
        for file in copy.iterdir():
            file.unlink()
        for name, content in files.items():
            (copy / name).write_bytes(content)

    put(left)
    right, found = told(copy / path.name), 0
    chosen = random.Random(11)
    for name, content in left.items():
        used = [place for place, byte in enumerate(content) if byte or chosen.random() < 0.02]
        for _ in range(200):
            damaged = bytearray(content)
            damaged[chosen.choice(used)] ^= 1 << chosen.randrange(8)
            put({**left, name: bytes(damaged)})
            try:
                assert told(copy / path.name) == right
            except LedgerError:
                found += 1
    assert found > 100


def test_acknowledged_charges_that_are_gone_are_missed(path: Path) -> None:
    """As after damage at the head of the write-ahead log, which SQLite then ignores."""
    ledger = Ledger(path, cap_epsilon=10)
    ledger.charge("a", 1.0)
    left = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    ledger.close()
    for name, content in left.items():
        path.with_name(name).write_bytes(content if not name.endswith("-wal") else b"\0" * len(content))
    with pytest.raises(LedgerError, match="lacks charges"):
        Ledger(path, cap_epsilon=10)
    path.with_name(f"{path.name}-mark").unlink()
    with Ledger(path, cap_epsilon=10) as ledger:
        assert ledger.accounts() == {}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE accounts SET spent_nano = spent_nano - 1 WHERE account = 'a'",
        "DELETE FROM accounts WHERE account = 'a'",
        "INSERT INTO accounts VALUES ('z', 0)",
        "UPDATE history SET nano = nano + 1 WHERE id = 2",
        "UPDATE history SET at_s = at_s + 1 WHERE id = 2",
        "UPDATE history SET account = 'b' WHERE id = 1",
        "UPDATE history SET at_s = NULL WHERE id = 2",
        "UPDATE history SET nano = 'x' WHERE id = 2",
        "DELETE FROM history WHERE id = 1",
        "DELETE FROM history WHERE id = 3",
        "UPDATE history SET id = 9 WHERE id = 3",
        "CREATE TRIGGER free AFTER INSERT ON history BEGIN UPDATE accounts SET spent_nano = 0; END",
    ],
)
def test_what_does_not_add_up_is_refused(path: Path, change: str) -> None:
    with Ledger(path, cap_epsilon=10) as ledger:
        ledger.charge_many([("a", 1.0), ("b", 1.0), ("a", 2.0)])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        if "NULL" in change:  # as damage would: against the schema
            connection.execute("PRAGMA writable_schema = ON")
            connection.execute(
                "UPDATE sqlite_master SET sql = replace(sql, 'at_s INTEGER NOT NULL', 'at_s INTEGER')"
            )
            connection.execute("PRAGMA writable_schema = RESET")
        connection.execute(change)
    with pytest.raises(LedgerError, match="corrupt"):
        Ledger(path, cap_epsilon=10)


VERSION_1 = """
PRAGMA application_id = 1953655911;
PRAGMA user_version = 1;
CREATE TABLE accounts (account TEXT PRIMARY KEY, spent_nano INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE charges (id INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, account TEXT NOT NULL,
                      nano INTEGER NOT NULL);
CREATE INDEX charges_by_account ON charges (account, id);
INSERT INTO charges VALUES (1, 1700000000, 'a', 1500000000), (2, 1700000001, 'b', 1), (3, 1700000002, 'a', 5);
PRAGMA journal_mode = WAL;
"""


def write_version_1(path: Path, spent_nano: int) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1)
        connection.execute("INSERT INTO accounts VALUES ('a', ?), ('b', 1)", (spent_nano,))
        connection.commit()


def test_a_file_of_version_1_is_upgraded(path: Path) -> None:
    write_version_1(path, 1_500_000_005)
    for _ in range(2):
        with Ledger(path, cap_epsilon=10) as ledger:
            assert ledger.accounts() == {"a": 1.500000005, "b": 1e-9}
            assert [charge.at_s for charge in ledger.history("a")][-2:] == [1700000002, 1700000000]
            ledger.charge("c", 1.0)
            ledger.charge("a", 0.0)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("DELETE FROM history WHERE account = 'c'")
            connection.execute("DELETE FROM accounts WHERE account = 'c'")


def write_version_2(path: Path, mark: bool) -> None:
    """As the version before this one wrote it: digests over each charge and the one before, and no events."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_1.replace("user_version = 1", "user_version = 2"))
        charges = connection.execute("SELECT id, at_s, account, nano FROM charges").fetchall()
        connection.execute("DROP TABLE charges")
        connection.execute(
            "CREATE TABLE history (id INTEGER PRIMARY KEY, at_s INTEGER NOT NULL, account TEXT NOT NULL, "
            "nano INTEGER NOT NULL, digest BLOB NOT NULL)"
        )
        connection.execute("INSERT INTO accounts VALUES ('a', 1500000005), ('b', 1)")
        digest = bytes(16)
        for number, at_s, account, nano in charges:
            content = f"{number} {at_s} {nano} {account}".encode()
            digest = hashlib.blake2b(digest + content, digest_size=16).digest()
            connection.execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?)", (number, at_s, account, nano, digest)
            )
        connection.commit()
    if mark:
        path.with_name(f"{path.name}-mark").write_bytes(len(charges).to_bytes(8, "big") + digest)


@pytest.mark.parametrize("mark", [True, False])
def test_a_file_of_version_2_is_upgraded_with_its_chain_and_mark(path: Path, mark: bool) -> None:
    write_version_2(path, mark)
    for _ in range(2):
        with Ledger(path, cap_epsilon=10) as ledger:
            assert ledger.accounts() == {"a": 1.500000005, "b": 1e-9}
            assert [charge.at_s for charge in ledger.history("a")] == [1700000002, 1700000000]
    with Ledger(path, cap_epsilon=10, delta=1e-6) as ledger:
        ledger.charge("a", [GaussianEvent(noise=4.0)])
        assert ledger.spent("a") > 1.5


@pytest.mark.parametrize(
    "change", ["UPDATE history SET nano = 6 WHERE id = 3", "UPDATE accounts SET spent_nano = 2"]
)
def test_a_file_of_version_2_that_does_not_add_up_is_left_as_it_is(path: Path, change: str) -> None:
    write_version_2(path, mark=False)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(change)
        connection.commit()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="corrupt"):
        Ledger(path, cap_epsilon=10)
    assert path.read_bytes() == before


def test_a_file_of_version_1_that_does_not_add_up_is_left_as_it_is(path: Path) -> None:
    write_version_1(path, 1_500_000_004)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(LedgerError, match="corrupt"):
            Ledger(path, cap_epsilon=10)
    assert path.read_bytes() == before
