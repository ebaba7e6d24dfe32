"""Texts inside JSON, by path, exchanged where they stand: everything else keeps its bytes.

A path names members, `[]` stands for every entry of a list: `text`, `user.name`, `messages[].content`,
`[].text` where the document is a list; a point that belongs to a name is written `\\.`.
Threat model: malformed documents, and a path that misses what it was meant for. A member that is not there,
and a value that is neither a text nor null, are errors that name the path, never content.
Does not protect: members that no path names.
Source: RFC 8259 (JSON).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from transom.config import load_json
from transom.errors import MisconfiguredError

Path = tuple[str | None, ...]  # names of members; None is every entry of a list
_STEP = re.compile(r"((?:[^.\[\]\\]|\\.)+)|(\[\])")
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s\[\]{},:"]+')


class Literal(NamedTuple):
    """A text of a document, and where its literal stands, quotes and all."""

    start: int
    end: int
    text: str


def parse_path(written: str) -> Path:
    """The steps of a path. Raises MisconfiguredError."""
    steps: list[str | None] = []
    at = 0
    while at < len(written):
        match = _STEP.match(written, at)
        if match is None or (steps and match[1] and written[at - 1] != "."):
            break
        steps.append(None if match[2] else re.sub(r"\\(.)", r"\1", match[1]))
        at = match.end()
        if written[at : at + 1] == "." and written[at + 1 : at + 2] not in ("", "[", "."):
            at += 1
    if at < len(written) or not steps:
        raise MisconfiguredError(f"{written!r} is no path; write text, user.name or messages[].content")
    return tuple(steps)


def find_texts(document: str, paths: Sequence[Path], where: str) -> list[Literal]:
    """The texts of a JSON document at these paths, in order. Raises MisconfiguredError."""
    try:
        value = load_json(document)
    except (ValueError, RecursionError):
        raise MisconfiguredError(f"{where} ({len(document)} characters) is not valid JSON") from None
    for path in paths:
        _require(value, path, path, where)
    wanted = frozenset(paths)
    return [
        Literal(start, end, load_json(document[start:end]))
        for path, start, end in _strings(document)
        if path in wanted
    ]


def replaced(document: str, literals: Sequence[Literal], texts: Sequence[str]) -> str:
    """The document with `texts` in place of its literals."""
    parts, end = [], 0
    for literal, text in zip(literals, texts, strict=True):
        escaped = document[literal.start : literal.end].isascii() or not _encodable(text)
        parts += [document[end : literal.start], json.dumps(text, ensure_ascii=escaped)]
        end = literal.end
    return "".join([*parts, document[end:]])


def _encodable(text: str) -> bool:
    """Whether UTF-8 can hold the text; half of a surrogate pair it cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _require(value: Any, rest: Path, path: Path, where: str) -> None:
    """Raises MisconfiguredError unless the path leads to texts or nulls."""
    if not rest:
        if value is not None and not isinstance(value, str):
            raise MisconfiguredError(f"{where}: {_written(path)} holds no text but a {type(value).__name__}")
    elif rest[0] is None:
        if not isinstance(value, list):
            raise MisconfiguredError(f"{where}: {_written(path)} asks for a list and finds none")
        for entry in value:
            _require(entry, rest[1:], path, where)
    elif not isinstance(value, dict) or rest[0] not in value:
        raise MisconfiguredError(f"{where}: there is no {_written(path)}; every record needs the field")
    else:
        _require(value[rest[0]], rest[1:], path, where)


def _strings(document: str) -> Iterator[tuple[Path, int, int]]:
    """Every text that is a value in a valid document, with its path and place."""
    path: list[str | None] = []  # where each open container is
    lists: list[bool] = []
    name_next = False
    for match in _PIECE.finditer(document):
        piece = match[0]
        if piece in "{[":
            lists.append(piece == "[")
            path.append(None)
            name_next = piece == "{"
        elif piece in "}]":
            lists.pop()
            path.pop()
        elif piece == ",":
            name_next = not lists[-1]
        elif piece[0] == '"' and name_next:
            path[-1], name_next = load_json(piece), False
        elif piece[0] == '"':
            yield tuple(path), *match.span()


def _written(path: Path) -> str:
    return repr("".join("[]" if step is None else f".{step}" for step in path).removeprefix("."))
