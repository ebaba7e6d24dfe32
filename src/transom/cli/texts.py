"""The texts of a user's file, a sample of them where they are many, each with the place it stands at.

Threat model: malformed and huge files: a file is read once, at most so many texts and characters are kept,
and messages name places, never content. Does not protect: texts that are not in the sample are not looked at.
Source: Vitter 1985, algorithm R (a sample of a stream of unknown length); the seed is fixed, so that one file
gives one sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

from transom.cli.records import Selection, read_records
from transom.config import Setting
from transom.data.rows import Format, form_of, opened, read_column
from transom.errors import MisconfiguredError

LONGEST_CHARS = 20_000  # of one text
MOST_CHARS = 2_000_000  # of all texts


@dataclass(frozen=True)
class FileOptions:
    """Which texts of a file are looked at."""

    column: Annotated[str | None, "CSV, TSV or Parquet column, by name or (CSV, TSV) by number from 1."] = (
        None
    )
    field: Annotated[str | None, "JSON field, as text or messages[].content."] = None
    delimiter: Annotated[str, "What parts a CSV file's columns."] = ","
    header: Annotated[bool | None, "The first CSV/TSV row names the columns; to be said for a number."] = None
    document: Annotated[bool, "A text file is one text, not a text a line."] = False
    limit: Annotated[int, Setting("Look at so many texts, drawn evenly where there are more.", least=1)] = (
        1000
    )

    def sample(self, source: Path) -> Sample:
        """The file's texts. Raises MisconfiguredError, MissingExtraError."""
        form = form_of(source)
        tabular, nested = (
            form in (Format.csv, Format.tsv, Format.parquet),
            form in (Format.json, Format.jsonl),
        )
        if tabular != (self.column is not None):
            wrong = "has columns; name one with --column" if tabular else "has no columns; leave --column out"
            raise MisconfiguredError(f"{source} {wrong}")
        if nested != (self.field is not None):
            wrong = "is JSON; name its texts with --field" if nested else "is no JSON; leave --field out"
            raise MisconfiguredError(f"{source} {wrong}")
        if form is Format.parquet and self.column is not None:
            return _sampled(source, enumerate(read_column(source, self.column), 1), self.limit)
        columns = () if self.column is None else (self.column,)
        fields = () if self.field is None else (self.field,)
        selection = Selection(form, columns, fields, self.header, self.delimiter, self.document)
        selection.check()
        return _sampled(source, _numbered(source, selection), self.limit)


class Text(NamedTuple):
    """A text, and where it stands: its line, row or number in the file, nothing where it is the file."""

    where: str
    text: str


@dataclass(frozen=True)
class Sample:
    """Texts that hold something, in their order; `in_all` of those there are, `blank` of others, `cut` ones
    were too long."""

    texts: tuple[Text, ...] = field(repr=False)
    in_all: int
    blank: int = 0
    cut: int = 0

    @property
    def told(self) -> str:
        """How many texts were read, in words."""
        some = (
            f"{len(self.texts):,} of {self.in_all:,}" if len(self.texts) < self.in_all else f"{self.in_all:,}"
        )
        blank = f"; {self.blank:,} more are blank" if self.blank else ""
        cut = f"; {self.cut:,} cut at {LONGEST_CHARS:,} characters" if self.cut else ""
        return f"{some} texts{cut}{blank}"


def _numbered(source: Path, selection: Selection) -> Iterator[tuple[str, str]]:
    with opened(source) as file:
        for number, record in enumerate(read_records(file, str(source), selection, bool), 1):
            for place, text in enumerate(record.texts, 1):
                several = f"{place}" if selection.form is Format.json else f"{number}/{place}"
                where = f"{number}" if len(record.texts) == 1 else several
                yield "" if selection.document else where, text


def _sampled(source: Path, texts: Iterator[tuple[object, str]], limit: int) -> Sample:
    chance = random.Random(0)
    kept: list[tuple[int, Text, bool]] = []
    held = blank = 0
    for where, text in texts:
        if not text.strip():
            blank += 1
            continue
        entry = held, Text(str(where), text[:LONGEST_CHARS]), len(text) > LONGEST_CHARS
        held += 1
        if len(kept) < limit:
            kept.append(entry)
        elif (place := chance.randrange(held)) < limit:
            kept[place] = entry
    if not held:
        what = f"holds {blank:,} texts, all of them blank" if blank else "is empty"
        raise MisconfiguredError(f"{source} {what}; there is nothing to look at")
    chosen: list[tuple[int, Text, bool]] = []
    size = 0
    chance.shuffle(kept)
    for entry in kept:  # the first is taken, and then what fits
        size += len(entry[1].text)
        if chosen and size > MOST_CHARS:
            break
        chosen.append(entry)
    chosen.sort(key=lambda entry: entry[0])
    return Sample(tuple(text for _, text, _ in chosen), held, blank, sum(cut for *_, cut in chosen))
