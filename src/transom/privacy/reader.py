"""What every piece of a text is: the lexer's tokens with their kinds, under one policy.

In order: what a span claims is of the span's kind; every word on the policy's lists of names is a name of
that type; pass words and contractions are *stop*, unless a capital that says "name" (see
`transom.privacy.text`) stands on one that may be an acronym or a name: of one or two letters (`US`, `IT`), or
`can may who will`; any other word with such a capital is a *name*; words of the vocabulary and of the
lists are of their public kind; other words are *foreign* when not ASCII, *name* when they begin with a
capital, else *rare*. What stands around them then makes names of further words, and one name of several
tokens (`transom.privacy.names`); titles, and words whose capital is custom, keep it and pass where they may.
No reading depends on which of the words that may be drawn stands somewhere.

Threat model and what it does not protect: those of the lexer; spans come from whoever claims them and are
checked here (inside the text, apart from each other).
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from transom.errors import MisconfiguredError
from transom.privacy.capitals import BOUND, CONTINUED, FREE
from transom.privacy.characters import MARKERS, normalise
from transom.privacy.closed import ABBREVIATIONS, AMBIGUOUS_MONTHS, DAYS, HOMOGRAPHS, is_closed
from transom.privacy.kinds import CLAIMED, KINDS, SUBKINDS, Span, base_of
from transom.privacy.layout import aligned, as_typed, counting
from transom.privacy.names import Names
from transom.privacy.namewords import CUSTOMARY, SHOWN_TITLES
from transom.privacy.numbers import PUBLIC_ALONE
from transom.privacy.phrasing import Phrasing
from transom.privacy.policy import Policy
from transom.privacy.spelled import spelled
from transom.privacy.techwords import TECHNICAL
from transom.privacy.text import CLITICS, Token, Words, lex_clean

_GIVEN_MONTHS = frozenset(map(str.title, AMBIGUOUS_MONTHS))
_DOTTED = frozenset({"e.g", "i.e", "a.k.a", "n.b", "p.s", "P.S", "N.B"})  # to the lexer names of hosts
# Prepositions of two letters: with one capital they are no acronym, and nobody's name.
_BEFORE_ALL = frozenset({"as", "at", "by", "in", "of", "on", "to"})


class Reader:
    """Reads texts under a policy."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._names, self._phrasing = policy, Names(policy), Phrasing(policy)

    def read(self, text: str, spans: Sequence[Span] = ()) -> list[Token]:
        """Every token with its kind; a span is one token, as it is written."""
        outside, claims = _cut(text, spans) if spans else (text, [])
        if not self._policy.words_pass:
            clean = normalise(outside)
            tokens = spelled(self._tokens(clean)[0], clean)
        else:
            clean, ends_C = aligned(outside)
            tokens, codes = self._tokens(clean)
            counting(tokens, codes)
            tokens = spelled(tokens, clean)
            if ends_C is not None:
                tokens = as_typed(tokens, outside, ends_C, self._shown)
        return list(_claimed(tokens, claims)) if claims else tokens

    def _tokens(self, clean: str) -> tuple[list[Token], str]:
        """The tokens, and a code for each."""
        tokens, codes = lex_clean(clean, self._words)
        if any(month in clean for month in _GIVEN_MONTHS):  # `by April Weaver`
            codes = self._given(tokens, codes)
        named, codes = self._names.read(tokens, codes)
        tokens = self._phrasing.read(named)
        return tokens, codes if tokens is named else "".join(map(self._names.code, tokens))

    def _given(self, tokens: list[Token], codes: str) -> str:
        """Make a name of each month that passes before a name; the codes after that."""
        changed = list(codes)
        for at, month in enumerate(tokens[:-2]):
            given = month.text in _GIVEN_MONTHS and month.kind == "stop"
            if given and base_of(tokens[at + 2].kind) == "name":
                tokens[at] = Token("name", month.text, month.text.lower(), "title", marked=True)
                changed[at] = self._names.code(tokens[at])
        return "".join(changed)

    def _shown(self, kind: str) -> bool:
        """Whether a token of this kind passes as it is."""
        return kind in ("space", "punct") or self._policy.rule(kind) == "pass"

    def _placed(self, token: Token) -> tuple[Token, str]:
        """The token with its final kind, and its code for names."""
        if token.text in _DOTTED and self._policy.words_pass:
            token = token._replace(kind="stop")
            return token, self._names.code(token)
        if token.kind != "word":
            alone = token.kind in ("number", "date") and self._policy.words_pass
            if alone and token.text.lower() in PUBLIC_ALONE:
                token = token._replace(kind="stop")
        else:
            kind = self._kind(token)
            if kind != "word":
                token = Token(kind, *token[1:])
        return token, self._names.code(token)

    def _kind(self, token: Token) -> str:
        lookup, marked, policy = token.lookup, token.marked, self._policy
        known = policy.kind_of.get(lookup)
        if policy.words_pass and token.text in TECHNICAL:
            return "stop"
        if len(lookup) == 1 and not (known or lookup.isascii() or lookup in policy.pass_words):
            return "foreign"  # in many scripts a letter is a word
        if policy.words_pass and (lookup in DAYS or (token.case == "lower" and is_closed(lookup))):
            return "stop"
        if known and SUBKINDS.get(known, ("",))[0] == "name":
            return known
        namesake = lookup in self._names.namesakes or (marked and self._names.are_called(lookup))
        if lookup in policy.names and not namesake and lookup not in CUSTOMARY:
            return "name"
        if lookup in SHOWN_TITLES and (
            lookup in ABBREVIATIONS or (marked and policy.rule(known or "dictionary") == "pass")
        ):
            return "stop"
        if token.case != "mixed":
            if lookup in policy.pass_words or lookup in CLITICS:
                short = len(lookup) < 3 and not self._customary(lookup, None)
                short = short and not (policy.words_pass and token.case == "title" and lookup in _BEFORE_ALL)
                return "name" if marked and (short or lookup in HOMOGRAPHS) else "stop"
            if marked and (namesake or not self._customary(lookup, known)):
                return "name"
            if known or namesake or lookup in CUSTOMARY:
                return known or "dictionary"
        if not token.text.isascii():
            return "foreign"
        # A line in capitals says nothing about names: its unknown words are merely rare.
        if len(token.text) == 1 and token.case == "lower":
            return "dictionary"
        capital = token.case == "title" or (marked and token.text[0].isupper())
        return "name" if capital else "rare"

    def _customary(self, lookup: str, known: str | None) -> bool:
        """Whether a word has its capital by custom: `Monday`, `PDF`, and in an adjective `Catholic`."""
        if known in ("origin", "religion", "politics"):
            return isinstance(self._policy.rule(known), str)
        return lookup in CUSTOMARY and self._policy.rule(known or "dictionary") == "pass"

    @cached_property
    def _words(self) -> Words:
        """The words that pass and those that may be drawn."""
        policy = self._policy
        known = policy.pass_words | policy.kind_of.keys() | self._names.namesakes
        return Words(known, open_values=policy.words_pass, place=self._placed)


def _cut(text: str, spans: Sequence[Span]) -> tuple[str, list[Token | None]]:
    """The text with a marker for each span, and what each marker stands for; None for the text's own."""
    parts: list[str] = []
    claims: list[Token | None] = []
    end = 0
    for span in (*sorted(spans), Span(len(text), len(text), "public")):
        if not end <= span.start <= span.end <= len(text):
            raise MisconfiguredError(f"spans overlap or leave the text at {span.start} to {span.end}")
        if span.kind not in CLAIMED and span.kind not in SUBKINDS and span.kind not in KINDS:
            raise MisconfiguredError(f"a span is of the unknown kind {span.kind[:40]!r}")
        parts.append(text[end : span.start])
        claims += [None] * sum(map(parts[-1].count, MARKERS))
        if span.start < span.end:
            parts.append(MARKERS[_place_behind(text[span.start : span.end], span.kind)])
            claims.append(Token(span.kind, text[span.start : span.end], claimed=True))
        end = span.end
    return "".join(parts), claims


def _claimed(tokens: Iterable[Token], claims: Iterable[Token | None]) -> Iterator[Token]:
    """The tokens with what is claimed in place of its markers; what was typed at a marker stays beside it."""
    claim = iter(claims)
    for token in tokens:
        found = next(claim) if token.text[0] in MARKERS else None
        if found is None:
            yield token
            continue
        yield found
        if len(token.text) > 1:
            yield token._replace(text=token.text[1:])
    if next(claim, claims) is not claims:
        raise RuntimeError("a span was lost in reading; nothing of this text may be used")


def _place_behind(text: str, kind: str) -> int:
    """What a capital says after a span: as after the last character of public text, else as after a name."""
    last = text.rstrip(" ")[-1:]
    if kind not in CLAIMED or (last and last not in ".!?\n\r:([—–•"):
        return BOUND
    return CONTINUED if last and last in ":([—–•" else FREE
