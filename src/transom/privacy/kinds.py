"""Kinds of tokens, what may be done with each, and stretches of text that somebody claims for a kind.

Eight base kinds cover every token of a text; a sub-kind is a closer look at one of them, and follows its
rule unless it has one of its own. A rule is "pass", "placeholder" or, for `word` and its sub-kinds, an
epsilon for each word drawn.

Threat model: a rule that lets a kind pass discloses its words; the guarantee says so. Which kind a token has
is disclosed wherever its treatment tells. Does not protect anything by itself.
Source: the policies of `transom.privacy.policy`; adaptive budgets are named as future work by Yu et al. 2025,
arXiv 2509.09091.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from transom.config import suggest

KINDS: dict[str, str] = {
    "stop": "a word of the public pass list",
    "word": "a word of the vocabulary",
    "number": "digits, number words and what is written with them",
    "identifier": "host or file name, path, handle, letters mixed with digits",
    "name": "a capital where the place asks for none, or capitalised and unknown",
    "rare": "an unknown lower-case word",
    "foreign": "non-ASCII letters outside the vocabulary",
    "symbol": "emoji and other symbols",
}
FIELDS = ("health", "finance", "religion", "politics", "origin", "sexuality", "crime", "family")
SUBKINDS: dict[str, tuple[str, str]] = {
    "person": ("name", "the name of a person"),
    "place": ("name", "the name of a place, a street, a postcode"),
    "organisation": ("name", "the name of an organisation"),
    "date": ("number", "a date or a part of one"),
    "time": ("number", "a time of day"),
    "money": ("number", "an amount of money"),
    "phone": ("number", "a telephone number"),
    "card": ("number", "the number of a payment card"),
    "account": ("number", "an IBAN or another account number"),
    "document": ("number", "the number of a passport, licence, case, vehicle and the like"),
    "email": ("identifier", "an e-mail address"),
    "url": ("identifier", "a web address"),
    "instruction": ("word", "a word in which requests are put: write, summarise, list"),
    "uncommon": ("word", "a word of the vocabulary outside the most frequent ones"),
    "part": ("word", "a seldom word that phrases of sensitive fields are made of"),
    **{field: ("word", f"a word of the sensitive field {field}") for field in FIELDS},
    "dictionary": ("rare", "a word of the public dictionary that no group holds"),
}
CLAIMED = ("public", "allowed")  # kinds of spans that pass: the program's own text, a list of the user's
_DRAWN = frozenset({"word", *(kind for kind, (base, _) in SUBKINDS.items() if base == "word")})
LARGEST_EPSILON = 40.0  # what tables of 64-bit integers can hold: every entry is at least 1 of 2**64
Rule = str | float


class Span(NamedTuple):
    """Characters `start` to `end` of a raw text, and the kind that somebody claims for them."""

    start: int
    end: int
    kind: str


class Recogniser(Protocol):
    """Whoever finds what a policy's own reading would not."""

    def find(self, text: str) -> Iterable[Span]:
        """Stretches of `text`, in any order."""
        ...


def base_of(kind: str) -> str:
    """The base kind of a kind."""
    return SUBKINDS[kind][0] if kind in SUBKINDS else kind


def about(kind: str) -> str:
    """What a kind is, in words."""
    return SUBKINDS[kind][1] if kind in SUBKINDS else KINDS[kind]


def rule_of(rules: Mapping[str, Rule], kind: str) -> Rule:
    """The rule for a kind: its own or that of its base; what was claimed to pass passes."""
    if kind in CLAIMED:
        return "pass"
    return rules[kind] if kind in rules else rules[base_of(kind)]


def rule_problems(rules: Mapping[str, Any]) -> Iterable[str]:
    """Every rule for an unknown kind, and every rule that its kind cannot have."""
    for kind, rule in rules.items():
        if kind not in KINDS and kind not in SUBKINDS:
            yield unknown("kind", kind, {**KINDS, **SUBKINDS})
        elif isinstance(rule, int | float) and not isinstance(rule, bool):
            if kind not in _DRAWN:
                yield f"kind {kind!r} cannot have an epsilon, only words can; choose pass or placeholder"
            elif not (0 < rule <= LARGEST_EPSILON and math.isfinite(rule)):
                yield f"epsilon must lie in (0, {LARGEST_EPSILON:g}], got {rule}; to show words, {kind}=pass"
        elif rule not in ("pass", "placeholder"):
            yield unknown(f"rule of kind {kind!r}", rule, ("pass", "placeholder"))


def unknown(what: str, value: object, known: Iterable[str]) -> str:
    """The message for a name that is not known, with the nearest that is."""
    return f"unknown {what} {str(value)[:40]!r}; {suggest(value, known)}"
