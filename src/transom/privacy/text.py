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
from collections.abc import Collection
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
from transom.privacy.closed import BASES_BEFORE_NOT, CLITICS, CLOSED_FORMS
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
# `plain` is the common case of a word, with the space after it. Possessive quantifiers and look-behinds keep
# a part that failed to end well from being tried again at each of its places: crafted text would take
# quadratic time. What is left is a run, which is protected all the same.
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
    (?P<plain>(?<![{_L}]')[A-Za-z]++(?=[ \n,;!?)]|\.[ \n]|\.?\Z))[ ]?
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
_WORDS = frozenset({"plain", "word", "clitic"})
_KINDS = {"n": "number", "y": "number", "q": "number", "i": "identifier"}  # of a code
_FEW, _MARKED = 3, {"u": "U", "M": "J"}  # what marked words of these codes, capitals if few, become
_BEFORE_NOT = re.compile(r"[^ ](?= ?N)")


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


_SPACE = Token("space", " ")
_PUNCTUATION = {mark: Token("punct", mark) for mark in PASSING_PUNCTUATION}


class Words(dict[str, tuple[Token, str, Case]]):
    """The words that pass and those that may be drawn, and how each is read: token, code and case pattern.

    With `open_values` open words are read with the values beside them (`transom.privacy.numbers`). Readings
    are kept for these public words alone, so that no text outlives its request here.
    """

    def __init__(self, known: Collection[str] = (), *, open_values: bool = False) -> None:
        super().__init__()
        self.known = frozenset(known)
        self.open_values = open_values
        self._codes = {**OPEN_CODES, **CODES} if open_values else CODES

    def __missing__(self, text: str) -> tuple[Token, str, Case]:
        lookup = text.lower()
        case: Case = "lower" if lookup == text else case_of(text)
        kind = "word" if text.isascii() or text.replace("'", "").isalpha() else "foreign"
        code = self._codes.get(lookup) or ("u" if case == "upper" else "L" if text.isupper() else "x")
        reading = Token(kind, text, spelling(lookup, self.known), case), code, case
        if lookup in self.known and case != "mixed":
            self[text] = reading
        return reading


def lex(text: str, words: Words | None = None) -> list[Token]:
    """Normalise `text` and cut it into tokens whose texts, joined, are the normalised text.

    Without `words` none is known, and so there are no headings.

    >>> [(token.kind, token.text) for token in lex("Don't pay $5.")][:5]
    [('word', 'Do'), ('word', "n't"), ('space', ' '), ('word', 'pay'), ('space', ' ')]
    """
    return lex_clean(normalise(text), Words() if words is None else words)


def lex_clean(clean: str, words: Words) -> list[Token]:
    """The tokens of a text that is normalised already."""
    found = forms.find(clean)
    tokens, codes = _cut(forms.FORM.sub(_FORM, clean) if found else clean, words)
    if found:
        written = iter(found)
        tokens = [one._replace(text=next(written)) if one.text == _FORM else one for one in tokens]
    _undo_contractions(tokens, codes)
    return _join(tokens, codes)


def is_plain_word(word: str) -> bool:
    """Whether a vocabulary may hold `word`: lower case, and the lexer yields it as exactly one word."""
    if word.isascii() and word.isalpha():
        return word.islower()
    tokens = lex(word)
    return len(tokens) == 1 and tokens[0].kind == "word" and tokens[0].text == word == word.lower()


def _cut(clean: str, words: Words) -> tuple[list[Token], str]:
    """The pieces of the normalised text, and a code for each."""
    tokens: list[Token] = []
    codes: list[str] = []
    lines, place = Lines(clean, words.known), FREE
    for match in _TOKEN[words.open_values].finditer(clean if clean.isascii() else clean.translate(MASK)):
        group, masked = match.lastgroup or "", match[0]
        if group in _WORDS:
            start, end = match.span(group)
            token, code, case = words[clean[start:end]]
            if case != "lower" and marks_name(clean, end, token.text, case, place, lines.reading(start)):
                token = token._replace(marked=True)
                if code == "M" or (code == "u" and len(token.text) <= _FEW):
                    code = _MARKED[code]
            place = BOUND
        elif group == "space":
            token, code, place = Token("space", masked), " ", place if masked == " " else FREE
        elif group == "punct":
            token, code, place = _PUNCTUATION[masked], masked, _place(masked, place, tokens)
        else:
            code, place = _code(group, masked), BOUND
            text = clean[match.start() : match.end()]
            kind = _KINDS.get(code, group)
            token = Token(kind_of_value(kind, text) if group == "identifier" else kind, text)
            if masked == MASKED_MARKER:
                place = MARKERS.index(text)
        tokens.append(token)
        codes.append("|" if "\n" in masked or masked == MASKED_MARKER else code)
        if group == "plain" and masked[-1] == " ":
            tokens.append(_SPACE)
            codes.append(" ")
    return tokens, "".join(codes)


def _code(group: str, masked: str) -> str:
    """The code of a token that is no word; a run of digits alone is a number."""
    if group in ("number", "run"):
        return code_of(masked, run=group == "run")
    return other_code(masked)


def _place(mark: str, place: int, tokens: list[Token]) -> int:
    """What a capital says after a punctuation mark that follows these tokens."""
    if mark not in PLACE_MARKS:
        return place
    before = ["\n", "\n", "\n", *[token.text for token in tokens[-3:]]]
    spaced = before[-1].isspace()
    previous = before[-2] if spaced else before[-1]
    return place_after(mark, place, previous, spaced=spaced, item=mark in ")]" and numbers_an_item(before))


def _undo_contractions(tokens: list[Token], codes: str) -> None:
    """The word before `n't`, with or without a space between, is looked up in full: `ca` as `can`.

    Its capitals, as in `DON'T`, say nothing.
    """
    for match in _BEFORE_NOT.finditer(codes):
        token = tokens[match.start()]
        if token.kind == "word":
            lookup = BASES_BEFORE_NOT.get(token.lookup, token.lookup)
            tokens[match.start()] = token._replace(
                lookup=lookup, marked=token.marked and token.case != "upper"
            )


def _join(tokens: list[Token], codes: str) -> list[Token]:
    """Make one token of each value, with its kind; addresses get theirs too."""
    joined: list[Token] = []
    end = 0
    for match in values(codes):
        joined += tokens[end : match.start()]
        end = match.end()
        text = "".join([token.text for token in tokens[match.start() : end]])
        joined.append(Token(kind_of_value(match.lastgroup or "", text), text))
    return joined + tokens[end:]
