"""Strings with stand-ins for content, and the account of what a template does to them.

A template gets, in place of each stretch of text that it may not see, a stand-in of characters nobody else
uses. What it does with one is either right for every text (it is moved, joined, stripped of white space, or
searched for words that `Run.asked` then names), leaves an unknown text that must not be used (a slice), or
raises `OpaqueError`: upper case, JSON. Lengths and slices are in `lengths`.
Threat model: a stranger's template, which must not learn or change by accident what is hidden, and must not
work without end. `Content` refuses every method of strings that is not defined here.
Does not protect: code in C that reads a string without asking it; `sandbox` keeps it from content.
Source: none; what is allowed was read off the chat templates of common models.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

_STEPS = 1_000_000  # of a rendering: calls, comparisons, turns of a loop, and each 128 characters made
_CHARS_PER_STEP = 128
TEXT = 1 << 24  # characters of any one string
RESERVED = re.compile("[\U000f0000-\U0010ffff]")  # the planes that stand-ins are made of


Question = tuple[
    str, str | int
]  # a role and a text searched for, "" for white space at the ends, or a length


class OpaqueError(Exception):
    """The template does something to content that depends on what it hides."""


class WorkError(Exception):
    """The template works or writes more than a rendering may."""


class RejectedError(Exception):
    """Raised by a template through `raise_exception`; the message is the template's own, never content."""


class Run:
    """One rendering: its stand-ins, what the template asked of them, the time it saw, the work left.

    `skeletons` are the messages as the template sees them; `owners` has the message of each stand-in, and
    `exact` the length of what it stands for, where that is known.
    """

    def __init__(
        self, mark: str = "\U0010ffff", roles: Sequence[str] = (), skeletons: Sequence[str] = (),
        owners: Sequence[int] = (), exact: Sequence[int | None] = (),
    ) -> None:  # fmt: skip
        self.mark = mark
        self.roles = roles
        self.skeletons = skeletons
        self.owners = list(owners)
        self.exact = list(exact) or [None] * len(owners)
        self.first_unknown = len(self.owners)  # numbers from here on are of texts made by slicing
        self.slices: dict[int, tuple[Content, str, int]] = {}  # what is known of some of these
        self.asked: set[Question] = set()
        self.times: dict[str, str] = {}
        self.opaque: int | None = None
        self.operation = ""
        self._left = _STEPS

    def spend(self, steps: int = 1, chars: int = 0) -> None:
        """Count work; more than is left is an error."""
        self._left -= steps + chars // _CHARS_PER_STEP
        if self._left < 0 or chars > TEXT:
            raise WorkError("it works or writes without end")

    def measure(self, value: Any) -> None:
        """Count all that hangs on a value that is about to be written or compared."""
        rest = [value]
        while rest:
            item = rest.pop()
            if isinstance(item, dict):
                rest += [*item.keys(), *item.values()]
            elif isinstance(item, list | tuple | range):
                self.spend(len(item))
                rest += item if not isinstance(item, range) else ()
            self.spend(1, size(item) if isinstance(item, str) else 0)

    def wrap(self, value: Any) -> Any:
        """As `Content` if it is a string that holds a stand-in."""
        if type(value) is not str or self.mark not in value:
            return value
        content = Content(value)
        content._run = self
        return content

    def stand_ins(self, text: str) -> list[int]:
        """The numbers of the stand-ins that a text holds."""
        return [index_of(two) for two in re.findall(re.escape(self.mark) + "(..)", text)]

    def holders(self, text: str) -> list[int]:
        """The messages whose stand-ins a text holds."""
        return [self.owners[number] for number in self.stand_ins(text)]

    def is_unknown(self, text: str) -> bool:
        """Whether a text holds what only the hidden text could tell."""
        return any(number >= self.first_unknown for number in self.stand_ins(text))

    def unknown(self, text: str, known: tuple[Content, str, int] | None = None) -> Content:
        """A text in place of a part of this one. It may be moved and dropped, and refuses to be used."""
        self.spend(1)
        number = len(self.owners)
        self.owners.append(next(iter(self.holders(text)), 0))
        if known:
            self.slices[number] = known
        made: Content = self.wrap(self.mark + spelled(number))
        return made

    def slice_of(self, text: str) -> tuple[Content, str, int] | None:
        """The text, "first" or "last", and how many of its characters this is, if it is nothing else."""
        number = next(iter(self.stand_ins(text)), 0)
        return self.slices.get(number) if str.__eq__(text, self.mark + spelled(number)) else None

    def ask(self, text: str, literal: Any, *, at_ends: bool = False) -> None:
        """Note a search. What was stitched together is searched for every character of the literal."""
        if not isinstance(literal, str) or isinstance(literal, Content) or RESERVED.search(literal):
            self.refuse(text, "a search for what is no text of its own")
        if self.is_unknown(text):
            self.refuse(text, "a slice")
        if at_ends and literal.isspace():
            self.ask_ends(text, None)
        else:
            for message in self.holders(text):
                parts = [literal] if text in self.skeletons[message] else literal
                self.asked.update((self.roles[message], part) for part in parts if part)

    def ask_ends(self, text: str, chars: str | None) -> None:
        """Note that the ends are stripped of white space or of these characters."""
        self.asked.update((self.roles[message], "") for message in self.holders(text))
        for char in chars or "":
            if not char.isspace():
                self.ask(text, char)

    def refuse(self, text: str, operation: str) -> NoReturn:
        """What is done to a text cannot be done to a stand-in."""
        self.opaque, self.operation = next(iter(self.holders(text)), 0), operation
        raise OpaqueError


class Content(str):
    """Text that holds a stand-in. Methods that are not defined here refuse."""

    _run: Run

    def __str__(self) -> str:
        return self

    def __bool__(self) -> bool:
        run, numbers = self._run, self._run.stand_ins(self)
        seen = size(self) > len(numbers) * (len(run.mark) + 2)
        if not (seen or min(numbers) < run.first_unknown or run.slice_of(self)):
            self._run.refuse(self, "a slice")
        return True  # a stand-in is never of an empty text

    def __format__(self, spec: str) -> str:
        return self._run.refuse(self, "a format with a width") if spec else self

    def __contains__(self, literal: object) -> bool:
        self._run.ask(self, literal)
        return str.__contains__(self, str(literal))

    def __eq__(self, other: object) -> bool:
        known = self._run.slice_of(self)
        if isinstance(other, Content):
            same = str.__eq__(self, other) and not self._run.is_unknown(self)
            return same or self._run.refuse(self, "a comparison of contents")
        if isinstance(other, str) and known:
            return _begins_or_ends_with(*known, other)
        if isinstance(other, str):
            self._run.ask(self, other, at_ends=True)
        return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __getitem__(self, key: Any) -> str:
        if isinstance(key, int | slice):
            self._run.refuse(self, "a slice")
        raise TypeError("a string has no such item")

    def __iter__(self) -> Iterator[str]:
        yield self._run.refuse(
            self, "a loop over characters"
        )  # a generator, so that one may ask whether it is iterable

    def startswith(self, literal: Any, *span: Any) -> bool:
        return self._begins_or_ends(str.startswith, literal, span)

    def endswith(self, literal: Any, *span: Any) -> bool:
        return self._begins_or_ends(str.endswith, literal, span)

    def _begins_or_ends(self, plain: Callable[..., bool], literal: Any, span: Sequence[Any]) -> bool:
        if span:
            self._run.refuse(self, f"`{plain.__name__}` from a position")
        for one in literal if isinstance(literal, tuple) else (literal,):
            self._run.ask(self, one, at_ends=True)
        return plain(self, literal)

    def replace(self, old: Any, new: Any, count: Any = -1) -> str:
        if not old:
            self._run.refuse(self, "`replace` of nothing")
        self._run.ask(self, old)
        return str(self._run.wrap(str.replace(self, old, new, count)))


def _begins_or_ends_with(text: Content, end: str, count: int, literal: str) -> bool:
    """Whether the first or last `count` characters of a text are these."""
    if len(literal) > count or not literal:
        return False
    if len(literal) < count:  # they are the whole text, or others follow
        return text == literal
    return text.startswith(literal) if end == "first" else text.endswith(literal)


def _stripping(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: Content, chars: Any = None) -> Any:
        if self._run.is_unknown(self):
            return self._run.unknown(self)
        self._run.ask_ends(self, chars)
        return self._run.wrap(plain(self, chars))

    return method


def _cutting(name: str) -> Callable[..., Any]:
    plain = getattr(str, name)

    def method(self: Content, literal: Any = None, *rest: Any, **named: Any) -> Any:
        if literal is None:
            self._run.refuse(self, f"`{name}` at white space")
        self._run.ask(self, literal)
        parts = plain(self, literal, *rest, **named)
        return self._run.wrap(parts) if isinstance(parts, str) else type(parts)(map(self._run.wrap, parts))

    return method


def _refusing(name: str) -> Callable[..., NoReturn]:
    def method(self: Content, *_args: Any, **_named: Any) -> NoReturn:
        self._run.refuse(self, f"`{name.strip('_')}`")

    return method


_OBJECT = {*dir(object), "__getnewargs__", "__add__", "__mul__", "__rmul__", "__mod__", "__rmod__"} - {
    "__hash__", "__repr__", "__lt__", "__le__", "__gt__", "__ge__",
}  # fmt: skip
for _name in ("strip", "lstrip", "rstrip"):
    setattr(Content, _name, _stripping(_name))
for _name in ("split", "rsplit", "partition", "rpartition", "removeprefix", "removesuffix"):
    setattr(Content, _name, _cutting(_name))
for _name in set(dir(str)) - _OBJECT - set(vars(Content)) | {"__hash__"}:
    setattr(Content, _name, _refusing(_name))


def size(value: object) -> int:
    """The length of a string, also of one that holds a stand-in; 0 for anything else."""
    return str.__len__(value) if isinstance(value, str) else 0


def index_of(two: str) -> int:
    """The number that two characters of a stand-in spell."""
    return (ord(two[0]) & 0xFFF) * 0x1000 + (ord(two[1]) & 0xFFF)


def spelled(index: int) -> str:
    """Two characters for a number under 2^24."""
    return chr(0xF0000 + (index >> 12)) + chr(0xF0000 + (index & 0xFFF))
