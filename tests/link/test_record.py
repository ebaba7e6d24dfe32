"""The step ledger: what is in it after a kill, damage, another run, another process; and sets of numbers."""

from __future__ import annotations

import functools
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.durable import DurableFile
from transom.errors import LinkError, LinkRefusedError
from transom.link.message import Step
from transom.link.numbers import MAX_EXTRAS, Numbers
from transom.link.record import Record

Open = Callable[..., Record]


def step(batch: int, **more: Any) -> Step:
    return Step(0, batch, "forward", **more)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "a.record"


def record(path: Path | None, **other: str) -> Record:
    return Record(path, **{"job": "j", "run": "r", "party": "a", "partner": "b", **other})


def worked(path: Path | None) -> Record:
    """Two sent of which one is receipted, one applied, a checkpoint."""
    one = record(path)
    assert one.begin() == 1
    with one.writing() as writing:
        assert writing.send(step(0), lambda number: b"zero%d" % number) == 0
        assert writing.send(step(1), lambda number: b"one%d" % number) == 1
    with one.writing() as writing:
        writing.apply(0, step(0))
        writing.receipted([0, 0, 7])
        writing.checkpoint(b"first")
        writing.checkpoint(b"second")
    return one


def seen(one: Record) -> tuple[object, ...]:
    return (
        one.sent(step(0)),
        one.sent(step(1)),
        one.sent(step(2)),
        one.applied,
        one.next_number,
        one.held,
        one.checkpoint,
    )


WORKED = (0, b"one1", None, Numbers([0]), 2, {1: 4}, b"second")


@pytest.mark.parametrize("on_disk", [True, False])
def test_what_is_written_is_there_at_once_and_after_opening_again(path: Path, on_disk: bool) -> None:
    one = worked(path if on_disk else None)
    assert seen(one) == WORKED
    assert one.message(1) == b"one1"
    assert one.message(0) is None
    secret = one.secret
    one.close()
    if on_disk:
        assert path.stat().st_mode & 0o777 == 0o600
        with record(path) as again:
            assert seen(again) == WORKED
            assert (again.secret, again.boot, again.begin()) == (secret, 1, 2)
    assert len(secret) == 32


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_transaction_that_fails_leaves_no_trace(path: Path, on_disk: bool) -> None:
    one = worked(path if on_disk else None)
    with pytest.raises(ZeroDivisionError), one.writing() as writing:  # noqa: PT012
        writing.send(step(2), lambda number: b"two")
        writing.apply(1, step(1))
        writing.receipted([1])
        writing.checkpoint(b"third")
        raise ZeroDivisionError
    assert seen(one) == WORKED
    one.close()


def test_a_step_keeps_its_number_and_bytes(path: Path) -> None:
    with worked(path) as one:
        with one.writing() as writing:
            assert writing.send(step(1), lambda number: b"other") == 1
            assert writing.send(step(0), lambda number: b"other") == 0
            assert writing.send(step(1, attempt=1), lambda number: b"released anew") == 2
            assert writing.send(step(1, topic="predict"), lambda number: b"released too") == 3
        assert one.sent(step(1)) == b"one1"
        assert one.sent(step(0)) == 0


@pytest.mark.parametrize(("number", "batch"), [(0, 0), (0, 1), (1, 0)])
def test_nothing_is_applied_twice(path: Path, number: int, batch: int) -> None:
    with worked(path) as one:
        with pytest.raises(LinkRefusedError, match="second time"), one.writing() as writing:
            writing.apply(number, step(batch))
        with pytest.raises(LinkRefusedError, match="second time"), one.writing() as writing:  # noqa: PT012
            writing.apply(1, step(1))
            writing.apply(1 + number, step(1 + batch))
            writing.apply(2, step(2))
            writing.apply(2, step(2))
        assert seen(one) == WORKED


def test_a_copy_of_the_files_at_any_moment_is_what_was_committed(path: Path, tmp_path: Path) -> None:
    """What a kill leaves."""
    with worked(path):
        shutil.copytree(path.parent, tmp_path / "killed")
    with record(tmp_path / "killed" / path.name) as again:
        assert seen(again) == WORKED
        assert again.boot == 1


@pytest.mark.parametrize("what", ["job", "run", "party", "partner"])
def test_a_record_of_another_is_refused_with_both_values(path: Path, what: str) -> None:
    worked(path).close()
    with pytest.raises(LinkRefusedError, match=rf"its {what} is \w, not other;"):
        record(path, **{what: "other"})
    with record(path) as one:  # and is not harmed
        assert one.boot == 1
    with pytest.raises(LinkRefusedError, match=f"a {what}"):
        record(path, **{what: "../other"})


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE outbox SET data = x'00'",
        "UPDATE outbox SET number = 5",
        "DELETE FROM outbox",
        "INSERT INTO outbox VALUES (0, x'00')",
        "UPDATE checkpoint SET data = x'00'",
        "UPDATE checkpoint SET data = 'second'",
        "DELETE FROM checkpoint",
        "UPDATE steps SET number = 3 WHERE kind = 'applied'",
        "DELETE FROM steps WHERE kind = 'sent' AND number = 0",
        "INSERT INTO steps VALUES ('sent', 'train/0/9/forward/0', 9)",
        "UPDATE steps SET step = 'train/0/9/forward/0' WHERE kind = 'applied'",
        "UPDATE owner SET secret = x'00'",
        "UPDATE owner SET run = 'other'",
        "DELETE FROM owner",
        "DELETE FROM history",
        "DELETE FROM history WHERE id = (SELECT max(id) FROM history)",
        "UPDATE history SET number = 7 WHERE kind = 'sent'",
    ],
)
def test_what_is_lost_or_altered_is_found_on_opening(path: Path, damage: str) -> None:
    worked(path).close()
    connection = sqlite3.connect(path)
    with connection:
        assert connection.execute(damage).rowcount
    connection.close()
    with pytest.raises(LinkError, match=r"corrupt|lacks|cannot be used"):
        record(path)


def test_a_record_has_one_holder_at_a_time(path: Path) -> None:
    with worked(path), pytest.raises(LinkError, match="in use"):
        record(path)
    script = (
        "import sys; from transom.link.record import Record\n"
        "record = Record(sys.argv[1], job='j', run='r', party='a', partner='b')\n"
        "print(record.begin(), flush=True)\n"
        "sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(os.environ),
    )  # fmt: skip
    assert other.stdin is not None
    assert other.stdout is not None
    try:
        assert other.stdout.readline() == "2\n"
        with pytest.raises(LinkError, match="in use"):
            record(path)
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    with record(path) as again:  # a kill lets go of it
        assert again.boot == 2


def test_who_reads_waits_for_a_slow_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a large checkpoint; the session's thread would end."""
    monkeypatch.setattr("transom.link.record.DurableFile", functools.partial(DurableFile, timeout_s=0.05))
    with record(path) as one:

        def commit() -> None:
            with one.writing():
                writing.set()
                time.sleep(0.2)

        writing = threading.Event()
        thread = threading.Thread(target=commit)
        thread.start()
        assert writing.wait(10)
        assert one.message(0) is None
        thread.join()


def test_a_path_that_cannot_be_locked_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LinkError, match="cannot lock"):
        record(tmp_path / "file" / "a.record")


@given(st.lists(st.integers(0, 40)), st.lists(st.integers(0, 40)))
def test_numbers_are_a_set(some: list[int], others: list[int]) -> None:
    one, other = Numbers(some), Numbers(others)
    assert [number for number in range(50) if number in one] == sorted(set(some))
    assert len(one) == len(set(some))
    assert one.end == max(some, default=-1) + 1
    assert one.missing_from(other) == min(set(some) - set(others), default=None)
    assert one.watermark == next(number for number in range(50) if number not in set(some))
    assert Numbers.from_plain(one.to_plain()) == one
    twin = one.copy()
    twin.add(45)
    assert 45 not in one
    assert (one == other) == (set(some) == set(others))


@pytest.mark.parametrize(
    "plain",
    [
        None,
        {},
        [],
        [-1],
        [True],
        [1.0],
        [2**53],
        ["1"],
        [3, 3],
        [3, 2],
        [3, 5, 5],
        [0, *range(2, MAX_EXTRAS + 3)],
    ],
)
def test_numbers_that_none_writes_are_refused(plain: object) -> None:
    with pytest.raises(LinkRefusedError, match="numbers"):
        Numbers.from_plain(plain)


def test_a_record_that_is_made_anew_is_another(tmp_path: Path) -> None:
    ids = []
    for name in ("a", "a", "b"):
        with Record(tmp_path / name, job="job", run="run", party="a", partner="b") as record:
            ids.append(record.id)
            assert record.secret.hex()[:16] != record.id
    assert ids[0] == ids[1] != ids[2]


@given(st.integers(0, 2**40), st.integers(0, 9), st.integers(0, 9), st.sampled_from(["a.b-c", "train"]))
def test_a_step_comes_back_from_its_text(batch: int, epoch: int, attempt: int, topic: str) -> None:
    for direction in ("forward", "backward"):
        one = Step(epoch, batch, direction, attempt, topic)  # type: ignore[arg-type]
        assert Step.read(str(one)) == one


def test_all_steps_that_were_sent_are_known_when_they_are_no_longer_held(path: Path) -> None:
    with worked(path) as one:
        assert sorted(one.sent_steps()) == [step(0), step(1)]
    with record(path) as again:
        assert sorted(again.sent_steps()) == [step(0), step(1)]
