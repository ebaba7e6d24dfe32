"""What a policy promises of a text, and what it discloses: one `Guarantee`, put together from its rules.

Threat model: that of `transom.privacy.sanitize`. Does not protect anything by itself; what it lists as
disclosed is disclosed.
Source: a placeholder is a function of what is disclosed; composition of draws, Dwork and Roth 2014, theorem
3.16.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transom.privacy.guarantee import Guarantee
from transom.privacy.kinds import KINDS, SUBKINDS
from transom.privacy.policy import Policy

_DRAWN = "the group and the rule of each drawn word, its place and its case pattern"
_DISCLOSES = (
    "the kind and place of each placeholder, which placeholders of a conversation hold equal values or forms "
    "of one entity (names of a person, spellings of a number or address), and which form each is",
    "pass words, punctuation, white space and the number of words",
    "with a session: whether a place was edited since the last request",
)
_SHOWN_BESIDE_WORDS = (
    "layout as typed; days, months alone, counts to twelve, numbers of up to three digits that "
    "point (page 3, list items), single letters, titles, company forms and words of software"
)
_ASSUMPTIONS = (
    "words, groups, scores, frequencies and pass words are public and independent of the text",
    "os.urandom is secure",
    "each draw is released once; repeated draws add up",
)


def promise_of(policy: Policy, draws: Sequence[Guarantee], claimed: Sequence[str]) -> Guarantee:
    """What one drawn word is promised under `policy`, or without `draws` a text; `claimed` is disclosed too.

    `draws` are the promises of the policy's mechanisms: the largest epsilon counts.
    """
    passing = [kind for kind in (*KINDS, *SUBKINDS) if policy.rule(kind) == "pass" and kind != "stop"]
    discloses = (
        *((_DRAWN,) if draws else ()),
        *_DISCLOSES,
        *((_SHOWN_BESIDE_WORDS,) if policy.words_pass else ()),
        *(f"every token of kind {kind}, unchanged: the policy lets it pass" for kind in passing),
        *claimed,
    )
    if not draws:
        return Guarantee(
            kind="pure-dp",
            unit="one text",
            adjacency="texts that differ in the replaced values alone, with the same kinds, links and forms "
            "at the same places",
            epsilon=0.0,
            discloses=discloses,
            source="a placeholder is a function of what is disclosed",
        )
    word = max(draws, key=lambda one: one.epsilon or 0.0)
    adjacency = f"{word.adjacency} that are drawn by the same rule"
    return replace(word, adjacency=adjacency, assumptions=_ASSUMPTIONS, discloses=discloses)


def promise_of_text(word: Guarantee, drawn: int, epsilon: float) -> Guarantee:
    """What a text with `drawn` fresh draws is promised: the sum of its draws."""
    return replace(
        word,
        unit=f"one text with {drawn} fresh draws",
        adjacency=f"texts that differ at these places; at each place: {word.adjacency}",
        epsilon=epsilon,
    )
