"""The durable file as a second caller needs it: steps are applied once, with all that they change."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from sqlite3 import Connection

import pytest

from transom import durable
from transom.durable import DurableFile, Format, Row
from transom.errors import MisconfiguredError


def agrees(connection: Connection, steps: Iterator[Row]) -> bool:
    """Each label once, and the weight is the sum of what the steps added."""
    rows = list(steps)
    (weight,) = connection.execute("SELECT value FROM weight").fetchone() or (0,)
    return len({row[1] for row in rows}) == len(rows) and weight == sum(row[2] for row in rows)


STEPS = Format(
    noun="step record",
    entries="steps",
    undone="nothing was applied",
    error=MisconfiguredError,
    application_id=0x1234_5678,
    version=2,
    tables=(
        "CREATE TABLE history (id INTEGER PRIMARY KEY, label TEXT NOT NULL, added INTEGER NOT NULL, "
        "digest BLOB NOT NULL)",
        "CREATE TABLE weight (id INTEGER PRIMARY KEY, value INTEGER NOT NULL)",
    ),
    columns=("label", "added"),
    content=lambda step: ascii(step).encode(),
    agrees=agrees,
)


def apply(file: DurableFile, label: str, added: int) -> bool:
    """Whether this call applied the step: a message that comes twice changes nothing."""
    with file.writing() as connection:
        if connection.execute("SELECT 1 FROM history WHERE label = ?", (label,)).fetchone():
            return False
        STEPS.append(connection, [(label, added)])
        connection.execute(
            "INSERT INTO weight VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET value = value + excluded.value",
            (added,),
        )
        return True


def weight(path: Path) -> int:
    with contextlib.closing(DurableFile(path, STEPS)) as file, file.reading() as connection:
        return int((connection.execute("SELECT value FROM weight").fetchone() or (0,))[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "steps.db"


def test_a_step_is_applied_once_also_by_two_holders(path: Path) -> None:
    one, two = DurableFile(path, STEPS), DurableFile(path, STEPS)
    assert apply(one, "a", 5)
    assert not apply(two, "a", 5)
    assert apply(two, "b", 7)
    assert not apply(one, "b", 7)
    one.close()
    two.close()
    assert weight(path) == 12
    assert [entry.name for entry in path.parent.iterdir()] == ["steps.db"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_step_and_what_it_changes_stand_or_fall_together(path: Path) -> None:
    file = DurableFile(path, STEPS)
    apply(file, "a", 1)

    def fail() -> None:
        with file.writing() as connection:
            STEPS.append(connection, [("b", 2), ("c", 3)])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert apply(file, "c", 4)
    file.close()
    assert weight(path) == 5


STEPPER = """
import sys
sys.path.insert(0, sys.argv[2])
from test_durable import STEPS, apply
from transom.durable import DurableFile
file = DurableFile(sys.argv[1], STEPS)
number = 0
while True:
    number += 1
    apply(file, str(number), number)
    print(number, flush=True)
"""


def test_a_kill_loses_no_acknowledged_step(path: Path) -> None:
    command = [sys.executable, "-c", STEPPER, str(path), str(Path(__file__).parent)]
    stepper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert stepper.stdout is not None
    for _ in range(10):
        stepper.stdout.readline()
    stepper.send_signal(signal.SIGKILL)
    rest, _ = stepper.communicate()
    acknowledged = 10 + len(rest.split())
    assert weight(path) in {n * (n + 1) // 2 for n in (acknowledged, acknowledged + 1)}


def retype(connection: Connection, old: str, new: str) -> None:
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("UPDATE sqlite_master SET sql = replace(sql, ?, ?) WHERE name = 'history'", (old, new))
    connection.execute("PRAGMA writable_schema = RESET")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE history SET label = 'z' WHERE id = 1",
        "UPDATE history SET added = '1' WHERE id = 1",
        "UPDATE history SET id = 3 WHERE id = 2",
        "DELETE FROM history WHERE id = 2",
        "UPDATE weight SET value = 4",
        "CREATE INDEX labels ON history (label)",
        "CREATE TRIGGER t AFTER INSERT ON history BEGIN UPDATE weight SET value = 0; END",
    ],
)
def test_what_was_altered_does_not_open(path: Path, change: str) -> None:
    with contextlib.closing(DurableFile(path, STEPS)) as file:
        apply(file, "a", 1)
        apply(file, "b", 2)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        retype(connection, "added INTEGER", "added")  # so that a text stays one
        connection.execute(change)
        retype(connection, "added NOT", "added INTEGER NOT")
    with pytest.raises(MisconfiguredError, match=r"step record .* is corrupt"):
        DurableFile(path, STEPS)


def test_entries_that_nobody_checked_do_not_open(path: Path) -> None:
    with contextlib.closing(DurableFile(path, STEPS)) as file:
        apply(file, "a", 1)
    with pytest.raises(MisconfiguredError, match="corrupt"):
        DurableFile(path, replace(STEPS, agrees=lambda connection, steps: True))


def test_acknowledged_steps_that_are_gone_are_missed(path: Path) -> None:
    """As after damage at the head of the write-ahead log, which SQLite then ignores."""
    file = DurableFile(path, STEPS)
    apply(file, "a", 1)
    left = {entry.name: entry.read_bytes() for entry in path.parent.iterdir()}
    file.close()
    for name, content in left.items():
        path.with_name(name).write_bytes(content if not name.endswith("-wal") else bytes(len(content)))
    with pytest.raises(MisconfiguredError, match="lacks steps that were recorded"):
        DurableFile(path, STEPS)
    path.with_name(f"{path.name}-mark").unlink()
    assert weight(path) == 0


def test_another_format_and_a_later_version_are_refused(path: Path) -> None:
    DurableFile(path, STEPS).close()
    for other in (replace(STEPS, application_id=7), replace(STEPS, version=1)):
        with pytest.raises(MisconfiguredError, match="not a Transom step record"):
            DurableFile(path, other)


def add_workers(connection: Connection, version: int) -> bool:
    connection.execute("ALTER TABLE history ADD COLUMN worker TEXT")
    return version == 2


LATER = replace(
    STEPS,
    version=3,
    tables=(STEPS.tables[0].removesuffix(")") + ", worker TEXT)", STEPS.tables[1]),
    columns=(*STEPS.columns, "worker"),
    content=lambda step: ascii(step if step[-1] else step[:-1]).encode(),
    upgrade=add_workers,
)


def test_an_earlier_version_is_upgraded_with_its_entries_or_left_as_it_is(path: Path) -> None:
    with contextlib.closing(DurableFile(path, STEPS)) as file:
        apply(file, "a", 1)
    before = path.read_bytes()
    with pytest.raises(MisconfiguredError, match="corrupt"):
        DurableFile(path, replace(LATER, upgrade=lambda *given: add_workers(*given) and False))
    assert path.read_bytes() == before
    for name in ("one", "two"):
        with contextlib.closing(DurableFile(path, LATER)) as file, file.writing() as connection:
            LATER.append(connection, [(name, 0, "w")])
    with pytest.raises(MisconfiguredError, match="version 2 or before"):
        DurableFile(path, STEPS)


def test_of_two_that_upgrade_the_second_finds_it_done(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(DurableFile(path, STEPS)) as file:
        apply(file, "a", 1)
    written = durable._written

    def overtaken(connection: Connection) -> contextlib.AbstractContextManager[None]:
        monkeypatch.setattr(durable, "_written", written)
        DurableFile(path, LATER).close()
        return written(connection)

    monkeypatch.setattr(durable, "_written", overtaken)
    DurableFile(path, LATER).close()
    assert durable._written is written


def test_a_fork_is_refused(path: Path) -> None:
    file = DurableFile(path, STEPS)
    file._owner_pid = os.getpid() + 1
    with pytest.raises(MisconfiguredError, match="does not survive a fork"):
        apply(file, "a", 1)
    file._owner_pid = os.getpid()
    assert apply(file, "a", 1)
    file.close()
