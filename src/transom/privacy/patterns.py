"""Regular expressions of a list, bounded in time.

Python's `re` cannot be stopped; `regex` reads the same expressions (look-around, back references, Unicode
classes) and can. RE2 needs no stopping, but refuses look-around, sees no word boundary beside `É`, and takes
quadratic time for all matches of `a.*b|a` all the same. So a text has a budget of processor time for all
patterns together, `LEAST_S` and a little for each character. Where it runs out nothing is found and nothing
is sent: the error names the pattern that took longest, never the text.
Characters that cannot be seen are no part of the text that patterns see.
Threat model: a person's text that makes a pattern backtrack without end. Does not protect: a text that the
pattern does not match. The budget counts the processor time of the whole process.
Source: `regex` (PyPI); OWASP, "Regular expression denial of service".
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

from transom.errors import RefusedError
from transom.privacy.folded import Folded, visible
from transom.privacy.kinds import Span

LEAST_S, CHARACTER_S = 0.25, 20e-6
MOST_CHARS = 1000
_SHOWN = 80


def problem_of(pattern: str) -> str | None:
    """What is wrong with a pattern, if something is."""
    if len(pattern) > MOST_CHARS:
        return f"it has {len(pattern)} characters; a pattern may have {MOST_CHARS}: make several of it"
    try:
        found = _compiled(pattern).search("", timeout=LEAST_S)
    except TimeoutError:
        return "it takes too long on an empty text; make it simpler"
    except Exception as error:  # the parser's own errors, and what nesting or numbers do to it
        at = getattr(error, "pos", None)
        where = "" if at is None else f" at character {at + 1}"
        return f"{getattr(error, 'msg', type(error).__name__)}{where} of {shown(pattern)}"
    if found is not None:
        return f"{shown(pattern)} matches an empty text, so everywhere; ask for one character at least"
    return None


def shown(pattern: str) -> str:
    """A pattern as messages show it."""
    return repr(pattern if len(pattern) <= _SHOWN else f"{pattern[:_SHOWN]}...")


class Patterns:
    """Patterns, each with the kind of what it matches; they have no `problem_of`."""

    def __init__(self, kinds: Sequence[tuple[str, str]], least_s: float = LEAST_S) -> None:
        self._kinds, self._least_s = tuple(kinds), least_s

    def __len__(self) -> int:
        return len(self._kinds)

    def find(self, text: str) -> Iterator[Span]:
        """Every match of every pattern. Raises RefusedError where they take too long."""
        if not self._kinds:
            return
        seen, spent_s = visible(text), [0.0] * len(self._kinds)
        budget_s = self._least_s + CHARACTER_S * len(text)
        for number, (pattern, kind) in enumerate(self._kinds):
            begun_s = time.process_time()
            try:
                found = _matches(pattern, seen, budget_s - sum(spent_s))
            except (TimeoutError, MemoryError):
                spent_s[number] = time.process_time() - begun_s
                slowest = max(range(len(spent_s)), key=spent_s.__getitem__)
                raise self._too_slow(slowest, budget_s) from None
            spent_s[number] = time.process_time() - begun_s
            yield from (Span(start, end, kind) for start, end in found)

    def _too_slow(self, number: int, budget_s: float) -> RefusedError:
        return RefusedError(
            f"patterns were stopped after {budget_s:.1f} s on one text, and nothing was sent; the slowest is "
            f"patterns[{number}], {shown(self._kinds[number][0])}: make it simpler (no repetition within "
            "a repetition, no .* in the middle)",
            code="pattern_too_slow",
        )


def _matches(pattern: str, seen: Folded, left_s: float) -> list[tuple[int, int]]:
    """Where a pattern matches, in the raw text. Raises TimeoutError."""
    if left_s <= 0:
        raise TimeoutError
    found = _compiled(pattern).finditer(seen.text, timeout=left_s, concurrent=True)
    return [seen.raw(*match.span()) for match in found if match.start() < match.end()]


@lru_cache(maxsize=1024)
def _compiled(pattern: str) -> Any:
    import regex

    return regex.compile(pattern)
