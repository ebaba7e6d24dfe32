"""The closed words: those on which the lexer's reading of a neighbour depends, and those it reads as numbers.

A closed word is never drawn, and no vocabulary may hold one: or else the treatment of its neighbours would
tell it from the other words of its group. What becomes of each is stated in `transom.privacy.text`.
Threat model and what it does not protect: those of the lexer. English only.
Source: Marcus et al. 1993 (contractions); closed word classes of English grammar.
"""

from __future__ import annotations

import string


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


CLITICS = _words("n't 's 're 've 'll 'd 'm")
BASES_BEFORE_NOT = {"ca": "can", "wo": "will", "sha": "shall", "ai": "is"}
ABBREVIATIONS = _words("mr mrs ms dr prof st sr jr vs rev gen capt lt sgt maj cpl gov hon mme messrs attn")
SCALES = _words("hundred thousand million billion trillion")
NUMBER_WORDS = SCALES | _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)
MONTHS = _words(
    "january february march april may june july august september october november december "
    "jan feb mar apr jun jul aug sep sept oct nov dec"
)
_DAYS = "monday tuesday wednesday thursday friday saturday sunday "
DAYS = _words(_DAYS + _DAYS.replace(" ", "s "))
AMBIGUOUS_MONTHS = _words("march april may june august jan mar")  # other words, or names of people, too
BEFORE_A_MONTH = _words("by during from in of on since until")
# In title case these keep their lower-case letter.
SMALL_WORDS = _words(
    "a an and as at but by for from in into nor of on onto or over per than the to up via vs with"
)
HEADING_WORDS = _words("a an of the")  # a title-case line without one may be a list of names
# A pass word that is also a name, and what follows it where it is none.
NAMESAKES = _words("will may")
# Pass words that with a capital may be a name or an acronym, beside those of one or two letters.
HOMOGRAPHS = NAMESAKES | _words("can who don won per")
SUBJECTS = _words(
    "i you he she it we they the a an this that these those my your his her its our their there any some "
    "every each no not anyone someone everyone anything something everything nobody nothing"
)

CLOSED_FORMS = (
    CLITICS
    | BASES_BEFORE_NOT.keys()
    | ABBREVIATIONS
    | frozenset(string.ascii_lowercase)
    | _words("re ve ll www")
    | NUMBER_WORDS
    | MONTHS
    | BEFORE_A_MONTH
    | SMALL_WORDS
    | NAMESAKES
    | SUBJECTS
)


def is_closed(word: str) -> bool:
    """Whether a word is never drawn: a closed form, or a single letter, whose capital has no case pattern."""
    return len(word) < 2 or word in CLOSED_FORMS
