"""Read a sanitised file, or answers to it, and bring back what its map holds: `transom words restore`.

The map says how the file was read; `columns` and `fields` name others, as one that a model's answers stand
in. Record by record, in the order of the sanitised file.
Threat model: the file may be altered or of another origin: one with another number of records is refused.
Does not protect: what is restored is private again.
Source: `transom.privacy.mapfile`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from transom.cli.records import Selection, read_records
from transom.data.rows import Format, opened
from transom.errors import MisconfiguredError
from transom.files import whole
from transom.privacy.mapfile import MapFile


def selection_of(found: MapFile, columns: Sequence[str] = (), fields: Sequence[str] = ()) -> Selection:
    """How the map's file was read, with other columns or fields if given. Raises MisconfiguredError."""
    reading = dict(found.reading)
    if columns:
        reading["columns"] = tuple(columns)
    if fields:
        reading["fields"] = tuple(fields)
    try:
        selection = Selection(Format(reading.pop("form")), **reading)
    except (KeyError, TypeError, ValueError):
        raise MisconfiguredError(
            f"{found.path} was written by another version; use the Transom that wrote it"
        ) from None
    selection.check()
    return selection


def restore_file(source: Path, target: Path | None, found: MapFile, selection: Selection) -> int:
    """Restore `source` into `target` (None is standard output); how many texts. Raises MisconfiguredError."""
    with opened(source) as file:
        records = _restored(file, source, found, selection)
        if target is None:
            return _written(records, sys.stdout.buffer)
        try:
            with whole(target, mode=0o600) as partial, partial.open("wb") as out:
                return _written(records, out)
        except OSError as error:
            raise MisconfiguredError(f"cannot write {target} ({error.strerror}); give another path") from None


def _written(records: Iterator[tuple[bytes, int]], out: BinaryIO) -> int:
    count = 0
    for record, texts in records:
        out.write(record)
        count += texts
    out.flush()
    return count


def _restored(
    file: BinaryIO, source: Path, found: MapFile, selection: Selection
) -> Iterator[tuple[bytes, int]]:
    """Each record, and how many texts it has."""
    records, maps = read_records(file, str(source), selection, bool), iter(found)
    for record, one in itertools.zip_longest(records, maps):
        if record is None or one is None:
            raise MisconfiguredError(
                f"{source} does not have the {found.records} records of the file that {found.path} is for; "
                "give that file, or answers in its order"
            )
        texts = [one.restore(text, place) for place, text in enumerate(record.texts)]
        yield record.written(texts).encode(), len(texts)
