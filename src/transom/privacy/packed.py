"""Word lists as tensors of a policy file: one entry a line, each with its kind or with its fields.

`listed` with `listed_kinds` are words with one kind each. `phrases` with `phrase_fields` are what
`transom.privacy.phrasing` reads by: an entry of several words is a phrase of one field, an entry of one word
a *half* of every field whose bit (in the order of `kinds.FIELDS`) is set, and with the bit `MODIFIER` a noun
or adjective.
Threat model: the file may come from anybody; whatever is not of this form is a problem, with its number.
Does not protect anything by itself.
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.privacy.closed import CLOSED_FORMS
from transom.privacy.kinds import FIELDS
from transom.privacy.text import is_plain_word

MODIFIER = 1 << len(FIELDS)
BIT_OF_FIELD = {field: 1 << number for number, field in enumerate(FIELDS)}
MOST_WORDS = 5  # of a phrase
# What a word that is drawn may be listed as.
_IN_VOCABULARY = frozenset({"instruction", "namesake", "part", *FIELDS})


def packed(words: Iterable[str]) -> NDArray[np.uint8]:
    """Words as UTF-8, one a line."""
    return np.frombuffer("\n".join(words).encode("utf-8"), dtype=np.uint8)


def unpacked(packed_words: NDArray[np.uint8]) -> tuple[list[str], bool]:
    """The words, and whether they are UTF-8."""
    try:
        text = packed_words.tobytes().decode("utf-8")
    except UnicodeDecodeError:
        return [], False
    return (text.split("\n") if text else []), True


def read_listed(
    tensors: Mapping[str, NDArray[Any]], kinds: Sequence[str], words: frozenset[str], passing: frozenset[str]
) -> tuple[dict[str, str], list[str]]:
    """The lists' words with their kinds, and what is wrong with them."""
    if "listed" not in tensors:
        return {}, ["kinds of lists are named, and no list is there"] if kinds else []
    entries, decoded = unpacked(tensors["listed"])
    codes = tensors["listed_kinds"].tolist()
    if not decoded or len(codes) != len(entries) or max(codes, default=0) >= len(kinds):
        return {}, [f"listed must be UTF-8, each word with a kind: {len(entries)} words, {len(codes)} kinds"]
    found = {word: kinds[code] for word, code in zip(entries, codes, strict=True)}
    problems = []
    if len(found) < len(entries):
        problems.append(f"{len(entries) - len(found)} listed words occur twice")
    if inside := [word for word, kind in found.items() if word in words and kind not in _IN_VOCABULARY]:
        problems.append(f"{len(inside)} drawn words are listed as names or dictionary: {inside[0]!r}")
    closed = found.keys() & (passing | CLOSED_FORMS)
    odd = [word for word in found if not (word.isascii() and word.isalpha() and word.islower())]
    wrong = [*closed, *(word for word in found if len(word) < 2), *(w for w in odd if not is_plain_word(w))]
    if wrong:
        problems.append(f"{len(wrong)} listed words pass, are closed or no single words: {wrong[0][:40]!r}")
    return found, problems


def read_phrases(tensors: Mapping[str, NDArray[Any]]) -> tuple[dict[str, int], list[str]]:
    """The phrases and halves with their bits, and what is wrong with them."""
    if "phrases" not in tensors:
        return {}, []
    entries, decoded = unpacked(tensors["phrases"])
    bits = tensors["phrase_fields"].tolist()
    if not decoded or len(bits) != len(entries):
        return {}, [f"phrases must be UTF-8, each with fields: {len(entries)} phrases, {len(bits)} fields"]
    found = dict(zip(entries, bits, strict=True))
    if wrong := [entry for entry, bit in found.items() if not _is_entry(entry, bit)]:
        return {}, [f"{len(wrong)} phrases are malformed, the first is {wrong[0][:40]!r}"]
    return found, ["phrases occur twice"] if len(found) < len(entries) else []


def _is_entry(entry: str, bits: int) -> bool:
    """Whether an entry is one word with any fields, or a few words with one."""
    words = entry.split(" ")
    plain = entry.isascii() and entry.islower() and all(map(str.isalpha, words))
    if len(words) == 1:
        return plain and 0 < bits < 2 * MODIFIER
    return plain and len(words) <= MOST_WORDS and bits in BIT_OF_FIELD.values()
