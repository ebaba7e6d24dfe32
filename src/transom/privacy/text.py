"""The lexer: text to tokens, with a stated rule for every character. Nothing passes that is not listed here.

The tokens, end to end, are the normalised text. The rules:

- *Normalised*: compatibility forms become plain ones (NFKC), except fractions, superscripts and circled
  digits, which keep their value as numbers. Control, format, zero-width, bidirectional and surrogate
  characters are dropped; combining marks stay with their letter. Typographic quotes and hyphens become
  ASCII. White space becomes one space, or one or two line feeds.
- *space*, *punct* (ASCII punctuation and `–—•`): the only characters that may pass as they are.
- *number*: digits of any script with separators, currency sign, per cent, `st nd rd th s am pm`; dates,
  times.
- *identifier*: URL, e-mail address, `@handle`, `#tag`, letters mixed with digits or underscores, and user
  text that looks like a placeholder.
- *word*: letters, also with inner apostrophes. Contractions part as in the Penn treebank: `do` `n't`, `it`
  `'s`, so running and tokenised text read alike; `ca n't`, `wo n't` are looked up as `can`, `will`. A
  hyphen parts.
- *foreign*: a word with a combining mark. Other non-ASCII words are foreign when unknown (see `sanitize`).
- *symbol*: emoji, other symbols, other punctuation, unassigned and private characters.
- *marked*: a capital that says "name": not at the start of a sentence (text, line, after `.!?`, an opening
  quote), not `I`, not in a line of several words that has no lower-case letter at all.

Threat model: whatever the user typed is private and may be crafted. Does not protect anything by itself:
it only finds the pieces, and never fails on content. Which kind a piece is becomes public.
Source: Unicode Standard Annex 15 (normalisation); Marcus et al. 1993, Penn treebank tokenisation.
"""

from __future__ import annotations

import re
import string
import unicodedata
from typing import Literal, NamedTuple

from transom.privacy.closed import ABBREVIATIONS, BASES_BEFORE_NOT, CLITICS, CLOSED_FORMS

__all__ = [
    "CLITICS",
    "CLOSED_FORMS",
    "PASSING_PUNCTUATION",
    "PLACEHOLDER_LABELS",
    "Case",
    "Token",
    "case_of",
    "is_plain_word",
    "lex",
    "normalise",
    "with_case",
]

Case = Literal["lower", "title", "upper", "mixed"]

PLACEHOLDER_LABELS = ("NAME", "NUMBER", "TERM", "ID", "TEXT", "SYMBOL", "WORD", "QUOTE")
PASSING_PUNCTUATION = frozenset(string.punctuation + "–—•")

_PLAIN = {
    **dict.fromkeys("‘’‚‛′´", "'"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‐‑‒−﹣", "-"),
    "―": "—", "⁄": "/", "\t": " ", "\n": "\n", "\x0b": "\n", "\x0c": "\n", "\r": "\n",
    "\x1c": "\n", "\x1d": "\n", "\x1e": "\n", "\x1f": " ", "\x85": "\n", "\u2028": "\n", "\u2029": "\n",
}  # fmt: skip

# The look-behinds keep a number or word that failed to end well from being tried again at each of its parts:
# crafted text would take quadratic time. What is left is a run, which is protected all the same.
# Stand-ins of the mask: one character for each class, so that one expression lexes all scripts.
_LETTER, _SYMBOL, _CURRENCY, _DIGIT = "é", "¦", "¤", "0"

_TOKEN = re.compile(
    rf"""
    (?P<space>[ \n]+)
    |(?P<identifier>
        \[(?:{"|".join(PLACEHOLDER_LABELS)})_[0-9]+\]
        |[A-Za-z]++://[^ \n<>"]*[A-Za-z0-9é¦¤/]
        |[Ww]{{3}}\.[^ \n<>"]*[A-Za-z0-9é¦¤/]
        |(?<![A-Za-z0-9é._%+-])[A-Za-z0-9é._%+-]++@[A-Za-z0-9é][A-Za-z0-9é.-]*(?<=[A-Za-z0-9é])
        |[@\#][A-Za-z0-9_é]+
    )
    |(?P<number>[$¤]?(?<![0-9][.,:/'-])[0-9]++(?:[.,:/'-][0-9]++)*+(?:(?i:st|nd|rd|th|s|am|pm))?%?¤?(?![A-Za-z0-9_é]))
    |(?P<clitic>'(?i:s|re|ve|ll|d|m)(?![A-Za-z0-9_é']))
    |(?P<word>(?<![A-Za-zé]')[A-Za-zé]++(?:'[A-Za-zé]++)*+(?![0-9_]))
    |(?P<run>[A-Za-z0-9_é]+)
    |(?P<punct>[!-/:-@\[-`{{-~–—•])
    |(?P<symbol>.)¦*
    """,
    re.VERBOSE | re.DOTALL,
)
_CONTRACTION = re.compile(r"(.+?)(n't|'s|'re|'ve|'ll|'d|'m)", re.IGNORECASE)


class Token(NamedTuple):
    """A piece of the normalised text.

    `lookup` is what a vocabulary is asked for: lower case, contractions undone.
    """

    kind: str
    text: str
    start: int
    lookup: str = ""
    case: Case = "lower"
    marked: bool = False


class _Clean(dict[int, str]):
    """Character to its normalised form, filled on demand."""

    def __missing__(self, codepoint: int) -> str:
        self[codepoint] = result = _clean(chr(codepoint))
        return result


class _Mask(dict[int, str]):
    """Normalised character to its class's stand-in, filled on demand."""

    def __missing__(self, codepoint: int) -> str:
        self[codepoint] = result = _mask(chr(codepoint))
        return result


def _clean(character: str) -> str:
    if character in _PLAIN:
        return _PLAIN[character]
    category = unicodedata.category(character)
    if category in ("Cc", "Cf", "Cs") or 0xFE00 <= ord(character) <= 0xFE0F:
        return ""
    if category == "Zs":
        return " "
    plain = unicodedata.normalize("NFKC", character)
    if category == "No" or plain == character:
        return character
    return "".join(_clean(part) for part in plain)


def _mask(character: str) -> str:
    if character.isascii() or character in PASSING_PUNCTUATION:
        return character
    category = unicodedata.category(character)
    if category in ("Nd", "No"):
        return _DIGIT
    if category[0] in "LM" or category == "Nl":
        return _LETTER
    return _CURRENCY if category == "Sc" else _SYMBOL


_CLEAN, _MASK = _Clean(), _Mask()


def normalise(text: str) -> str:
    """The normalised text (see the module's rules); at most 18 times as long as `text`."""
    clean = unicodedata.normalize("NFC", text.replace("\r\n", "\n").translate(_CLEAN))
    clean = re.sub(r" +", " ", clean)
    return re.sub(r" ?\n[ \n]*", lambda match: "\n\n" if match[0].count("\n") > 1 else "\n", clean)


def lex(text: str) -> list[Token]:
    """Normalise `text` and cut it into tokens whose texts, joined, are the normalised text.

    >>> [(token.kind, token.text) for token in lex("Don't pay $5.")][:5]
    [('word', 'Do'), ('word', "n't"), ('space', ' '), ('word', 'pay'), ('space', ' ')]
    """
    clean = normalise(text)
    raw: list[tuple[str, str, int]] = []
    for match in _TOKEN.finditer(clean.translate(_MASK)):
        start, end = match.span()
        kind = match.lastgroup or "symbol"
        if kind == "word":
            _split_contraction(clean[start:end], start, raw)
        elif kind == "run":
            raw.append((_run_kind(match[0]), clean[start:end], start))
        else:
            raw.append(("word" if kind == "clitic" else kind, clean[start:end], start))
    return _finish(raw, _shouting(clean))


def case_of(word: str) -> Case:
    """The case pattern of a word; a single capital letter counts as title case."""
    if word == word.lower():
        return "lower"
    if word[0] != word[0].lower() and word[1:] == word[1:].lower():
        return "title"
    return "upper" if word == word.upper() else "mixed"


def with_case(word: str, case: Case) -> str:
    """A lower-case word in the given pattern."""
    if case == "title":
        return word[:1].upper() + word[1:]
    return word.upper() if case == "upper" else word


def is_plain_word(word: str) -> bool:
    """Whether a vocabulary may hold `word`: lower case, and the lexer yields it as exactly one word."""
    if word.isascii() and word.isalpha():
        return word.islower()
    tokens = lex(word)
    return len(tokens) == 1 and tokens[0].kind == "word" and tokens[0].text == word == word.lower()


def _split_contraction(word: str, start: int, raw: list[tuple[str, str, int]]) -> None:
    match = _CONTRACTION.fullmatch(word) if "'" in word else None
    if match is None:
        raw.append(("word", word, start))
    else:
        raw.append(("word", match[1], start))
        raw.append(("word", match[2], start + match.start(2)))


def _run_kind(masked: str) -> str:
    if masked.isdigit():
        return "number"
    return "word" if masked.isalpha() else "identifier"


def _shouting(clean: str) -> list[tuple[int, bool]]:
    """For each line: where it ends and whether it shouts (several words, none in lower case)."""
    verdicts, end = [], 0
    for line in clean.split("\n"):
        end += len(line) + 1
        verdicts.append((end, line.isupper() and len(line.split()) > 1))
    return verdicts


def _finish(raw: list[tuple[str, str, int]], lines: list[tuple[int, bool]]) -> list[Token]:
    """Add look-up form, case pattern and mark to the words, tracking sentences and lines."""
    tokens: list[Token] = []
    line, opening, previous = 0, True, ""
    for index, (kind, text, start) in enumerate(raw):
        if kind == "word":
            while lines[line][0] <= start:
                line += 1
            tokens.append(_word(text, start, opening=opening, shouting=lines[line][1]))
            if text.lower() == "n't":
                _undo_contraction(tokens)
            opening, previous = False, text
            continue
        if kind == "space":
            opening = opening or "\n" in text
        elif kind == "punct":
            opening = _opens(text, previous, opening, index == 0 or raw[index - 1][0] == "space")
        else:
            opening, previous = False, ""
        tokens.append(Token(kind, text, start))
    return tokens


def _opens(punctuation: str, previous: str, opening: bool, after_space: bool) -> bool:
    """Whether a sentence may start after this punctuation mark."""
    if punctuation in "!?":
        return True
    if punctuation == ".":
        initial = len(previous) == 1 and previous.isupper() and previous != "I"
        return not (initial or previous.lower() in ABBREVIATIONS)
    return opening or (punctuation in "\"'" and after_space)


def _word(text: str, start: int, *, opening: bool, shouting: bool) -> Token:
    lookup, case = text.lower(), case_of(text)
    marked = case != "lower" and not shouting and text != "I" and lookup not in CLITICS
    if case == "title" and opening:
        marked = False
    kind = "word" if text.isascii() or text.replace("'", "").isalpha() else "foreign"
    return Token(kind, text, start, lookup, case, marked)


def _undo_contraction(tokens: list[Token]) -> None:
    """The word before `n't`, with or without a space between, is looked up in full: `ca` as `can`."""
    index = len(tokens) - 2
    if index > 0 and tokens[index].kind == "space":
        index -= 1
    if index >= 0 and tokens[index].lookup in BASES_BEFORE_NOT:
        tokens[index] = tokens[index]._replace(lookup=BASES_BEFORE_NOT[tokens[index].lookup])
