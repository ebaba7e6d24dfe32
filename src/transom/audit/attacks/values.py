"""Values behind placeholders: the commonest one of the kind in the attacker's own text.

Named after the word before it, if that was met before a value of the kind, else the commonest of all. Texts
of the attacker's own that share eight tokens in a row with the audited ones are left out: what was read
already is not recovered but known.

Threat model: an honest-but-curious host that knows the kind of each placeholder, reads what passes around it,
and owns text of the same sort. Does not prove anything about attackers who know the author or the case.
Source: own; the baseline of every guess at a categorical value.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from transom.audit.attacks.word_text import Sentence, Token, without_overlap
from transom.privacy.placeholders import Placeholders
from transom.privacy.sanitize import Piece, Sanitizer

_Key = tuple[str, str | None]  # a kind, and the token before, None for any


@dataclass(frozen=True, eq=False)
class Values:
    """The commonest value of each kind, and of each kind after each token."""

    commonest: dict[_Key, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, sanitizer: Sanitizer, lines: Iterable[str], attacked: Sequence[Sequence[Piece]]) -> Values:
        """Learned from the attacker's lines."""
        own = [sanitizer.sanitize(line, placeholders=Placeholders()).pieces for line in lines if line.strip()]
        kinds = sorted({piece.kind for pieces in own for piece in pieces})
        number = {kind: place for place, kind in enumerate(kinds)}
        counts: defaultdict[_Key, Counter[str]] = defaultdict(Counter)
        plain = tuple(_plain(pieces, number) for pieces in own)
        for sentence in without_overlap(plain, tuple(_plain(pieces, {}) for pieces in attacked)):
            before = ""
            for token in sentence:
                if token.kind == "placeholder":
                    for context in (before, None):
                        counts[kinds[token.word], context][token.text] += 1
                before = _context(token.kind == "passed", token.text)
        return cls({key: found.most_common(1)[0][0] for key, found in counts.items()})

    def named(self, pieces: Sequence[Piece]) -> list[bool]:
        """Whether each piece is a placeholder whose value is named."""
        found, before = [], ""
        for piece in pieces:
            guess = None
            if piece.action == "placeholder":
                guess = self.commonest.get((piece.kind, before)) or self.commonest.get((piece.kind, None))
            found.append(guess is not None and guess == piece.source.lower())
            if piece.kind != "space":
                before = _context(piece.action == "pass", piece.source.lower())
        return found


def _plain(pieces: Sequence[Piece], number: dict[str, int]) -> Sentence:
    return tuple(
        Token(
            "placeholder"
            if piece.action == "placeholder"
            else "passed"
            if piece.action == "pass"
            else "drawn",
            piece.source.lower(),
            number.get(piece.kind, -1),
        )
        for piece in pieces
        if piece.kind != "space"
    )


def _context(passes: bool, text: str) -> str:
    """What the host sees of the token before: itself, or that something else stands there."""
    return text if passes else ""
