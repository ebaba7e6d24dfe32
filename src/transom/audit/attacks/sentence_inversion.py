"""Inversion of sentence embeddings: search for the text whose embedding is the one seen.

It starts from the words that `bag` reads, in the order that a language of pairs likes best. Each round tries
changes of one token (another one, one more, one less) and of order, which the slope of the likeness through
the encoder, the bag's log-odds and the language propose; then the best changes at different places together;
and goes on from the best texts. The score of a text is its embedding's product with the one seen, plus
`weight` times the log-probability of the language (with Gaussian noise of variance `weight` that is the
posterior), plus a little of what the bag says of its words, which keeps words out that only fill a gap.

Threat model: see `sentences`; the attacker runs the encoder and its slopes (it is public). Does not protect
anything; the search is local, and a long sentence may need more time than it gets.
Source: own search; the setting is that of Song and Raghunathan 2020, arXiv 2004.00053, and of Morris et al.
2023, arXiv 2310.06816; slopes as in Ebrahimi et al. 2018, "HotFlip", arXiv 1712.06751.

Shapes: N sentences, T tokens, D width, U words of the attacker's texts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from transom.audit.attacks import bag
from transom.audit.attacks.bigrams import Bigrams
from transom.audit.attacks.rows import Truth
from transom.audit.attacks.sentences import METRIC, Public, Sentences, misfit, score
from transom.report.finding import Bound, Finding, not_run

if TYPE_CHECKING:
    import torch

Text = tuple[int, ...]

LEAST_WEIGHT = 1e-4
LEAST_S = 5.0  # for one sentence
_LONGEST = 126  # tokens, as the encoders are trained
_WORDS, _PROPOSED, _SHUFFLED, _TOGETHER = 80, 60, 20, 8
_LEANING = 0.35  # of a proposal on the bag's log-odds; slopes are in units of their spread
_BELIEF = 1.5e-3  # of the bag's log-odds in a text's score
_PATIENCE = 4  # rounds without a better text, each proposing more


class Edit(NamedTuple):
    """One token of a text changed; an insertion comes before `place`."""

    kind: Literal["replace", "insert", "delete"]
    place: int
    token: int = 0


def edited(text: Text, edits: list[Edit]) -> Text:
    """The text with all `edits` made, whose places are those of the text as it is.

    >>> edited((5, 6, 7), [Edit("delete", 0), Edit("insert", 3, 8), Edit("replace", 1, 9)])
    (9, 7, 8)
    """
    made = list(text)
    for kind, place, token in sorted(edits, key=lambda edit: -edit.place):
        made[place : place + (kind != "insert")] = [] if kind == "delete" else [token]
    return tuple(made)


def attacks() -> tuple[Bound, ...]:
    """Two findings: the words of the bag alone, and the search. The first to run trains the bag, in half of
    its budget."""
    trained: list[bag.Bag] = []

    def bound(name: str, search: bool) -> Bound:
        def attack(target: Sentences, knowledge: Public, data: Truth, budget_s: float) -> Finding:
            stop = time.monotonic() + budget_s
            if gap := misfit(name, target, knowledge, data):
                return gap
            if not trained:
                trained.append(bag.train(knowledge.encoder, knowledge.texts, budget_s / 2))
            words, log_odds_NU = trained[0], trained[0].log_odds(target.values_ND.float())
            guesses, note = words.read(log_odds_NU), f"learnt from {words.texts} texts"
            if search:
                guesses, likeness = invert(target, knowledge, words, log_odds_NU, guesses, stop)
                if not guesses:
                    return not_run(name, METRIC, "no time was left for one sentence; raise --budget")
                note += f", {len(guesses)} of {len(data.texts)} sentences searched, likeness {likeness:.3f}"
            reached = Truth(data.texts[: len(guesses)], data.decode)
            return score(name, guesses, reached, note=note)

        return Bound(name, METRIC, attack)

    return bound("bag-of-words", False), bound("sentence-search", True)


def invert(
    target: Sentences,
    knowledge: Public,
    words: bag.Bag,
    log_odds_NU: torch.Tensor,
    starts: tuple[Text, ...],
    stop: float,
    *,
    most: int = 1_000_000,
) -> tuple[tuple[Text, ...], float]:
    """(texts of the first sentences, their mean likeness), as many as are reached before `stop`.

    Time is shared evenly among sentences, but each gets a few seconds if it needs them; no sentence gets
    more than about `most` tries.
    """
    end = knowledge.encoder.ends[1]
    language = Bigrams.of(((*text, end) for text in knowledge.texts), len(knowledge.encoder.table_VE))
    weight = max(LEAST_WEIGHT, target.noise.variance(knowledge.encoder.width))
    found: list[Text] = []
    likeness: list[float] = []
    for number, goal_D in enumerate(target.values_ND.float()):
        left_s = stop - time.monotonic()
        if left_s <= 0:
            break
        share_s = max(left_s / (len(starts) - number), min(left_s, LEAST_S))
        hunt = Hunt(knowledge, words, language, goal_D, log_odds_NU[number], weight, most)
        found.append(hunt.run(starts[number], time.monotonic() + share_s))
        likeness.append(float(knowledge.encoder.embed((found[-1],))[0] @ goal_D / goal_D.norm()))
    return tuple(found), float(np.mean(likeness or [0.0]))


@dataclass
class Hunt:
    """The search for one sentence; `scores` holds every text tried."""

    knowledge: Public
    words: bag.Bag
    language: Bigrams
    goal_D: torch.Tensor
    log_odds_U: torch.Tensor
    weight: float
    most: int = 1_000_000
    scores: dict[Text, float] = field(default_factory=dict)

    def run(self, bag_words: Text, stop: float) -> Text:
        """The best text found before `stop`, `most` tries, or a few rounds in a row that find none better."""
        draw = np.random.default_rng(0)
        pool, stale = [self._in_order(bag_words)], 0
        self._try(pool)
        while time.monotonic() < stop and len(self.scores) < self.most and stale < _PATIENCE:
            before = self.scores[pool[0]]
            for text in pool:
                singles = {edit: edited(text, [edit]) for edit in self._edits(text, 1 + stale)}
                self._try([*singles.values(), *_reordered(text, draw, _SHUFFLED * (1 + stale))])
                self._try(self._combined(text, singles))
            gain = max(self.scores.values()) - before
            stale = 0 if gain > 1e-6 else stale + 1
            best = sorted(self.scores, key=lambda text: self.scores[text], reverse=True)
            pool = best[: 1 if gain > 3e-3 else 3]
        return max(self.scores, key=lambda text: self.scores[text])

    def _in_order(self, bag_words: Text) -> Text:
        """The words one after another, each the likeliest to follow."""
        rest = list(bag_words[:_LONGEST])
        text: Text = (self.language.start_id,)
        while rest:
            following = max(rest, key=lambda word: self.language.log(text[-1], word))
            rest.remove(following)
            text = (*text, following)
        return text[1:]

    def _try(self, texts: list[Text]) -> None:
        """Score the texts that were not tried yet."""
        fresh = [
            text for text in dict.fromkeys(texts) if text not in self.scores and 0 < len(text) <= _LONGEST
        ]
        if fresh:
            likeness = (self.knowledge.encoder.embed(tuple(fresh)) @ self.goal_D).tolist()
            for text, like in zip(fresh, likeness, strict=True):
                log_prob = self.language.log_of((*text, self.knowledge.encoder.ends[1]))
                self.scores[text] = like + self.weight * log_prob + _BELIEF * self._log_odds(text)

    def _log_odds(self, text: Text) -> float:
        """The bag's log-odds of the words in the text, each counted once, none beyond reason."""
        places = np.searchsorted(self.words.words_U, sorted(set(text)))
        return float(self.log_odds_U[places.tolist()].clamp(-6, 2).sum())

    def _edits(self, text: Text, effort: int) -> Iterator[Edit]:
        """Changes of one token; more with more `effort`."""
        import torch

        encoder, words_U = self.knowledge.encoder, self.words.words_U
        slope_TE, rows_TE = encoder.pull(text, self.goal_D)
        gain_TU = slope_TE @ encoder.table_VE[torch.from_numpy(words_U)].float().T
        swap_TU = gain_TU - (slope_TE * rows_TE).sum(1, keepdim=True)
        between_TU = torch.cat([gain_TU[:1], (gain_TU[1:] + gain_TU[:-1]) / 2, gain_TU[-1:]])
        count = _PROPOSED * effort
        for kind, hope_TU in (("replace", swap_TU), ("insert", between_TU)):
            hope_TU = hope_TU / (hope_TU.std() + 1e-9) + _LEANING * self.log_odds_U
            for flat in hope_TU.flatten().topk(min(count, hope_TU.numel())).indices.tolist():
                yield Edit(kind, flat // len(words_U), int(words_U[flat % len(words_U)]))  # type: ignore[arg-type]
        for place in range(len(text)):
            yield Edit("delete", place)
        yield from self._fitting(text, 1 + effort)

    def _fitting(self, text: Text, count: int) -> Iterator[Edit]:
        """Insertions of likely words that the language expects between their neighbours."""
        likely = self.log_odds_U.topk(min(_WORDS, len(self.log_odds_U)))
        pairs = [(float(odds), int(self.words.words_U[i])) for odds, i in zip(*likely, strict=True)]
        framed = (self.language.start_id, *text, self.knowledge.encoder.ends[1])
        for place, (before, after) in enumerate(pairwise(framed)):
            fits = [
                (odds + self.language.log(before, word) + self.language.log(word, after), word)
                for odds, word in pairs
            ]
            for _, word in sorted(fits, reverse=True)[:count]:
                yield Edit("insert", place, word)

    def _combined(self, text: Text, singles: dict[Edit, Text]) -> list[Text]:
        """The text with the best two, three, ... changes that helped alone, at places not side by side."""
        now = self.scores[text]
        helped = sorted(
            (edit for edit, made in singles.items() if self.scores.get(made, -math.inf) > now),
            key=lambda edit: -self.scores[singles[edit]],
        )
        chosen: list[Edit] = []
        for edit in helped:
            if all(abs(edit.place - other.place) > 1 for other in chosen):
                chosen.append(edit)
        return [edited(text, chosen[:size]) for size in range(2, min(len(chosen), _TOGETHER) + 1)]


def _reordered(text: Text, draw: np.random.Generator, count: int) -> list[Text]:
    """Neighbours exchanged, and `count` pieces of the text moved elsewhere."""
    swaps = [(*text[:i], text[i + 1], text[i], *text[i + 2 :]) for i in range(len(text) - 1)]
    moved = []
    for _ in range(count):
        start, stop = sorted(draw.integers(0, len(text) + 1, 2))
        rest = text[:start] + text[stop:]
        place = int(draw.integers(0, len(rest) + 1))
        moved.append(rest[:place] + text[start:stop] + rest[place:])
    return [*swaps, *moved]
