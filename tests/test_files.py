"""Files that matter: whole or absent, never over another one unless asked, and secret ones private."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from transom.errors import MisconfiguredError
from transom.files import (
    Reread,
    file_sha256,
    growing,
    read_bounded,
    read_private,
    require_writable,
    sync,
    whole,
    write_file,
    write_new,
    write_once,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_or_new_as_asked(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    write_file(path, b"one")
    write_file(path, b"two", mode=0o600)
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(MisconfiguredError, match="exists"):
        write_new(path, b"three")
    assert not write_once(path, b"three")
    assert path.read_bytes() == b"two"
    assert write_once(path.with_name("other"), b"three")
    assert names(path.parent) == ["file", "other"]


def test_of_many_writers_one_wins_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    values = [bytes([i]) * 100_000 for i in range(16)]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda value: write_once(path, value), values))
    assert won.count(True) == 1
    assert path.read_bytes() == values[won.index(True)]
    assert names(tmp_path) == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_file(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (write_file, write_new, write_once):
        with pytest.raises(MisconfiguredError, match="No space left"):
            write(path, b"new")
    with pytest.raises(OSError, match="No space"):
        sync(tmp_path)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"")
    for write in (write_file, write_new, write_once):
        with pytest.raises(MisconfiguredError, match="cannot write"):
            write(tmp_path / "file" / "inner", b"new")
    with pytest.raises(MisconfiguredError, match="cannot write"):
        write_file(tmp_path, b"new")
    assert names(tmp_path) == ["file"]


def test_a_body_that_fails_leaves_nothing_and_one_that_ends_leaves_all(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def break_off() -> None:
        with whole(path) as partial:
            partial.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        break_off()
    assert names(tmp_path) == []
    with whole(path, mode=0o600) as partial:
        partial.write_bytes(b"whole")
        assert names(tmp_path) == [partial.name]
        assert partial.name.endswith(".tmp")  # what a kill leaves is told from results by its name
    assert names(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileNotFoundError), whole(tmp_path / "absent" / "file"):
        pass


@pytest.mark.parametrize("nameless", [True, False])
def test_what_grows_is_seen_when_it_is_done_and_takes_no_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    path = tmp_path / "file"
    opened = os.open

    def known(target: Path | str, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE and not nameless:
            raise OSError(95, "Operation not supported")
        return opened(target, flags, mode)

    monkeypatch.setattr(os, "open", known)

    def grow(data: bytes) -> None:
        with growing(path) as partial:
            partial.write_bytes(data)
            assert len(names(tmp_path)) == (not nameless) + path.exists()
            assert data

    with pytest.raises(AssertionError):
        grow(b"")
    assert names(tmp_path) == []
    grow(b"one")
    with pytest.raises(FileExistsError):
        grow(b"two")
    assert path.read_bytes() == b"one"
    assert names(tmp_path) == ["file"]


def test_a_hash_is_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 * 2**18 + 5)
    write_file(tmp_path / "file", data)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()
    with pytest.raises(MisconfiguredError, match="cannot read"):
        file_sha256(tmp_path)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "secret"
    write_new(path, b"value", mode=0o600)
    assert read_private(path) == b"value"
    path.chmod(mode)
    with pytest.raises(MisconfiguredError, match="chmod 600") as error:
        read_private(path)
    assert "value" not in str(error.value)
    with pytest.raises(MisconfiguredError, match="give the folder"):
        read_private(tmp_path / "absent", give="the folder")


def hopeless(folder: Path) -> list[Path]:
    """Paths at which no file can be written."""
    (folder / "is_a_file").touch()
    os.mkfifo(folder / "pipe")
    return [
        folder / "absent" / "file",
        folder,
        folder / "is_a_file" / "file",
        folder / ("x" * 300),
        folder / "pipe",
    ]


def test_what_cannot_be_written_is_known_before(tmp_path: Path) -> None:
    for path in hopeless(tmp_path):
        with pytest.raises(MisconfiguredError, match="cannot write"):
            require_writable(path)
    require_writable(tmp_path / "new")
    require_writable(tmp_path / "is_a_file")
    require_writable(tmp_path / "made" / "later" / "file", parents=True)
    with pytest.raises(MisconfiguredError, match="cannot write"):
        require_writable(tmp_path / "is_a_file" / "later" / "file", parents=True)
    assert names(tmp_path) == ["is_a_file", "pipe"]


@pytest.mark.parametrize("nameless", [True, False])
def test_a_growing_file_is_there_when_it_is_whole_and_not_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nameless: bool
) -> None:
    if not nameless:  # as on a file system that does not know files without a name
        opened = os.open

        def refuse(path: Any, flags: int, *rest: Any, **more: Any) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not here")
            return opened(path, flags, *rest, **more)

        monkeypatch.setattr(os, "open", refuse)
    with growing(tmp_path / "file") as place:
        place.write_bytes(b"half")
        assert not (tmp_path / "file").exists()
        assert len(list(tmp_path.iterdir())) == (0 if nameless else 1)
        place.write_bytes(b"whole")
    assert (tmp_path / "file").read_bytes() == b"whole"
    with pytest.raises(FileExistsError), growing(tmp_path / "file") as place:
        place.write_bytes(b"another")
    with pytest.raises(ZeroDivisionError), growing(tmp_path / "other"):
        raise ZeroDivisionError
    with pytest.raises(FileNotFoundError), growing(tmp_path / "nowhere" / "file"):
        pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"whole"}


@pytest.mark.parametrize("size_bytes", [0, 9, 10, 11, 1000])
def test_no_more_of_a_file_is_read_than_its_reader_wants(tmp_path: Path, size_bytes: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * size_bytes)
    if size_bytes <= 10:
        assert read_bounded(path, 10) == b"x" * size_bytes
    else:
        with pytest.raises(ValueError, match="more than 10 bytes"):
            read_bounded(path, 10)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "absent", 10)


@pytest.mark.parametrize("loads", [1, 2, 3])
def test_what_is_written_while_files_are_read_is_read_at_the_next_look(tmp_path: Path, loads: int) -> None:
    """A name that is added to a list at a bad moment must not stay unknown until the next change."""
    main, other = tmp_path / "main", tmp_path / "other"
    main.write_text("0")
    other.write_text("old")
    read = 0

    def load(path: Path) -> str:
        nonlocal read
        value = path.read_text() + other.read_text()
        read += 1
        if read == loads:
            other.write_text("newer")
        return value

    lists = Reread(main, load, every_s=0, also=lambda _: [other])
    for step in range(1, loads):
        main.write_text("1" * step)
        lists.now()
    assert lists.now().endswith("newer")
    before = read
    assert lists.now().endswith("newer")
    assert read == before


def test_a_file_that_is_newly_named_is_looked_at_from_then_on(tmp_path: Path) -> None:
    main, other = tmp_path / "main", tmp_path / "other"
    main.write_text("")
    other.write_text("old")
    writes = ["new"]

    def load(path: Path) -> str:
        value = path.read_text() and other.read_text()
        if value and writes:
            other.write_text(writes.pop())
        return value

    lists = Reread(main, load, every_s=0, also=lambda _: [other] if main.read_text() else [])
    main.write_text("x")
    assert lists.now() == "old"
    assert lists.now() == "new"
