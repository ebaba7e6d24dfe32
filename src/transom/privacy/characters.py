"""Characters: the plain form of each, and the class by which the lexer sees it. The rules are in `text`.

Threat model and what it does not protect: those of the lexer.
Source: Unicode Standard Annex 15 (normalisation).
"""

from __future__ import annotations

import re
import string
import unicodedata

PASSING_PUNCTUATION = frozenset(string.punctuation + "–—•")

_PLAIN = {
    **dict.fromkeys("‘’‚‛′´", "'"), **dict.fromkeys("“”„‟«»", '"'), **dict.fromkeys("‐‑‒−﹣", "-"),
    "―": "—", "⁄": "/", "\t": " ", "\n": "\n", "\x0b": "\n", "\x0c": "\n", "\r": "\n",
    "\x1c": "\n", "\x1d": "\n", "\x1e": "\n", "\x1f": " ", "\x85": "\n", "\u2028": "\n", "\u2029": "\n",
}  # fmt: skip

# Stand-ins of the mask: one character for each class, so that one expression lexes all scripts.
_LOWER, _UPPER, _SYMBOL, _CURRENCY, _DIGIT, MASKED_MARKER = "é", "É", "¦", "¤", "0", "\x01"
# A marker stands for a stretch that somebody claims, and the lexer makes it a token of its own. Which one it
# is tells what a capital says after the stretch: "name", "name" unless lower case follows, nothing.
MARKERS = "\ue000\ue001\ue002"


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
    if character in MARKERS:
        return MASKED_MARKER
    category = unicodedata.category(character)
    if category in ("Nd", "No"):
        return _DIGIT
    if category[0] in "LM" or category == "Nl":
        return _LOWER if character == character.lower() else _UPPER
    return _CURRENCY if category == "Sc" else _SYMBOL


_CLEAN, MASK = _Clean(), _Mask()


def is_normal(text: str) -> bool:
    """Whether a text plainly is normalised: printable ASCII, neither two blanks nor one at a line's end."""
    return (
        text.isascii()
        and text.replace("\n", "").isprintable()
        and not ("  " in text or " \n" in text or "\n " in text or "\n\n\n" in text)
    )


def normalise(text: str) -> str:
    """The normalised text (see the module's rules); at most 18 times as long as `text`."""
    clean = unicodedata.normalize("NFC", text.replace("\r\n", "\n").translate(_CLEAN))
    clean = re.sub(r" {2,}", " ", clean)
    return re.sub(r" ?\n[ \n]*", lambda match: "\n\n" if match[0].count("\n") > 1 else "\n", clean)
