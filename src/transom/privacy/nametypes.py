"""The type of each name of a text: person, place, organisation, or `name` where nothing public tells.

In this order, for a stretch of tokens that `transom.privacy.names` has joined:

- organisation by a company form (`Ltd`), a last word (`Clinic`) or a head (`Bank of`);
- place by a street word with a number or behind a name that is no person's, or by a postcode behind it;
- person by title, greeting, label (`Patient:`), initial, or before `, M.`;
- the public lists' type of one of its words, a person's first;
- place after a number or a place and a comma, before a date that ends the line, and after `in near at`;
- person in a signature, before what people do, after `my sister`, beside a person with `and` or, at the
  head of a line, a comma, and when two or more words are all namesakes or all unknown;
- what another stretch with one of its words is.

Threat model: that of `names`; the type of a hidden name is disclosed. A type can be wrong (a village that is
called as a person is), never does it depend on a word that is drawn.
Source: own.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from transom.privacy import namewords as nw
from transom.privacy.text import Token

_LISTED = ("person", "organisation", "place")
_INITIAL = re.compile(r",[ ]I(?![A-Za-z])")
_CELL_END = re.compile(r"[ ]?(?:[|\n¶.]|\Z)")
_DATED = re.compile(r",[ ][#0]")
_CELL_STARTS = ("", "\n", "¶", "| ", ": ")

_LINE = re.compile(r"[^\n¶]+")
_LONG_LINE = 8  # spaces that no line of an address has
_CLOSING = 6  # tokens of a closing formula
_SIGNATURE = 3  # lines that follow it


@dataclass(slots=True)
class Stretch:
    """Tokens `start` to `stop`, one name."""

    start: int
    stop: int
    kind: str = "name"


class Types:
    """Types the stretches of one text, whose tokens have `text` as their codes."""

    def __init__(
        self,
        tokens: Sequence[Token],
        text: str,
        zones: bytearray,
        namesakes: Collection[str],
        known: Collection[str],
        drawn: Collection[str],
    ) -> None:
        self._tokens, self._text, self._zones = tokens, text, zones
        self._namesakes, self._known, self._drawn = namesakes, known, drawn

    def type(self, stretches: list[Stretch]) -> None:
        """Give every stretch its kind."""
        for one in stretches:
            one.kind = self._alone(one)
        ends = {one.stop: one for one in stretches}
        for one in stretches:
            if one.kind == "name":
                one.kind = self._beside(one, ends) or "name"
        starts = {one.start: one for one in stretches}
        for one in reversed(stretches):
            if one.kind == "name":
                one.kind = self._before(one, starts) or "name"
        self._agree(stretches)

    def _alone(self, one: Stretch) -> str:
        """The type by the stretch itself, its title and its label."""
        words = [token for token in self._tokens[one.start : one.stop] if token.lookup]
        kinds = [token.kind for token in words]
        code, last = self._text[one.start : one.stop], words[-1].lookup
        before = self._text[max(0, one.start - 3) : one.start]
        titled = before.endswith(("t ", "t. "))
        if "L" in code or last in nw.BODIES or (" f " in code and "O" in code):
            return "organisation"
        if "#" in code:
            return "place"
        if len(words) > 1 and last in nw.STREETS:
            human = titled or "person" in kinds or (words[0].lookup in self._namesakes and len(words) == 2)
            if not (human and last in self._namesakes):
                return "place"
        if titled or before.endswith("g ") or "I" in code or self._labelled(one, before):
            return "person"
        if _INITIAL.match(self._text, one.stop):
            return "person"
        for kind in _LISTED:
            if kind in kinds:
                return kind
        return "name"

    def _labelled(self, one: Stretch, before: str) -> bool:
        if not before.endswith(": ") or one.start < 3:
            return False
        label = self._tokens[one.start - 3]
        return label.lookup in nw.PERSON_LABELS and label.kind not in self._drawn

    def _beside(self, one: Stretch, ends: dict[int, Stretch]) -> str | None:
        """The type by what stands around it, the stretch before included."""
        text, tokens = self._text, self._tokens
        before, after = text[max(0, one.start - 3) : one.start], text[one.stop : one.stop + 3]
        if self._zones[one.start] == 2 and (before[-2:] == ", " or self._begins_a_cell(one)):
            return "person"
        if before.endswith(" + ") and (person := ends.get(one.start - 3)) and person.kind == "person":
            return "person"
        if before.endswith(", ") and (listed := ends.get(one.start - 2)):
            if listed.kind == "person" and self._begins_a_cell(listed) and _CELL_END.match(text, one.stop):
                return "person"
            if listed.kind in ("place", "organisation"):
                return "place"
        if before.endswith(("# ", "#, ")) and _CELL_END.match(text, one.stop):
            return "place"
        if self._begins_a_cell(one) and (_DATED.match(text, one.stop) or after[:2] == " #"):
            return "place"
        preceding = tokens[one.start - 2] if before.endswith(" ") and one.start > 1 else None
        if preceding and preceding.kind not in self._drawn:
            if preceding.lookup in nw.PLACED:
                return "place"
            if preceding.lookup in nw.RELATIONS:
                return "person"
        if after[:2] in (" v", " s", " m"):
            return "person"
        words = [token.lookup for token in tokens[one.start : one.stop] if token.lookup]
        likely = [word in self._namesakes or word not in self._known for word in words]
        return "person" if len(words) > 1 and all(likely) else None

    def _begins_a_cell(self, one: Stretch) -> bool:
        before = self._text[max(0, one.start - 2) : one.start]
        return before in _CELL_STARTS or before[-1:] in ("\n", "¶")

    def _before(self, one: Stretch, starts: dict[int, Stretch]) -> str | None:
        """The type by the stretch that follows."""
        after = self._text[one.stop : one.stop + 3]
        if after == " + " and (person := starts.get(one.stop + 3)) and person.kind == "person":
            return "person"
        given = starts.get(one.stop + 2) if after[:2] == ", " else None
        sorts = given and self._begins_a_cell(one) and _CELL_END.match(self._text, given.stop)
        if given and sorts and given.kind in ("person", "name"):
            given.kind = "person"
            return "person"
        return None

    def _agree(self, stretches: list[Stretch]) -> None:
        """A name without a type has that of another with one of its words."""
        type_of: dict[str, str] = {}
        for one in stretches:
            if one.kind != "name":
                for token in self._tokens[one.start : one.stop]:
                    if token.lookup:
                        type_of.setdefault(token.lookup, one.kind)
        for one in stretches:
            if one.kind == "name":
                types = [type_of.get(token.lookup) for token in self._tokens[one.start : one.stop]]
                one.kind = next(filter(None, types), "name")


def zones_of(tokens: Sequence[Token], text: str, drawn: Collection[str]) -> bytearray:
    """1 where lines are an address, 2 where a signature is to be expected, else 0."""
    zones, left = bytearray(len(text)), 0
    block = text.find("¶")
    if block > 0 and all(line.count(" ") < _LONG_LINE for line in text[:block].split("\n")):
        zones[:block] = b"\1" * block
    for match in _LINE.finditer(text):
        start, end = match.span()
        if left:
            zones[start:end] = bytes([1 + (left == _SIGNATURE)]) * (end - start)
            left -= 1
        for at in range(start, min(end, start + _CLOSING)):
            if tokens[at].lookup in nw.CLOSINGS and tokens[at].kind not in drawn:
                zones[at:end], left = b"\2" * (end - at), _SIGNATURE
    return zones
