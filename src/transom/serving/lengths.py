"""Lengths and slices of content: numbers and texts that are known only as far as the template asks of them.

`content | length` is a number that may be moved by known numbers, compared with them, and used as a bound of
a slice of the same text. To compare it is to ask whether the text is shorter than so many characters; where
it is, its length is told (`Run.exact`). A slice is the text itself where that is seen, and else an unknown
text which may be compared with a literal where that is the same as asking how the content begins or ends.
Threat model: as in `content`. A length is no `int`, so that nothing in C takes it for one.
Does not protect: a template may learn the length of a text of up to `_LONGEST` characters.
Source: Python's rules for slices; templates of Qwen3 as spread in GGUF files, where slices stand for
`startswith` and `endswith`.
"""

from __future__ import annotations

from typing import Any, NoReturn

from transom.serving.content import Content, Run, size

_LONGEST = 256  # characters that a template may ask for
_UNFIT = "arithmetic on a length"


class Length:
    """The length of a text, less a known number."""

    __slots__ = ("_less", "_run", "_text")

    def __init__(self, run: Run, text: Content, less: int = 0) -> None:
        if run.is_unknown(text):
            run.refuse(text, "the length of a slice")
        self._run, self._text, self._less = run, text, less

    def __bool__(self) -> bool:
        return self != 0

    def __lt__(self, other: Any) -> bool:
        return self._below(other)

    def __le__(self, other: Any) -> bool:
        return self._below(other, 1)

    def __gt__(self, other: Any) -> bool:
        return not self._below(other, 1)

    def __ge__(self, other: Any) -> bool:
        return not self._below(other)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, int | float | complex | Length):
            return False
        return self._below(other, 1) and not self._below(other)

    def __sub__(self, other: Any) -> Length:
        return self._moved(other, 1)

    def __add__(self, other: Any) -> Length:
        return self._moved(other, -1)

    __radd__ = __add__

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self._run.refuse(self._text, _UNFIT)

    def _moved(self, other: Any, sign: int) -> Length:
        if not isinstance(other, int):
            self._run.refuse(self._text, _UNFIT)
        return Length(self._run, self._text, self._less + sign * other)

    def _below(self, other: Any, more: int = 0) -> bool:
        """Whether this is less than `other + more`."""
        if not isinstance(other, int):
            self._run.refuse(self._text, "a comparison of lengths")
        bound = other + more + self._less
        length = known_length(self._run, self._text)
        if length is not None:
            return length < bound
        if size(self._text) - len(self._run.stand_ins(self._text)) * (len(self._run.mark) + 1) >= bound:
            return False  # each stand-in is of a character at least
        if bound > _LONGEST:
            self._run.refuse(self._text, f"`length`, compared with more than {_LONGEST},")
        roles = [self._run.roles[message] for message in self._run.holders(self._text)]
        self._run.asked.update((role, bound) for role in roles)
        return False

    def _bound(self, text: Content) -> int | None:
        """As a bound of a slice of this text: negative, counted from the end; None if that is the end."""
        if not str.__eq__(self._text, text):
            self._run.refuse(text, "a slice by another text's length")
        if self._below(0):
            return (known_length(self._run, text) or 0) - self._less
        return -self._less if self._less > 0 else None


def known_length(run: Run, text: str) -> int | None:
    """The length of a text whose stand-ins are all of known length."""
    lengths = [run.exact[number] for number in run.stand_ins(text)]
    visible = size(text) - len(lengths) * (len(run.mark) + 2)
    return None if None in lengths else visible + sum(map(int, lengths))  # type: ignore[arg-type]


def sliced(run: Run, text: Content, start: Any, stop: Any, step: Any) -> str:
    """`text[start:stop:step]`."""
    if step not in (None, 1) or not all(isinstance(end, Length | int | None) for end in (start, stop)):
        run.refuse(text, "a slice with a step")
    if run.is_unknown(text):
        return run.unknown(text)
    first = 0 if start is None else start._bound(text) if isinstance(start, Length) else int(start)
    last = stop._bound(text) if isinstance(stop, Length) else stop
    if first is None:
        return ""
    if first < 0:
        return _end(run, text, "last", -first) if last is None else run.unknown(text)
    part: str = text
    if last is not None:
        part = _end(run, text, "first", last) if last >= 0 else _rest(run, text, "last", -last)
    if first and isinstance(part, Content):
        return run.unknown(part) if run.is_unknown(part) else _rest(run, part, "first", first)
    return part[first:] if first else part


def _end(run: Run, text: Content, end: str, count: int) -> str:
    """The first or the last `count` characters."""
    length = known_length(run, text)
    if count and length is not None and length <= count:
        return text
    if count > _seen(run, text, end):
        return run.unknown(text, (text, end, count))
    return str.__getitem__(text, slice(count) if end == "first" else slice(size(text) - count, None))


def _rest(run: Run, text: Content, end: str, count: int) -> str:
    """What is left without the first or the last `count` characters."""
    length = known_length(run, text)
    if length is not None and length <= count:
        return ""
    if count > _seen(run, text, end):
        return run.unknown(text)
    rest = slice(count, None) if end == "first" else slice(size(text) - count)
    return str(run.wrap(str.__getitem__(text, rest)))


def _seen(run: Run, text: Content, end: str) -> int:
    """How many characters at this end are seen."""
    if end == "first":
        return str.find(text, run.mark)
    return size(text) - str.rfind(text, run.mark) - len(run.mark) - 2


def _refusing(name: str) -> Any:
    def method(self: Length, *_args: Any) -> NoReturn:
        self._run.refuse(self._text, "`length`" if name in _WRITTEN else _UNFIT)

    return method


_WRITTEN = ("__str__", "__repr__", "__format__")
_UNFIT_FOR = "hash index int float neg pos abs invert round trunc divmod call"
_UNFIT_FOR += " rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow"
for _name in (*_WRITTEN, *(f"__{name}__" for name in _UNFIT_FOR.split())):
    setattr(Length, _name, _refusing(_name))
