"""The lexer: text to tokens, with a stated rule for every character. Nothing passes that is not listed here.

The tokens, end to end, are the normalised text; where words pass, `transom.privacy.layout` puts back what was
typed. The rules:

- *Normalised*: compatibility forms become plain ones (NFKC), except fractions, superscripts and circled
  digits, which keep their value as numbers. Control, format, zero-width, bidirectional and surrogate
  characters are dropped; combining marks stay with their letter. Typographic quotes and hyphens become
  ASCII. White space becomes one space, or one or two line feeds.
- *space*, *punct* (ASCII punctuation and `–—•`): the only characters that may pass as they are.
- *number*: digits of any script with separators, currency sign, per cent, `st nd rd th s am pm k m bn tn`;
  cardinal numbers in words (`one` too), and as one token what belongs together: `5 million`, `two hundred
  and fifty`, `+44 20 7946 0958`, `(030) 1234-567`. Dates as one token: a month beside a day or year, `8th of
  may 1995`, `May 8`; alone, a month that is nothing else, and `may march april june august jan mar` after
  `by during from in of on since until`. Where words pass, also what open words say: `half past nine`, `four
  grand`, `third of May`; there small counts, months alone, days, `page 3` and the numbers of lists pass. The
  kinds (date, time, money, phone, card, account, document) are given in `transom.privacy.numbers`.
- *identifier*: URL, host or file name (labels joined by dots, none but the first in title case: `end.The` is
  two sentences), path, e-mail address, `@handle`, `#tag`, letters mixed with digits or underscores, capitals
  beside digits (`52 CV 9323`, `AB 123`, `DE89 3704 0044`), and user text that looks like a placeholder
  (`transom.privacy.forms`), wherever it stands; a postcode (`SW1A 1AA`) is a *place*.
- *word*: letters, also with inner apostrophes. Contractions part as in the Penn treebank: `do` `n't`, `it`
  `'s`, so running and tokenised text read alike; `ca n't`, `wo n't` are looked up as `can`, `will`, and a
  spelling with `-ise` that is unknown as that with `-ize`. A hyphen parts.
- *foreign*: a word with a combining mark. Other non-ASCII words are foreign when unknown (see `sanitize`).
- *symbol*: emoji, other symbols, other punctuation, unassigned and private characters.
- *marked*: **a capital, of the first letter or the whole word, says "name" wherever the place does not ask
  for one.** A place asks for a capital
  (a) on the first letter, where text, line, sentence, list item or quotation begins; after a colon, dash or
  opening bracket if the next word is in lower case (`Task: Write an essay`, not `Name: Winter`); and in a
  heading: a line without full stop, with `a an the of`, whose lower-case words are small ones and whose
  others are all known;
  (b) on the whole word, in a line without lower-case letters that has two words or more, and more than two
  for each number.
  `I` and what comes before `N'T` is never marked. `Will` and `May` are marked everywhere but before a pronoun
  or article. What a mark makes of a pass word says `sanitize`.

No reading depends on which of the words that may be drawn stands somewhere: words that steer a neighbour's
reading are closed (`transom.privacy.closed`), and other rules ask for shape alone.

Threat model: whatever the user typed is private and may be crafted. Does not protect anything by itself:
it only finds the pieces, and never fails on content. Which kind a piece is becomes public.
Not seen: a month without day, year or such a word (`this may`); where words are drawn, ordinals and
currencies in words are words;
names in lower case, in headings and in lines of capitals that are made of known words alone.
Source: Unicode Standard Annex 15 (normalisation); Marcus et al. 1993, Penn treebank tokenisation.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import NamedTuple

from transom.privacy import forms
from transom.privacy.capitals import (
    BOUND,
    FREE,
    PLACE_MARKS,
    Case,
    Lines,
    case_of,
    marks_name,
    numbers_an_item,
    place_after,
    spelling,
    with_case,
)
from transom.privacy.characters import MARKERS, MASK, MASKED_MARKER, PASSING_PUNCTUATION, normalise
from transom.privacy.closed import BASES_BEFORE_NOT, CLITICS, CLOSED_FORMS, NAMESAKES
from transom.privacy.numbers import CODES, OPEN_CODES, code_of, kind_of_value, other_code, values

__all__ = [
    "CLITICS",
    "CLOSED_FORMS",
    "PASSING_PUNCTUATION",
    "Case",
    "Token",
    "Words",
    "case_of",
    "is_plain_word",
    "lex",
    "normalise",
    "spelling",
    "with_case",
]  # fmt: skip

_FORM = "\0"  # stands for text that looks like a placeholder: no normalised text holds it
# `plain` is the common case of a word. Possessive quantifiers and look-behinds keep a part that failed to end
# well from being tried again at each of its places: crafted text would take quadratic time. What is left is a
# run, which is protected all the same. No piece but white space goes beyond a blank or a line's end, and none
# depends on what is there.
_L = "A-Za-zéÉ"
_CLITIC = rf"'(?i:s|re|ve|ll|d|m)(?![{_L}0-9_'])"
_LABEL = rf"[{_L}0-9_-]++(?:(?!{_CLITIC}(?!\.[{_L}]))'[{_L}]++)*+"
_END = rf"[^ \n<>\"\0\x01]*[{_L}0-9¦¤/]"
_HEX = "[0-9A-Fa-f]"
_MACHINES = rf"""(?<![{_L}0-9_:.-])(?:{_HEX}{{2}}(?:(?::{_HEX}{{2}}){{5}}|(?:-{_HEX}{{2}}){{5}})
    |{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}
    |(?=(?:{_HEX}{{0,4}}:){{1,6}}:|(?:{_HEX}{{1,4}}:){{7}})(?=[a-fA-F:]{{0,30}}[0-9])(?:{_HEX}{{0,4}}:){{2,7}}{_HEX}{{0,4}}
    )(?![{_L}0-9_:])|"""  # MAC address, UUID, IPv6 address: letters alone may stand in them
_GRAMMAR = rf"""
    (?P<plain>(?<![{_L}]')[A-Za-z]++(?=[ \n,;!?)]|\.[ \n]|\.?\Z))
    |(?P<space>[ \n]+)
    |(?P<identifier>
        MACHINES
        \0
        |(?<![{_L}0-9_.])[AaPp]\.[Mm]\.
        |(?:(?<![{_L}]')[{_L}]++(?:'[{_L}]++)*+://|[Ww]{{3}}\.){_END}
        |(?<![{_L}0-9._%+-])(?<![{_L}0-9._%+-]')  # e-mail address
            [{_L}0-9._%+-]++(?:'[{_L}0-9._%+-]++)*+@[{_L}0-9][{_L}0-9.-]*(?<=[{_L}0-9])
        |[@\#][{_L}0-9_]+
        |(?<![{_L}0-9_-])(?<![{_L}]'){_LABEL}  # host or file name, no label but the first in title case
            (?:\.(?=[{_L}])(?![A-ZÉ](?!'?[A-ZÉ])){_LABEL})++(?:[:/?\#]{_END})?
        |(?<![{_L}0-9_.~])[.~]*+(?=/[{_L}0-9_.-]++(?:'[{_L}][{_L}0-9_.-]*+)*+/[{_L}0-9_.-]){_END}  # path
        |(?<![{_L}0-9_])[A-Za-z]:\\(?:{_END})?
    )
    |(?P<number>
        (?<![{_L}0-9_.-])[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T[0-9]{{2}}:?[0-9]{{2}}(?::?[0-9]{{2}}(?:[.,][0-9]+)?)?
            (?:Z|[+-][0-9]{{2}}(?::?[0-9]{{2}})?)?(?![{_L}0-9_])
        |[$¤]?(?<![0-9][.,:/'-])[0-9]++(?:[.,:/'-][0-9]++)*+
        (?i:st|nd|rd|th|s|am|pm|k|m|bn|tn)?%?¤?(?![{_L}0-9_]))
    |(?P<clitic>(?:(?<=[{_L}])|(?!'[{_L}]++\.[{_L}])){_CLITIC})
    |(?P<word>(?<![{_L}]')(?:
        [{_L}](?:'?[{_L}])*?(?=(?i:n't)(?![{_L}0-9_']))
        |[{_L}]++(?:(?!{_CLITIC})'[{_L}]++)*+(?![0-9_])
    ))
    |(?P<run>[{_L}0-9_]+)
    |(?P<punct>[!-/:-@\[-`{{-~–—•])
    |(?P<symbol>\x01|.¦*)
"""
# Without and with open words: where words are drawn, no neighbour may be read by one.
_TOKEN = tuple(
    re.compile(_GRAMMAR.replace("MACHINES", one), re.VERBOSE | re.DOTALL) for one in ("", _MACHINES)
)
_CHUNK = re.compile(r"[^ \n]+[ \n]*|[ \n]+")
CAPITAL = "¿"  # the code of a word with a capital
_CAPITALS = re.compile(CAPITAL)
_MOST_KEPT, _MOST_BESIDE = 200_000, 5
_BESIDE = frozenset(".,:;!?'\"()-")
_WORDS = frozenset({"plain", "word", "clitic"})
_BEYOND = 6  # tokens that hold the next word and what stands before it
_KINDS = {"n": "number", "y": "number", "q": "number", "i": "identifier"}  # of a code
_FEW, _MARKED = 3, {"u": "U", "M": "J"}  # what marked words of these codes, capitals if few, become
_BEFORE_NOT, _NOT_BEHIND = re.compile(r"[^ ](?= ?N)"), re.compile(" ?N")


class Token(NamedTuple):
    """A piece of the normalised text.

    `lookup` is what a vocabulary is asked for: lower case, contractions undone. `claimed`: its kind is not
    the lexer's word but somebody's claim.
    """

    kind: str
    text: str
    lookup: str = ""
    case: Case = "lower"
    marked: bool = False
    claimed: bool = False


# With their codes for values and for names.
_PUNCTUATION = {
    mark: (Token("punct", mark), mark, mark if mark != "#" else "*") for mark in PASSING_PUNCTUATION
}
_SPACES = {" ": (Token("space", " "), " ", " "), "\n": (Token("space", "\n"), "|", "\n")}


Reading = tuple[tuple[Token, ...], str, str]  # tokens, their codes for values, and for names


class Words(dict[str, Reading]):
    """How each piece between white space is read, that white space included, its capitals unmarked as yet.

    `place` gives a token its final kind and its code for names; a word with a capital waits for that with the
    code `CAPITAL`, until its neighbours are known. With `open_values` open words are read with the values
    beside them (`transom.privacy.numbers`). Readings are kept for single known words alone, with the marks
    and the contraction beside them, so that no text outlives its request here.
    """

    def __init__(
        self,
        known: Collection[str] = (),
        *,
        open_values: bool = False,
        place: Callable[[Token], tuple[Token, str]] = lambda token: (token, outline(token)),
    ) -> None:
        super().__init__()
        self.known = frozenset(known)
        self.place = place
        self._codes = {**OPEN_CODES, **CODES} if open_values else CODES
        self._token = _TOKEN[open_values]
        self._capitals: dict[tuple[str, bool], tuple[Token, str]] = {}

    def __missing__(self, chunk: str) -> Reading:
        masked = chunk if chunk.isascii() else chunk.translate(MASK)
        tokens: list[Token] = []
        codes: list[str] = []
        shapes: list[str] = []
        for match in self._token.finditer(masked):
            group, text = match.lastgroup or "", match[0]
            if group == "space":
                token, code, shape = _SPACES.get(text) or (Token("space", text), "|", "¶")
            elif group == "punct":
                token, code, shape = _PUNCTUATION[text]
            else:
                token, code = self._lexed(group, text, chunk[match.start() : match.end()])
                if token.lookup and token.case != "lower":
                    shape = CAPITAL
                else:
                    token, shape = self.place(token)
            tokens.append(token)
            codes.append(code)
            shapes.append(shape)
        reading = tuple(tokens), "".join(codes), "".join(shapes)
        if len(self) < _MOST_KEPT and self._is_public(reading[0]):
            self[chunk] = reading
        return reading

    def marked(self, token: Token, *, marked: bool) -> tuple[Token, str]:
        """The final token, and its code for names, of a word with a capital."""
        key = token.text, marked
        known = self._capitals.get(key)
        if known is None:
            kind, text, lookup, case, _, _ = token
            known = self.place(Token(kind, text, lookup, case, marked))
            if self._is_known(token) and len(self._capitals) < _MOST_KEPT:
                self._capitals[key] = known
        return known

    def _lexed(self, group: str, masked: str, text: str) -> tuple[Token, str]:
        """A piece as a token, and its code."""
        if group in _WORDS:
            lookup = text.lower()
            case: Case = "lower" if lookup == text else case_of(text)
            kind = "word" if text.isascii() or text.replace("'", "").isalpha() else "foreign"
            code = self._codes.get(lookup) or ("u" if case == "upper" else "L" if text.isupper() else "x")
            return Token(kind, text, spelling(lookup, self.known), case), code
        code = code_of(masked, run=group == "run") if group in ("number", "run") else other_code(masked)
        kind = _KINDS.get(code, group)
        token = Token(kind_of_value(kind, text) if group == "identifier" else kind, text)
        return token, "|" if masked == MASKED_MARKER else code

    def _is_known(self, token: Token) -> bool:
        return token.text.lower() in self.known and token.case != "mixed"

    def _is_public(self, tokens: tuple[Token, ...]) -> bool:
        """Whether these are one known word or none, and little else than marks."""
        others = [one for one in tokens if one.lookup not in CLITICS and one.text not in _BESIDE]
        if others and others[-1].kind == "space":
            others.pop()
        return len(tokens) <= _MOST_BESIDE and len(others) < 2 and all(map(self._is_known, others))


def outline(token: Token) -> str:
    """The code for names of a token whose words are not looked at."""
    if token.kind == "space":
        return token.text if token.text in _SPACES else "¶"
    if token.kind == "punct":
        return _PUNCTUATION[token.text][2]
    return "w" if token.lookup else "0"


def lex(text: str, words: Words | None = None) -> list[Token]:
    """Normalise `text` and cut it into tokens whose texts, joined, are the normalised text.

    Without `words` none is known, and so there are no headings.

    >>> [(token.kind, token.text) for token in lex("Don't pay $5.")][:5]
    [('word', 'Do'), ('word', "n't"), ('space', ' '), ('word', 'pay'), ('space', ' ')]
    """
    return lex_clean(normalise(text), Words() if words is None else words)[0]


def lex_clean(clean: str, words: Words) -> tuple[list[Token], str]:
    """The tokens of a text that is normalised already, and a code for names for each."""
    found = forms.find(clean)
    seen = forms.FORM.sub(_FORM, clean) if found else clean
    readings = list(map(words.__getitem__, _CHUNK.findall(seen)))
    if not readings:
        return [], ""
    cut, codes_of, shapes_of = zip(*readings, strict=True)
    tokens, codes, shapes = list(chain.from_iterable(cut)), "".join(codes_of), list("".join(shapes_of))
    if found:
        written = iter(found)
        tokens = [one._replace(text=next(written)) if one.text == _FORM else one for one in tokens]
    _undo_contractions(tokens, codes, shapes, words)
    codes = _mark(seen, tokens, codes, shapes, words)
    return _join(tokens, codes, "".join(shapes), words)


def is_plain_word(word: str) -> bool:
    """Whether a vocabulary may hold `word`: lower case, and the lexer yields it as exactly one word."""
    if word.isascii() and word.isalpha():
        return word.islower()
    tokens = lex(word)
    return len(tokens) == 1 and tokens[0].kind == "word" and tokens[0].text == word == word.lower()


def _undo_contractions(tokens: list[Token], codes: str, shapes: list[str], words: Words) -> None:
    """The word before `n't`, with or without a space between, is looked up in full: `ca` as `can`."""
    for match in _BEFORE_NOT.finditer(codes) if "N" in codes else ():
        at = match.start()
        lookup = BASES_BEFORE_NOT.get(tokens[at].lookup)
        if lookup:
            token = Token("word", tokens[at].text, lookup, tokens[at].case)
            tokens[at], shapes[at] = (token, CAPITAL) if token.case != "lower" else words.place(token)


def _mark(seen: str, tokens: list[Token], codes: str, shapes: list[str], words: Words) -> str:
    """Mark the capitals that say "name", and place their words; the codes for values after that."""
    text, changed, lines = "".join(shapes), list(codes), Lines(seen, words.known)
    for match in _CAPITALS.finditer(text):
        at = match.start()
        token, place = tokens[at], _place(tokens, at)
        plain = token.case == "title" and token.lookup not in NAMESAKES
        if plain and place == FREE:  # the common cases first
            marked = False
        elif not (line := lines.reading(text, at)) and plain and place == BOUND:
            marked = token.text != "I"
        else:
            behind = "".join([one.text for one in tokens[at + 1 : at + _BEYOND]])
            marked = marks_name(token.text, token.case, place, line, behind)
        if marked:
            code = codes[at]
            if code == "M" or (code == "u" and len(token.text) <= _FEW):
                changed[at] = _MARKED[code]
            if token.case == "upper" and token.kind == "word":  # the capitals of `DON'T` say nothing
                marked = not _NOT_BEHIND.match(codes, at + 1)
        tokens[at], shapes[at] = words.marked(token, marked=marked)
    return "".join(changed)


def _place(tokens: Sequence[Token], end: int) -> int:
    """What a capital says at token `end`, by the marks since the last word or line."""
    if end > 1 and tokens[end - 1].text == " " and tokens[end - 2].lookup:
        return BOUND
    start = end
    while start and (tokens[start - 1].kind == "punct" or tokens[start - 1].text == " "):
        start -= 1
    before = tokens[start - 1] if start else None
    place = FREE if before is None or before.kind == "space" else BOUND
    if before is not None and before.text in MARKERS:
        place = MARKERS.index(before.text)
    for at in range(start, end):
        mark = tokens[at].text
        if mark in PLACE_MARKS:
            last = ["\n", "\n", "\n", *[token.text for token in tokens[max(0, at - 3) : at]]]
            spaced = last[-1].isspace()
            item = mark in ")]" and numbers_an_item(last)
            place = place_after(mark, place, last[-2] if spaced else last[-1], spaced=spaced, item=item)
    return place


def _join(tokens: list[Token], codes: str, shapes: str, words: Words) -> tuple[list[Token], str]:
    """Make one token of each value, with its kind; addresses get theirs too."""
    joined: list[Token] = []
    parts: list[str] = []
    end = 0
    for match in values(codes):
        start, stop = match.span()
        text = "".join([token.text for token in tokens[start:stop]])
        token, shape = words.place(Token(kind_of_value(match.lastgroup or "", text), text))
        joined += tokens[end:start]
        joined.append(token)
        parts += (shapes[end:start], shape)
        end = stop
    return (joined + tokens[end:], "".join([*parts, shapes[end:]])) if joined else (tokens, shapes)
