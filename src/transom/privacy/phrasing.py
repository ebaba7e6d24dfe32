"""Sensitive phrases: values of several words, most of which say nothing alone (`credit rating`, `car theft`).

Where words pass and fields are hidden, a second look is taken at what the reader found:

- *Phrases* of the policy's list, longest first, are of their field. Between their words may stand a blank, a
  hyphen or a line break; names and unknown words may be parts of them (`Good Friday`).
- *Beside a word of a field*, with a blank or hyphen between, are of it too: a half of that field on either
  side (`redundancy pay`), also beyond one or two small words (`convert to Islam`), a noun or adjective before
  it (`climate activist`; not before people, `my old mother`), and any seldom word, whichever it is.
- *Two halves* of one field side by side are of it (`food voucher`).
- *A follower* behind a name is of politics (`Greenleaf Party member`).
- *A capital* on a word that is also somebody's name makes it a name wherever it stands: who hides fields
  rather hides a word too many.

What belongs together becomes one token. All of this depends on words that pass or are hidden, never on a
word that is drawn: which of them stands beside a word of a field makes no difference.
Threat model: that of the lexer. Linear time: a phrase has at most `packed.MOST_WORDS` words.
Does not protect: what a sentence says without such words (`he was caught with his hand in the till`), and
what stands in two places (`the rating of my credit` over a line of its own).
Source: own; the phrases are WordNet's and the project's (`transom.privacy.fieldphrases`).
"""

from __future__ import annotations

from collections.abc import Sequence

from transom.privacy.kinds import FIELDS, KINDS, SUBKINDS, base_of
from transom.privacy.namewords import CLOSINGS, CUSTOMARY, GREETINGS
from transom.privacy.packed import BIT_OF_FIELD, MODIFIER, MOST_WORDS
from transom.privacy.policy import Policy
from transom.privacy.text import Token

FOLLOWERS = frozenset(
    word + plural
    for word in ("member", "supporter", "voter", "activist", "candidate", "donor", "delegate", "organiser")
    for plural in ("", "s")
)
_LINKS = frozenset({"a", "an", "the", "of", "to", "in", "at", "with"})
_MOST_LINKS = 2
_TIGHT = frozenset({"", " ", "-"})  # what may stand between two words that are read together
_LOOSE = _TIGHT | {"\n"}  # and between words of a phrase
_UNMODIFIED = frozenset({"family", "origin"})  # `my old mother`, `new citizens`: the word alone says it
_NAMES = frozenset({"name", "rare"})  # base kinds that are hidden by themselves


class Phrasing:
    """Finds values of several words under a policy."""

    def __init__(self, policy: Policy) -> None:
        hidden = [field for field in FIELDS if policy.rule(field) == "placeholder"]
        self._fields = frozenset(hidden if policy.words_pass else ())
        kinds = [kind for kind in (*KINDS, *SUBKINDS) if base_of(kind) == "word"]
        self._drawn = frozenset(kind for kind in kinds if not isinstance(policy.rule(kind), str))
        self._seldom = self._drawn | {"part"}
        self._open = frozenset({*kinds, "stop", "dictionary"}) - self._drawn
        self._hidden = frozenset(kind for kind in (*KINDS, *SUBKINDS) if base_of(kind) in _NAMES) - self._open
        self._namesakes = policy.namesakes - GREETINGS - CLOSINGS - CUSTOMARY
        self._bits_of: dict[str, int] = {}
        self._whole: dict[tuple[str, ...], str] = {}
        self._lengths: dict[str, set[int]] = {}
        if self._fields:
            self._read_entries(policy)

    def _read_entries(self, policy: Policy) -> None:
        enabled = MODIFIER + sum(BIT_OF_FIELD[field] for field in self._fields)
        field_of = {bit: field for field, bit in BIT_OF_FIELD.items()}
        for entry, bits in policy.phrases.items():
            if " " not in entry:
                self._bits_of[entry] = bits & enabled
            elif bits & enabled:
                words = tuple(entry.split(" "))
                self._whole[words] = field_of[bits]
                self._lengths.setdefault(words[0], set()).add(len(words))

    def read(self, tokens: list[Token]) -> list[Token]:
        """The tokens, each value of a sensitive field one token."""
        if not self._fields:
            return tokens
        line = _Line(tokens)
        fields = [token.kind if token.kind in self._fields else None for token in line.words]
        known = [self._lookup(token) for token in line.words]
        bits = [self._bits_of.get(word, 0) for word in known]
        joined = self._phrases(line, known, fields)
        if any(fields) or any(bits):
            joined |= self._beyond(line.gaps, known, bits, fields)
            joined |= self._beside(line, known, bits, fields)
            tokens = line.joined(fields, joined)
        return [self._capital(token) if token.lookup in self._namesakes else token for token in tokens]

    def _capital(self, token: Token) -> Token:
        """A name, where a word that is also one has a capital."""
        common = token.kind in ("word", "uncommon", "part", "dictionary") and not token.claimed
        return token._replace(kind="name") if common and token.case != "lower" else token

    def _lookup(self, token: Token) -> str:
        """The word of a token, as far as a reading may depend on it."""
        return (token.lookup or token.text.lower()) if token.kind in self._open and not token.claimed else ""

    def _phrases(self, line: _Line, known: Sequence[str], fields: list[str | None]) -> set[int]:
        """Give every word of a listed phrase its field; which words are joined to the next one."""
        words = [
            token.text.lower() if token.kind in self._hidden and not token.claimed else word
            for token, word in zip(line.words, known, strict=True)
        ]
        joined: set[int] = set()
        end = 0
        for at, first in enumerate(words):
            if at < end or first not in self._lengths:
                continue
            most = at + 1
            while most < min(len(words), at + MOST_WORDS) and line.gaps[most - 1] in _LOOSE:
                most += 1
            for length in sorted(self._lengths[first], reverse=True):
                field = self._whole.get(tuple(words[at : at + length])) if at + length <= most else None
                if field:
                    end = at + length
                    fields[at:end] = [field] * length
                    joined.update(range(at, end - 1))
                    break
        return joined

    def _beyond(
        self, gaps: Sequence[str], known: Sequence[str], bits: Sequence[int], fields: list[str | None]
    ) -> set[int]:
        """Join a half and a word of its field with the small words between: `convert to Islam`."""
        joined: set[int] = set()
        for at in range(1, len(known) - 1):
            if known[at] not in _LINKS or known[at - 1] in _LINKS:
                continue
            end = at + 1
            while end < len(known) - 1 and end < at + _MOST_LINKS and known[end] in _LINKS:
                end += 1
            left, right = fields[at - 1], fields[end]
            field = right if bits[at - 1] & BIT_OF_FIELD.get(right or "", 0) else None
            field = field or (left if bits[end] & BIT_OF_FIELD.get(left or "", 0) else None)
            if field and not (left and right) and all(gap in _TIGHT for gap in gaps[at - 1 : end]):
                fields[at - 1 : end + 1] = [field] * (end - at + 2)
                joined.update(range(at - 1, end))
        return joined

    def _beside(
        self, line: _Line, known: Sequence[str], bits: Sequence[int], fields: list[str | None]
    ) -> set[int]:
        """Give words beside others the field of these; which words are joined to the next one."""
        found = tuple(fields)
        joined: set[int] = set()
        for at, gap in enumerate(line.gaps):
            left, right = found[at], found[at + 1]
            both = bits[at] & bits[at + 1] & ~MODIFIER
            first, second = line.words[at], line.words[at + 1]
            if gap not in _TIGHT or (left and right and left != right):
                continue
            if left and not right and self._follows(second, bits[at + 1], left):
                fields[at + 1] = left
            elif right and not left and self._leads(first, bits[at], right):
                fields[at] = fields[at] or right
            elif both and not (left or right):
                field = next(field for field in FIELDS if both & BIT_OF_FIELD[field])
                fields[at], fields[at + 1] = fields[at] or field, field
            elif not right and known[at + 1] in FOLLOWERS and base_of(first.kind) == "name":
                fields[at + 1] = "politics" if "politics" in self._fields else None
                continue
            elif not (left and right):
                continue
            joined.add(at)
        return joined

    def _follows(self, token: Token, bits: int, field: str) -> bool:
        """Whether a word behind one of a field is part of the value."""
        return (token.kind in self._seldom and not token.claimed) or bool(bits & BIT_OF_FIELD[field])

    def _leads(self, token: Token, bits: int, field: str) -> bool:
        """Whether a word before one of a field is part of the value."""
        modifies = bits & MODIFIER and token.kind == "word" and field not in _UNMODIFIED
        return bool(modifies) or self._follows(token, bits, field)


class _Line:
    """The tokens of a text as its words, with what stands between each and the next."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens, self._places = tokens, list[int]()
        self.words, self.gaps = list[Token](), list[str]()
        gap = ""
        for at, token in enumerate(tokens):
            if token.kind == "space" or (token.kind == "punct" and token.text == "-"):
                gap += token.text
                continue
            if self.words:
                self.gaps.append(gap)
            self.words.append(token)
            self._places.append(at)
            gap = ""

    def joined(self, fields: Sequence[str | None], joined: set[int]) -> list[Token]:
        """The tokens, the words of a field of its kind and one token where they are joined."""
        tokens: list[Token] = []
        end = at = 0
        while at < len(fields):
            field, start = fields[at], self._places[at]
            if field:
                while at in joined and fields[at + 1] == field:
                    at += 1
                tokens += self._tokens[end:start]
                end = self._places[at] + 1
                tokens.append(self._one(field, start, end))
            at += 1
        return tokens + self._tokens[end:]

    def _one(self, field: str, start: int, end: int) -> Token:
        if end == start + 1:
            return self._tokens[start]._replace(kind=field)
        return Token(field, "".join([token.text for token in self._tokens[start:end]]))
