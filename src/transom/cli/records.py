"""Read records (lines, CSV, TSV), sanitise them in chunks, write them: the file half of `transom words
sanitize`.

Plain text is a text a line, or one text (`document`). CSV follows RFC 4180; TSV splits at tabs and knows
no quotes.
Threat model: input may be malformed; messages name byte offsets and row numbers, never content. With a
ledger all is sanitised first, charged once, and only then written: a refusal writes nothing. A target file
appears whole or not at all. Does not protect: columns that are not named stay as they are.
Source: RFC 4180 (CSV), RFC 3629 (UTF-8).
"""

from __future__ import annotations

import csv
import io
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from transom.data.rows import Format, decoded, form_of, opened, table
from transom.errors import MisconfiguredError, NotYetError, system_errors
from transom.files import require_writable, whole
from transom.privacy.sanitize import Sanitizer

CHUNK_ROWS = 2000


@dataclass(frozen=True)
class Summary:
    """What was sanitised; `largest_draws` is the most draws of one text."""

    texts: int = 0
    draws: int = 0
    largest_draws: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: Summary) -> Summary:
        largest = max(self.largest_draws, other.largest_draws)
        return Summary(
            self.texts + other.texts, self.draws + other.draws, largest, self.counts + other.counts
        )


def check_file(source: Path, target: Path | None, form: Format | None, columns: Sequence[str]) -> None:
    """What can be known before anything is read, drawn or charged.

    Raises MisconfiguredError, and NotYetError for a format that is read and not written.
    """
    form = form or form_of(source)
    if form in (Format.jsonl, Format.parquet):
        raise NotYetError(f"{form} is read by audits and not written yet; give text, CSV or TSV")
    if (form is Format.text) == bool(columns):
        raise MisconfiguredError("--column is for CSV and TSV, which need it (see --format)")
    if str(source) != "-" and (source.is_file() or not source.exists()):  # a pipe is opened once
        with opened(source):
            pass
    if target is not None:
        require_writable(target)


def sanitize_file(
    sanitizer: Sanitizer,
    source: Path,
    target: Path | None,
    *,
    form: Format | None,
    columns: Sequence[str],
    header: bool | None,
    document: bool,
    charge: Callable[[float], object] | None,
    advance: Callable[[int], None],
) -> Summary:
    """Sanitise `source` (`-` is standard input) into `target` (None is standard output).

    `charge` is called once with the whole cost before anything is written, and after all that can be known
    to prevent it; what a disk that fills up then does not take stays charged. Raises MisconfiguredError for
    unreadable input, invalid UTF-8 (with the byte's offset), ragged rows or unknown columns.
    """
    check_file(source, target, form, columns)
    form = form or form_of(source)
    with opened(source) as file:
        lines = decoded(file, str(source), advance)
        if form is Format.text:
            results = _sanitize_text(sanitizer, lines, document)
        else:
            results = _sanitize_table(sanitizer, lines, form, columns, header)
        if charge is not None:
            results = iter(list(results))
            results, costed = itertools.tee(results)
            draws = sum(summary.draws for _, summary in costed)
            charge(draws * sanitizer.word_epsilon if draws else 0.0)
        total = Summary()
        with _writing(target) as out:
            for text, summary in results:
                out.write(text)
                total += summary
    return total


def _sanitize_text(
    sanitizer: Sanitizer, lines: Iterator[str], document: bool
) -> Iterator[tuple[str, Summary]]:
    if document:
        texts, summary = _batch(sanitizer, ["".join(lines)])
        yield texts[0], summary
        return
    while chunk := [line.rstrip("\r\n") for line in itertools.islice(lines, CHUNK_ROWS)]:
        texts, summary = _batch(sanitizer, chunk)
        yield "".join(text.replace("\n", " ") + "\n" for text in texts), summary


def _sanitize_table(
    sanitizer: Sanitizer, lines: Iterator[str], form: Format, columns: Sequence[str], header: bool | None
) -> Iterator[tuple[str, Summary]]:
    if header is None and any(column.isdecimal() for column in columns):
        raise MisconfiguredError(
            "a column is given by number: say --header or --no-header, or the first row may leave as it is"
        )
    found = table(lines, form, header=header is not False)
    wanted = list(dict.fromkeys(map(found.index, columns)))
    if found.header:
        yield _joined([list(found.names)], form), Summary()
    while chunk := list(itertools.islice(found.rows, CHUNK_ROWS)):
        texts, summary = _batch(sanitizer, [row[index] for row in chunk for index in wanted])
        for place, text in enumerate(texts):
            chunk[place // len(wanted)][wanted[place % len(wanted)]] = text.replace("\n", " ")
        yield _joined(chunk, form), summary


def _batch(sanitizer: Sanitizer, texts: Sequence[str]) -> tuple[tuple[str, ...], Summary]:
    batch = sanitizer.sanitize_batch(texts)
    return batch.texts, Summary(
        len(texts), sum(batch.draws), max(batch.draws, default=0), Counter(batch.counts)
    )


def _joined(rows: Iterable[list[str]], form: Format) -> str:
    if form is Format.tsv:
        return "".join("\t".join(row) + "\n" for row in rows)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()


@contextmanager
def _writing(target: Path | None) -> Iterator[TextIO]:
    """Standard output, or a file that appears under its name only when complete."""
    if target is None:
        out = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", newline="\n", write_through=True)
        try:
            yield out
        finally:
            out.flush()
            out.detach()
        return
    with ExitStack() as stack:
        with system_errors(f"{target} cannot be written"):
            partial = stack.enter_context(whole(target, mode=0o600))
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            yield file
