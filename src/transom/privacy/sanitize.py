"""Sanitise text under a policy: pass, replace by a typed placeholder, or draw another word of the same group.

Kinds, in order: every word on the policy's list of names is a *name*; pass words and contractions are *stop*,
unless a capital that says "name" (see `transom.privacy.text`) stands on one that may be an acronym or a name:
of one or two letters (`US`, `IT`), or `can may who will`; any other word with such a capital is a *name*;
vocabulary words are *word*; other words are *foreign* when not ASCII, *name* when they begin with a capital,
else *rare*. Numbers, identifiers and symbols come from the lexer. Each fresh draw costs the mechanism's
epsilon; placeholders cost nothing; the case pattern of a drawn word is kept.
Threat model: the host knows policy, mechanism and prior, sees the whole sanitised text of every request,
and is the exact Bayes attacker of `Sanitizer.bayes_guess`.
Does not protect: what the guarantee lists as disclosed; meaning that the words of many places carry
together; names that are vocabulary words, are not on the policy's list and open a sentence or have no
capital get a draw, not a placeholder.
Source: Chen et al. 2023 (groups), Yu et al. 2025, arXiv 2509.09091 (noisy selection); composition over a
prompt: Dwork and Roth 2014, theorem 3.16. The memo's rule is stated in `transom.privacy.memo`.

Legend: N draws, V vocabulary, K words of one group.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from transom.privacy.channel import BayesAttack
from transom.privacy.closed import HOMOGRAPHS, is_closed
from transom.privacy.guarantee import Guarantee
from transom.privacy.mechanisms import build
from transom.privacy.memo import Draw, PlaceMemo
from transom.privacy.partition import PartitionedMechanism, WordMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import KINDS, Policy
from transom.privacy.text import CLITICS, Token, Words, lex, with_case

DISCLOSES = (
    "the group of each drawn word, its place and its case pattern",
    "the kind and place of each placeholder, and which placeholders of a conversation hold equal values",
    "pass words, punctuation, white space and the number of words",
    "with a session: whether a place was edited since the last request",
)
_ASSUMPTIONS = (
    "words, groups, scores, frequencies and pass words are public and independent of the text",
    "os.urandom is secure",
    "each draw is released once; repeated draws add up",
)


@dataclass(frozen=True, slots=True)
class Piece:
    """One token's way: `action` is pass, placeholder, draw (fresh, charged) or memo (released before).

    `source` is private and kept out of the repr. Ids are word ids, -1 where there is none.
    """

    kind: str
    action: str
    output: str
    source: str = field(repr=False)
    source_id: int = field(default=-1, repr=False)
    output_id: int = -1


@dataclass(frozen=True)
class Sanitized:
    """The text to send; `epsilon` is what its fresh draws cost and must be charged before it is sent.

    `pending` goes to `PlaceMemo.keep` after the charge. `counts` are tokens a kind.
    """

    text: str
    epsilon: float
    pieces: tuple[Piece, ...] = field(repr=False)
    counts: Mapping[str, int]
    pending: tuple[Draw, ...] = field(default=(), repr=False)

    @property
    def drawn(self) -> int:
        """Number of fresh draws."""
        return sum(piece.action == "draw" for piece in self.pieces)


@dataclass(frozen=True)
class Batch:
    """Independent texts, sanitised together: `draws` fresh draws a text, `epsilon` their cost in all."""

    texts: tuple[str, ...]
    draws: tuple[int, ...]
    epsilon: float
    counts: Mapping[str, int]


@dataclass(frozen=True)
class BayesGuess:
    """What the exact Bayes attacker makes of a sanitised text's drawn words.

    `guesses` pairs each released word with the guess, `recovered` of `words` are right; `success` is the
    expected share given the released words, `chance` the share by naming each group's likeliest word unseen.
    """

    guesses: tuple[tuple[str, str], ...]
    recovered: int
    words: int
    success: float
    chance: float


class _Part(NamedTuple):
    """A token with its kind; `word_id` is -1 unless it is drawn, `hide` says replace by a placeholder."""

    kind: str
    token: Token
    hide: bool
    word_id: int


class Sanitizer:
    """A policy with a mechanism; `mechanism` (a name, or any `WordMechanism`) and `epsilon` override it.

    When the policy replaces words by placeholders there is no mechanism and nothing is ever spent.
    """

    def __init__(
        self, policy: Policy, mechanism: str | WordMechanism | None = None, epsilon: float | None = None
    ) -> None:
        if epsilon is not None:
            policy = policy.with_rules({"word": epsilon})
        if isinstance(mechanism, str):
            policy = policy.with_rules({}, mechanism)
        self.policy = policy
        self.mechanism: WordMechanism | None = None
        if policy.epsilon is not None and not (mechanism is None or isinstance(mechanism, str)):
            self.mechanism = mechanism
        elif policy.epsilon is not None:
            self.mechanism = build(policy.mechanism, policy.partition, policy.epsilon)
        self._posteriors: dict[int, tuple[int, float, float]] = {}

    @property
    def word_epsilon(self) -> float:
        """What one fresh draw costs; infinite unless the mechanism promises pure differential privacy.

        A metric epsilon is a price for a unit of distance, not for a word: no ledger can add it up.
        """
        if self.mechanism is None:
            return 0.0
        promise = self.mechanism.guarantee()
        return promise.epsilon if promise.kind == "pure-dp" and promise.epsilon is not None else math.inf

    def sanitize(
        self,
        text: str,
        *,
        placeholders: Placeholders,
        memo: PlaceMemo | None = None,
        session: str | None = None,
        place: int = 0,
    ) -> Sanitized:
        """Sanitise one message; `place` is its index in the conversation. With no session all is drawn.

        Nothing is charged or kept here: charge `epsilon`, then `memo.keep(result.pending)`, then send.
        """
        parts = self._parts(text)
        recalled: dict[int, int] = {}
        if memo is not None and session is not None:
            recalled = self._recall(parts, memo, session, place)
        fresh = [index for index, part in enumerate(parts) if part.word_id >= 0 and index not in recalled]
        drawn = dict(zip(fresh, self._draw([parts[index].word_id for index in fresh]), strict=True))
        released = {**recalled, **drawn}
        pieces = tuple(
            self._piece(part, placeholders, "draw" if index in drawn else "memo", released.get(index, -1))
            for index, part in enumerate(parts)
        )
        pending: tuple[Draw, ...] = ()
        if memo is not None and session is not None:
            pending = tuple(
                memo.draw(session, place, index, parts[index].token.lookup, self.policy.words[output])
                for index, output in drawn.items()
            )
        return Sanitized(
            text="".join(piece.output for piece in pieces),
            epsilon=len(fresh) * self.word_epsilon if fresh else 0.0,
            pieces=pieces,
            counts=_counted(parts),
            pending=pending,
        )

    def sanitize_batch(self, texts: Sequence[str]) -> Batch:
        """Sanitise independent texts, each with its own placeholders, in one call to the mechanism."""
        parts_of = [self._parts(text) for text in texts]
        draws = [sum(part.word_id >= 0 for part in parts) for parts in parts_of]
        outputs = iter(
            self._draw([part.word_id for parts in parts_of for part in parts if part.word_id >= 0])
        )
        words = self.policy.words
        results = []
        for parts in parts_of:
            placeholders = Placeholders()
            results.append(
                "".join(
                    with_case(words[next(outputs)], token.case)
                    if word_id >= 0
                    else placeholders.hide(kind, token.text)
                    if hide
                    else token.text
                    for kind, token, hide, word_id in parts
                )
            )
        counts: Counter[str] = Counter()
        for parts in parts_of:
            counts.update(_counted(parts))
        return Batch(
            tuple(results), tuple(draws), sum(draws) * self.word_epsilon if any(draws) else 0.0, counts
        )

    def bayes_guess(self, sanitized: Sanitized) -> BayesGuess:
        """The attacker's best guess for every drawn word, from the integers and the public prior."""
        drawn = [piece for piece in sanitized.pieces if piece.output_id >= 0]
        posteriors = [self._posterior(piece.output_id) for piece in drawn]
        words = self.policy.words
        return BayesGuess(
            guesses=tuple((words[p.output_id], words[q[0]]) for p, q in zip(drawn, posteriors, strict=True)),
            recovered=sum(p.source_id == q[0] for p, q in zip(drawn, posteriors, strict=True)),
            words=len(drawn),
            success=sum(q[1] for q in posteriors) / max(1, len(drawn)),
            chance=sum(q[2] for q in posteriors) / max(1, len(drawn)),
        )

    def guarantee(self, sanitized: Sanitized | None = None) -> Guarantee:
        """What one drawn word is promised, or, given a sanitised text, that text: the sum of its draws."""
        passing = [kind for kind, rule in self.policy.rules.items() if rule == "pass" and kind != "stop"]
        discloses = DISCLOSES + tuple(f"every {kind}, unchanged: the policy lets it pass" for kind in passing)
        if self.mechanism is None:
            return Guarantee(
                kind="pure-dp",
                unit="one text",
                adjacency="texts that differ in the replaced values alone, equal values staying equal",
                epsilon=0.0,
                discloses=discloses,
                source="a placeholder is a function of what is disclosed",
            )
        word = self.mechanism.guarantee()
        if sanitized is None:
            return replace(word, assumptions=_ASSUMPTIONS, discloses=discloses)
        return replace(
            word,
            unit=f"one text with {sanitized.drawn} fresh draws",
            adjacency=f"texts that differ at these places; at each place: {word.adjacency}",
            epsilon=sanitized.epsilon,
            assumptions=_ASSUMPTIONS,
            discloses=discloses,
        )

    def _parts(self, text: str) -> list[_Part]:
        rules, ids, draws = self.policy.rules, self.policy.word_ids, self.mechanism is not None
        parts = []
        for token in lex(text, self._words):
            kind = self._kind(token)
            if kind == "word" and draws:
                parts.append(_Part(kind, token, False, ids[token.lookup]))
            else:
                hide = rules.get(kind) == "placeholder" or (kind == "identifier" and token.text[0] == "[")
                parts.append(_Part(kind, token, hide, -1))
        return parts

    def _kind(self, token: Token) -> str:
        if token.kind != "word":
            return token.kind
        lookup, marked, policy = token.lookup, token.marked, self.policy
        if lookup in policy.names:
            return "name"
        if token.case != "mixed":
            if lookup in policy.pass_words or lookup in CLITICS:
                return "name" if marked and (len(lookup) < 3 or lookup in HOMOGRAPHS) else "stop"
            if marked:
                return "name"
            if lookup in policy.word_ids and not is_closed(lookup):
                return "word"
        if not token.text.isascii():
            return "foreign"
        # A line in capitals says nothing about names: its unknown words are merely rare.
        capital = token.case == "title" or (marked and token.text[0].isupper())
        return "name" if capital else "rare"

    @cached_property
    def _words(self) -> Words:
        """The words that pass and those that are drawn."""
        policy = self.policy
        drawn = {word for word in policy.words if not is_closed(word)} - policy.names
        return Words(policy.pass_words | drawn)

    def _draw(self, word_ids: list[int]) -> list[int]:
        if not word_ids or self.mechanism is None:
            return []
        return [int(i) for i in self.mechanism.sample(np.array(word_ids, dtype=np.int64)).tolist()]

    def _recall(self, parts: list[_Part], memo: PlaceMemo, session: str, place: int) -> dict[int, int]:
        recalled = {}
        for index, part in enumerate(parts):
            if part.word_id >= 0:
                released = memo.recall(session, place, index, part.token.lookup)
                if released is not None and released in self.policy.word_ids:
                    recalled[index] = self.policy.word_ids[released]
        return recalled

    def _piece(self, part: _Part, placeholders: Placeholders, action: str, output_id: int) -> Piece:
        kind, token, hide, word_id = part
        if output_id >= 0:
            output = with_case(self.policy.words[output_id], token.case)
            return Piece(kind, action, output, token.text, word_id, output_id)
        if hide:
            return Piece(kind, "placeholder", placeholders.hide(kind, token.text), token.text)
        return Piece(kind, "pass", token.text, token.text)

    @cached_property
    def _attack(self) -> BayesAttack:
        """The attacker of a mechanism without groups, over the whole vocabulary."""
        if self.mechanism is None:
            raise ValueError("without a mechanism there is nothing to guess")
        return self.mechanism.bayes(self.policy.prior_V.astype(np.float64))

    def _posterior(self, output_id: int) -> tuple[int, float, float]:
        """(best guess, its probability, the probability of the likeliest word unseen) for a released word."""
        if output_id not in self._posteriors:
            self._posteriors[output_id] = self._computed_posterior(output_id)
        return self._posteriors[output_id]

    def _computed_posterior(self, output_id: int) -> tuple[int, float, float]:
        prior_V, mechanism = self.policy.prior_V.astype(np.float64), self.mechanism
        if not isinstance(mechanism, PartitionedMechanism):
            attack = self._attack
            return int(attack.guess_Y[output_id]), attack.success, attack.chance
        group = int(self.policy.partition.group_V[output_id])
        start, end = (int(i) for i in self.policy.partition.starts_G1[group : group + 2])
        prior_K = prior_V[start:end] if prior_V[start:end].sum() > 0 else np.ones(end - start)
        joint_K = prior_K * mechanism.channel(group).p_XY[:, output_id - start]
        best = int(joint_K.argmax())
        return start + best, float(joint_K[best] / joint_K.sum()), float(prior_K.max() / prior_K.sum())


def _counted(parts: Sequence[_Part]) -> dict[str, int]:
    counts = Counter(part.kind for part in parts)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}
