"""Names: which words are names by what stands around them, which tokens make one name, and of which type.

The lexer marks capitals that say "name", the policy's lists know names that are nothing else. What is left
are words that are names as well (*namesakes*: rose, mark, reading) and ordinary words in names, where the
place asks for a capital, in lines of capitals and in lower case. A namesake is a name there

- beside a name or an initial: `Rose Miller`, `HARRY GOLD`, in lower case beside a person;
- before `'s`, before what people do (`Mark said`), joined by `and` to a name, after a title or a greeting;
- as the whole of a line or a table's cell, up to comma, bracket or number: signatures, addresses, lists;
- in a line of capitals after a preposition or beside another namesake, or as `SURNAME, GIVEN`;
- in lower case after who is met or asked, before `: ` at the head of a line, and after `in`; where it is
  hardly anything but a person (`daisy`), wherever neither article nor adjective stands before it.

Ordinary capitalised words are names before the end of a company (`Pinnacle Motors`, `AMBERLINE TRAVEL LTD`),
with a street word behind a number, and as whole lines of an address: the first block of a text of several, or
what follows a closing formula. A word that is a name once is one at its other capitals in the same text, and
an unknown word in lower case too. Months, days, titles, `Re`, `Tel`, `PDF` and the like (`namewords`) keep
their capital and pass; so do single letters that stand beside no name, and adjectives of origin and belief.

Adjacent names are one token with their initials, particles, `&`, `of` after a head and company form; titles,
`'s` and punctuation stay outside. A street takes its number in. The types are those of
`transom.privacy.nametypes`.

No rule looks at a word that the policy draws: to its neighbours such a word is a capital or none. What a word
is itself may depend on it (a namesake is hidden where another word of its group is drawn): that is of the
rule of each drawn word, which is disclosed.

Threat model: that of the lexer; capitals and lists are public.
Not seen: other namesakes in lower case; an ordinary word as a name at the head of a sentence; nicknames that
are words; names of several common words (`Pity Me`) in lower case; names in a text of one line that hold
neither a listed word nor a namesake; titles of works. Names in a row without punctuation are one.
Source: own; the Penn treebank's notion of a name stretch (Marcus et al. 1993).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transom.privacy import namewords as nw
from transom.privacy.closed import ABBREVIATIONS, AMBIGUOUS_MONTHS, DAYS
from transom.privacy.kinds import SUBKINDS, base_of
from transom.privacy.nametypes import Stretch, Types, zones_of
from transom.privacy.policy import Policy
from transom.privacy.techwords import TECHNICAL
from transom.privacy.text import Token, outline

SUBNAMES = ("person", "place", "organisation")
NAMES = frozenset({"name", "person", "place", "organisation"})

# A code a token. Names: N, O with the last word or head of an organisation, Z custom (`Tel`), in lower case n
# (person) and o; I a single capital, M a month that is a given name, too. Namesakes: C in title case, U in
# capitals, c; T, Q and e where they are hardly anything else, D and E where they are drawn, J where the
# capital is custom. Other words: W title case, V capitals, A of belief and origin, B with the last word of an
# organisation, K custom, d of the dictionary alone, r unknown in capitals, w. Closed: t title, g greeting, v
# what people do, s what only they do, m whom one meets, b preposition, f of, + and, p particle, L company
# form, q 's, y address, R relation, S station, z and Y pass words. # number or code; else itself.
_START = r"(?:(?<![^\n¶])|(?<=\|[ ])|(?<=[\n¶]-[ ])|(?<=\A-[ ]))"
_END = r"(?=[ ]?(?:[,\n¶|(]|--|-[ ]|\#|\Z))"
_SENTENCE = r"(?:(?<![^\n¶])|(?<=[.!?][ ]))"
_FOUND = re.compile(
    rf"""
    (?:
      (?:(?<=t[ ])|(?<=t[.][ ]))(?:[CTDUQEJWVBrAZ]|I(?![.]?[ ]*[NOI]))
    | (?:(?<=[NO][ ])|(?<=I[.][ ]))[AZ] | [AZ](?=[ ][NO]) | [CTDUQEJW](?=-[NO])
    | [CTDJ](?=[ ](?:I[.]?[ ])*[NO]) | [UQEJ](?=[ ](?:I[.]?[ ])*[NOr]) | [ce](?=[ ]n)
    | (?:(?<=[NO][ ])|(?<=I[.][ ])|(?<=I[ ]))[CTDUQEJ] | (?<=n[ ])[ce]
    | [CTDUQEJ](?=q) | (?<!')[CTUQ](?='[ ][a-z])
    | [CTDUQE](?=[ ][vsm]) | [ce](?=[ ]s)
    | [CTDUQE](?=[ ]&[ ]N) | [CTDUQE](?=[ ][+][ ][NI]) | (?<=[N][ ][+][ ])[CTDUQEce] | [ce](?=[ ][+][ ]n)
    | (?<=n[ ][+][ ])[ce]
    | M(?=[ ](?:I[.]?[ ])*[NO]) | T(?=[,!?:]|[ ][+]) | (?:(?<=[+f][ ])|(?<=[ ]:[ ]))T
    | (?<=g[ ])(?:[CTDUQE]|[ce](?=[,!?\n¶]|\Z|[ ]y))
    | {_START}[CTDUQE](?=[ ]\#)
    | {_START}[CTDUQEJ](?=,[ ]N(?:[ ]I[.]?)?[ ]?(?:[|\n¶]|\Z))
    | (?:(?<=[NOL],[ ])|(?<=L[.],[ ]))[CTDUQE]{_END}
    | (?<=m[ ])[ce](?=[,.!?\n¶]|\Z|[ ][+bc])
    | (?<=b[ ])[ce](?=[ ](?:[ce][ ])?S) | (?<=[ce][ ][+][ ])[ce](?=[ ]b)
    | (?:(?<![^\n¶<"])|(?<=[.!?,:;<"][ ])|(?<=[mbfvsgR+][ ]))e(?=[,.!?:;>"\n¶]|\Z|[ ][vsmb+y]) | e(?=[ ]y)
    | (?:(?<=[mgR][ ])|(?<=[\n¶]v[ ])|(?<=\Av[ ]))e | (?<=R[ ])c(?=[ ][vs])
    | (?<=b[ ])[ce](?=[ ]) | (?<=,[ ])[ce](?=[ ]?[wdx]?(?:[\n¶]|\Z))
    | (?<![^\n¶])(?:[ced](?=:)|[ce](?=[ ]v[ ]v))
    | (?<=b[ ])Y(?=[,.\n¶]|\Z|[ ][b#vw]) | (?<=[NO]-)[CTDUQEJWVBr] | (?<=\#[ ])[CTDUQE]{_END}
    | (?<=[NO]q[ ])[CTDUQEJWVB] | (?<=[bf][ ]r[ ])V(?=[\n¶,.]|\Z) | (?<=[Nr][ ]&[ ])[CTDUQEWV]
    | (?<=[bf][ ])[UEQ](?=[ ][bvs]|[.,!?\n¶]|\Z)
    | (?:(?<![^\n¶])|(?<=[.!?,:;][ ])|(?<=[mbfvsgR+VE][ ]))Q(?=[,.!?:;\n¶]|\Z|[ ][vsmb+])
    | [QU](?=[ ][QU][ ]?(?:[vsmb.,:;!?\n¶]|\Z)) | (?<=[mR][ ])[QU](?=[ ][QU]|[ ]?[.,:;!?\n¶]|\Z)
    | (?<=[bf][ ])[UEQ](?=[ ][UQJ](?:[.,\n¶]|\Z))
    | {_SENTENCE}[CTDUQE](?=[ ]b[ ]z)
    )
    """,
    re.VERBOSE,
)
_ANY = "[CTDUQEWVNOBIrJ]"
_SEGMENT = re.compile(rf"{_START}{_ANY}[.]?(?:[ ](?:p[ ])*{_ANY}[.]?){{0,3}}{_END}")
_COMPANY = re.compile(
    rf"(?:[NrCTUQ]|(?<=b[ ])[VE]|{_START}[WVDE])(?:[ ][NOrCTDUQEWVJK]){{0,2}}[ ][BO](?:[ ]L)?(?![A-Za-z])"
)
_STREET = re.compile(
    r"(?:(?<=\#[ ])|(?<=\#[ ]z[ ]))[CTDUQEWVNOBrJ](?:[ ][CTDUQEWVNOBrJ]){0,2}(?![ ]?[a-zA-Z])"
)
_HEAD = re.compile(r"B(?=[ ]f[ ][NO])")
_JOINED = re.compile(
    r"""
    (?:(?<!I)(?<!I[. ])(?<!I[.][ ])(?:I[.]?[ ]?)++)?
    (?:(?:p[ ]){2,4}|(?<=[tg][ ])p[ ]|(?<=t[.][ ])p[ ])?[NO](?:
        [ ](?:I[.]?[ ])*(?:p[.]?[ ])*[NO]
        | -[NO] | [ ]?&[ ]?[NO] | [ ][+][ ]O | q[ ]O | (?<=O)[ ]f[ ](?:z[ ])?[NO]
        | [ ]I(?:[.](?![ ]*[\n¶]|\Z))?(?![A-Za-z])
    )*(?:,?[ ]L(?:[.](?=,|[ ]?[a-z]))?)?
    | n(?:[ ][nN]|-n)* | o(?:[ ]o|-o)*
    """,
    re.VERBOSE,
)
_LABELLED = re.compile(
    r"""
    [A-Za-z]:[ ][NO](?:,[ ][NOJKUQCTWD])*(?=[\n¶]|\Z)  # Skills: Word, Excel
    | (?P<cells>(?<![^\n¶])\|[^\n¶]*(?=\n\|[ :|]*-[ :|-]*+(?:\n|\Z)))  # the head of a table
    """,
    re.VERBOSE,
)
_POSTSCRIPT = re.compile(r"I[.]I")  # P.S.
_NAMESAKE, _NAME = re.compile("[CTUQ]"), re.compile("N")
_BEGUN = re.compile("[NOnoIp]")  # with what `_JOINED` begins
_AGREEING, _APART = re.compile("[CTUQWVJrx]"), re.compile("[ItZzL]")
# What `_FOUND` is asked of, and where `_SEGMENT` is looked for.
_MAYBE = re.compile(r"[CTDUQEJVBrceAZIMY]|W(?=-)|(?<=[tq&.] )W|(?<=-)W|d(?=:)")
_STARTS = re.compile(r"(?:\A|[\n¶])(?:-[ ])?|\|[ ]")


class Names:
    """Finds, joins and types names under a policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        named = frozenset(word for word in policy.names if policy.listed.get(word) == "dictionary")
        closed = nw.NAMESAKES if policy.listed else frozenset()
        self.namesakes = (policy.namesakes | named | (closed & policy.kind_of.keys())) - nw.ACRONYMS
        kinds = ("word", *(kind for kind, (base, _) in SUBKINDS.items() if base in ("word", "rare")))
        self._drawn = frozenset(kind for kind in kinds if policy.rule(kind) != "pass")

    def are_called(self, lookup: str) -> bool:
        """Whether a word is the plural of a namesake: `the Churches`."""
        return lookup.endswith("s") and (lookup[:-1] in self.namesakes or lookup[:-2] in self.namesakes)

    def read(self, tokens: list[Token], text: str) -> tuple[list[Token], str]:
        """The tokens, each name one token of its type; `text` are their codes, those after it come back."""
        if not _CANDIDATE.search(text):
            return tokens, text
        zones, codes = zones_of(tokens, text, self._drawn), list(text)
        self._find(tokens, codes, zones)
        return self._join(tokens, codes, zones)

    def code(self, token: Token) -> str:
        """The code of a token."""
        kind, lookup = token.kind, token.lookup
        if kind in ("space", "punct"):
            return outline(token)
        if not lookup:
            if (
                kind in ("date", "stop")
                and token.text.title() == token.text
                and token.text.lower() in _MONTHS
            ):
                return "M"
            return "#" if base_of(kind) in ("number", "identifier") or kind == "place" else "0"
        if lookup in nw.TITLES and (
            lookup in ABBREVIATIONS
            or (lookup in nw.SHOWN_TITLES and kind == "stop" and token.case != "lower")
        ):
            return "t"
        hidden = kind in self._drawn
        if lookup in nw.PARTICLES and token.case == "lower" and not hidden and kind != "stop":
            return "p"
        if kind in NAMES or (kind == "foreign" and token.case != "lower"):
            return self._name_code(token)
        if kind == "rare":
            return "r" if token.case == "upper" and len(lookup) > 1 else "x"
        if token.case == "lower":
            code = "w" if hidden else self._lower_code(lookup)
            return "d" if code == "w" and kind == "dictionary" and not hidden else code
        title = token.case == "title"
        if token.marked and kind not in ("stop", "dictionary", "word", "uncommon", "part") and not hidden:
            return "A"
        if lookup in self.namesakes and not (lookup in nw.GREETINGS and not hidden):
            if lookup in nw.CUSTOMARY and not hidden:
                return "J"
            if hidden:
                return "D" if title else "E"
            strong = lookup in nw.STRONG_WITH_CAPITAL
            return ("T" if strong else "C") if title else ("Q" if strong else "U")
        if hidden:
            return "W" if title else "V"
        code = self._lower_code(lookup)
        if code != "w":
            return code
        if kind == "stop":
            public = lookup in DAYS or token.text in TECHNICAL
            return "Y" if token.marked and title and len(lookup) > 3 and not public else "z"
        if lookup in nw.CUSTOMARY:
            return "K"
        return "B" if lookup in nw.BODIES or lookup in nw.HEADS else "W" if title else "V"

    def _name_code(self, token: Token) -> str:
        lookup = token.lookup
        if token.case == "lower":
            return "L" if lookup in nw.LEGAL else "n" if token.kind == "person" else "o"
        if len(lookup) == 1:
            return "I"
        if lookup in nw.CUSTOMARY and token.kind != "name":
            return "Z"
        if lookup in nw.LEGAL:
            return "L"
        return "O" if lookup in nw.BODIES or lookup in nw.HEADS else "N"

    def _lower_code(self, lookup: str) -> str:
        """Of a word that the host may read anyway."""
        if lookup in self.namesakes and lookup not in nw.GREETINGS:
            return "e" if lookup in nw.STRONG else "c"
        return _LOWER.get(lookup) or ("v" if lookup.endswith("ed") and len(lookup) > 4 else "w")

    def _find(self, tokens: list[Token], codes: list[str], zones: bytearray) -> None:
        """Make N of the code of every word that is a name by what stands around it."""
        self._unname(tokens, codes)
        for _ in range(2):  # a name found may make one of its neighbour
            found = list(self._places(tokens, "".join(codes), zones))
            for at in found:
                codes[at] = "O" if codes[at] in "BO" else "n" if codes[at] in "ced" else "N"
            if not found:
                break
        self._agree(tokens, codes)

    def _unname(self, tokens: list[Token], codes: list[str]) -> None:
        """`P.S.`, a known word behind a label such as `Status:`, and in the head of a table, is no name."""
        text = "".join(codes)
        for match in _POSTSCRIPT.finditer(text):
            if tokens[match.start()].lookup == "p":
                codes[match.start() : match.end()] = "z.z"
        for match in _LABELLED.finditer(text) if ": " in text or "|" in text else ():
            label = tokens[match.start()]
            if match["cells"] or (label.lookup in nw.PLAIN_LABELS and label.kind not in self._drawn):
                for at in range(*match.span()):
                    token = tokens[at]
                    kind = self._policy.kind_of.get(token.lookup, "")
                    public = kind and kind not in SUBNAMES and kind not in self._drawn
                    if codes[at] in "NO" and public and token.lookup not in self.namesakes:
                        tokens[at], codes[at] = token._replace(kind=kind), "K"

    def _places(self, tokens: Sequence[Token], text: str, zones: bytearray) -> Iterator[int]:
        for match in _MAYBE.finditer(text):
            at = match.start()
            if _FOUND.match(text, at) and self._stands(tokens, text, at):
                yield at
        if 1 in zones or 2 in zones:
            yield from (match.start() for match in _NAMESAKE.finditer(text) if zones[match.start()])
        for match in filter(None, (_SEGMENT.match(text, one.end()) for one in _STARTS.finditer(text))):
            if text[match.start()] in "CTUQ" and zones[match.start()] == 2:
                yield match.start()
            if self._whole(tokens, match) or (match[0] != "J" and zones[match.start()]):
                yield from (at for at in range(*match.span()) if text[at] in "CTDUQEWVBrJ")
        for pattern in (_COMPANY, _HEAD) if "B" in text or "O" in text else ():
            for match in pattern.finditer(text):
                yield from (at for at in range(*match.span()) if text[at] in "CTDUQEWVBrJK")
        for match in _STREET.finditer(text) if "#" in text else ():
            last = tokens[match.end() - 1]
            if last.lookup in nw.STREETS and last.kind not in self._drawn:
                yield from (at for at in range(*match.span()) if text[at] in "CTDUQEWVBrJ")

    @staticmethod
    def _whole(tokens: Sequence[Token], match: re.Match[str]) -> bool:
        """Whether a line's words are all names; of those that are drawn there may be one, beside names."""
        found = set(match[0])
        drawn = match[0].count("D") + match[0].count("E")
        if match[0][:2] == "N " and found <= set("NVUQrJ ") and tokens[match.start()].kind == "person":
            return True  # HARRY GOLD
        if drawn:
            return drawn == 1 and found <= set("DENOI. p")
        return found <= set("CTUQNOIJ. p") and not found <= set("IJ. p")

    def _stands(self, tokens: Sequence[Token], text: str, at: int) -> bool:
        """Whether a word that may do without an article is a name here all the same."""
        following, before = text[at + 1 : at + 3], text[max(0, at - 2) : at]
        lookup = tokens[at].lookup
        if following in (" v", " m", " +") and lookup in nw.MASS:
            return tokens[at + 2].lookup in nw.SPEAKS
        if text[at] in "ce" and lookup in nw.MASS and before in ("m ", "b ", ", "):
            return following == " S"
        if before == "b " and text[at] in "ce" and following[:1] == " " and following != " S":
            return tokens[at - 2].lookup in (("in", "near") if following[1] not in "bv" else _NOT_TO)
        if before == "q ":
            return lookup in nw.PARTS and tokens[at].kind not in self._drawn
        if before == "b " and lookup in nw.MASS:
            return following in (" U", " Q", " S")
        return not (following == " b" and lookup.endswith("ing"))

    def _agree(self, tokens: Sequence[Token], codes: list[str]) -> None:
        """What is a name once is one at its other capitals, where the word would pass or is unknown."""
        text = "".join(codes)
        names = {tokens[match.start()].lookup for match in _NAME.finditer(text)}
        for match in _AGREEING.finditer(text) if names else ():
            at = match.start()
            if tokens[at].lookup in names and tokens[at].kind not in self._drawn:
                codes[at] = "N" if text[at] != "x" else "o"

    def _join(self, tokens: list[Token], codes: list[str], zones: bytearray) -> tuple[list[Token], str]:
        """One token for each stretch of names."""
        text = "".join(codes)
        stretches: list[Stretch] = []
        end = 0
        for begun in _BEGUN.finditer(text):
            match = _JOINED.match(text, begun.start()) if begun.start() >= end else None
            if match is None:
                continue
            end = match.end()
            if stretches and match.start() < stretches[-1].stop:
                continue
            one = self._stretch(tokens, text, *match.span())
            if stretches and one.start < stretches[-1].stop:  # its head was found as a name by itself
                one.start = stretches.pop().start
            stretches.append(one)
        public = self.namesakes, self._policy.kind_of, self._drawn
        Types(tokens, text, zones, *public).type(stretches)
        for match in _APART.finditer(text):  # outside names
            token = tokens[match.start()]
            # A capital beside no name is a letter, a company form a word.
            if token.kind in NAMES and (match[0] != "L" or len(token.text) > 2 or token.text.islower()):
                tokens[match.start()] = token._replace(kind="stop")
        joined: list[Token] = []
        parts: list[str] = []
        end = 0
        for one in stretches:
            joined += tokens[end : one.start]
            joined.append(Token(one.kind, "".join([token.text for token in tokens[one.start : one.stop]])))
            parts += (text[end : one.start], "N")
            end = one.stop
        return joined + tokens[end:], "".join([*parts, text[end:]])

    def _stretch(self, tokens: Sequence[Token], text: str, start: int, stop: int) -> Stretch:
        """A stretch of names with what stands beside it: a street's number, `St Mary's Road`."""
        if text[start] not in "NO":
            return Stretch(start, stop)
        if text[stop : stop + 3] == "q N" and tokens[stop + 2].lookup in nw.PARTS:
            stop += 3
        last, first = tokens[stop - 1].lookup, tokens[start].lookup
        after = text[stop : stop + 4]
        gate = after[:1] == " " and after[2:] == " #" and tokens[stop + 1].lookup in nw.STREETS
        street = gate or last in nw.STREETS or last.endswith(nw.STREET_ENDS)
        for number in ("# ", "#, "):
            if street and not gate and text.endswith(number, 0, start) and self._free(text, start, number):
                return Stretch(start - len(number), stop)
        head = start
        while head > 1 and start - head < 6 and tokens[head - 2].lookup in nw.PARTICLES:
            head -= 2
        before = tokens[head - 2] if head > 1 and text[head - 1] == " " else None
        if (
            before
            and before.lookup in nw.STREET_HEADS
            and before.kind not in self._drawn
            and after[1:2] == "#"
        ):
            start = head - 2  # Via dei Mille 38
        if gate:
            return Stretch(start, stop + 4)  # Karl Johans gate 192
        street = street or first in nw.STREET_HEADS or tokens[start].lookup in nw.STREET_HEADS
        return Stretch(start, stop + 2 if street and after[:2] == " #" else stop)

    @staticmethod
    def _free(text: str, start: int, number: str) -> bool:
        """Whether the number before a street is not that of a street before it."""
        return text[max(0, start - len(number) - 2) : start - len(number)] not in ("N ", "O ")


_NOT_TO = (nw.BY | nw.PLACED) - {"to"}
_MONTHS = AMBIGUOUS_MONTHS - {"march", "jan", "mar"}
_LOWER = {
    **dict.fromkeys(nw.DOES, "v"), **dict.fromkeys(nw.SPEAKS, "s"), **dict.fromkeys(nw.BY | nw.PLACED, "b"),
    **dict.fromkeys(nw.PARTICLES - {"do", "as", "al", "le", "der", "den", "dem"}, "p"),
    **dict.fromkeys(nw.LEGAL - {"as", "co", "sa", "ag"}, "L"), **dict.fromkeys(nw.ADDRESSED, "y"),
    **dict.fromkeys(nw.RELATIONS, "R"), **dict.fromkeys(nw.GREETINGS, "g"),
    "and": "+", "of": "f", "'s": "q", "the": "z", "a": "z",
    **dict.fromkeys(nw.MEETS, "m"), **dict.fromkeys(nw.STATIONS, "S"),
}  # fmt: skip
_CANDIDATE = re.compile("[CTDUQEJceWVBrNOIZAnotdYM]")
