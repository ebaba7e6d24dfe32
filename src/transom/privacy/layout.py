"""Layout as typed: reading is done on the normalised text, what passes is shown as it was written.

Where words pass, a sanitised text keeps its white space, typographic quotes, dashes and ellipses, so that
restoring it gives the text back to the byte. A token that passes is shown as typed if its characters differ
from the normalised ones by such marks alone, or by the way its accents are composed. Whatever else was
changed may carry hidden content (zero-width, bidirectional and control characters, compatibility forms): it
becomes a *symbol*, so is replaced, and restored to the byte as well. Invisible characters before a token
are a symbol of their own.

Threat model: crafted text. The layout is disclosed. Does not protect: what layout and typography say (a
document's origin, its author's keyboard). Not restored to the byte: words that are drawn.
Source: Unicode Standard Annex 15 (normalisation).

Shape suffixes: C characters of the normalised text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

from transom.privacy.characters import is_normal, normalise
from transom.privacy.numbers import REFERENCES
from transom.privacy.text import Token

_BLANKS = " \t\n\r\f\u00a0\u2009\u202f"
_PLAIN = str.maketrans(
    {**dict.fromkeys("‘’‚‛′´", "'"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‐‑‒−﹣", "-"), "―": "—",
     "…": "..."}
)  # fmt: skip
_WHITE = re.compile(rf"[{_BLANKS}]*")
_INVISIBLE = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff"
)
_POINTERS = re.compile(r"#(?=..)|[A-Za-z+](?=[.)][ \n¶])", re.DOTALL)
_FOUR_DIGITS = re.compile(r"\d{4}")  # of which nothing merely points
_MOST_COUNTED = 12
_LONGEST_POINTER = 8  # characters of `3.11.2`
# What is normalised as one: plain characters, white space with what is dropped in it, a character with marks.
_CLUSTER = re.compile(
    rf"(?P<plain>[!-~]+(?![{_INVISIBLE}\u0300-\u036f])| (?=[!-~]))|[\s{_INVISIBLE}]++"
    r"|.(?:[\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u064b-\u065f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe00-\ufe2f])*",
    re.DOTALL,
)


def aligned(text: str) -> tuple[str, list[int] | None]:
    """The normalised text, and where in `text` each of its characters ends; None where nothing was changed.

    Several characters that were made of one end where it begins, but for the last.
    """
    if is_normal(text):
        return text, None
    clean = normalise(text)
    if clean == text:
        return clean, None
    parts: list[str] = []
    ends_C: list[int] = []
    for match in _CLUSTER.finditer(text):
        start, end = match.span()
        part = match[0] if match.lastgroup else normalise(match[0])
        parts.append(part)
        if len(part) == end - start:
            ends_C += range(start + 1, end + 1)
        elif part:
            ends_C += [*[start] * (len(part) - 1), end]
    return "".join(parts), ends_C


def as_typed(tokens: list[Token], text: str, ends_C: list[int], shown: Callable[[str], bool]) -> list[Token]:
    """The tokens with their texts as they stand in `text`; `shown` says which kinds pass."""
    typed: list[Token] = []
    at = start = 0
    for token in tokens:
        at += len(token.text)
        end = ends_C[at - 1]
        raw, start = text[start:end], max(start, end)
        if raw == token.text:
            typed.append(token)
        elif raw:
            typed += _typed(token, raw, shown(token.kind))
    if start < len(text):
        typed.append(Token("symbol", text[start:]))
    return typed


def _typed(token: Token, raw: str, shown: bool) -> Iterator[Token]:
    """One token as typed; what may not be shown as it is becomes a symbol."""
    if token.kind == "space":
        yield Token("space" if _WHITE.fullmatch(raw) else "symbol", raw)
        return
    seen = next((at for at, one in enumerate(raw) if normalise(one)), len(raw))
    if seen:
        yield Token("symbol", raw[:seen])
        raw = raw[seen:]
        if not raw:  # the token's own characters come with the next: `...` made of one
            return
    same = not shown or unicodedata.normalize("NFC", raw.translate(_PLAIN)) == token.text or raw == "…"
    yield token._replace(text=raw) if same else Token("symbol", raw)


def counting(tokens: list[Token], codes: str) -> None:
    """Let pass the numbers that only point: `page 3`, and items that count up from one, two or more of them;
    and counts up to twelve before a plural, `5 ideas`, as they pass in words.

    An item is a number of one or two digits, or at the start of a line one letter, then `.` or `)` and white
    space. `codes` are those of the tokens for names.
    """
    runs: list[list[int]] = []
    for match in _POINTERS.finditer(codes):
        at = match.start()
        text = tokens[at].text
        if len(text) > _LONGEST_POINTER:
            continue
        small = not _FOUR_DIGITS.search(text)
        points = at > 1 and tokens[at - 2].lookup in REFERENCES
        if small and tokens[at].kind == "number" and (points or _counts(tokens, at)):
            tokens[at] = tokens[at]._replace(kind="punct")
        number = _item(tokens, at)
        if number is None:
            continue
        while number > 1 and runs and len(runs[-1]) != number - 1:
            runs.pop()
        if number == 1:
            runs.append([at])
        elif runs:
            runs[-1].append(at)
            for place in runs[-1][0 if number == 2 else -1 :]:
                tokens[place] = tokens[place]._replace(kind="punct")


def _counts(tokens: list[Token], at: int) -> bool:
    """Whether a small number between blanks counts the words behind it: plural, and passing."""
    text = tokens[at].text
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= _MOST_COUNTED and text[0] != "0"):
        return False
    if (at and tokens[at - 1].text != " ") or tokens[at + 1].text != " ":
        return False
    counted = tokens[at + 2]
    return counted.kind in ("word", "instruction") and counted.case == "lower" and counted.text.endswith("s")


def _item(tokens: list[Token], at: int) -> int | None:
    """The number of the list item that token `at` begins, if it does."""
    text = tokens[at].text
    if tokens[at + 1].text not in (")", ".") or tokens[at + 2].kind != "space" or not text.isascii():
        return None
    before = at - 1 if at and tokens[at - 1].text == "(" else at
    if text.isdigit():
        return int(text) if len(text) < 3 and (not before or tokens[before - 1].kind == "space") else None
    opens = not before or "\n" in tokens[before - 1].text
    return ord(text.lower()) - ord("a") + 1 if opens and len(text) == 1 and text.isalpha() else None
