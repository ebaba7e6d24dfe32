"""Rows as a file that other programs read: CSV, or JSON if its name ends so.

Threat model: none; whoever asks for the file has the rows. Does not protect: a cell that begins like a
formula is written as it is.
Source: RFC 4180.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transom.files import write_file


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]], *, mode: int = 0o644) -> None:
    """All rows have the names of the first one. Raises MisconfiguredError."""
    if path.suffix == ".json":
        write_file(path, (json.dumps(rows, indent=1) + "\n").encode(), mode=mode)
        return
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["row"])
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode(), mode=mode)
