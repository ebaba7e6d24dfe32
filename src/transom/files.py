"""Files that matter: whole or absent, durable, and where they are secret, for their owner's eyes alone.

Threat model: other users of the machine, a crash, a full disk, two processes that write one path at once.
Does not protect: against root, or a file system that loses what it has acknowledged.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

from transom.errors import MisconfiguredError, system_errors

T = TypeVar("T")
_log = logging.getLogger("transom.files")


class Reread(Generic[T]):
    """What `load` makes of a file, as it is now. Raises MisconfiguredError where the first try fails.

    The file, and those that `also` says the value was made of, are looked at when the value is asked for, at
    most every `every_s` seconds. While a changed file cannot be used (half written, broken, gone) the value
    made before stays, the log says so once, and every look tries again.
    """

    def __init__(
        self,
        path: str | Path,
        load: Callable[[Path], T],
        *,
        every_s: float = 1.0,
        also: Callable[[T], Iterable[Path]] = lambda value: (),
    ) -> None:
        self.path, self._problem = Path(path), ""
        self._load, self._every_s, self._also = load, every_s, also
        before = _state(self.path)
        self._value = load(self.path)
        self._seen = before, self._others()
        if self._seen[1]:  # which files there are is known now; what was read of them may be older
            self._value = load(self.path)
        self._next_s = time.monotonic() + every_s

    def now(self) -> T:
        """The value."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + self._every_s
            seen = _state(self.path), self._others()
            if self._problem or seen != self._seen:
                self._reload(changed=seen != self._seen)
                # As they were before they were read: what is written meanwhile is a change at the next look.
                before = dict(seen[1])
                self._seen = seen[0], tuple((path, before.get(path)) for path, _ in self._others())
        return self._value

    def _reload(self, *, changed: bool) -> None:
        try:
            self._value, self._problem = self._load(self.path), ""
        except MisconfiguredError as error:
            if changed or str(error) != self._problem:
                _log.error("%s; what was read before stays in use until it is mended", error)
            self._problem = str(error)
        else:
            _log.warning("read %s again", self.path)

    def _others(self) -> tuple[tuple[Path, object], ...]:
        return tuple((path, _state(path)) for path in self._also(self._value))


@contextmanager
def whole(
    path: Path, *, mode: int = 0o666, put: Callable[[Path, Path], object] = Path.replace
) -> Iterator[Path]:
    """An empty file beside `path` to write to; afterwards `put` gives it that name, durably.

    On any error it is gone and `path` is as it was. Raises OSError.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield partial
        sync(partial)
        put(partial, path)
        sync(path.parent)
    finally:
        with suppress(OSError):
            partial.unlink()


def write_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file, over an earlier one. Raises MisconfiguredError."""
    _write(path, data, mode, Path.replace)


def write_new(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file that must not exist yet. Raises MisconfiguredError."""
    if not write_once(path, data, mode=mode):
        raise MisconfiguredError(f"cannot write {path}: it exists; use it, move it, or give another path")


def write_once(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Write a file unless there is one: of several processes the first wins. Whether this one did.

    Raises MisconfiguredError.
    """
    written = True

    def put(partial: Path, path: Path) -> None:
        nonlocal written
        try:
            os.link(partial, path)
        except FileExistsError:
            written = False

    _write(path, data, mode, put)
    return written


def require_writable(path: Path, *, parents: bool = False) -> None:
    """Say now what would keep `path` from being written at the end, before that end is paid for.

    With `parents` missing folders will be made. A disk that fills up meanwhile is not foreseen.
    Raises MisconfiguredError.
    """
    folder = path.absolute().parent
    while parents and not os.path.lexists(folder):
        folder = folder.parent
    with system_errors(f"cannot write {path}", "give a file in a folder that exists and lets you write"):
        if os.path.lexists(path) and not path.is_file():
            raise MisconfiguredError(f"cannot write {path}: it is there and no file; give another path")
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{path.name}."):
            pass


def read_private(path: Path, *, give: str = "a file that exists") -> bytes:
    """The bytes of a file that nobody but its owner may read. Raises MisconfiguredError: `give` says what to
    give instead of a path that cannot be read."""
    with system_errors(f"cannot read {path}", f"give {give}"), path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if mode & 0o077:
            raise MisconfiguredError(
                f"others may read {path} (mode {mode & 0o777:04o}); run: chmod 600 {path}"
            )
        return file.read()


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """The bytes of a file. Raises OSError, and ValueError for more than `limit_bytes`."""
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise ValueError(f"it has more than {limit_bytes} bytes")
    return data


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes as hex. Raises MisconfiguredError when it cannot be read."""
    with system_errors(f"cannot read {path}", "restore it"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make a file's contents, or a folder's entries, durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def growing(path: Path) -> Iterator[Path]:
    """A place to write to that becomes `path`, durably, when the block ends well, and else is gone.

    It has no name meanwhile where the file system knows such files, so that not even a kill leaves it.
    Raises OSError; FileExistsError for a `path` that is there by then, which is kept.
    """
    try:
        file = os.open(path.absolute().parent, os.O_TMPFILE | os.O_RDWR, 0o644)
    except OSError:
        with whole(path, mode=0o644, put=os.link) as partial:
            yield partial
        return
    try:
        nameless = Path(f"/proc/self/fd/{file}")
        yield nameless
        os.fsync(file)
        os.link(nameless, path.absolute(), src_dir_fd=file, follow_symlinks=True)  # linkat alone follows
        sync(path.absolute().parent)
    finally:
        os.close(file)


def _write(path: Path, data: bytes, mode: int, put: Callable[[Path, Path], object]) -> None:
    """Write beside `path`, then put it there. Raises MisconfiguredError."""
    with system_errors(f"cannot write {path}", "free the disk or move"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path, mode=mode, put=put) as partial:
            partial.write_bytes(data)


def _state(path: Path) -> tuple[int, ...] | None:
    """What changes when a file does; None without one."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
