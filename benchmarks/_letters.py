"""Letters with planted private values, made from hand-written frames: the texts of `words_letters.py`.

`letters(seed)` gives 200 letters of 20 kinds, ten of each, equal for equal seeds: `_letters.txt` holds the
frames and the lists of names and phrases, `_letters_values.py` makes numbers, dates and addresses. Every
value is known with its kind, its characters and their place. Even numbers are for development; the odd ones
are held out, and whoever works on a detector does not read them. They are made of other frames and, where a
list has 40 values or more, of other values: what was learnt from the even ones by heart is of no use there.

Hard on purpose: names that are words, at the head of sentences, in capitals, in lower case, in plurals and
signatures; villages and companies that are words; national forms of numbers; amounts in words; and around
them the words that a careless detector takes for names: months, `Dr`, `Will it snow`, list numbers, headings.
Does not show: how often such values stand in real letters. The frames were written by one author in English,
without a look at any detector's rules.

A slot is `{name.form|case}`. The cast A (who writes), B (who reads), C and D come in the forms full, first,
last, initials, caps, plural, sorted and nick; title, he, his, him, himself are theirs and give nothing away.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import NamedTuple

from _letters_values import MADE, NAMED, PAPERS, named

COVERED = (
    "person", "place", "organisation", "date", "time", "money", "phone", "email", "url", "identifier",
    "account", "card", "document",
)  # fmt: skip
SENSITIVE = ("health", "finance", "religion", "politics", "origin", "sexuality", "crime", "family")
LETTERS, GOALS, LEAST_WORDS = 200, (7, 8, 9), (85, 110, 140)
LONG = 40  # a list of values from this length on has a half for each half of the letters
_POOLS = {  # slot: kind of the value, pool
    "town": ("place", "towns"),
    "land": ("place", "lands"),
    "org": ("organisation", "orgs"),
    "drugs": ("health", "drugs"),
    "rites": ("religion", "rites"),
    "household": ("family", "household"),
    **{
        field: (field, field)
        for field in ("health", "finance", "religion", "politics", "origin", "sexuality", "crime")
    },
}
_SLOT = re.compile(r"\{(\w+)(?:\.(\w+))?(?:\|(\w+))?\}")
_NUMBERED = re.compile(r"[0-9]+\. ")
_AN = re.compile(r"\ba $", re.IGNORECASE)
_CONSONANT = ("uni", "eur", "uy")
TYPESET: list[dict[str, str]] = [  # how letters are saved, what is written for what; most as they are typed
    *[{}] * 12, *[{"'": "’", ", and ": " — and "}] * 3, {"\n": "\r\n"}, {": ": ":\t"}, {"\n": " \n"},
]  # fmt: skip
PLAIN = ("title", "he", "He", "his", "him", "himself")  # forms of a person that give nothing away


class Value(NamedTuple):
    """A planted value: `text` stands at [start, end) of its letter."""

    kind: str
    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Letter:
    """One letter; `kind` is that of the letter: landlord, hospital, chat and so on."""

    number: int
    kind: str
    text: str
    values: tuple[Value, ...]

    @property
    def held_out(self) -> bool:
        """Whether no one who works on a detector should read it."""
        return self.number % 2 == 1


@dataclass(frozen=True)
class Section:
    """The frames of a kind of letter; `style` says how its body is set: prose, lines, lower, upper."""

    style: str
    opens: tuple[str, ...]
    frames: tuple[str, ...]
    closes: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """One of the cast."""

    first: str
    last: str
    nick: str
    title: str
    girl: bool


class Part(NamedTuple):
    """A stretch of a letter: a value where `kind` says so."""

    text: str
    kind: str | None = None


Parts = list[Part]


@cache
def book() -> tuple[dict[str, tuple[str, ...]], dict[str, Section]]:
    """The pools by name, and the frames by kind of letter."""
    pools: dict[str, tuple[str, ...]] = {}
    sections: dict[str, Section] = {}
    text = (Path(__file__).parent / "_letters.txt").read_text(encoding="utf-8")
    for block in text.split("\n== ")[1:]:
        head, *lines = [line for line in block.splitlines() if line.strip()]
        name, _, style = head.partition(" ")
        if name == "pool":
            pools[style] = tuple(value.strip() for line in lines for value in line.split("|"))
        else:
            by_mark = {m: tuple(line[2:] for line in lines if line.startswith(f"{m} ")) for m in "><"}
            frames = tuple(line for line in lines if not line.startswith(("> ", "< ")))
            sections[name] = Section(style, by_mark[">"], frames, by_mark["<"])
    return pools, sections


def letters(seed: int = 14, count: int = LETTERS) -> list[Letter]:
    """The letters of a seed."""
    return list(_made(Random(seed), count))


def _made(rng: Random, count: int) -> Iterator[Letter]:
    pools, sections = book()
    kinds = [name for name in sections if name not in ("aside", "harmless")]
    writer = Writer(rng, pools, sections)
    for number in range(count):
        kind = kinds[number // 2 % len(kinds)]  # both halves hold every kind
        yield _letter(number, kind, writer.write(kind, number % 2))


def _letter(number: int, kind: str, parts: Parts) -> Letter:
    text, values = "", []
    for part in parts:
        if part.kind:
            values.append(Value(part.kind, part.text, len(text), len(text) + len(part.text)))
        text += part.text
    return Letter(number, kind, text, tuple(values))


class Writer:
    """Fills frames; prefers frames that were used least and whose kinds of values are scarce so far."""

    def __init__(self, rng: Random, pools: dict[str, tuple[str, ...]], sections: dict[str, Section]) -> None:
        self._rng, self._pools, self._sections = rng, pools, sections
        self._used: Counter[str] = Counter()
        self._kinds: Counter[str] = Counter()
        self._cast: dict[str, Person] = {}
        self._half = 0

    def write(self, kind: str, half: int) -> Parts:
        """One letter of a kind, from the frames and the values of one half."""
        self._half = half
        self._cast = {who: self._person() for who in "ABCD"}
        section, rng = self._sections[kind], self._rng
        opening, closing = self.fill(rng.choice(section.opens)), self.fill(rng.choice(section.closes))
        own: list[Parts] = []
        shared = [self.fill(self._pick("harmless")) for _ in range(2)]
        goal = rng.choice(GOALS)
        while _values([opening, closing, *own, *shared]) < goal or len(own) < 3:
            aside = len(own) >= 3 and rng.random() < 0.45
            (shared if aside else own).append(self.fill(self._pick("aside" if aside else kind)))
        least = rng.choice(LEAST_WORDS)
        while _words([opening, closing, *own, *shared]) < least:
            shared.append(self.fill(self._pick("harmless")))
        gap = Part("\n" if opening[-1].text.endswith("|") else "\n\n")
        parts = [*opening, gap, *self._body(section.style, own, shared), *closing]
        return _typeset(_styled(section.style, parts), rng.choice(TYPESET))

    def _body(self, style: str, own: list[Parts], shared: list[Parts]) -> Parts:
        self._rng.shuffle(shared)
        if style in ("prose", "upper"):
            sentences = own + shared
            self._rng.shuffle(sentences)
            cut = self._rng.randrange(2, len(sentences) - 1)
            return [
                *_joined(sentences[:cut], " "),
                Part("\n\n"),
                *_joined(sentences[cut:], " "),
                Part("\n\n"),
            ]
        if style == "lower":
            return [*_joined(own + shared, "\n"), Part("\n")]
        return [*_joined(_renumbered(own), "\n"), Part("\n\n"), *_joined(shared, " "), Part("\n\n")]

    def _pick(self, section: str) -> str:
        """The frame of six that was used least and whose kinds of values are scarce so far."""
        frames = self._sections[section].frames[self._half :: 2]
        chosen = min(
            self._rng.sample(frames, 6), key=lambda frame: 4 * self._used[frame] + self._scarcity(frame)
        )
        self._used[chosen] += 1
        return chosen

    def _scarcity(self, frame: str) -> int:
        return min((self._kinds[kind] for kind in map(_kind_of, _SLOT.findall(frame)) if kind), default=0)

    def fill(self, frame: str) -> Parts:
        """A frame with its slots filled."""
        parts, last = [], 0
        frame = frame.replace(" // ", "\n").replace("// ", "\n")
        for slot in _SLOT.finditer(frame):
            name, form, case = slot.groups()
            text, kind = self._value(name, form or "full")
            text = text.upper() if case == "upper" else text
            before = frame[last : slot.start()]
            if text[0].lower() in "aeiou" and not text.lower().startswith(_CONSONANT):
                before = _AN.sub(lambda match: match[0][0] + "n ", before)
            parts += [Part(before), Part(text, kind)]
            last = slot.end()
            if kind:
                self._kinds[kind] += 1
        return [part for part in (*parts, Part(frame[last:])) if part.text]

    def _value(self, name: str, form: str) -> tuple[str, str | None]:
        rng = self._rng
        if name in self._cast:
            return _form(self._cast[name], form, rng)
        if name == "document":
            name = rng.choice(PAPERS)
        if name in MADE:
            kind, make = MADE[name]
            return make(rng, self._pool(name)), kind
        if name in NAMED:
            one = self._cast[rng.choice("ACCD")]
            return named(rng, self._pool(name), one.first, one.last), NAMED[name]
        if name == "street":
            return self._street(), "place"
        kind, pool = _POOLS[name]
        return rng.choice(self._pool(pool)), kind

    def _pool(self, name: str) -> Sequence[str]:
        """A list of values: of the long ones, the half that this letter draws from."""
        pool = self._pools[name]
        return pool[self._half :: 2] if len(pool) >= LONG else pool

    def _street(self) -> str:
        rng, house = self._rng, self._rng.randrange(10, 240)
        if rng.random() < 0.55:
            number = rng.choice([f"{house}", f"{house}", f"{house}a", f"12/{house}", f"{house}-{house + 2}"])
            return f"{number} {rng.choice(self._pool('streets'))}"
        return rng.choice(["{0} {1}", "{0} {1}", "{0} {1}b", "{1}, {0}", "{0} {1}/14"]).format(
            rng.choice(self._pool("farstreets")), house
        )

    def _person(self) -> Person:
        rng, girl = self._rng, self._rng.random() < 0.5
        style = rng.choices(("word", "far", "odd", "plain"), (38, 24, 16, 22))[0]
        firsts = {"word": "word", "far": "far"}.get(style, "") + ("girls" if girl else "boys")
        lasts = {"word": "wordfamily", "far": "farfamily", "odd": "oddfamily", "plain": "family"}[style]
        titles = ("Mrs", "Ms", "Miss", "Dr", "Prof.") if girl else ("Mr", "Mr", "Mr.", "Dr", "Prof.")
        first, last, nick = (rng.choice(self._pool(pool)) for pool in (firsts, lasts, "nicknames"))
        return Person(first, last, nick, rng.choice(titles), girl)


def _kind_of(slot: tuple[str, str, str]) -> str | None:
    name, form, _ = slot
    if name in "ABCD":
        return None if form in PLAIN else "person"
    if name in MADE:
        return MADE[name][0]
    return NAMED.get(name) or {"street": "place", "document": "document"}.get(name) or _POOLS[name][0]


def _form(person: Person, form: str, rng: Random) -> tuple[str, str | None]:
    """A person in one form, and the kind: none for a title or a pronoun."""
    plain = {
        "title": person.title,
        "he": "she" if person.girl else "he",
        "He": "She" if person.girl else "He",
        "his": "her" if person.girl else "his",
        "him": "her" if person.girl else "him",
        "himself": "herself" if person.girl else "himself",
    }
    if form in PLAIN:
        return plain[form], None
    first, last = person.first, person.last
    forms = {
        "full": f"{first} {last}",
        "first": first,
        "last": last,
        "nick": person.nick,
        "initials": rng.choice(
            [f"{first[0]}. {last}", f"{first[0]}.{rng.choice('AJKM')}. {last}", f"{first[0]} {last}"]
        ),
        "caps": f"{first} {last}".upper(),
        "plural": last + ("es" if last.endswith(("s", "x", "z", "ch", "sh")) else "s"),
        "sorted": rng.choice([f"{last}, {first}", f"{last.upper()}, {first}", f"{last}, {first[0]}."]),
    }
    return forms[form], "person"


def _styled(style: str, parts: Parts) -> Parts:
    """A chat in lower case, a complaint in capitals; addresses of the net stay as they are."""
    if style == "lower":
        return [Part(part.text.lower(), part.kind) for part in parts]
    if style == "upper":
        kept = ("email", "url", "identifier")
        return [part if part.kind in kept else Part(part.text.upper(), part.kind) for part in parts]
    return parts


def _typeset(parts: Parts, replaced: Mapping[str, str]) -> Parts:
    """The letter as another program would have saved it; only names among the values change."""
    typeset = []
    for text, kind in parts:
        for old, new in replaced.items() if kind in (None, "person") else ():
            text = text.replace(old, new)
        typeset.append(Part(text, kind))
    return typeset


def _renumbered(lines: list[Parts]) -> list[Parts]:
    """The lines with those that carry a number in front, in order."""
    numbered = [line for line in lines if _NUMBERED.match(line[0].text)]
    rest = [line for line in lines if line not in numbered]
    fresh = [
        [Part(_NUMBERED.sub(f"{n}. ", line[0].text, count=1)), *line[1:]]
        for n, line in enumerate(numbered, 1)
    ]
    return fresh + rest


def _joined(pieces: list[Parts], between: str) -> Parts:
    return [part for i, piece in enumerate(pieces) for part in ([Part(between)] if i else []) + piece]


def _values(pieces: list[Parts]) -> int:
    return sum(part.kind is not None for piece in pieces for part in piece)


def _words(pieces: list[Parts]) -> int:
    return sum(len(part.text.split()) for piece in pieces for part in piece)
