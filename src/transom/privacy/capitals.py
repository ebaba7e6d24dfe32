"""What a capital says. The rule is stated in `transom.privacy.text`, which asks it word by word.

It looks at punctuation, line structure, case patterns and closed words, and for headings at whether a word is
known: never at which of the words that may be drawn stands somewhere, for then a neighbour's treatment would
tell. Threat model and what it does not protect: those of the lexer.
Source: title case after the Chicago Manual of Style (small words keep their lower-case letter).
"""

from __future__ import annotations

import re
import string
from collections.abc import Container
from typing import Literal

from transom.privacy.closed import (
    ABBREVIATIONS,
    CLITICS,
    HEADING_WORDS,
    NAMESAKES,
    NUMBER_WORDS,
    SMALL_WORDS,
    SUBJECTS,
)

Case = Literal["lower", "title", "upper", "mixed"]

# What a capital says at a place: nothing; nothing if the text goes on in lower case; "name".
FREE, CONTINUED, BOUND = 2, 1, 0

PLACE_MARKS = frozenset(".!?\"')]:([—–•-")  # punctuation after which a capital may say something else

_ENDING = r"'(?:s|re|ve|ll|d|m)(?![^\W_'])"
_WORD = re.compile(rf"(?<![^\W\d_]')(?<!\d)[^\W\d_]++(?:(?!{_ENDING})'[^\W\d_]++)*+", re.IGNORECASE)
_NEXT_WORD = re.compile(rf"(?:n't|{_ENDING})? ({_WORD.pattern})", re.IGNORECASE)
_NUMBER = re.compile(r"\d[\d.,:/'-]*")
_ISE = re.compile(r"(?<=...)is(?=(?:e[drs]?|ers|ing|ations?)$)")
_INITIALS, _LETTERS = frozenset(string.ascii_uppercase) - {"I"}, frozenset(string.ascii_letters)


def case_of(word: str) -> Case:
    """The case pattern of a word; a single capital letter counts as title case."""
    if word == word.lower():
        return "lower"
    if word[0] != word[0].lower() and word[1:] == word[1:].lower():
        return "title"
    return "upper" if word == word.upper() else "mixed"


def with_case(word: str, case: Case) -> str:
    """A lower-case word in the given pattern."""
    if case == "title":
        return word[:1].upper() + word[1:]
    return word.upper() if case == "upper" else word


def spelling(word: str, known: Container[str]) -> str:
    """A lower-case word as `known` spells it: `summarise` is looked up as `summarize`."""
    if word in known:
        return word
    american = _ISE.sub("iz", word)
    return american if american in known else word


def marks_name(word: str, case: Case, place: int, line: str, behind: str) -> bool:
    """Whether the capital of `word` says "name" at this place and line; `behind` holds the next word."""
    lookup = word.lower()
    if line == "shouting" or word == "I" or lookup in CLITICS:
        return False
    if case != "title":
        return True
    following = match[1] if (match := _NEXT_WORD.match(behind)) else ""
    if lookup in NAMESAKES and following.lower() not in SUBJECTS:
        return True
    if place == FREE or line == "heading":
        return False
    return place == BOUND or following[:1] != following[:1].lower() or not following


def place_after(mark: str, place: int, previous: str, *, spaced: bool, item: bool) -> int:
    """What a capital says after a punctuation mark.

    `place` is what it said before, `previous` the last word, `spaced` whether space comes before the mark and
    `item` whether number or letter of a list's item do.
    """
    if mark == ".":
        return BOUND if previous in _INITIALS or previous.lower() in ABBREVIATIONS else FREE
    if mark in "!?" or (mark in "\"'" and spaced) or (mark in ")]" and item):
        return FREE
    return max(place, CONTINUED) if mark in ":([—–•" or (mark == "-" and spaced) else place


def numbers_an_item(before: list[str]) -> bool:
    """Whether the last tokens before a closing bracket begin a line with a list's number: `1`, `(a`."""
    start = -3 if before[-2] in "([" else -2
    return (before[-1].isdigit() or before[-1] in _LETTERS) and "\n" in before[start]


class Lines:
    """How to read the capitals of each line: "shouting", "heading" or ""; asked from the start to the end."""

    def __init__(self, clean: str, known: Container[str]) -> None:
        self._lines, self._known = clean.split("\n"), known
        self._at = self._number = 0
        self._reading: str | None = None

    def reading(self, codes: str, at: int) -> str:
        """The reading of the line of the token `at`, whose codes tell the ends of lines."""
        lines = codes.count("\n", self._at, at) + 2 * codes.count("¶", self._at, at)
        if lines or self._reading is None:
            self._number += lines
            self._reading = _reading(self._lines[self._number], self._known)
        self._at = at
        return self._reading


def _reading(line: str, known: Container[str]) -> str:
    if line.isupper():
        words, numbers = len(_WORD.findall(line)), len(_NUMBER.findall(line))
        return "shouting" if words > max(1, 2 * numbers) else ""
    article, capitals = False, 0
    for match in _WORD.finditer(line):
        lookup = match[0].lower()
        if lookup in SMALL_WORDS:
            initial = match[0] == "A" and line[match.end() :][:1] == "."
            article = article or (lookup in HEADING_WORDS and not initial)
        elif case_of(match[0]) in ("lower", "mixed") or not (
            spelling(lookup, known) in known or lookup in NUMBER_WORDS
        ):
            return ""
        else:
            capitals += 1
    return "heading" if article and capitals > 1 and not line.endswith((".", ",", ";")) else ""
