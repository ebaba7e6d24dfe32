"""Public text: fixed texts and templates of a program's own, which pass as they are.

A template is matched exactly, in case and white space, by a whole message or content part; only white space
around it does not count. `{name}` is a hole, whose content is private; `{{` and `}}` are braces. What stands
between the holes is looked for from the left. A text without holes that is long enough (`PASSAGE_LETTERS`
and `PASSAGE_WORDS`) also passes where it stands within a message, as whole words.
A template that private text would match is refused: nothing but holes, fewer than `LEAST_LETTERS` letters
and digits, or a hole that touches one (`user_{id}`), where what fills it could be cut inside a word.
Threat model: a person who writes into a hole, or a message that repeats public text: what passes is public
text, letter by letter, wherever it stands. Does not protect: that it stands there. Which template fits, and
where its parts are, is disclosed.
Source: own; the holes are those of Python's `str.format`, without conversions and formats.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from itertools import pairwise

from transom.privacy.forms import FORM
from transom.privacy.kinds import Span

LEAST_LETTERS = 8
PASSAGE_LETTERS, PASSAGE_WORDS = 20, 4
_HEAD = 16  # characters by which passages are looked up
_WORD = re.compile(r"\w+")
_PLACEHOLDER = re.compile(r"\[[A-Za-z]+\\?_[0-9]")
_BEGINNING = re.compile(r"(?<!\w)\S")  # where a passage may begin


def parts_of(template: str) -> tuple[str, ...]:
    """What stands before, between and after the holes. Raises ValueError, saying what is wrong.

    >>> parts_of("Summarise: {text} as {{JSON}}")
    ('Summarise: ', ' as {JSON}')
    """
    parts = [""]
    for literal, hole, form, conversion in string.Formatter().parse(template.strip()):
        parts[-1] += literal
        if hole is None:
            continue
        if form or conversion or not (hole.isidentifier() or hole.isdigit() or not hole):
            raise ValueError("a hole reads {name}, without a format")
        parts.append("")
    return tuple(parts)


def problem_of(template: str) -> str | None:
    """Why private text would match a template, or why it cannot be read."""
    try:
        parts = parts_of(template)
    except ValueError as error:
        return f"{error}; write {{{{ and }}}} for braces that are text"
    letters = _letters(parts)
    if letters < LEAST_LETTERS:
        return (
            f"its fixed part has {letters} letters and digits, and private text would match it; give it "
            f"{LEAST_LETTERS} or more, or list its words under allow"
        )
    if any(FORM.search(part) for part in parts):
        return "it holds what reads like a placeholder, and answers would be restored by it; write [NAME_n]"
    if not all(parts[1:-1]):
        return "two holes touch, so nothing says where one ends; put fixed text between them"
    if any(_WORD.match(left[-1:]) or _WORD.match(right[:1]) for left, right in pairwise(parts)):
        return "a hole touches a letter or digit, and would cut a word; put a blank or a sign between"
    return None


def looks_replaced(text: str) -> bool:
    """Whether a text holds what reads like a placeholder (`[NAME_1]`)."""
    return _PLACEHOLDER.search(text) is not None


def warning_of(template: str) -> str | None:
    """What a user should know of a template that can be used."""
    parts = parts_of(template)
    if _is_long(parts):
        return None
    few = f"its fixed part is shorter than {PASSAGE_WORDS} words and {PASSAGE_LETTERS} letters"
    if len(parts) == 1:
        return f"{few}: it passes as a whole message only, not within one"
    return f"{few}: private text may match it by chance, and these words of it pass"


class Templates:
    """Templates without problems."""

    def __init__(self, templates: Sequence[str]) -> None:
        self._whole = tuple(parts_of(one) for one in templates)
        self._passages: dict[str, list[str]] = {}
        for parts in self._whole:
            if len(parts) == 1 and _is_long(parts):
                self._passages.setdefault(parts[0][:_HEAD], []).append(parts[0])
        for found in self._passages.values():
            found.sort(key=len, reverse=True)

    def __len__(self) -> int:
        return len(self._whole)

    def find(self, text: str) -> Iterator[Span]:
        """The fixed parts of every template that fits the whole, and every passage."""
        start, end = len(text) - len(text.lstrip()), len(text.rstrip())
        for parts in self._whole:
            yield from _fitted(parts, text, start, end)
        if self._passages:
            yield from self._within(text)

    def _within(self, text: str) -> Iterator[Span]:
        end = 0
        for match in _BEGINNING.finditer(text):
            start = match.start()
            if start < end:
                continue
            for passage in self._passages.get(text[start : start + _HEAD], ()):
                stop = start + len(passage)
                if text.startswith(passage, start) and not _inside_word(text, start, stop):
                    end = stop
                    yield Span(start, end, "public")
                    break


def _fitted(parts: tuple[str, ...], text: str, start: int, end: int) -> list[Span]:
    """The parts' places in `text` from `start` to `end`; none where that is not they with holes between."""
    first, last = parts[0], parts[-1]
    if len(parts) == 1:
        return [Span(start, end, "public")] if text[start:end] == first else []
    if not text.startswith(first, start) or not text.endswith(last, start, end):
        return []
    spans, at, last_at = [Span(start, start + len(first), "public")], start + len(first), end - len(last)
    for part in parts[1:-1]:
        found = text.find(part, at, last_at)
        if found < 0:
            return []
        at = found + len(part)
        spans.append(Span(found, at, "public"))
    return [*spans, Span(last_at, end, "public")] if at <= last_at else []


def _inside_word(text: str, start: int, end: int) -> bool:
    """Whether an end of the stretch stands between two letters or digits."""
    return any(0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum() for at in (start, end))


def _letters(parts: Sequence[str]) -> int:
    return sum(character.isalnum() for part in parts for character in part)


def _is_long(parts: Sequence[str]) -> bool:
    words = sum(len(_WORD.findall(part)) for part in parts)
    return words >= PASSAGE_WORDS and _letters(parts) >= PASSAGE_LETTERS
