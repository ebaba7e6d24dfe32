"""Names: which words are names by what stands around them, which tokens make one name, and of which type.

The lexer marks capitals that say "name", the policy's lists know names that are nothing else. What is left
are words that are names as well (*namesakes*: rose, mark, reading) and ordinary words in names, where the
place asks for a capital, in lines of capitals and in lower case. A namesake is a name there

- beside a name or an initial: `Rose Miller`, `HARRY GOLD`, in lower case beside a person;
- before `'s`, before what people do (`Mark said`), joined by `and` to a name, after a title or a greeting;
- as the whole of a line or a table's cell, up to comma, bracket or number: signatures, addresses, lists;
- in a line of capitals after a preposition, or as `SURNAME, GIVEN`.

Ordinary capitalised words are names before the end of a company (`Pinnacle Motors`, `AMBERLINE TRAVEL LTD`),
with a street word behind a number, and as whole lines of an address: the first block of a text of several, or
what follows a closing formula. A word that is a name once is one at its other capitals in the same text, and
an unknown word in lower case too. Months, days, titles, `Re`, `Tel`, `PDF` and the like (`namewords`) keep
their capital and pass; so do single letters that stand beside no name, and adjectives of origin and belief.

Adjacent names are one token with their initials, particles, `&`, `of` after a head and company form; titles,
`'s` and punctuation stay outside. A street takes its number in. Types, first that holds: organisation by its
last word or head; place by street word or postcode; person by title, greeting or initial; the lists' type of
its words; place after `in near at`; person after two namesakes or before what people do; else `name`.

No rule looks at a word that the policy draws: to its neighbours such a word is a capital or none. What a word
is itself may depend on it (a namesake is hidden where another word of its group is drawn): that is of the
rule of each drawn word, which is disclosed.

Threat model: that of the lexer; capitals and lists are public. Not seen: namesakes in lower case without a
person beside them; an ordinary word as a name at the head of a sentence; nicknames that are words; names
in a text of one line that hold neither a listed word nor a namesake; titles of works; several names in a
row without punctuation are one.
Source: own; the Penn treebank's notion of a name stretch (Marcus et al. 1993).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transom.privacy import namewords as nw
from transom.privacy.closed import ABBREVIATIONS
from transom.privacy.kinds import SUBKINDS
from transom.privacy.policy import Policy
from transom.privacy.text import Token

NAMES = frozenset({"name", "person", "place", "organisation"})

# A code a token. Names: N, O with the last word or head of an organisation, in lower case n (person) and o;
# I a single capital. Namesakes: C in title case, U in capitals, c; D and E where they are drawn, J where the
# capital is custom too. Other words: W title case, V capitals, B with the last word of an organisation,
# K custom, r unknown in capitals, w. Closed: t title, g greeting, v what people do, s also in lower case, b
# preposition, f of, + and, p particle, L company form, q 's, y address. # number or code; else itself.
_START = r"(?:(?<![^\n¶])|(?<=\|[ ])|(?<=[\n¶]-[ ]))"
_END = r"(?=[ ]?(?:[,\n¶|(]|--|-[ ]|\#|\Z))"
_SENTENCE = r"(?:(?<![^\n¶])|(?<=[.!?][ ]))"
_FOUND = re.compile(
    rf"""
      (?:(?<=t[ ])|(?<=t[.][ ]))[CDUEJWVBr]
    | [CDJ](?=[ ](?:I[.]?[ ])*[NO]) | [UEJ](?=[ ](?:I[.]?[ ])*[NOr]) | c(?=[ ]n)
    | (?:(?<=[NO][ ])|(?<=I[.][ ])|(?<=I[ ]))[CDUEJ] | (?<=n[ ])c
    | [CDUEJ](?=q)
    | [CDUE](?=[ ][vs]) | c(?=[ ]s)
    | [CDUE](?=[ ][+][ ][NI]) | (?<=[N][ ][+][ ])[CDUEc] | c(?=[ ][+][ ]n) | (?<=n[ ][+][ ])c
    | (?<=g[ ])(?:[CDUE]|c(?=[,!?\n¶]|\Z|[ ]y))
    | {_START}[CDUE](?=[ ]\#)
    | {_START}[CDUEJ](?=,[ ]N(?:[ ]I[.]?)?[ ]?(?:[|\n¶]|\Z))
    | (?<=N,[ ])[CDUE]{_END}
    | (?<=b[ ])[UE](?=[ ][bvs]|[.,!?\n¶]|\Z)
    | (?<=b[ ])[UE](?=[ ][UJ](?:[.,\n¶]|\Z))
    | {_SENTENCE}[CDUE](?=[ ]b[ ]z)
    """,
    re.VERBOSE,
)
_ANY = "[CDUEWVNOBIrJ]"
_SEGMENT = re.compile(rf"{_START}{_ANY}[.]?(?:[ ](?:p[ ])*{_ANY}[.]?){{0,3}}{_END}")
_COMPANY = re.compile(
    rf"(?:[NrCU]|(?<=b[ ])V|{_START}[WV])(?:[ ][NOrCUWVJK]){{0,2}}[ ][BO](?:[ ]L)?(?![A-Za-z])"
)
_STREET = re.compile(r"(?<=\#[ ])[CDUEWVNOBrJ](?:[ ][CDUEWVNOBrJ]){0,2}(?![ ]?[a-zA-Z])")
_HEAD = re.compile(r"B(?=[ ]f[ ][NO])")
_CLOSING = re.compile(r"[\n¶](?:[^\n¶ ]+[ ]){0,3}\Z")
_JOINED = re.compile(
    r"""
    (?:I[.]?[ ]?)*(?:(?:p[ ])+)?[NO](?:
        [ ](?:I[.]?[ ])*(?:p[.]?[ ])*[NO]
        | -[NO] | [ ]?&[ ]?[NO] | [ ][+][ ]O | (?<=O)[ ]f[ ](?:z[ ])?[NO]
        | [ ]I(?:[.](?![ ]*[\n¶]|\Z))?(?![A-Za-z])
    )*(?:,?[ ]L(?:[.](?=,|[ ]?[a-z]))?)?
    | n(?:[ ][nN]|-n)* | o(?:[ ]o|-o)*
    """,
    re.VERBOSE,
)
_LONG_BLOCK = 8  # lines of an address


class Names:
    """Finds, joins and types names under a policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._namesakes = policy, policy.namesakes
        kinds = ("word", *(kind for kind, (base, _) in SUBKINDS.items() if base == "word"))
        self._drawn = frozenset(kind for kind in kinds if policy.rule(kind) != "pass")

    def read(self, tokens: list[Token]) -> list[Token]:
        """The tokens, each name one token of its type."""
        codes = list(map(self._code, tokens))
        self._find(tokens, codes)
        return list(self._join(tokens, codes))

    def _code(self, token: Token) -> str:
        kind, lookup = token.kind, token.lookup
        if kind == "space":
            lines = token.text.count("\n")
            return " " if not lines else "\n" if lines == 1 else "¶"
        if kind == "punct":
            return token.text if token.text != "#" else "*"
        if not lookup:
            return "#" if kind in ("number", "identifier") else "0"
        if lookup in ABBREVIATIONS and lookup in nw.TITLES:
            return "t"
        if kind in NAMES or (kind == "foreign" and token.case != "lower"):
            return self._name_code(token)
        if kind == "rare":
            return "r" if token.case == "upper" and len(lookup) > 1 else "x"
        hidden = kind in self._drawn
        if token.case == "lower":
            return "w" if hidden else self._lower_code(lookup)
        title = token.case == "title"
        if lookup in self._namesakes and not (lookup in nw.GREETINGS and not hidden):
            if lookup in nw.CUSTOMARY:
                return "J"
            return ("D" if title else "E") if hidden else ("C" if title else "U")
        if hidden:
            return "W" if title else "V"
        code = self._lower_code(lookup)
        if code != "w":
            return code
        if kind == "stop":
            return "z"
        if lookup in nw.CUSTOMARY:
            return "K"
        return "B" if lookup in nw.BODIES or lookup in nw.HEADS else "W" if title else "V"

    def _name_code(self, token: Token) -> str:
        lookup = token.lookup
        if token.case == "lower":
            return "n" if token.kind == "person" else "o"
        if len(lookup) == 1:
            return "I"
        if lookup in nw.LEGAL:
            return "L"
        return "O" if lookup in nw.BODIES or lookup in nw.HEADS else "N"

    def _lower_code(self, lookup: str) -> str:
        """Of a word that the host may read anyway."""
        if lookup in self._namesakes and lookup not in nw.GREETINGS:
            return "c"
        return _LOWER.get(lookup, "w")

    def _find(self, tokens: Sequence[Token], codes: list[str]) -> None:
        """Make N of the code of every word that is a name by what stands around it."""
        text = "".join(codes)
        if not _CANDIDATE.search(text):
            return
        for _ in range(2):  # a name found may make one of its neighbour
            for at in self._places(tokens, text):
                codes[at] = "O" if codes[at] in "BO" else "n" if codes[at] == "c" else "N"
            text = "".join(codes)
        self._agree(tokens, codes)

    def _places(self, tokens: Sequence[Token], text: str) -> Iterator[int]:
        for match in _FOUND.finditer(text):
            at = match.start()
            if text[at] in "CDUEJWVBrc" and self._stands(tokens, text, at):
                yield at
        for match in _SEGMENT.finditer(text):
            found = match[0]
            whole = set(found) <= set("CDUENOIJ. p") and bool(set(found) & set("CDUENO"))
            if whole or ("¶" in text and self._in_address(tokens, text, match.start())):
                yield from (at for at in range(*match.span()) if text[at] in "CDUEWVBrJ")
        for pattern in (_COMPANY, _HEAD):
            for match in pattern.finditer(text):
                yield from (at for at in range(*match.span()) if text[at] in "CUWVBrJK")
        for match in _STREET.finditer(text):
            if tokens[match.end() - 1].lookup in nw.STREETS:
                yield from (at for at in range(*match.span()) if text[at] in "CDUEWVBrJ")

    def _stands(self, tokens: Sequence[Token], text: str, at: int) -> bool:
        """Whether a word that may do without an article is a name here all the same."""
        following, before = text[at + 1 : at + 3], text[max(0, at - 2) : at]
        lookup = tokens[at].lookup
        if following in (" v", " +") and lookup in nw.MASS:
            return following == " v" and tokens[at + 2].lookup not in nw.WEAKLY
        if before == "b " and lookup in nw.MASS:
            return following == " U"
        return not (following == " b" and lookup.endswith("ing"))

    def _in_address(self, tokens: Sequence[Token], text: str, start: int) -> bool:
        """Whether a line belongs to the first block of short lines or follows a closing formula."""
        block = text.find("¶")
        if start < block:
            return all(line.count(" ") < _LONG_BLOCK for line in text[:block].split("\n"))
        end = max(text.rfind("\n", 0, start), text.rfind("¶", 0, start))
        for _ in range(3):
            begin = max(text.rfind("\n", 0, max(end, 0)), text.rfind("¶", 0, max(end, 0))) + 1
            line = tokens[begin : max(end, 0)]
            if len(line) <= 8 and any(
                token.lookup in nw.CLOSINGS and token.kind not in self._drawn for token in line
            ):
                return True
            end = begin - 1
        return False

    def _agree(self, tokens: Sequence[Token], codes: list[str]) -> None:
        """What is a name once is one at its other capitals, where the word would pass or is unknown."""
        names = {token.lookup for token, code in zip(tokens, codes, strict=True) if code == "N"}
        for at, code in enumerate(codes):
            if code in "CUWVJrx" and code != " " and tokens[at].lookup in names:
                codes[at] = "N" if code != "x" else "o"

    def _join(self, tokens: list[Token], codes: list[str]) -> Iterator[Token]:
        """One token for each stretch of names."""
        text, end = "".join(codes), 0
        for match in _JOINED.finditer(text):
            start, stop = self._with_number(tokens, text, *match.span())
            start = max(start, end)
            yield from self._apart(tokens, text, end, start)
            kind = self._type(tokens, text, start, stop)
            yield Token(kind, "".join([token.text for token in tokens[start:stop]]))
            end = stop
        yield from self._apart(tokens, text, end, len(tokens))

    def _apart(self, tokens: list[Token], text: str, start: int, stop: int) -> Iterator[Token]:
        """Tokens outside names: a capital beside none is a letter, a company form a word."""
        for at in range(start, stop):
            token = tokens[at]
            if text[at] in "ILt" and token.kind in NAMES:
                token = token._replace(kind="stop" if text[at] != "L" else "dictionary")
            yield token

    def _with_number(self, tokens: Sequence[Token], text: str, start: int, stop: int) -> tuple[int, int]:
        """A street's stretch with its number."""
        if text[start] not in "NO":
            return start, stop
        last, first = tokens[stop - 1].lookup, tokens[start].lookup
        if last in nw.STREETS and text[max(0, start - 2) : start] == "# ":
            return start - 2, stop
        street = last in nw.STREETS or last.endswith(nw.STREET_ENDS) or first in nw.STREET_HEADS
        gate = text[stop : stop + 4]
        if gate[:1] == " " and gate[2:4] == " #" and tokens[stop + 1].lookup in nw.STREETS:
            return start, stop + 4  # Karl Johans gate 192
        return (start, stop + 2) if street and gate[:2] == " #" else (start, stop)

    def _type(self, tokens: Sequence[Token], text: str, start: int, stop: int) -> str:
        """The type of a stretch."""
        words = [token for token in tokens[start:stop] if token.lookup]
        kinds = [token.kind for token in words if token.kind in SUBKINDS]
        code, before = text[start:stop], text[max(0, start - 3) : start]
        lookups = [word.lookup for word in words]
        if "L" in code or lookups[-1] in nw.BODIES or (" f " in code and "O" in code):
            return "organisation"
        if "#" in code or (lookups[-1] in nw.STREETS and len(words) > 1 and "t" not in before):
            return "place"
        if before.endswith(("t ", "t. ", "g ")) or "I" in code:
            return "person"
        for kind in ("person", "organisation", "place"):
            if kind in kinds:
                return kind
        if text[stop : stop + 2] == " #" and text[max(0, start - 1) : start] in ("", "\n", "¶"):
            return "place"
        if before.endswith("b ") and tokens[start - 2].lookup in nw.PLACED:
            return "place"
        follows = text[stop : stop + 2]
        if follows in (" v", " s") or (len(words) > 1 and all(one in self._namesakes for one in lookups)):
            return "person"
        return "name"


_LOWER = {
    **dict.fromkeys(nw.DOES, "v"), **dict.fromkeys(nw.SPEAKS, "s"), **dict.fromkeys(nw.BY | nw.PLACED, "b"),
    **dict.fromkeys(nw.PARTICLES - {"do", "as", "al", "le", "der", "den", "dem"}, "p"),
    **dict.fromkeys(nw.LEGAL - {"as", "co", "sa", "ag"}, "L"), **dict.fromkeys(nw.ADDRESSED, "y"),
    **dict.fromkeys(nw.GREETINGS, "g"), "and": "+", "of": "f", "'s": "q", "the": "z", "a": "z",
    **dict.fromkeys(nw.WEAKLY, "v"),
}  # fmt: skip
_CANDIDATE = re.compile("[CDUEJcWVBrNO]")
