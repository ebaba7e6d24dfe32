"""Sanitise text under a policy: pass, replace by a typed placeholder, or draw another word of the same group.

What kind a token is says `transom.privacy.reader`, what becomes of a kind the policy's rule for it. Words of
kinds with an epsilon are drawn, kinds of different epsilons from tables of their own; each fresh draw costs
its mechanism's epsilon. Placeholders cost nothing; the case pattern of a drawn word is kept.
Threat model: the host knows policy, mechanism and prior, sees the whole sanitised text of every request,
and is the exact Bayes attacker of `Sanitizer.bayes_guess` (`transom.privacy.draws`).
Does not protect: what the guarantee lists as disclosed; meaning that the words of many places carry
together; names that are vocabulary words, are not on the policy's list and open a sentence or have no
capital get a draw, not a placeholder.
Source: Chen et al. 2023 (groups), Yu et al. 2025, arXiv 2509.09091 (noisy selection); composition over a
prompt: Dwork and Roth 2014, theorem 3.16. The memo's rule is stated in `transom.privacy.memo`.
"""

from __future__ import annotations

import hmac
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from typing import NamedTuple, Protocol

from transom.privacy.claims import PUBLIC, Claims
from transom.privacy.draws import BayesGuess, Draws
from transom.privacy.forms import may_hold_form, pieces_of_forms
from transom.privacy.guarantee import Guarantee
from transom.privacy.kinds import CLAIMED, KINDS, SUBKINDS, Span
from transom.privacy.memo import Message, PlaceMemo
from transom.privacy.partition import WordMechanism
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy
from transom.privacy.promise import promise_of, promise_of_text
from transom.privacy.reader import Reader
from transom.privacy.text import Token, with_case


class Piece(NamedTuple):
    """One token's way: `action` is pass, placeholder, draw (fresh, charged) or memo (released before).

    `source` is private and kept out of the repr. Ids are word ids, -1 where there is none.
    """

    kind: str
    action: str
    output: str
    source: str
    source_id: int = -1
    output_id: int = -1

    def __repr__(self) -> str:
        return f"Piece({self.kind}, {self.action}, {self.output!r})"


class Hider(Protocol):
    """Whoever makes placeholders."""

    def hide(self, kind: str, value: str) -> str:
        """The placeholder of a value."""
        ...


# A token with its kind, whether a placeholder replaces it, and its word id, -1 unless it is drawn. A bare
# tuple: there is one for every token of every request.
_Part = tuple[str, Token, bool, int]


@dataclass(frozen=True)
class Sanitized:
    """The text to send; `epsilon` is what its fresh draws cost and must be charged before it is sent.

    `drawn` is their number. `pending`, None without a session, goes to `PlaceMemo.keep` after the charge,
    together with that of the request's other messages.
    """

    text: str
    epsilon: float
    drawn: int
    pending: Message | None = field(repr=False)
    _parts: Sequence[_Part] = field(repr=False)
    _outputs: Sequence[str] = field(repr=False)
    _fresh: Mapping[int, int] = field(repr=False)  # word ids released at places that were drawn now
    _known: Mapping[int, int] = field(repr=False)  # and at places that had been drawn before

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """Each token's way."""
        pieces = []
        for i, ((kind, token, hide, word_id), output) in enumerate(
            zip(self._parts, self._outputs, strict=True)
        ):
            action = (
                "draw"
                if i in self._fresh
                else "memo"
                if i in self._known
                else "placeholder"
                if hide
                else "pass"
            )
            released = self._fresh.get(i, self._known.get(i, -1))
            pieces.append(Piece(kind, action, output, token.text, word_id, released))
        return tuple(pieces)

    @property
    def recalled(self) -> int:
        """The number of drawn words that were released before."""
        return len(self._known)

    @property
    def public(self) -> tuple[str, ...]:
        """The stretches that passed as public."""
        return tuple(token.text for kind, token, _, _ in self._parts if kind == PUBLIC)

    @cached_property
    def counts(self) -> Mapping[str, int]:
        """Tokens a kind."""
        return _counted(self._parts)

    @cached_property
    def replaced(self) -> Mapping[str, int]:
        """Those of them that became placeholders."""
        return _counted([part for part in self._parts if part[2]])


@dataclass(frozen=True)
class Batch:
    """Independent texts, sanitised together: with the fresh draws of each and their cost.

    `counts` are tokens a kind, `replaced` those of them that became placeholders.
    """

    texts: tuple[str, ...]
    draws: tuple[int, ...]
    epsilons: tuple[float, ...]
    counts: Mapping[str, int]
    replaced: Mapping[str, int] = field(default_factory=dict)

    @property
    def epsilon(self) -> float:
        """What all texts cost."""
        return sum(self.epsilons)


class Sanitizer:
    """A policy with a mechanism; `mechanism` (a name, or any `WordMechanism`) and `epsilon` override it.

    When the policy replaces words by placeholders there is no mechanism and nothing is ever spent. What
    `claims` find in a text is public, allowed, or replaced by a placeholder whatever the policy's rules are.
    """

    def __init__(
        self,
        policy: Policy,
        mechanism: str | WordMechanism | None = None,
        epsilon: float | None = None,
        *,
        claims: Claims | None = None,
    ) -> None:
        if epsilon is not None:
            drawn = [kind for kind, rule in policy.rules.items() if not isinstance(rule, str)]
            policy = policy.with_rules(dict.fromkeys(drawn or ["word"], epsilon))
        if isinstance(mechanism, str):
            policy = policy.with_rules({}, mechanism)
        self.policy, self._reader, self._claims = policy, Reader(policy), claims or Claims()
        own = None if mechanism is None or isinstance(mechanism, str) else mechanism
        self._draws = Draws(policy, own)
        self.mechanism = self._draws.mechanisms[0] if self._draws.mechanisms else None

    @property
    def word_epsilon(self) -> float:
        """The most that one fresh draw costs; 0 where nothing is drawn."""
        return self._draws.epsilon

    @property
    def mechanisms(self) -> tuple[WordMechanism, ...]:
        """What draws, a mechanism for each epsilon."""
        return tuple(self._draws.mechanisms)

    @property
    def drawn_by(self) -> Mapping[str, int]:
        """The place among `mechanisms` of what draws each kind that is drawn."""
        return self._draws.number_of

    def prepare(self) -> None:
        """Make now the tables that first draws would wait for, where all of them take a second or less."""
        self._draws.prepare()

    def sanitize(
        self,
        text: str,
        *,
        placeholders: Hider,
        memo: PlaceMemo | None = None,
        session: str | None = None,
        place: int = 0,
        spans: Sequence[Span] = (),
    ) -> Sanitized:
        """Sanitise one message; `place` is its index in the conversation. With no session all is drawn.

        `spans` are stretches of the text whose kind is known already (see `transom.privacy.kinds`); claims
        are looked for between them.

        Nothing is charged or kept here: charge `epsilon`, then `memo.keep` in one call what is pending of all
        messages of the request, then send.
        """
        parts = self._parts(text, spans)
        drawn_at = [index for index, part in enumerate(parts) if part[3] >= 0]
        known, digests = self._recalled(parts, drawn_at, memo, session, place)
        at = [index for index in drawn_at if index not in known] if known else drawn_at
        kinds = [parts[index][0] for index in at]
        fresh = dict(zip(at, self._draws.sample(kinds, [parts[index][3] for index in at]), strict=True))
        words, released = self.policy.words, known | fresh
        outputs = self._outputs(parts, placeholders, [released[index] for index in drawn_at])
        pending = None
        if session is not None and memo is not None:
            pending = Message(session, place, {i: (digests[i], words[released[i]]) for i in drawn_at})
        epsilon = self._draws.cost(kinds)
        return Sanitized("".join(outputs), epsilon, len(fresh), pending, parts, outputs, fresh, known)

    def sanitize_batch(
        self, texts: Sequence[str], placeholders: Sequence[Placeholders] | None = None
    ) -> Batch:
        """Sanitise independent texts in one call to the mechanism, each with placeholders of its own.

        `placeholders`, one a text, may be shared by some of them.
        """
        holders = placeholders or [Placeholders() for _ in texts]
        if self.mechanism is None:
            return self._replaced(texts, holders)
        parts_of = [self._parts(text) for text in texts]
        drawn_of = [[part for part in parts if part[3] >= 0] for parts in parts_of]
        kinds_of = [[part[0] for part in drawn] for drawn in drawn_of]
        ids = [part[3] for drawn in drawn_of for part in drawn]
        released = iter(self._draws.sample(list(chain.from_iterable(kinds_of)), ids))
        results = [
            "".join(self._outputs(parts, holder, islice(released, len(drawn))))
            for parts, drawn, holder in zip(parts_of, drawn_of, holders, strict=True)
        ]
        counts: Counter[str] = Counter()
        replaced: Counter[str] = Counter()
        for parts in parts_of:
            counts.update([part[0] for part in parts])
            replaced.update([part[0] for part in parts if part[2]])
        costs = tuple(map(self._draws.cost, kinds_of))
        draws = tuple(map(len, drawn_of))
        return Batch(tuple(results), draws, costs, _ordered(counts), _ordered(replaced))

    def _replaced(self, texts: Sequence[str], holders: Sequence[Placeholders]) -> Batch:
        """The batch where nothing is drawn: without what draws need, and one text at a time."""
        results, hidden = [], self._hidden
        counts, read, replaced = Counter[str](), Counter[str](), Counter[str]()
        for text, holder in zip(texts, holders, strict=True):
            claimed = self._claims.find(text)
            if claimed or may_hold_form(text) or not self.policy.words_pass:
                parts = self._parts(text)
                results.append("".join(self._outputs(parts, holder, ())))
                counts.update([part[0] for part in parts])
                replaced.update([part[0] for part in parts if part[2]])
                continue
            tokens = self._reader.read(text)
            outputs, kinds = [token.text for token in tokens], [token.kind for token in tokens]
            read.update(kinds)
            if not hidden.isdisjoint(kinds):
                for at, kind in enumerate(kinds):
                    if kind in hidden:
                        outputs[at] = holder.hide(kind, outputs[at])
            results.append("".join(outputs))
        replaced.update({kind: read[kind] for kind in hidden})
        zeros = (0,) * len(texts)
        return Batch(tuple(results), zeros, (0.0,) * len(texts), _ordered(counts + read), _ordered(replaced))

    def bayes_guess(self, sanitized: Sanitized) -> BayesGuess:
        """The attacker's best guess for every drawn word, from the integers and the public prior."""
        drawn = (piece for piece in sanitized.pieces if piece.output_id >= 0)
        return self._draws.attacked([(one.kind, one.source_id, one.output_id) for one in drawn])

    def guarantee(self, sanitized: Sanitized | None = None) -> Guarantee:
        """What one drawn word is promised, or, given a sanitised text, that text: the sum of its draws."""
        draws = [one.guarantee() for one in self._draws.mechanisms]
        promise = promise_of(self.policy, draws, self._claims.disclosed())
        if sanitized is None or not draws:
            return promise
        return promise_of_text(promise, sanitized.drawn, sanitized.epsilon)

    def _parts(self, text: str, spans: Sequence[Span] = ()) -> list[_Part]:
        ids, hidden, drawn = self.policy.word_ids.get, self._hidden, self._draws.number_of
        # A listed word may be of a drawn kind and in no group.
        return _closed(
            [
                (token.kind, token, token.kind in hidden, -1)
                if token.kind not in drawn and not token.claimed
                else (token.kind, token, token.kind not in CLAIMED, -1)
                if token.claimed
                else (token.kind, token, (word_id := ids(token.lookup, -1)) < 0, word_id)
                for token in self._reader.read(text, self._claimed(text, spans))
            ]
        )

    def _claimed(self, text: str, spans: Sequence[Span]) -> Sequence[Span]:
        """The given spans, and what the claims find in each stretch between them."""
        if not spans:
            return self._claims.find(text)
        found, end = list(spans), 0
        for span in (*sorted(spans), Span(len(text), len(text), PUBLIC)):
            between = self._claims.find(text[end : span.start])
            found += [Span(start + end, stop + end, kind) for start, stop, kind in between]
            end = span.end
        return found

    def _outputs(self, parts: list[_Part], placeholders: Hider, released: Iterable[int]) -> list[str]:
        """What each token becomes; `released` are the word ids for those that are drawn, in order."""
        words, drawn = self.policy.words, iter(released)
        return [
            with_case(words[next(drawn)], token.case)
            if word_id >= 0
            else placeholders.hide(kind, token.text)
            if hide
            else token.text
            for kind, token, hide, word_id in parts
        ]

    @cached_property
    def _hidden(self) -> frozenset[str]:
        """The kinds that become placeholders."""
        return frozenset(kind for kind in (*KINDS, *SUBKINDS) if self.policy.rule(kind) == "placeholder")

    def _recalled(
        self, parts: list[_Part], drawn_at: list[int], memo: PlaceMemo | None, session: str | None, place: int
    ) -> tuple[dict[int, int], dict[int, bytes]]:
        """The word ids that places of this message released before, and the digest of each place's word."""
        if memo is None or session is None:
            return {}, {}
        digest, known = memo.digester(session, place), memo.recall(session, place)
        places = {index: digest(index, parts[index][1].lookup) for index in drawn_at}
        ids = self.policy.word_ids
        released = {}
        for index in known.keys() & places.keys():
            before, word = known[index]
            if hmac.compare_digest(before, places[index]) and word in ids:
                released[index] = ids[word]
        return released, places


def _closed(parts: list[_Part]) -> list[_Part]:
    """Hide what passes and reads as a placeholder, alone or put together; not the program's own text."""
    while True:
        shown = ["\0" if hide or word_id >= 0 else token.text for _, token, hide, word_id in parts]
        found = [index for index in pieces_of_forms(shown) if parts[index][0] != "public"]
        if not found:
            return parts
        parts = parts.copy()  # and once more: what stood beside it may read as a placeholder now
        for index in found:
            parts[index] = ("identifier", parts[index][1], True, -1)


def _counted(parts: Sequence[_Part]) -> dict[str, int]:
    return _ordered(Counter([part[0] for part in parts]))


def _ordered(counts: Mapping[str, int]) -> dict[str, int]:
    return {kind: count for kind in (*KINDS, *SUBKINDS, *CLAIMED) if (count := counts.get(kind))}
