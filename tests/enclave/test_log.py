"""The release log keeps one unbroken chain: under edits, under several writers, and on a full disk."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from transom.enclave.log import Attempt, ReleaseLog, log_head
from transom.errors import MisconfiguredError

from .release_fixtures import hashed

ONE = Attempt("ab" * 16, "snp", "hardware", "cd" * 32, "released", "accepted")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    log = ReleaseLog(tmp_path / "release.log")
    for number in range(5):
        log.append(replace(ONE, reason=f"attempt {number}"))
    return log.path


def test_entries_hold_what_was_attempted_and_chain_by_hashes_computed_here(tmp_path: Path) -> None:
    log = ReleaseLog(tmp_path / "log", now=lambda: datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
    log.append(ONE)
    log.append(Attempt(reason="no"))
    previous = "0" * 64
    lines = (tmp_path / "log").read_text().splitlines()
    for number, line in enumerate(lines, start=1):
        entry = json.loads(line)
        assert (entry["seq"], entry["previous"]) == (number, previous)
        assert entry["time"] == "2030-01-02T03:04:05.000+00:00"
        previous = entry.pop("hash")
        covered = json.dumps(entry, separators=(",", ":")).encode()
        assert previous == hashed("transom/release-log/v1", covered).hex()
    assert len(lines) == 2
    assert json.loads(lines[0]) == json.loads(lines[0]) | vars(ONE)
    assert {json.loads(lines[1])[name] for name in ("bundle", "kind", "measurement")} == {""}
    assert log_head(tmp_path / "log").sha256 == previous


def test_the_log_is_the_owners_alone_and_goes_on_after_a_restart(path: Path) -> None:
    assert path.stat().st_mode & 0o777 == 0o600
    assert ReleaseLog(path).append(ONE).entries == 6
    assert log_head(path).entries == 6


def changed(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"attempt 1", b"attempt 7"), *lines[2:]]


def rehashed(lines: list[bytes]) -> list[bytes]:
    """Changed by someone who also knows how to hash: the next line gives it away."""
    entry = json.loads(lines[1]) | {"decision": "refused"}
    del entry["hash"]
    covered = json.dumps(entry, separators=(",", ":")).encode()
    entry["hash"] = hashed("transom/release-log/v1", covered).hex()
    return [lines[0], json.dumps(entry, separators=(",", ":")).encode() + b"\n", *lines[2:]]


def repeated_name(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b'"kind"', b'"kind":"tdx","kind"'), *lines[2:]]


TAMPERING: dict[str, tuple[Callable[[list[bytes]], list[bytes]], int]] = {
    "changed": (changed, 2),
    "rehashed": (rehashed, 3),
    "first removed": (lambda lines: lines[1:], 1),
    "middle removed": (lambda lines: lines[:2] + lines[3:], 3),
    "reordered": (lambda lines: [*lines[:2], lines[3], lines[2], lines[4]], 3),
    "repeated": (lambda lines: [*lines, lines[4]], 6),
    "spaced": (lambda lines: [lines[0], lines[1].replace(b":", b": ", 1), *lines[2:]], 2),
    "name twice": (repeated_name, 2),
    "blank line": (lambda lines: [lines[0], b"\n", *lines[1:]], 2),
    "not json": (lambda lines: [*lines, b"released\n"], 6),
    "list": (lambda lines: [*lines, b"[]\n"], 6),
    "torn": (lambda lines: [*lines[:4], lines[4][:50]], 5),
    "field gone": (lambda lines: [*lines[:4], lines[4].replace(b'"trust":"hardware",', b"")], 5),
}


@pytest.mark.parametrize("how", TAMPERING)
def test_an_edited_log_is_refused_with_its_line(path: Path, how: str) -> None:
    edit, line = TAMPERING[how]
    path.write_bytes(b"".join(edit(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(MisconfiguredError, match=f"broken at line {line}:"):
        log_head(path)
    with pytest.raises(MisconfiguredError, match=f"broken at line {line}:"):
        ReleaseLog(path)


def test_every_flipped_bit_of_an_entry_is_noticed(path: Path) -> None:
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1
    for at in range(start, whole.index(b"\n", start), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(MisconfiguredError, match=r"line [23]"):
            log_head(path)


@pytest.mark.parametrize("left", [0, 3])
def test_a_log_cut_under_a_running_broker_is_noticed_at_the_next_entry(path: Path, left: int) -> None:
    log = ReleaseLog(path)
    cut = b"".join(path.read_bytes().splitlines(keepends=True)[:left])
    path.write_bytes(cut)
    with pytest.raises(MisconfiguredError, match="the file was cut"):
        log.append(ONE)
    assert path.read_bytes() == cut


def test_a_line_forged_beside_a_running_broker_stops_it(path: Path) -> None:
    log = ReleaseLog(path)
    forged = path.read_bytes() + path.read_bytes().splitlines(keepends=True)[-1]
    path.write_bytes(forged)
    with pytest.raises(MisconfiguredError, match="broken at line 6"):
        log.append(ONE)
    assert path.read_bytes() == forged


WRITER = """
import sys
from transom.enclave.log import Attempt, ReleaseLog
log = ReleaseLog(sys.argv[1])
for number in range(25):
    log.append(Attempt(reason=f"{sys.argv[2]} {number}"))
"""


def test_writers_in_several_processes_and_threads_keep_one_chain(path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(path), name]) for name in "xyz"]
    log = ReleaseLog(path)
    threads = [
        threading.Thread(target=lambda: [log.append(replace(ONE, reason="thread")) for _ in range(10)])
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    assert log_head(path).entries == 5 + 3 * 25 + 30
    reasons = [json.loads(line)["reason"] for line in path.read_text().splitlines()]
    for name in "xyz":  # each writer's entries are all there, in its order
        assert [r for r in reasons if r.startswith(name)] == [f"{name} {n}" for n in range(25)]


def test_on_a_full_disk_nothing_of_an_entry_stays_and_the_log_goes_on_later(path: Path) -> None:
    log, before = ReleaseLog(path), path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
    try:
        with pytest.raises(MisconfiguredError, match="no key is released without it"):
            log.append(ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, old)
    assert path.read_bytes() == before
    assert log.append(ONE).entries == 6
    assert log_head(path).entries == 6


def test_a_log_that_went_away_is_not_made_anew(path: Path) -> None:
    log = ReleaseLog(path)
    path.unlink()
    with pytest.raises(MisconfiguredError, match="cannot write the release log"):
        log.append(ONE)
    assert not path.exists()


def test_a_log_that_cannot_be_made_or_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="cannot make"):
        ReleaseLog(tmp_path / "absent" / "log")
    with pytest.raises(MisconfiguredError, match="cannot read"):
        ReleaseLog(tmp_path)
    with pytest.raises(MisconfiguredError, match="cannot read"):
        log_head(tmp_path / "absent")
