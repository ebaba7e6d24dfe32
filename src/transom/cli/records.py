"""Read records, sanitise their texts, write them: the file half of `transom words sanitize`.

A record is a line of text, a whole file (`document`), a row of CSV or TSV, a line of JSON lines or a JSON
document; its texts share their placeholders, and whatever else it holds keeps its bytes (CSV: its cells).
Records are sanitised in chunks, on several processes if asked, and leave in their order; what a chunk costs
is charged before it is written. A target appears under its name when it is whole: until then it is
`NAME.part`, with a note of how far it is, so that what Ctrl-C or a spent ledger stopped goes on with
`--resume`.
Threat model: input may be malformed; messages name byte offsets and row numbers, never content. Does not
protect: columns and members that are not named stay as they are.
Source: RFC 4180 (CSV), RFC 3629 (UTF-8), RFC 8259 (JSON).
"""

from __future__ import annotations

import csv
import io
import itertools
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import Annotated, BinaryIO, Literal, NamedTuple

from transom.cli.resumable import Output, Summary, writing
from transom.config import to_plain
from transom.data.fields import find_texts, parse_path, replaced
from transom.data.rows import Format, decoded, form_of, opened, table
from transom.errors import MisconfiguredError, NotYetError
from transom.files import require_writable
from transom.privacy.mapfile import MapWriter
from transom.privacy.placeholders import Placeholders
from transom.privacy.recordmap import RecordMap
from transom.privacy.sanitize import Sanitizer

CHUNK_CHARS = 2**18
_AHEAD = 2  # chunks a process that may wait


@dataclass(frozen=True)
class Selection:
    """Which texts of a file are sanitised."""

    form: Format
    columns: Sequence[str] = ()
    fields: Sequence[str] = ()
    header: bool | None = None
    delimiter: str = ","
    document: bool = False

    def check(self) -> None:
        """Raises MisconfiguredError, and NotYetError for a format that is read and not written."""
        if self.form is Format.parquet:
            raise NotYetError("parquet is read by audits and not written yet; give text, CSV, TSV or JSON")
        tabular, nested = self.form in (Format.csv, Format.tsv), self.form in (Format.json, Format.jsonl)
        if tabular != bool(self.columns):
            raise MisconfiguredError("--column is for CSV and TSV, which need it (see --format)")
        if nested != bool(self.fields):
            raise MisconfiguredError("--field is for JSON and JSON lines, which need it (see --format)")
        if len(self.delimiter) != 1 or self.delimiter in '"\r\n':
            raise MisconfiguredError(f"a delimiter is one character, got {self.delimiter!r}")
        if self.delimiter != "," and self.form is not Format.csv:
            raise MisconfiguredError("--delimiter is for CSV (see --format)")
        if self.header is None and any(column.isdecimal() for column in self.columns):
            raise MisconfiguredError(
                "a column is given by number: say --header or --no-header, or the first row may leave as is"
            )

    @cached_property
    def paths(self) -> tuple[tuple[str | None, ...], ...]:
        """The paths of the fields. Raises MisconfiguredError."""
        return tuple(map(parse_path, self.fields))


@dataclass(frozen=True)
class FileOptions:
    """What is read of files, and which texts."""

    format: Annotated[
        Literal["text", "csv", "tsv", "jsonl", "json"] | None, "By the file's ending when not given. One of"
    ] = None
    column: Annotated[tuple[str, ...], "CSV/TSV column, by name or number from 1; repeatable."] = ()
    field: Annotated[tuple[str, ...], "JSON field, as text or messages[].content; repeatable."] = ()
    delimiter: Annotated[str, "What parts the columns of a CSV file."] = ","
    header: Annotated[
        bool | None, "The first CSV/TSV row names the columns; to be said where a column is a number."
    ] = None
    document: Annotated[bool, "A text file is one text, not a text a line."] = False

    def selection(self, source: Path) -> Selection:
        """Which texts of this file."""
        form = form_of(source) if self.format is None else Format(self.format)
        return Selection(form, self.column, self.field, self.header, self.delimiter, self.document)


class MapTo(NamedTuple):
    """A file for what brings the texts back, and the key that seals it."""

    path: Path
    secret: bytes


class Record(NamedTuple):
    """The texts of a record, and how it is written with others in their place."""

    texts: Sequence[str]
    written: Callable[[Sequence[str]], str]


class Done(NamedTuple):
    """A chunk's texts, sanitised, for each record."""

    texts: list[list[str]]
    summary: Summary
    maps: list[RecordMap]


def check_file(source: Path, target: Path | None, selection: Selection, *, resume: bool = False) -> None:
    """What can be known before anything is read, drawn or charged. Raises MisconfiguredError, NotYetError."""
    selection.check()
    _ = selection.paths
    if str(source) != "-" and (source.is_file() or not source.exists()):  # a pipe is opened once
        with opened(source):
            pass
    if target is not None:
        require_writable(target)
    if resume and (target is None or not source.is_file()):
        raise MisconfiguredError("--resume needs a file to read and --out FILE to go on with")


def check_records(source: Path, selection: Selection) -> None:
    """Read a file once to its end, so that a bad record stops the run before anything is drawn or charged.

    Raises MisconfiguredError.
    """
    if source.is_file():
        with opened(source) as file:
            for _ in read_records(file, str(source), selection, bool):
                pass


def sanitize_file(
    make: Callable[[], Sanitizer],
    source: Path,
    target: Path | None,
    selection: Selection,
    *,
    charge: Callable[[float], object] | None = None,
    advance: Callable[[int], object] = bool,
    workers: int = 1,
    resume: bool = False,
    settings: str = "",
    mapping: MapTo | None = None,
) -> Summary:
    """Sanitise `source` (`-` is standard input) into `target` (None is standard output).

    `make` makes the sanitizer, in each process; `settings` names what it does, which a run that goes on must
    share. `charge` is called with the cost of a chunk before that chunk
    is written, and after all that can be known to prevent it. Raises MisconfiguredError for unreadable input,
    invalid UTF-8 (with the byte's offset), ragged rows, unknown columns or fields; LedgerError.
    """
    check_file(source, target, selection, resume=resume)
    with (
        opened(source) as file,
        writing(target, source, f"{selection} {settings}", resume=resume) as out,
        _mapping(mapping, out, resume=resume) as maps,
    ):
        records = itertools.islice(read_records(file, str(source), selection, advance), out.records, None)
        for chunk, done in _sanitised(make, _chunks(records), workers, mapped=maps is not None):
            if charge is not None and done.summary.epsilon:
                charge(done.summary.epsilon)
            parts = [record.written(texts) for record, texts in zip(chunk, done.texts, strict=True)]
            if maps is not None:
                for one in done.maps:
                    maps.add(one)
                maps.flush()
            out.write("".join(parts), len(chunk), done.summary)
        if maps is not None:
            maps.close(out.sha256(), to_plain(selection))
    return out.summary


@contextmanager
def _mapping(to: MapTo | None, out: Output, *, resume: bool) -> Iterator[MapWriter | None]:
    """Where maps go. What a run that was stopped has mapped and not written is mapped anew, and where nothing
    stays of a run its map goes too."""
    if to is None:
        yield None
        return
    again = out.records or (resume and to.path.exists())
    with MapWriter.resume(*to, out.records) if again else MapWriter(*to) as maps:
        try:
            yield maps
        except BaseException as error:
            if not out.stays(error):
                to.path.unlink()
            raise


def read_records(
    file: BinaryIO, name: str, selection: Selection, advance: Callable[[int], object]
) -> Iterator[Record]:
    lines, form = decoded(file, name, advance), selection.form
    if form in (Format.csv, Format.tsv):
        return _table_records(lines, selection)
    if form is Format.jsonl:
        return (_json_line(line, selection, f"{name}, line {n}") for n, line in enumerate(lines, 1))
    if form is Format.json:
        return iter([_json_record("".join(lines), selection, name)])
    if selection.document:
        return iter([Record(["".join(lines)], "".join)])
    return map(_line_record, lines)


def _line_record(line: str) -> Record:
    text = line.rstrip("\r\n")
    return Record([text], lambda texts: texts[0].replace("\n", " ") + line[len(text) :])


def _json_line(line: str, selection: Selection, where: str) -> Record:
    return _json_record(line, selection, where) if line.strip() else Record((), lambda _: line)


def _json_record(document: str, selection: Selection, where: str) -> Record:
    literals = find_texts(document, selection.paths, where)
    return Record([literal.text for literal in literals], partial(replaced, document, literals))


def _table_records(lines: Iterator[str], selection: Selection) -> Iterator[Record]:
    form, delimiter = selection.form, selection.delimiter
    found = table(lines, form, header=selection.header is not False, delimiter=delimiter)
    wanted = list(dict.fromkeys(map(found.index, selection.columns)))

    def row_with(row: list[str], texts: Sequence[str]) -> str:
        for index, text in zip(wanted, texts, strict=False):
            row[index] = text
        if form is Format.tsv:
            return "\t".join(cell.replace("\n", " ") for cell in row) + "\n"
        out = io.StringIO()
        csv.writer(out, delimiter=delimiter).writerow(row)  # its line end decides that a cell's \r is quoted
        return out.getvalue().removesuffix("\r\n") + "\n"

    if found.header:
        yield Record((), partial(row_with, list(found.names)))
    for row in found.rows:
        yield Record([row[index] for index in wanted], partial(row_with, row))


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Records in lists of about `CHUNK_CHARS` characters of text."""
    chunk: list[Record] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += 1 + sum(map(len, record.texts))
        if size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _sanitised(
    make: Callable[[], Sanitizer], chunks: Iterator[list[Record]], workers: int, *, mapped: bool
) -> Iterator[tuple[list[Record], Done]]:
    """Each chunk with what it becomes, in order; at most `_AHEAD` chunks a process are in hand."""
    done = _done_and_mapped if mapped else _done
    if workers == 1:
        sanitizer = make()
        yield from ((chunk, done(sanitizer, _texts(chunk))) for chunk in chunks)
        return
    waiting: deque[tuple[list[Record], Future[Done]]] = deque()
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (make,)) as pool:
        try:
            for chunk in chunks:
                waiting.append((chunk, pool.submit(_work, done, _texts(chunk))))
                if len(waiting) >= _AHEAD * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            yield from ((first, future.result()) for first, future in waiting)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _texts(chunk: Iterable[Record]) -> list[list[str]]:
    return [list(record.texts) for record in chunk]


def _done(sanitizer: Sanitizer, texts_of: Sequence[Sequence[str]]) -> Done:
    holders = [one for texts in texts_of for one in [Placeholders()] * len(texts)]
    batch = sanitizer.sanitize_batch([text for texts in texts_of for text in texts], holders)
    given = iter(batch.texts)
    return Done(
        [list(itertools.islice(given, len(texts))) for texts in texts_of],
        Summary(
            len(batch.texts),
            sum(batch.draws),
            max(batch.draws, default=0),
            batch.epsilon,
            max(batch.epsilons, default=0.0),
            batch.counts,
            batch.replaced,
        ),
        [],
    )


def _done_and_mapped(sanitizer: Sanitizer, texts_of: Sequence[Sequence[str]]) -> Done:
    """As `_done`, text by text, with what brings each record back."""
    texts, maps, total = [], [], Summary()
    for record in texts_of:
        holders = Placeholders()
        made = [sanitizer.sanitize(text, placeholders=holders) for text in record]
        for one in made:
            total += Summary(1, one.drawn, one.drawn, one.epsilon, one.epsilon, one.counts, one.replaced)
        texts.append([one.text for one in made])
        pieces = ([(piece.output, piece.source) for piece in one.pieces] for one in made)
        maps.append(RecordMap.of(pieces, holders.values))
    return Done(texts, total, maps)


_sanitizer: Sanitizer | None = None  # a worker's own


def _begin(make: Callable[[], Sanitizer]) -> None:
    global _sanitizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    Thread(target=_end_with_parent, daemon=True).start()
    _sanitizer = make()


def _end_with_parent() -> None:
    """A parent that is killed tells nobody: without this its workers, and the texts in them, would stay."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


def _work(done: Callable[[Sanitizer, list[list[str]]], Done], texts_of: list[list[str]]) -> Done:
    if _sanitizer is None:
        raise RuntimeError("a worker that did not begin")
    return done(_sanitizer, texts_of)
