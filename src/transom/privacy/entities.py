"""Which values are one entity: one person, one card, one address, in whatever form they are written.

- *person*: `Jane Miller`, then `Miller`, `Jane`, `JANE MILLER`, `J. Miller`, `Miller, Jane`, `Millers`, in
  any order. Linked where exactly one person fits that came before, and else a person of its own. A name of
  unknown type is linked to a person whose name has its words.
- *phone, card, account, document*: equal letters, digits and plus signs. *number*: equal but for white space.
- *e-mail, URL*: equal but for case.
- everything else: equal.

What came first decides and is never revised, so a conversation that goes on keeps its placeholders. A name
that more than `SHARED_LIMIT` persons bear links nothing, nor does one of more than `MOST_WORDS` words but to
its equal: that bounds the work for crafted texts.
Threat model: whoever reads the placeholders learns which values are linked, and which part of the whole each
form is; nothing else about them. The text alone decides: no list of names, no guess.
Does not protect: two persons of one name are one, as their equal names always were.
Source: our own; the kinds of name that refer back are those of coreference by string match, e.g. Lee et al.
2013, "Deterministic coreference resolution based on entity-centric, precision-ranked rules".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from transom.privacy.forms import LETTERS

SHARED_LIMIT = 64
MOST_WORDS = 12
Words = tuple[str, ...]


@dataclass(slots=True, eq=False)
class Entity:
    """A label and a number, the suffix of each form, and the words of a person's fullest name."""

    label: str
    number: int
    forms: dict[str, str] = field(default_factory=dict, repr=False)
    words: Words = field(default=(), repr=False)

    def suffix(self, value: str, wanted: str) -> str | None:
        """The suffix of this form: "" for the first, else `wanted` or a letter; None where none is left."""
        if value not in self.forms:
            taken = self.forms.values()
            suffix = next((one for one in ("", wanted, *LETTERS) if one not in taken), None)
            if suffix is None:
                return None
            self.forms[value] = suffix
        return self.forms[value]


class Linker:
    """The entities of one conversation."""

    def __init__(self) -> None:
        self.reserved: set[tuple[str, int]] = set()  # labels and numbers that are not to be given
        self._last_number: dict[str, int] = {}
        self._entity_of: dict[tuple[str, str], Entity] = {}
        self._persons: dict[str, list[Entity]] = {}  # by the words of their names and by the plural

    def __repr__(self) -> str:
        return f"Linker({sum(self._last_number.values())})"

    def place(self, label: str, value: str) -> tuple[str, int, str]:
        """Label, number and suffix for a value that is seen for the first time."""
        words = words_of(value) if label in ("PERSON", "NAME") else ()
        if 0 < len(words) <= MOST_WORDS:
            found = self._person(label, words)
        else:
            found = self._entity_of.get((label, key_of(label, value))), ""
        entity, wanted = found
        suffix = entity.suffix(value, wanted) if entity is not None else None
        if entity is None or suffix is None:
            entity, suffix = self._new(label, value), ""
        if label == "PERSON" and len(words) <= MOST_WORDS:
            self._learn(entity, words)
        return entity.label, entity.number, suffix

    def _new(self, label: str, value: str) -> Entity:
        number = self._last_number.get(label, 0) + 1
        while (label, number) in self.reserved:
            number += 1
        self._last_number[label] = number
        entity = self._entity_of[label, key_of(label, value)] = Entity(label, number, {value: ""})
        return entity

    def _person(self, label: str, words: Words) -> tuple[Entity | None, str]:
        """The one person whom these words fit, and the form they are; nobody where several do."""
        fitting: dict[Entity, str] = {}
        for entity in self._bearers(words):
            form = form_of(words, entity.words)
            if form is not None and (label == "PERSON" or len(words) <= len(entity.words)):
                fitting[entity] = form
        return next(iter(fitting.items())) if len(fitting) == 1 else (None, "")

    def _bearers(self, words: Words) -> Iterator[Entity]:
        for word in words:
            bearers = self._persons.get(word, [])
            if len(word) > 1 and len(bearers) <= SHARED_LIMIT:
                yield from bearers

    def _learn(self, entity: Entity, words: Words) -> None:
        """A fuller name becomes the person's: what it fits changes for later names alone."""
        known = entity.words
        if known and ((len(words), sum(map(len, words))) <= (len(known), sum(map(len, known)))):
            return
        if known and form_of(words, known) == "_PLURAL":
            return
        entity.words = words
        for word in {*words, *(plural_of(words[-1]) if words else ())}:
            bearers = self._persons.setdefault(word, [])
            if len(bearers) <= SHARED_LIMIT and entity not in bearers:
                bearers.append(entity)


def _compact(value: str) -> str:
    return re.sub(r"[^\w+]|_", "", value).casefold()


_KEYS: dict[str, Callable[[str], str]] = {
    **dict.fromkeys(("PHONE", "CARD", "ACCOUNT", "DOCUMENT"), _compact),
    "NUMBER": lambda value: "".join(value.split()),
    "EMAIL": str.casefold,
    "URL": str.casefold,
}


def key_of(label: str, value: str) -> str:
    """What equal values of a label have in common."""
    return _KEYS.get(label, str)(value) or value


def words_of(name: str) -> Words:
    """The words of a name in order, `Miller, Jane` turned round, in lower case, without full stops.

    >>> words_of("MILLER, J.")
    ('j', 'miller')
    """
    last, _, first = name.casefold().partition(",")
    return tuple(re.findall(r"[^\s.,]+", f"{first} {last}"))


def plural_of(word: str) -> tuple[str, ...]:
    """What a family of this name may be called."""
    return (word + "es", word + "s") if re.search(r"(?:[sxz]|ch|sh)\Z", word) else (word + "s",)


def form_of(words: Words, known: Words) -> str | None:
    """By which suffix `words` name the person known as `known`, "" for another spelling; None: they do not.

    >>> form_of(("miller",), ("jane", "miller")), form_of(("bob", "miller"), ("jane", "miller"))
    ('_LAST', None)
    """
    if not words or not known or max(map(len, words)) == 1:
        return None
    if words == known:
        return ""
    size = len(words)
    if size < len(known):
        if words == known[-size:]:
            return "_LAST"
        if words == known[:size]:
            return "_FIRST"
    if size == 1:
        if words[0] in known:
            return ""
        return "_PLURAL" if words[0] in plural_of(known[-1]) else None
    if (
        size > len(known)
        and max(map(len, known)) > 1
        and known in (words[-len(known) :], words[: len(known)])
    ):
        return "_FULL"
    if len(known) > 1 and _agree(words, known):
        return "_FULL" if size > len(known) else ""
    return None


def part_of(name: str, suffix: str) -> str | None:
    """The first or last name in a name as it is written, where it has both.

    >>> part_of("Jane A. Miller", "_FIRST"), part_of("Miller", "_LAST")
    ('Jane', None)
    """
    words = name.split()
    if len(words) < 2 or "," in name or suffix not in ("_FIRST", "_LAST"):
        return None
    part = words[0] if suffix == "_FIRST" else words[-1]
    return part if len(part.strip(".")) > 1 else None


def _agree(words: Words, known: Words) -> bool:
    """Whether two names of several words may be one, letters standing for the names that they begin."""
    short, long = sorted((words, known), key=len)
    if not (_same(short[0], long[0]) and _same(short[-1], long[-1])):
        return False
    rest = iter(long[1:-1])
    between = all(any(_same(word, other) for other in rest) for word in short[1:-1])
    return between and any(len(word) > 1 and word in long for word in short)


def _same(word: str, other: str) -> bool:
    return word == other or (min(len(word), len(other)) == 1 and word[0] == other[0])
