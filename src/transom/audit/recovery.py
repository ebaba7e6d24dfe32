"""What an attacker reads of a whole sanitised text: every token counts, by how rare it is.

What passes is read. A drawn word is read where the strongest attack names it: of those that were run the one
that reads most, chosen afterwards, so in the attacker's favour. A placeholder is read where an attacker names
its value (`attacks.values`). A token weighs by `rarity`.

Threat model: as in `transom.audit.attacks.words`. Does not prove privacy: only that these attacks, with this
text of their own and within this time, read no more.
Source: see each attack.

Legend: S texts.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from transom.audit.attacks import bayes, causal, contextual, word_inversion
from transom.audit.attacks.causal_beam import Causal
from transom.audit.attacks.values import Values
from transom.audit.attacks.word_text import as_seen, drawn, own_sentences
from transom.audit.attacks.words import WordKnowledge, WordTarget
from transom.audit.rarity import Rarity
from transom.audit.words import case_of
from transom.privacy.sanitize import Piece, Sanitizer
from transom.report.finding import Attack, Finding, measured, not_run
from transom.report.metrics import READ
from transom.report.statistics import clustered_interval

_SILENT = frozenset({"space", "punct"})
NAME = "an attacker"
ATTACKS: tuple[Attack, ...] = (word_inversion, bayes, contextual, causal)  # on drawn words
Texts = Sequence[Sequence[Piece]]


@dataclass(frozen=True, eq=False)
class Attacker:
    """What one brings: lines of its own, a causal model, seconds, and the names of the attacks it tries."""

    lines: tuple[str, ...] = field(default=(), repr=False)
    causal: Causal | None = field(default=None, repr=False)
    budget_s: float = 60.0
    names: frozenset[str] = frozenset(attack.NAME for attack in ATTACKS)


def recovery(sanitizer: Sanitizer, texts: Texts, attacker: Attacker) -> Finding:
    """The weighted share of all tokens that is read, beside what passes; "not run" without a token."""
    rarity = Rarity(sanitizer.policy)
    counted = [[piece.kind not in _SILENT for piece in pieces] for pieces in texts]
    tokens = sum(map(sum, counted))
    if not tokens:
        return not_run(NAME, READ, "the text holds no word")
    read, note = _read(sanitizer, texts, attacker, rarity)
    weight_S, hit_S, open_S = [], [], []
    for pieces, known, counts in zip(texts, read, counted, strict=True):
        weights = [rarity.weight(piece.source) * counts for piece, counts in zip(pieces, counts, strict=True)]
        if sum(weights):
            weight_S.append(sum(weights))
            hit_S.append(sum(weight for weight, hit in zip(weights, known, strict=True) if hit))
            open_S.append(sum(w for w, one in zip(weights, pieces, strict=True) if one.action == "pass"))
    share, passing = (min(1.0, sum(some) / sum(weight_S)) for some in (hit_S, open_S))
    scale = tokens / sum(weight_S)  # so that the interval counts tokens, not bits
    low, high = clustered_interval(np.array(hit_S) * scale, np.array(weight_S) * scale)
    interval = min(low, share), max(high, share)
    return measured(NAME, READ, share, interval, baseline=passing, n=tokens, note=note)


def _read(
    sanitizer: Sanitizer, texts: Texts, attacker: Attacker, rarity: Rarity
) -> tuple[list[list[bool]], str]:
    """Which pieces are read, and by what."""
    drew = [piece for pieces in texts for piece in pieces if piece.output_id >= 0]
    hits: Iterator[bool] = iter(())
    notes: list[str] = []
    if drew:
        words = sanitizer.policy.words
        truth = [words[piece.source_id] for piece in drew]
        named, notes = _strongest(sanitizer, texts, attacker, [rarity.weight(word) for word in truth], truth)
        hits = map(operator.eq, named, truth)
    values, read, hidden = Values.of(sanitizer, attacker.lines, texts), [], [0, 0]
    for pieces in texts:
        known = values.named(pieces)
        hidden[0] += sum(piece.action == "placeholder" for piece in pieces)
        hidden[1] += sum(known)
        for place, piece in enumerate(pieces):
            if piece.action != "placeholder":
                known[place] = next(hits) if piece.output_id >= 0 else True
        read.append(known)
    if hidden[0]:
        without = "" if attacker.lines else " (--prior gives an attacker text to name them by)"
        notes.append(f"{hidden[1]} of {hidden[0]} placeholders named{without}")
    return read, "; ".join(notes)


def _strongest(
    sanitizer: Sanitizer, texts: Texts, attacker: Attacker, weights: Sequence[float], truth: Sequence[str]
) -> tuple[list[str], list[str]]:
    """What the attack that reads most names for each drawn word, which it is, and what was not run."""
    own = own_sentences(sanitizer.policy, attacker.lines)
    case = case_of(sanitizer, *as_seen(sanitizer, [pieces for pieces in texts if pieces]), own)
    knowledge = replace(case.knowledge, causal=attacker.causal)
    best, name, most, missing = [""] * len(truth), "", -1.0, []
    for tried, attack in _attacks(case.target, knowledge, attacker.budget_s):
        if tried not in attacker.names:
            continue
        try:
            named = attack()
        except TimeoutError:
            missing.append(f"{tried} not run: its time ran out; raise --budget")
            continue
        reached = sum(w for w, guess, word in zip(weights, named, truth, strict=True) if guess == word)
        if reached > most:
            best, name, most = named, tried, reached
    return best, [f"drawn words by {name or 'nobody'}", *missing]


def _attacks(
    target: WordTarget, knowledge: WordKnowledge, budget_s: float
) -> list[tuple[str, Callable[[], list[str]]]]:
    """The attacks that can be mounted, cheap ones first; those in context share the time."""
    started = time.monotonic()
    last = started + budget_s
    deadline = started + budget_s * (0.4 if knowledge.causal else 1.0)

    def in_context() -> list[str]:
        mind = contextual.learned(target.channel, knowledge, deadline)
        return contextual.guesses(mind, target.seen, deadline)

    def with_model() -> list[str]:
        return causal.guesses(causal.learned(target.channel, knowledge, last), target.seen, last)

    found: list[tuple[str, Callable[[], list[str]]]] = [
        (word_inversion.NAME, lambda: [token.text for token in drawn(target.seen)]),
        (bayes.NAME, lambda: bayes.guesses(target, knowledge.prior_V)),
    ]
    if len(knowledge.text) >= contextual.FEWEST_SENTENCES:
        found.append((contextual.NAME, in_context))
    if knowledge.causal is not None:
        found.append((causal.NAME, with_model))
    return found
