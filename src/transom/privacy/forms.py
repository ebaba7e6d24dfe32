r"""How a placeholder is written, and the other spellings of it that are read as one.

We write `[PERSON_1]`, and `[PERSON_1_LAST]` for a further form of the same entity. Models change that. Read
as well, and as one placeholder:

- in square brackets, in any case: `[Person_1]`, `[person 1]`, `[PERSON-1]`, `[PERSON1]`, `[PERSON_01]`;
- escaped for Markdown, wholly or in part: `\[PERSON\_1\]`, `[PERSON\_1]`;
- in other brackets, in any case, with the underscore: `<PERSON_1>`, `{person_1}`, `&lt;PERSON_1&gt;`;
- bare, in capitals, with the underscore: `PERSON_1`, `PERSON\_1`, `PERSON_1s`;
- with an ending inside the brackets: `[PERSON_1's]`, `[PERSON_1s]`. An ending behind them stays as it is.

Round brackets are no form: in `her manager (PERSON_1)` they are the sentence's own.

The lexer makes an identifier of whatever a user writes in one of these forms, inside a longer token too, so
that no placeholder on the wire was written by the user.
Threat model: a host that writes any text, a user whose text is crafted. Each match is bounded in length.
Does not protect: a square bracket with a drawn word and a number that the policy lets pass (`[dog 1]`, the
draw being `person`) may come to look like a placeholder; it is then restored wrongly, to the user alone.
Public text that holds such a form passes as it is; parts and roles that are public reserve it.
Source: the answers of small chat models to texts with placeholders; CommonMark 0.31, backslash escapes.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

PLACEHOLDER_LABELS = (
    "PERSON", "PLACE", "ORG", "NAME", "DATE", "TIME", "MONEY", "PHONE", "CARD", "ACCOUNT", "DOCUMENT",
    "NUMBER", "EMAIL", "URL", "ID", "TERM", "TEXT", "SYMBOL", "WORD", "QUOTE",
    "HEALTH", "FINANCE", "RELIGION", "POLITICS", "ORIGIN", "SEXUALITY", "CRIME", "FAMILY",
)  # fmt: skip
LETTERS = tuple("_" + letter for letter in "BCDEFGHIJKLMNOPQRSTUVWXYZ")
SUFFIXES = ("_FULL", "_FIRST", "_LAST", "_PLURAL", *LETTERS)
LOOK_BEHIND_CHARS = 42  # no beginning of a form is longer

_LABEL = "|".join(PLACEHOLDER_LABELS)
_SUFFIX = "FULL|FIRST|LAST|PLURAL|[B-Z]"
_NUMBER = "[0-9]{1,12}"
_ENDING = "(?:['’]?s)?"
_SQUARE = rf"(?i:{_LABEL})(?:\\?[_\ -])?{_NUMBER}(?:\\?[_\ -](?i:{_SUFFIX}))?{_ENDING}"
_BODY = rf"(?i:{_LABEL})\\?_{_NUMBER}(?:\\?_(?i:{_SUFFIX}))?{_ENDING}"
_BARE = rf"\\?_{_NUMBER}(?:\\?_(?:{_SUFFIX}))?(?=s?(?![A-Za-z0-9_]|\\_))"


def _bare() -> Iterator[str]:
    """For each first letter its labels. Alternatives that begin with a letter are searched for far faster."""
    for first in sorted({label[0] for label in PLACEHOLDER_LABELS}):
        rest = "|".join(label[1:] for label in PLACEHOLDER_LABELS if label[0] == first)
        yield f"{first}(?<![A-Za-z0-9_]{first})(?:{rest}){_BARE}"


_FORM = rf"\\\[{_SQUARE}\\\]|\[{_SQUARE}\]|<{_BODY}>|\{{{_BODY}\}}|&lt;{_BODY}&gt;|{'|'.join(_bare())}"
_BEGUN = r"""
    (?:\\\[?|[\[<{]|&(?:l(?:t;?)?)?|(?<![A-Za-z0-9_])(?=[A-Z]))
    [A-Za-z]{0,9}(?:\\?[_\ -]?(?:[0-9]{1,12}(?:\\?[_\ -]?[A-Za-z]{0,7})?(?:['’]s?)?(?:\\|&(?:gt?)?)?)?)?\Z
"""
FORM = re.compile(_FORM, re.VERBOSE | re.ASCII)
_BEGUN_OR_FORM = re.compile(rf"(?P<begun>{_BEGUN})|{_FORM}", re.VERBOSE | re.ASCII)
_UNIT = re.compile(rf"(?:{_FORM})|(?s:.)", re.VERBOSE | re.ASCII)
_PARTS = re.compile(rf"([A-Za-z]+)[\\_ -]*([0-9]+)(?:\\?[_ -]((?i:{_SUFFIX})))?(['’]?s)?")
_OURS = re.compile(rf"\\?\[(?:{_LABEL})\\?_{_NUMBER}(?:\\?_(?:{_SUFFIX}))?\\?\]")


class Form(NamedTuple):
    """What a form says: the placeholder as we write it, its label and suffix, and the ending it holds."""

    placeholder: str
    label: str
    number: int
    suffix: str
    ending: str


def placeholder(label: str, number: int, suffix: str = "") -> str:
    """A placeholder as we write it."""
    return f"[{label}_{number}{suffix}]"


def parse(form: str) -> Form:
    """The parts of a match of `FORM`.

    >>> parse(r"\\[Person\\_01\\_last\\]").placeholder
    '[PERSON_1_LAST]'
    """
    match = _PARTS.search(form)
    if match is None:
        raise ValueError(f"not a placeholder: {len(form)} characters")
    label, number, suffix = match[1].upper(), int(match[2]), f"_{match[3].upper()}" if match[3] else ""
    return Form(placeholder(label, number, suffix), label, number, suffix, match[4] or "")


def marked(form: str) -> str:
    """What a user reads in place of a placeholder that was never sent: `[PERSON_7?]`.

    Spelled in another way than ours it stays as it is: it may be ordinary text.
    """
    if not _OURS.fullmatch(form):
        return form
    end = -2 if form.endswith("\\]") else -1
    return f"{form[:end]}?{form[end:]}"


def is_form(text: str) -> bool:
    """Whether the whole of `text` reads as one placeholder."""
    return FORM.fullmatch(text) is not None


def find(text: str) -> list[str]:
    """The forms in a text, in order; quick where there is none."""
    return [match[0] for match in FORM.finditer(text)] if may_hold_form(text) else []


def may_hold_form(text: str) -> bool:
    """Whether a text has one of the two characters that no form is without."""
    return "[" in text or "_" in text


def pieces_of_forms(pieces: Sequence[str]) -> list[int]:
    """Which pieces the forms of the text that they make, end to end, are part of."""
    text = "".join(pieces)
    if not may_hold_form(text):
        return []
    spans = deque(match.span() for match in FORM.finditer(text))
    found, end = [], 0
    for index, piece in enumerate(pieces if spans else ()):
        start, end = end, end + len(piece)
        while spans and spans[0][1] <= start:
            spans.popleft()
        if spans and spans[0][0] < end:
            found.append(index)
    return found


def units(text: str) -> Iterator[str]:
    """The forms and the characters between them, end to end; only a form is longer than a character."""
    return (match[0] for match in _UNIT.finditer(text))


def settled(text: str, start: int) -> tuple[list[re.Match[str]], int]:
    """The forms of `text` from `start` on that no further text can change, and where the rest begins.

    That rest has `LOOK_BEHIND_CHARS` characters or fewer. What lies before `start` is not searched.
    """
    tail, found, position = max(start, len(text) - LOOK_BEHIND_CHARS), [], start
    for match in FORM.finditer(text, start):
        if match.start() >= tail:
            break
        found.append(match)
        position = match.end()
    for match in _BEGUN_OR_FORM.finditer(text, max(position, tail)):
        if match.lastgroup == "begun":
            return found, match.start()
        found.append(match)
    return found, len(text)
