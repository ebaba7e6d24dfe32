"""Runs of `transom words sanitize` that end early, or would overwrite what they need: nothing is lost."""

from __future__ import annotations

import csv
import errno
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transom.cli import records
from transom.cli import words as words_command
from transom.cli.records import MapTo, Selection, sanitize_file
from transom.cli.resumable import Output
from transom.data.rows import Format, decoded, opened, table
from transom.errors import MisconfiguredError
from transom.privacy.mapfile import MapWriter, make_key, open_map, read_key
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer

TEXT = Selection(Format.text)
LINES = 60
Make = Callable[[], Sanitizer]


@pytest.fixture
def make() -> Make:
    sanitizer = Sanitizer(load_policy())
    return lambda: sanitizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("transom.cli.records.CHUNK_CHARS", 100)
    (tmp_path / "in.txt").write_text("".join(f"line {i} is of Quentin\n" for i in range(LINES)))
    for name in ("key", "key2"):
        make_key(tmp_path / name)
    return tmp_path


def run(folder: Path, make: Make, key: str = "key", *, resume: bool = False) -> None:
    mapping = MapTo(folder / "map", read_key(folder / key))
    sanitize_file(make, folder / "in.txt", folder / "out", TEXT, resume=resume, mapping=mapping)


def stop(
    folder: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    error: BaseException,
    told: type[BaseException] | None = None,
) -> None:
    """A run that ends with this error when it writes its chunk number `at`."""
    write, count = Output.write, 0

    def failing(self: Output, *given: object) -> None:
        nonlocal count
        count += 1
        if count > at:
            self._busy = True
            raise error
        write(self, *given)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(Output, "write", failing)
        with pytest.raises(told or type(error)):
            run(folder, make)


def whole_again(folder: Path) -> None:
    found = open_map(folder / "map", read_key(folder / "key"), folder / "out")
    words("restore", folder / "out", "--map", found.path, "--key", folder / "key", "--out", folder / "back")
    assert (folder / "back").read_bytes() == (folder / "in.txt").read_bytes()
    assert not list(folder.glob("*.part*"))


def words(*arguments: object) -> None:
    result = CliRunner().invoke(words_command.app, [str(one) for one in arguments])
    if result.exception is not None:
        raise result.exception


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("a worker died"), MisconfiguredError("the note: disk full")]
)
def test_whatever_stops_a_run_it_goes_on(
    folder: Path,
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    stop(folder, make, monkeypatch, 2, error)
    assert "out.part; go on with --resume" in capsys.readouterr().err
    kept = (folder / "out.part").read_bytes()
    assert kept
    run(folder, make, resume=True)
    assert (folder / "out").read_bytes().startswith(kept)
    whole_again(folder)


def test_a_full_disk_says_so_and_keeps_what_is_there(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    stop(folder, make, monkeypatch, 2, full, told=MisconfiguredError)
    run(folder, make, resume=True)
    whole_again(folder)


def test_a_wrong_key_or_map_costs_nothing_of_what_is_done(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(folder, make, monkeypatch, 3, KeyboardInterrupt())
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(MisconfiguredError, match="key"):
        run(folder, make, "key2", resume=True)
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept
    run(folder, make, resume=True)
    whole_again(folder)


def test_a_run_that_was_killed_before_its_first_note_goes_on_at_the_beginning(
    folder: Path, make: Make
) -> None:
    (folder / "out.part").write_text("half a ch")
    with MapWriter(folder / "map", read_key(folder / "key")):
        pass
    run(folder, make, resume=True)
    whole_again(folder)
    (folder / "out.part").touch()
    with pytest.raises(MisconfiguredError, match="was not left"):  # a map that is finished stays
        run(folder, make, resume=True)
    (folder / "out.part").unlink(missing_ok=True)
    whole_again(folder)


@pytest.mark.parametrize("lost", ["all", "end"])
def test_a_file_that_is_shorter_than_its_note_is_not_filled_with_zeros(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    stop(folder, make, monkeypatch, 2, KeyboardInterrupt())
    part = folder / "out.part"
    part.unlink() if lost == "all" else os.truncate(part, 5)
    with pytest.raises(MisconfiguredError, match="resume"):
        run(folder, make, resume=True)
    assert not (folder / "out").exists()


def test_two_runs_do_not_write_one_file(folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stop(folder, make, monkeypatch, 2, KeyboardInterrupt())

    def second(size: int) -> None:
        if not refused:
            refused.append(True)
            with pytest.raises(MisconfiguredError, match="another process"):
                run(folder, make, resume=True)

    refused: list[bool] = []
    mapping = MapTo(folder / "map", read_key(folder / "key"))
    sanitize_file(make, folder / "in.txt", folder / "out", TEXT, resume=True, mapping=mapping, advance=second)
    assert refused
    whole_again(folder)


@pytest.mark.parametrize("name", ["key", "map", "lists.yaml", "books", "in.txt", "link"])
def test_nothing_that_the_run_needs_is_overwritten(folder: Path, name: str) -> None:
    (folder / "lists.yaml").write_text("names: [Zorblax]\n")
    (folder / "link").symlink_to(folder / "key")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    options = ["--map", folder / "map", "--key", folder / "key", "--lists", folder / "lists.yaml"]
    with pytest.raises(MisconfiguredError, match="would be lost"):
        words(
            "sanitize", folder / "in.txt", "--out", folder / name, *options,
            "--ledger", folder / "books", "--cap", 9,
        )  # fmt: skip
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("name", ["key", "map", "out"])
def test_restoring_overwrites_neither_map_nor_key_nor_what_it_reads(
    folder: Path, make: Make, name: str
) -> None:
    run(folder, make)
    with pytest.raises(MisconfiguredError, match="would be lost"):
        words(
            "restore", folder / "out", "--map", folder / "map", "--key", folder / "key",
            "--out", folder / name,
        )  # fmt: skip
    whole_again(folder)


def test_a_bad_record_far_on_is_found_before_anything_is_charged(folder: Path) -> None:
    source = folder / "in.csv"
    source.write_text("id,text\n" + "1,Quentin\n" * 500 + "1\n")
    with pytest.raises(MisconfiguredError, match="row 502"):
        words(
            "sanitize", source, "--column", "text", "--out", folder / "out",
            "--ledger", folder / "books", "--cap", 9,
        )  # fmt: skip
    assert not list(folder.glob("out*"))
    assert not (folder / "books").exists()


def test_lists_that_changed_do_not_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lists = folder / "lists.yaml"
    lists.write_text("names: [Zorblax]\n")
    arguments = ("sanitize", folder / "in.txt", "--out", folder / "out", "--lists", lists)
    write, count = Output.write, 0

    def failing(self: Output, *given: object) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise RuntimeError
        write(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Output, "write", failing)
    with pytest.raises(RuntimeError):
        words(*arguments)
    lists.write_text("names: [Line]\n")
    with pytest.raises(MisconfiguredError, match="other options"):
        words(*arguments, "--resume")
    lists.write_text("names: [Zorblax]\n")
    words(*arguments, "--resume")
    assert (folder / "out").read_text().count("\n") == LINES


def test_a_cell_with_a_lone_carriage_return_is_read_again(folder: Path) -> None:
    source, target = folder / "in.csv", folder / "out.csv"
    rows = [["text", "note"], ["of Quentin", "a\rb"], ["a\r\nb", "c\nd"]]
    with source.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    words("sanitize", source, "--column", "text", "--out", target)
    with opened(target) as file:
        found = list(table(decoded(file, "out"), Format.csv).rows)
    assert [row[1] for row in found] == ["a\rb", "c\nd"]


def _sanitizer() -> Sanitizer:
    return Sanitizer(load_policy())


def _parent(pids: multiprocessing.SimpleQueue[int]) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), records._begin, (_sanitizer,)) as pool:
        pids.put(pool.submit(os.getpid).result())
        time.sleep(60)


def test_workers_end_when_their_parent_is_killed() -> None:
    context = multiprocessing.get_context("spawn")
    pids = context.SimpleQueue()
    parent = context.Process(target=_parent, args=(pids,))
    parent.start()
    worker, until = pids.get(), time.monotonic() + 20
    assert parent.pid is not None
    os.kill(parent.pid, signal.SIGKILL)
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        if Path(f"/proc/{worker}/stat").read_text().rsplit(")")[-1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()


def test_a_table_of_one_column_asks_for_its_delimiter(folder: Path) -> None:
    (folder / "in.csv").write_text("id;text\n1;Quentin\n")
    with pytest.raises(MisconfiguredError, match="--delimiter"):
        words("sanitize", folder / "in.csv", "--column", "text")


def test_explaining_a_policy_that_draws_nothing_says_what_words_do() -> None:
    told = CliRunner().invoke(words_command.app, ["explain", "--preset", "entities"]).stdout
    assert "words pass, or are replaced by placeholders; none is drawn" in told
    assert "instruction  pass" in told
