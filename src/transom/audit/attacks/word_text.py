"""Text as tokens: what a policy draws, lets pass or replaces, for the audited text and the attacker's own.

Threat model: see `words`; the attacker reads its own text as the policy would. Does not protect anything.
Source: `transom.privacy.sanitize` for the kinds; Good 1953, Biometrika 40 (the mass of unseen words).

Legend: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transom.privacy.kinds import SUBKINDS
from transom.privacy.partition import WordMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy
from transom.privacy.relaxed import DistanceMechanism
from transom.privacy.sanitize import Piece, Sanitizer
from transom.privacy.text import spelling
from transom.report.statistics import Floats

Kind = Literal["drawn", "passed", "placeholder"]


class Token(NamedTuple):
    """A word, mark or placeholder's label in lower case; `word` is its id where it is drawn, else -1.

    Of a drawn word as it is seen, the id is tagged with its rule (`by_rule`), and plain where there is one.
    """

    kind: Kind
    text: str
    word: int = -1


Sentence = tuple[Token, ...]
Sentences = tuple[Sentence, ...]


def drawn(sentences: Iterable[Sentence]) -> Iterator[Token]:
    """The drawn tokens, sentence after sentence."""
    return (token for sentence in sentences for token in sentence if token.kind == "drawn")


def own_sentences(policy: Policy, lines: Iterable[str]) -> Sentences:
    """The attacker's own lines as plain tokens; `word` is the id of each word that the policy would draw."""
    kinds = [kind for kind in ("word", *SUBKINDS) if not isinstance(policy.rule(kind), str)]
    sanitizer = Sanitizer(policy.with_rules(dict.fromkeys(kinds, "placeholder")))  # nothing need be drawn
    ids = policy.word_ids

    def own(piece: Piece) -> Token:
        word = ids.get(spelling(piece.source.lower(), ids), -1) if piece.kind in kinds else -1
        return _token(piece, policy.words, word, piece.output)

    return tuple(tuple(map(own, _pieces(sanitizer, line))) for line in lines if line.strip())


def observe(sanitizer: Sanitizer, lines: Iterable[str]) -> tuple[Sentences, Sentences]:
    """(seen, plain) of each line that is not blank, sanitised as a message of its own."""
    return as_seen(sanitizer, [pieces for line in lines if (pieces := _pieces(sanitizer, line))])


def as_seen(sanitizer: Sanitizer, texts: Iterable[Sequence[Piece]]) -> tuple[Sentences, Sentences]:
    """(seen, plain) of texts that were sanitised, none of them empty."""
    seen, plain = [], []
    words, rules = sanitizer.policy.words, sanitizer.drawn_by
    for text in texts:
        pieces = [piece for piece in text if piece.kind != "space"]
        tags = [rules.get(piece.kind, 0) * len(words) for piece in pieces]
        seen.append(
            tuple(
                _token(piece, words, piece.output_id, piece.output, tag)
                for piece, tag in zip(pieces, tags, strict=True)
            )
        )
        plain.append(tuple(_token(piece, words, piece.source_id, piece.source) for piece in pieces))
    return tuple(seen), tuple(plain)


def _pieces(sanitizer: Sanitizer, line: str) -> list[Piece]:
    pieces = sanitizer.sanitize(line, placeholders=Placeholders()).pieces
    return [piece for piece in pieces if piece.kind != "space"]


def _token(piece: Piece, words: Sequence[str], word: int, text: str, tag: int = 0) -> Token:
    if word >= 0:
        return Token("drawn", words[word], word + tag)
    return Token("placeholder", text) if piece.action == "placeholder" else Token("passed", text.lower())


def sanitised(plain: Sentences, mechanism: WordMechanism, words: Sequence[str]) -> Sentences:
    """Plain sentences as the mechanism leaves them; a word that it visibly keeps counts as passed."""
    words_N = np.array([token.word for token in drawn(plain)], dtype=np.int64)
    outputs = iter(mechanism.sample(words_N).tolist() if len(words_N) else ())

    def seen(token: Token) -> Token:
        if token.kind != "drawn":
            return token
        return Token("drawn", words[(output := next(outputs)) % len(words)], output)

    return with_kept_passed(tuple(tuple(map(seen, sentence)) for sentence in plain), mechanism)


def with_kept_passed(seen: Sentences, mechanism: WordMechanism) -> Sentences:
    """The same, with an output that only a kept word can have (SANTEXT+) as a passed token."""
    if not isinstance(mechanism, DistanceMechanism) or mechanism.sensitive_V.all():
        return seen
    kept = set(np.flatnonzero(~mechanism.sensitive_V).tolist())

    def passed(token: Token) -> Token:
        return Token("passed", token.text) if token.word in kept else token

    return tuple(tuple(map(passed, sentence)) for sentence in seen)


def prior_of(text: Sentences, public_V: NDArray[Any]) -> Floats:
    """Word frequencies [V] of the attacker's text; words that it lacks share their part by public ones."""
    words = np.array([token.word for token in drawn(text)], dtype=np.int64)
    return with_unseen(np.bincount(words, minlength=len(public_V)), public_V)


def with_unseen(counts_V: NDArray[Any], public_V: NDArray[Any]) -> Floats:
    """Shares [V] from counts, where unseen words get what words seen once have, by their public frequency.

    Good and Turing's estimate of the mass of unseen words; a hundredth of it is spread evenly over them, so
    that every word stays possible.
    """
    unseen_V = counts_V == 0
    if not unseen_V.any():
        return np.asarray(counts_V / counts_V.sum(), dtype=np.float64)
    total = float(counts_V.sum())
    mass = (np.count_nonzero(counts_V == 1) + 1) / (total + 1)
    share_V = np.where(unseen_V, np.asarray(public_V, dtype=np.float64), 0.0)
    share_V = 0.99 * share_V / (share_V.sum() or 1.0) + 0.01 * unseen_V / np.count_nonzero(unseen_V)
    share_V /= share_V.sum()
    seen_V: Floats = counts_V / max(total, 1.0)
    return np.asarray(mass * share_V + (1 - mass) * seen_V, dtype=np.float64)


def spelled(token: Token) -> str:
    """A token as the model knows it; placeholders lose their number."""
    return f"{token.text.split('_')[0]}]" if token.kind == "placeholder" else token.text


def whole_sentences(text: Sentences) -> Sentences:
    """The sentences that are not a part of another one. Corpora of phrases would count their words often."""
    kept: list[Sentence] = []
    runs: set[int] = set()
    for sentence in sorted(text, key=len, reverse=True):
        words = tuple(map(spelled, sentence))
        if hash(words) not in runs:
            kept.append(sentence)
            runs.update(hash(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    return tuple(kept)


def without_overlap(own: Sentences, attacked: Sentences, run: int = 8) -> Sentences:
    """The attacker's sentences that neither equal an attacked one nor share `run` tokens in a row with it.

    Corpora repeat themselves; a sentence that the attacker has already read is not recovered but known.
    """
    known = {tuple(token.text for token in sentence) for sentence in attacked}
    runs = {text[i : i + run] for text in known for i in range(len(text) - run + 1)}

    def fresh(sentence: Sentence) -> bool:
        text = tuple(token.text for token in sentence)
        return text not in known and not any(text[i : i + run] in runs for i in range(len(text) - run + 1))

    return tuple(sentence for sentence in own if fresh(sentence))
