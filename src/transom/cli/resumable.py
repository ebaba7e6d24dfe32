"""A file that is written in steps, appears under its name when it is whole, and can be gone on with.

Until then it is `NAME.part`, with a note beside it of how far it is: what Ctrl-C, a kill, a full disk or a
spent ledger stopped stays, and goes on with `--resume`. One process at a time has it.
Threat model: a crash between two steps; both files are for their owner alone. Does not protect: an input that
is altered in place without a change of its size or time.
Source: own.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from transom.cli.output import plain_console
from transom.config import attempt, load_json, to_plain
from transom.errors import MisconfiguredError, system_errors
from transom.files import sync, write_file


@dataclass(frozen=True)
class Summary:
    """What was sanitised; `largest_draws` and `largest_epsilon` are those of one text.

    `counts` are tokens a kind, `replaced` those of them that became placeholders.
    """

    texts: int = 0
    draws: int = 0
    largest_draws: int = 0
    epsilon: float = 0.0
    largest_epsilon: float = 0.0
    counts: Mapping[str, int] = field(default_factory=dict)
    replaced: Mapping[str, int] = field(default_factory=dict)

    def __add__(self, other: Summary) -> Summary:
        return Summary(
            self.texts + other.texts,
            self.draws + other.draws,
            max(self.largest_draws, other.largest_draws),
            self.epsilon + other.epsilon,
            max(self.largest_epsilon, other.largest_epsilon),
            Counter(self.counts) + Counter(other.counts),
            Counter(self.replaced) + Counter(other.replaced),
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
        self._resumed, self._busy = 0, False

    def write(self, text: str, records: int, summary: Summary) -> None:
        """Write so many records, and note it durably."""
        self._busy = True
        self._file.write(text.encode())
        self._file.flush()
        self.records, self.summary = self.records + records, self.summary + summary
        if self._note is not None:
            os.fsync(self._file.fileno())
            note = _Note(*self._about, self.records, self._file.tell(), self.summary)
            write_file(self._note, json.dumps(to_plain(note)).encode(), mode=0o600)
        self._busy = False

    def sha256(self) -> str:
        """The hash of all that was written."""
        digest = hashlib.sha256()
        self._file.seek(0)
        while block := self._file.read(1 << 20):
            digest.update(block)
        return digest.hexdigest()

    def stays(self, error: BaseException) -> bool:
        """Whether what is written can be gone on with after this error: not if it lies in the input."""
        fault = isinstance(error, MisconfiguredError) and self.records > self._resumed and not self._busy
        return self.records > 0 and self._note is not None and not fault

    def go_on(self, note: _Note) -> None:
        """Begin where a note says that an earlier run stopped."""
        self.records, self.summary = note.records, note.summary
        self._resumed = note.records
        self._file.truncate(note.size_bytes)
        self._file.seek(note.size_bytes)


@contextmanager
def writing(target: Path | None, source: Path, settings: str, *, resume: bool) -> Iterator[Output]:
    """Standard output, or a file that appears under its name only when complete.

    What was written stays for `--resume`, unless the input itself is at fault: it will be another then.
    """
    if target is None:
        yield Output(sys.stdout.buffer)
        sys.stdout.buffer.flush()
        return
    part, note = parts_of(target)
    state = source.stat() if source.is_file() else None
    about = (state.st_size, state.st_mtime_ns) if state else (), settings
    with system_errors(f"{target} cannot be written"), _opened(part, target, resume=resume) as file:
        out = Output(file, note if state else None, about)
        if resume:
            out.go_on(_earlier(part, note, about))
        else:
            note.unlink(missing_ok=True)  # of a run that was killed just after its end
        try:
            yield out
            os.fsync(file.fileno())
            part.replace(target)
            sync(target.absolute().parent)
        except BaseException as error:
            if not out.stays(error):
                for path in (part, note):
                    path.unlink(missing_ok=True)
            else:
                told = f"{out.records} records are in {part}; go on with --resume, or delete it"
                plain_console(stderr=True).print(told)
            raise
    note.unlink(missing_ok=True)


def parts_of(target: Path) -> tuple[Path, Path]:
    """What stands beside a target that is not whole yet: the file so far and its note."""
    return target.with_name(f"{target.name}.part"), target.with_name(f"{target.name}.part.json")


def spare(targets: Iterable[Path | None], kept: Mapping[str, Path | None]) -> None:
    """Refuse a target that is one of the files that are `kept`, by name. Raises MisconfiguredError."""
    for (name, path), target in itertools.product(kept.items(), filter(None, targets)):
        if path is not None and os.path.realpath(path) == os.path.realpath(target):
            raise MisconfiguredError(f"{target} is {name}; it would be lost. Name another output")


def _opened(part: Path, target: Path, *, resume: bool) -> BinaryIO:
    """The file so far, for this process alone. Raises MisconfiguredError, OSError."""
    try:
        file = os.fdopen(os.open(part, os.O_RDWR | (0 if resume else os.O_CREAT | os.O_EXCL), 0o600), "r+b")
    except FileExistsError:
        raise MisconfiguredError(
            f"{part} is there from a run that was stopped: go on with --resume, or delete it"
        ) from None
    except FileNotFoundError:
        raise MisconfiguredError(
            f"there is no {part} to resume from; leave --resume out"
            if target.parent.is_dir()
            else f"{target} cannot be written: there is no folder {target.parent}"
        ) from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise MisconfiguredError(f"{part} is being written by another process; wait for it") from None
    return file


def _earlier(part: Path, note: Path, about: _About) -> _Note:
    """The note of the run that goes on; a run that was killed before its first goes on at the beginning.

    Raises MisconfiguredError.
    """
    if not note.exists():
        return _Note(*about, 0, 0, Summary())
    found = None
    with suppress(OSError, ValueError):
        found, problems = attempt(_Note, load_json(note.read_text()))
        found = None if problems else found
    if found is None:
        raise MisconfiguredError(f"{note} is damaged; delete it and {part}, and leave --resume out")
    if (found.source, found.settings) != about:
        raise MisconfiguredError(
            f"{note} is of another input or other options; resume with the same, or delete it and {part}"
        )
    if part.stat().st_size < found.size_bytes:
        raise MisconfiguredError(f"{part} is shorter than {note} says; delete both, and leave --resume out")
    return found
