"""Contextual Bayes with a causal language model: the beam search of `causal_beam` over a sanitised text.

The posteriors of `contextual` say how likely each candidate is at its place, and the model how well a whole
reading reads; with which power it counts is set on sentences of the attacker's own, sanitised by itself.
The model reads all in lower case but for the start of a sentence, and for a placeholder, whose spelling it
has never met, a stand-in of its kind. A long text is read in parts, each behind what was read before.
The baseline is the same attacker without the outputs: model, context, groups and everything that passes.

Threat model: as in `contextual`, with a pretrained causal model as well. Does not prove anything about
attackers with a larger model.
Source: Tong et al., arXiv 2410.17052, section 4 (contextual optimum); see `causal_beam`.

Legend: K candidates of one place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from transom.audit.attacks import contextual
from transom.audit.attacks.causal_beam import Causal, Gap, Gapped, Ids, read
from transom.audit.attacks.contextual import FEWEST_SENTENCES, Mind
from transom.audit.attacks.language import Trigrams, posteriors
from transom.audit.attacks.sentences import computes_in_bfloat16
from transom.audit.attacks.word_text import Sentence, Sentences, Token, spelled
from transom.audit.attacks.words import (
    METRIC,
    Channel,
    WordData,
    WordKnowledge,
    WordTarget,
    first,
    originals,
    right,
    scored,
)
from transom.errors import CheckpointError
from transom.report.finding import Finding, not_run
from transom.report.statistics import Floats

NAME = "language model"
__all__ = ["METRIC", "NAME", "attack", "guesses", "learned", "load_causal"]

FEWEST_READ = 20
WIDTH = 4
POWERS = (1.0, 0.7, 0.4, 0.0)  # the likeliest to be best first; 0 is contextual Bayes
UNTRIED_POWER = 0.7
_TRIAL = 40  # sentences that the power is set on
_BATCH = 8
_PART, _CONTEXT = 16, 128  # gaps read together, and tokens of the text before them
_RUN = 24  # tokens read of what is known between two gaps: its beginning and its end
_LEAST = 1e-3  # candidates with less of the likeliest one's posterior are left out
_STAND_INS = {
    "[NAME]": "Smith", "[PERSON]": "Smith", "[PLACE]": "London", "[ORG]": "Smith and Sons",
    "[NUMBER]": "10", "[DATE]": "10 May", "[TIME]": "10:30", "[MONEY]": "$10", "[PHONE]": "555 0100",
    "[TERM]": "thing", "[SYMBOL]": "*", "[HEALTH]": "illness", "[FINANCE]": "money", "[RELIGION]": "faith",
    "[POLITICS]": "politics", "[ORIGIN]": "origin", "[SEXUALITY]": "sex", "[CRIME]": "crime",
    "[FAMILY]": "family",
}  # fmt: skip
_CLOSING, _OPENING, _ENDS = frozenset(",.;:!?)]}%'"), frozenset("([{$#"), frozenset(".!?")


def attack(target: WordTarget, knowledge: WordKnowledge, data: WordData, budget_s: float) -> Finding:
    """Token recovery of the best reading, on as many sentences as the budget allows."""
    deadline = time.monotonic() + budget_s
    if knowledge.causal is None:
        return not_run(NAME, METRIC, "it needs a causal language model, and got none")
    reader = learned(target.channel, knowledge, deadline)
    (found, alone, without), done = _within(reader, target.seen, deadline)
    if done < min(FEWEST_READ, len(target.seen)):
        return not_run(NAME, METRIC, f"its time ran out after {done} sentences; raise --budget")
    part, truth = first(target, data, done)
    baseline = float(right(part, truth, alone).mean())
    notes = (
        f"{baseline:.3f} from context alone, {right(part, truth, without).mean():.3f} without the model",
        f"{reader.model.name} counts with power {reader.power:g}",
        "" if done == len(target.seen) else f"on the first {done} of {len(target.seen)} sentences",
    )
    note = "; ".join(filter(None, notes))
    return scored(NAME, part, truth, found, note=note, baseline=baseline)


def load_causal(source: str) -> Causal:
    """A causal model and its tokenizer, from wherever checkpoints are found.

    Raises CheckpointError, NotYetError, MissingExtraError.
    """
    from transom.checkpoint import load
    from transom.checkpoint.walk import walk

    checkpoint = load(source, dtype="bfloat16" if computes_in_bfloat16() else "float32")
    parts = walk(checkpoint.model)
    if checkpoint.tokenizer is None or not parts.family.causal or parts.head is None:
        kind = type(checkpoint.model).__name__
        raise CheckpointError(f"{source} is a {kind}; give a causal language model with its tokenizer")
    config = checkpoint.model.config
    ids = (getattr(config, f"{role}_token_id", None) for role in ("bos", "eos"))
    start_id = next((one for one in ids if isinstance(one, int)), 0)
    return Causal(checkpoint.model, checkpoint.tokenizer.tokenizer, start_id, source)


@dataclass(frozen=True, eq=False)
class Reader:
    """Contextual Bayes, a causal model, and the power with which that counts."""

    mind: Mind = field(repr=False)
    model: Causal
    power: float

    @property
    def unseeing(self) -> Reader:
        """The same without the outputs."""
        return replace(self, mind=replace(self.mind, unseen=True))


def learned(channel: Channel, knowledge: WordKnowledge, deadline: float) -> Reader:
    """The reader with the power that recovers most of the trial sentences.

    Powers are tried in the order of POWERS until a third of the time to `deadline` is spent; then the best
    so far is taken. With little text there is no context but the model's, at UNTRIED_POWER.
    """
    if len(knowledge.text) < FEWEST_SENTENCES:
        nothing = Trigrams.of(((Token("passed", "."),),), channel.words, knowledge.prior_V)
        return Reader(Mind(channel, knowledge.prior_V, nothing, 0.0), knowledge.causal, UNTRIED_POWER)
    mind = contextual.learned(channel, knowledge, deadline)
    now = time.monotonic()
    reader = Reader(mind, knowledge.causal, POWERS[0])
    seen, plain = knowledge.trial_seen[:_TRIAL], knowledge.trial[:_TRIAL]
    truth = [token.text for token in originals(seen, plain)]
    tries, until = (replace(reader, power=power) for power in POWERS), now + (deadline - now) / 3
    return contextual.best_of(tries, lambda tried: guesses(tried, seen, until), truth) or reader


def _within(
    reader: Reader, seen: Sentences, deadline: float
) -> tuple[tuple[list[str], list[str], list[str]], int]:
    """Guesses for the first sentences (with all, without the outputs, without the model), and how many."""
    ways = reader, reader.unseeing, replace(reader, power=0.0)
    named: tuple[list[str], list[str], list[str]] = [], [], []
    for done in range(0, len(seen), _BATCH):
        try:
            found = [guesses(way, seen[done : done + _BATCH], deadline) for way in ways]
        except TimeoutError:
            return named, done
        for words, more in zip(named, found, strict=True):
            words += more
    return named, len(seen)


def guesses(reader: Reader, seen: Sentences, deadline: float = math.inf) -> list[str]:
    """One word for each drawn token. Raises TimeoutError after `deadline` (of the monotonic clock)."""
    if not reader.power:
        return contextual.guesses(reader.mind, seen, deadline)
    found: list[str] = []
    for start in range(0, len(seen), _BATCH):
        texts = [_Text(reader, sentence) for sentence in seen[start : start + _BATCH]]
        while unread := [text for text in texts if text.unread]:
            parts = [text.part() for text in unread]
            readings = read(reader.model, parts, reader.power, WIDTH, deadline)
            for text, best in zip(unread, readings, strict=True):
                text.take(best[0].chosen)
        found += [word for text in texts for word in text.named]
    return found


class _Text:
    """A sentence while it is read: what is known before the next gap, the gaps, the words named so far."""

    def __init__(self, reader: Reader, sentence: Sentence) -> None:
        lead, self._gaps = _gapped(reader, sentence)
        self._known = list(lead)
        self.named: list[str] = []

    @property
    def unread(self) -> bool:
        """Whether there is a gap left."""
        return len(self.named) < len(self._gaps)

    def part(self) -> Gapped:
        """The next gaps, behind the end of what is known."""
        first = len(self.named)
        return Gapped(
            tuple(self._known[-_CONTEXT:]), tuple(gap for gap, _ in self._gaps[first : first + _PART])
        )

    def take(self, chosen: Sequence[int]) -> None:
        """Name the words of the part's gaps, which are known from now on."""
        for k in chosen:
            gap, words = self._gaps[len(self.named)]
            self.named.append(words[k])
            self._known += [*gap.words[k], *gap.behind]


def _gapped(reader: Reader, sentence: Sentence) -> tuple[Ids, list[tuple[Gap, list[str]]]]:
    """The ids before the first gap, and each gap with its candidates, likeliest first."""
    mind, encode = reader.mind, partial(_ids, reader.model)
    places = mind.places(sentence)
    runs: list[list[int]] = [[]]  # what is known before the first gap, and behind each
    drawn: list[tuple[tuple[Ids, ...], Floats, list[str]]] = []
    for token, place, posterior_K, write in zip(
        sentence, places, posteriors(mind.model, places, mind.weight), _writers(sentence), strict=True
    ):
        if token.kind != "drawn":
            hidden = token.kind == "placeholder"
            runs[-1] += encode(write(_STAND_INS.get(spelled(token), "it") if hidden else token.text))
            continue
        likely_K = np.argsort(-posterior_K, kind="stable")
        likely_K = likely_K[posterior_K[likely_K] >= _LEAST * posterior_K.max()]
        words = [mind.channel.words[word] for word in place.words_K[likely_K]]
        drawn.append((tuple(encode(write(word)) for word in words), np.log(posterior_K[likely_K]), words))
        runs.append([])
    pairs = zip(drawn, runs[1:], strict=True)
    return tuple(runs[0]), [(Gap(ids, log_K, _near(run)), words) for (ids, log_K, words), run in pairs]


def _near(run: list[int]) -> Ids:
    return tuple(run if len(run) <= _RUN else run[: _RUN // 2] + run[-_RUN // 2 :])


def _ids(model: Causal, text: str) -> Ids:
    return tuple(model.tokenizer.encode(text, add_special_tokens=False).ids)


def _writers(sentence: Sentence) -> Iterator[Callable[[str], str]]:
    """How each token is written: with the space before it, and a capital where a sentence starts."""
    before, quoted, starts = "", False, True
    for token in sentence:
        closing = token.text[0] in _CLOSING or token.text == "n't" or (token.text == '"' and quoted)
        opened = before in _OPENING or (before == '"' and quoted)
        yield partial(_write, "" if closing or opened or not before else " ", starts)
        quoted ^= token.text == '"'
        if token.text != '"':
            starts = token.text in _ENDS
        before = token.text


def _write(space: str, capital: bool, text: str) -> str:
    return space + (text[:1].upper() + text[1:] if capital else text)
