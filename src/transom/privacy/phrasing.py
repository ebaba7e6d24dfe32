"""Sensitive phrases: values of several words, most of which say nothing alone (`credit rating`, `car theft`).

Where words pass and fields are hidden, a second look is taken at the words that the reader found:

- *Phrases* of the policy's list, longest first, are of their field; blanks, hyphens and one line break may
  stand between their words.
- *Beside a word of a field*, with a blank or hyphen between, are of it too: a half of that field on either
  side (`redundancy pay`), a noun or adjective before it (`climate activist`), and any word that would be
  drawn.
- *Two halves* of one field side by side are of it (`food voucher`).
- *A follower* behind a name is of politics (`Greenleaf Party member`).
- *A capital* on a word that is also a name makes it one wherever it stands, and hides a word that would be
  drawn: a preset that hides fields rather hides a word too many.

What belongs together becomes one token. All of this depends on words that pass or are hidden, never on a
word that is drawn: which of them stands beside a word of a field makes no difference.
Threat model: that of the lexer. Linear time: a phrase has at most `packed.MOST_WORDS` words.
Does not protect: what a sentence says without such words; a value that is told in a verb (`was caught with`).
Source: own; phrases from WordNet 3.0 (see `transom.privacy.fields`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from transom.privacy.kinds import FIELDS, SUBKINDS, base_of
from transom.privacy.namewords import CLOSINGS, CUSTOMARY, GREETINGS
from transom.privacy.packed import BIT_OF_FIELD, MODIFIER, MOST_WORDS
from transom.privacy.policy import Policy
from transom.privacy.text import Token

FOLLOWERS = frozenset(
    "member members supporter supporters voter voters activist activists candidate candidates donor donors "
    "delegate delegates organiser organisers organizer organizers".split()
)
import os
_LINKS = frozenset("a an the of to in at with".split())
_TIGHT = frozenset({"", " ", "-"})  # what may stand between two words that are read together
_LOOSE = _TIGHT | {"\n"}  # and between words of a phrase
_NEVER_MODIFIED = frozenset({"family", "origin"})  # `young mother`, `new citizens`: the word alone says it


class Phrasing:
    """Finds values of several words under a policy."""

    def __init__(self, policy: Policy) -> None:
        hidden = policy.words_pass and any(policy.rule(field) == "placeholder" for field in FIELDS)
        self._fields = frozenset(field for field in FIELDS if hidden and policy.rule(field) == "placeholder")
        kinds = [kind for kind in ("word", *SUBKINDS) if base_of(kind) == "word"]
        self._drawn = frozenset(kind for kind in kinds if not isinstance(policy.rule(kind), str))
        self._seldom = self._drawn | {"part"}
        self._open = frozenset({*kinds, "stop", "dictionary"})  # what may become part of a value
        self._namesakes = policy.namesakes - GREETINGS - CLOSINGS - CUSTOMARY
        enabled = MODIFIER + sum(BIT_OF_FIELD[field] for field in self._fields)
        self._bits_of: dict[str, int] = {}
        self._whole: dict[tuple[str, ...], str] = {}
        self._lengths: dict[str, set[int]] = {}
        if self._fields:
            self._read_entries(policy, enabled)

    def _read_entries(self, policy: Policy, enabled: int) -> None:
        field_of = {bit: field for field, bit in BIT_OF_FIELD.items()}
        for entry, bits in policy.phrases.items():
            words = tuple(entry.split(" "))
            if len(words) == 1:
                self._bits_of[entry] = bits & enabled
            elif bits & enabled:
                self._whole[words] = field_of[bits]
                self._lengths.setdefault(words[0], set()).add(len(words))

    def read(self, tokens: list[Token]) -> list[Token]:
        """The tokens, each value of a sensitive field one token."""
        if not self._fields:
            return tokens
        stretch = _Stretch(tokens)
        fields = [token.kind if token.kind in self._fields else None for token in stretch.words]
        known = [self._lookup(token) for token in stretch.words]
        named = [word or self._name(token) for token, word in zip(stretch.words, known, strict=True)]
        joined = self._phrases(stretch, named, fields)
        if os.environ.get("LINK"): joined |= self._linked(stretch, known, fields)
        joined |= self._beside(stretch, known, fields)
        found = list(stretch.joined(fields, joined)) if any(fields) else tokens
        return [self._capital(token) for token in found]

    def _capital(self, token: Token) -> Token:
        """A name where a capital stands on a word that is also one, or on a word that would be drawn."""
        X=os.environ.get("CAP","")
        if "c" in X and token.kind in self._drawn and token.lookup in self._namesakes: return token._replace(kind="name")
        if "i" in X and token.kind=="instruction" and token.marked and token.lookup in self._namesakes: return token._replace(kind="name")
        if "u" in X and token.kind in self._drawn and token.case=="title": return token._replace(kind="name")
        if token.case == "lower" or token.claimed or token.kind not in self._open - {"stop", "instruction"}:
            return token
        named = token.lookup in self._namesakes and token.kind not in self._fields
        return token._replace(kind="name") if named else token

    def _lookup(self, token: Token) -> str:
        """The word of a token, as far as a reading may depend on it."""
        if token.claimed or token.kind in self._drawn:
            return ""
        return token.lookup or token.text.lower() if token.kind in self._open else ""

    def _name(self, token: Token) -> str:
        """A name as a phrase may begin with one (`Good Friday`)."""
        return token.text.lower() if base_of(token.kind) == "name" and not token.claimed else ""

    def _phrases(self, stretch: _Stretch, known: Sequence[str], fields: list[str | None]) -> set[int]:
        """Give every word of a listed phrase its field; which words are joined to the next one."""
        joined: set[int] = set()
        end = 0
        for at, first in enumerate(known):
            if at < end or first not in self._lengths:
                continue
            longest = at + 1
            while longest < min(len(known), at + MOST_WORDS) and stretch.gaps[longest - 1] in _LOOSE:
                longest += 1
            for length in sorted(self._lengths[first], reverse=True):
                field = self._whole.get(tuple(known[at : at + length])) if at + length <= longest else None
                if field:
                    end = at + length
                    fields[at:end] = [field] * length
                    joined.update(range(at, end - 1))
                    break
        return joined

    def _linked(self, stretch: _Stretch, known: Sequence[str], fields: list[str | None]) -> set[int]:
        """Give a half before `of`, `to` or the like and a word of its field this field (`convert to Islam`)."""
        joined: set[int] = set()
        mode = os.environ["LINK"]
        for at in range(len(known) - 2):
            end = at + 1
            while end < min(at + 3, len(known) - 1) and known[end] in _LINKS:
                end += 1
            bits = self._bits_of.get(known[at], 0)
            field = fields[end]
            tight = all(gap in _TIGHT for gap in stretch.gaps[at:end])
            other = self._bits_of.get(known[end], 0)
            if end > at + 1 and tight and not fields[at]:
                if field and bits & BIT_OF_FIELD[field]:
                    fields[at : end] = [field] * (end - at)
                    joined.update(range(at, end))
                elif "h" in mode and not field and bits & other & ~MODIFIER:
                    field = next(f for f in FIELDS if bits & other & BIT_OF_FIELD[f])
                    fields[at : end + 1] = [field] * (end - at + 1)
                    joined.update(range(at, end))
            elif "r" in mode and end > at + 1 and tight and fields[at] and not field and other & BIT_OF_FIELD[fields[at]]:
                    field = fields[at]
                    fields[at : end + 1] = [field] * (end - at + 1)
                    joined.update(range(at, end))
        return joined

    def _beside(self, stretch: _Stretch, known: Sequence[str], fields: list[str | None]) -> set[int]:
        """Give words beside others the field of these; which words are joined to the next one."""
        found = tuple(fields)
        bits = [self._bits_of.get(word, 0) for word in known]
        joined: set[int] = set()
        for at, gap in enumerate(stretch.gaps):
            if gap not in _TIGHT:
                continue
            left, right = found[at], found[at + 1]
            both = bits[at] & bits[at + 1] & ~MODIFIER
            if left and right:
                if left == right:
                    joined.add(at)
            elif left and self._follows(stretch.words[at + 1], bits[at + 1], left):
                fields[at + 1] = left
                joined.add(at)
            elif right and self._leads(stretch.words[at], bits[at], right):
                fields[at] = fields[at] or right
                joined.add(at)
            elif both and not (left or right):
                field = next(field for field in FIELDS if both & BIT_OF_FIELD[field])
                fields[at], fields[at + 1] = fields[at] or field, field
                joined.add(at)
            elif known[at + 1] in FOLLOWERS and base_of(stretch.words[at].kind) == "name" and not right:
                fields[at + 1] = "politics" if "politics" in self._fields else None
        return joined

    def _follows(self, token: Token, bits: int, field: str) -> bool:
        """Whether a word behind one of a field is part of the value."""
        return token.kind in self._seldom or bool(bits & BIT_OF_FIELD[field])

    def _leads(self, token: Token, bits: int, field: str) -> bool:
        """Whether a word before one of a field is part of the value."""
        modifies = bits & MODIFIER and token.kind == "word" and field not in _NEVER_MODIFIED
        return bool(modifies) or self._follows(token, bits, field)


class _Stretch:
    """The tokens of a text as its words, with what stands between each and the next."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        self._tokens = tokens
        self._places = [
            at
            for at, token in enumerate(tokens)
            if token.kind != "space" and not (token.kind == "punct" and token.text == "-")
        ]
        self.words = [tokens[at] for at in self._places]
        texts = [token.text for token in tokens]
        pairs = zip(self._places, self._places[1:], strict=False)
        self.gaps = ["".join(texts[at + 1 : after]) if after > at + 1 else "" for at, after in pairs]

    def joined(self, fields: Sequence[str | None], joined: set[int]) -> Iterator[Token]:
        """The tokens, the words of a field of its kind and one token where they are joined."""
        end = 0
        at = 0
        while at < len(fields):
            field, start, last = fields[at], self._places[at], at
            if field:
                while last in joined and fields[last + 1] == field:
                    last += 1
                yield from self._tokens[end:start]
                end = self._places[last] + 1
                yield self._one(field, start, end)
            at = last + 1
        yield from self._tokens[end:]

    def _one(self, field: str, start: int, end: int) -> Token:
        if end == start + 1:
            return self._tokens[start]._replace(kind=field)
        return Token(field, "".join([token.text for token in self._tokens[start:end]]))
