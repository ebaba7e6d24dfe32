"""A file that is written in steps, appears under its name when it is whole, and can be gone on with.

Until then it is `NAME.part`, with a note beside it of how far it is: what Ctrl-C or a spent ledger stopped
stays, and goes on with `--resume`.
Threat model: a crash between two steps; both files are for their owner alone. Does not protect: an input that
is altered in place without a change of its size or time.
Source: own.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from transom.config import attempt, load_json, to_plain
from transom.errors import LedgerError, MisconfiguredError
from transom.files import sync, write_file


@dataclass(frozen=True)
class Summary:
    """What was sanitised; `largest_draws` and `largest_epsilon` are those of one text."""

    texts: int = 0
    draws: int = 0
    largest_draws: int = 0
    epsilon: float = 0.0
    largest_epsilon: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.texts + other.texts,
            self.draws + other.draws,
            max(self.largest_draws, other.largest_draws),
            self.epsilon + other.epsilon,
            max(self.largest_epsilon, other.largest_epsilon),
            Counter(self.counts) + Counter(other.counts),
        )


@dataclass(frozen=True)
class _Note:
    """How far a file is."""

    source: tuple[int, ...]  # size and time of the file that is read
    settings: str
    records: int
    size_bytes: int
    summary: Summary


_About = tuple[tuple[int, ...], str]


class Output:
    """Where records go; `records` of them are there already."""

    def __init__(self, file: BinaryIO, note: Path | None = None, about: _About = ((), "")) -> None:
        self._file, self._note, self._about = file, note, about
        self.records, self.summary = 0, Summary()

    def write(self, text: str, records: int, summary: Summary) -> None:
        """Write so many records, and note it durably."""
        self._file.write(text.encode())
        self._file.flush()
        self.records, self.summary = self.records + records, self.summary + summary
        if self._note is not None:
            os.fsync(self._file.fileno())
            note = _Note(*self._about, self.records, self._file.tell(), self.summary)
            write_file(self._note, json.dumps(to_plain(note)).encode(), mode=0o600)

    def sha256(self) -> str:
        """The hash of all that was written."""
        digest = hashlib.sha256()
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()

    def go_on(self, note: _Note) -> None:
        """Begin where a note says that an earlier run stopped."""
        self.records, self.summary = note.records, note.summary
        self._file.truncate(note.size_bytes)
        self._file.seek(note.size_bytes)


@contextmanager
def writing(target: Path | None, source: Path, settings: str, *, resume: bool) -> Iterator[Output]:
    """Standard output, or a file that appears under its name only when complete."""
    if target is None:
        yield Output(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    part, note = target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")
    state = source.stat() if source.is_file() else None
    about = (state.st_size, state.st_mtime_ns) if state else (), settings
    earlier = _earlier(note, about) if resume else None
    try:
        file = os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | (0 if resume else os.O_EXCL), 0o600), "r+b")
    except FileExistsError:
        raise MisconfiguredError(
            f"{part} is there from a run that was stopped: go on with --resume, or delete it"
        ) from None
    except OSError as error:
        raise MisconfiguredError(f"{target} cannot be written ({error.strerror})") from error
    try:
        with file:
            out = Output(file, note if state else None, about)
            if earlier is not None:
                out.go_on(earlier)
            yield out
            os.fsync(file.fileno())
        part.replace(target)
        sync(target.absolute().parent)
    except (KeyboardInterrupt, LedgerError):
        if not out.records:
            part.unlink()
        raise
    except BaseException:
        for path in (part, note):
            path.unlink(missing_ok=True)
        raise
    note.unlink(missing_ok=True)


def _earlier(note: Path, about: _About) -> _Note:
    """The note of the run that goes on. Raises MisconfiguredError."""
    with suppress(OSError, ValueError):
        found, problems = attempt(_Note, load_json(note.read_text()))
        if found is not None and not problems:
            if (found.source, found.settings) == about:
                return found
            raise MisconfiguredError(
                f"{note} is of another input or other options; resume with the same, or delete it"
            )
    raise MisconfiguredError(f"there is no note {note} to resume from; leave --resume out")
