"""Typed placeholders: `[PERSON_1]` for a value on the way out, the value again on the way back.

One `Placeholders` a conversation. Numbers follow first appearance. Equal values of a kind get equal
placeholders, and the forms of one entity one number: `[PERSON_1]` for Jane Miller, `[PERSON_1_LAST]` for
Miller (`transom.privacy.entities`). So a host sees which places hold the same: a declared disclosure.
Restoring an unmodified text is exact. It also takes the spellings that models make of a placeholder
(`transom.privacy.forms`), and a first or last name that was never sent by itself. A placeholder that was
never sent is marked: `[PERSON_7?]`, so that a reader sees that the model made it up.
Threat model: the host may write any text, also placeholders it has never seen.
Does not protect: kinds, number and links of values. The map holds the values in memory, for its lifetime.
Source: typed replacement as in Presidio-like anonymisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from transom.privacy.entities import Linker, part_of
from transom.privacy.forms import FORM, find, marked, parse, placeholder
from transom.privacy.restore import Restorer

LABEL_OF_KIND = {
    "stop": "WORD", "word": "WORD", "instruction": "WORD", "uncommon": "WORD",
    "name": "NAME", "person": "PERSON", "place": "PLACE", "organisation": "ORG",
    "number": "NUMBER", "date": "DATE", "time": "TIME", "money": "MONEY", "phone": "PHONE", "card": "CARD",
    "account": "ACCOUNT", "document": "DOCUMENT",
    "identifier": "ID", "email": "EMAIL", "url": "URL",
    "rare": "TERM", "dictionary": "TERM", "part": "TERM", "foreign": "TEXT", "symbol": "SYMBOL",
    "health": "HEALTH", "finance": "FINANCE", "religion": "RELIGION", "politics": "POLITICS",
    "origin": "ORIGIN", "sexuality": "SEXUALITY", "crime": "CRIME", "family": "FAMILY",
}  # fmt: skip


class Placeholders:
    """A two-way map between private values and placeholders; its repr shows only how many there are."""

    def __init__(self) -> None:
        self._placeholder_of: dict[tuple[str, str], str] = {}
        self._value_of: dict[str, str] = {}
        self._linker = Linker()
        self._quotes = 0

    def __repr__(self) -> str:
        return f"Placeholders({len(self._value_of)})"

    def __len__(self) -> int:
        return len(self._value_of)

    @property
    def values(self) -> Mapping[str, str]:
        """Each placeholder that was sent, and its value."""
        return MappingProxyType(self._value_of)

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Placeholders:
        """Placeholders that restore these values, as from a map file; not for hiding more."""
        made = cls()
        made._value_of = dict(values)
        return made

    def hide(self, kind: str, value: str) -> str:
        """The placeholder of `value`, a new one at its first appearance."""
        label = LABEL_OF_KIND[kind]
        known = self._placeholder_of.get((label, value))
        if known is None:
            known = self._placeholder_of[label, value] = placeholder(*self._linker.place(label, value))
            self._value_of[known] = value
        return known

    def reserve(self, public: str) -> None:
        """Make no placeholder that a public text holds (`[Document 1]`): in an answer it means that text."""
        said = map(parse, find(public))
        self._linker.reserved.update((form.label, form.number) for form in said)

    def quote(self, value: str) -> str:
        """A fresh placeholder for a whole text, linked by equality with nothing."""
        self._quotes += 1
        while ("QUOTE", self._quotes) in self._linker.reserved:
            self._quotes += 1
        made = placeholder("QUOTE", self._quotes)
        self._value_of[made] = value
        return made

    def restore(self, text: str) -> str:
        """`text` with every known placeholder replaced by its value, in one pass, others marked.

        >>> names = Placeholders()
        >>> names.hide("person", "Ada"), names.restore("Dear [Person_1] and [PERSON_2]")
        ('[PERSON_1]', 'Dear Ada and [PERSON_2?]')
        """
        return FORM.sub(lambda match: self.value(match[0]), text)

    def restorer(self, limit_chars: int | None = None) -> Restorer:
        """A restorer for one stream of chunks, which restores to at most `limit_chars` in all."""
        return Restorer(self.value, limit_chars)

    def restored_chars(self, text: str) -> int:
        """How long `text` becomes when it is restored."""
        found = (match[0] for match in FORM.finditer(text))
        return len(text) + sum(len(self.value(one)) - len(one) for one in found)

    def value(self, form: str) -> str:
        """What a user reads in place of a form that the host wrote."""
        said = parse(form)
        value = self._value_of.get(said.placeholder)
        if value is None and said.label == "PERSON":
            whole = [placeholder(said.label, said.number, suffix) for suffix in ("_FULL", "")]
            value = part_of(
                next((self._value_of[one] for one in whole if one in self._value_of), ""), said.suffix
            )
        if value is None:
            return form if (said.label, said.number) in self._linker.reserved else marked(form)
        return value + said.ending
