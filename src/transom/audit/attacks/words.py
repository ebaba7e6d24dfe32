"""Sanitised words: what the host sees, what an attacker brings, and how a guess is scored.

A sentence is a tuple of tokens. Some were *drawn* by a mechanism, the others *passed* or became a
*placeholder*; which is which is public. An attack names the original of every drawn token, and its finding's
metric is the share named rightly ("token recovery"); the note adds the share of all tokens, where passed ones
are read and placeholders are not.

Threat model: an honest-but-curious host that knows mechanism, groups, vectors and rules, sees the whole
sanitised text, and owns public text. Mechanisms over a whole vocabulary are read through the candidates that
matter: for each output those with the largest prior times likelihood.
Does not protect anything.
Source: the integers of `transom.privacy`; intervals cluster by sentence, for its tokens are not independent
(Korn and Graubard 1998).

Legend: S sentences, N drawn tokens, V vocabulary, K candidates of one output, R repeated observations,
O distinct outputs, B rows of a block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import nlargest
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from transom.audit.attacks.by_rule import ByRule
from transom.audit.attacks.word_text import (
    Sentence,
    Sentences,
    Token,
    drawn,
    prior_of,
    sanitised,
    whole_sentences,
    with_kept_passed,
    without_overlap,
)
from transom.errors import MisconfiguredError
from transom.privacy.partition import PartitionedMechanism, WordMechanism
from transom.privacy.relaxed import DistanceMechanism
from transom.report.finding import MAX_EXAMPLES, Example, Finding, clustered
from transom.report.statistics import Floats, Ints

METRIC = "token recovery"
MAX_CANDIDATES = 64
MAX_TRIAL = 300
_BLOCK_ROWS = 2048


class Column(NamedTuple):
    """What one output says: candidate words [K] and P(output | candidate) [K].

    `unseen_K` are the candidates of one who does not look at it: its group, or else the likeliest words of
    the vocabulary; likeliest first.
    """

    words_K: Ints
    likelihood_K: Floats
    unseen_K: Ints


@dataclass(frozen=True, eq=False)
class Channel:
    """A mechanism as its attacker reads it: a column for every output that was seen.

    `optimum` is the exact expected recovery of the best attacker without context when text follows the
    prior, `chance` the same without the output.
    """

    words: tuple[str, ...] = field(repr=False)
    columns: Mapping[int, Column] = field(repr=False)
    optimum: float
    chance: float

    def likelihood(self, output: int) -> tuple[Ints, Floats]:
        """Candidate word ids [K] and P(output | candidate) [K]. Raises MisconfiguredError when unseen."""
        if output not in self.columns:
            raise MisconfiguredError(f"output {output} was not seen when the channel was read")
        return self.columns[output][:2]


@dataclass(frozen=True, eq=False)
class WordTarget:
    """What the host sees. `repeats_RN` are further independent outputs of the N drawn tokens, in order.

    `epsilon` is what one draw of one word costs, None where no ledger can add it up.
    """

    channel: Channel
    seen: Sentences = field(repr=False)
    epsilon: float | None = None
    repeats_RN: Ints = field(default_factory=lambda: np.zeros((0, 0), dtype=np.int64), repr=False)

    def __post_init__(self) -> None:
        if self.repeats_RN.size and self.repeats_RN.shape[1] != len(self.outputs_N):
            raise MisconfiguredError(
                f"repeats for {self.repeats_RN.shape[1]} tokens, but {len(self.outputs_N)} are drawn"
            )

    @property
    def outputs_N(self) -> Ints:
        """The drawn tokens' outputs, sentence after sentence."""
        return np.array([token.word for token in drawn(self.seen)], dtype=np.int64)


@dataclass(frozen=True, eq=False)
class WordKnowledge:
    """What the attacker owns: the mechanism, a prior over its vocabulary, and plain public sentences.

    `trial` are further sentences and `trial_seen` the same as the mechanism sanitises them in the attacker's
    own hands: an attack sets its weights on them, and the target's channel knows their outputs. `language` is
    a masked language model (`mask_token`), `causal` a causal one (`causal_beam`); an attack that needs what
    is absent is "not run".
    """

    mechanism: WordMechanism = field(repr=False)
    prior_V: Floats = field(repr=False)
    text: Sentences = field(default=(), repr=False)
    trial: Sentences = field(default=(), repr=False)
    trial_seen: Sentences = field(default=(), repr=False)
    language: Any = field(default=None, repr=False)
    causal: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class WordData:
    """The plain sentences behind `WordTarget.seen`, token by token: for scoring only."""

    plain: Sentences = field(repr=False)


def mounted(
    words: Sequence[str],
    mechanism: WordMechanism,
    seen: Sentences,
    plain: Sentences,
    own: Sentences,
    public_V: NDArray[Any],
    *,
    epsilon: float | None = None,
    repeats_RN: Ints | None = None,
) -> tuple[WordTarget, WordKnowledge, WordData]:
    """What an attack takes, from sentences before and after, the attacker's own, and public frequencies [V].

    Attacked sentences are taken out of the attacker's text, and so are parts of sentences it holds whole.
    Raises MisconfiguredError for mechanisms that cannot be read.
    """
    text = whole_sentences(without_overlap(own, plain))
    order = np.random.default_rng(0).permutation(len(text))
    cut = min(MAX_TRIAL, len(text) // 8)
    trial, rest = (tuple(text[i] for i in some) for some in (order[:cut], order[cut:]))
    trial_seen = sanitised(trial, mechanism, words)
    prior_V = prior_of(text, public_V)
    seen = with_kept_passed(seen, mechanism)
    repeats = np.zeros((0, 0), dtype=np.int64) if repeats_RN is None else repeats_RN
    outputs = {token.word for some in (seen, trial_seen) for token in drawn(some)}
    channel = read_channel(words, mechanism, outputs | set(repeats.ravel().tolist()), prior_V)
    target = WordTarget(channel, seen, epsilon, repeats)
    return target, WordKnowledge(mechanism, prior_V, rest, trial, trial_seen), WordData(plain)


def read_channel(
    words: Sequence[str], mechanism: WordMechanism, outputs: Iterable[int], prior_V: Floats
) -> Channel:
    """The columns of `outputs`, from the very integers that are sampled. Raises MisconfiguredError."""
    wanted = sorted(set(map(int, outputs)))
    if isinstance(mechanism, ByRule):
        best = mechanism.bayes(prior_V)
        columns = {output: Column(*mechanism.column(output, prior_V)) for output in wanted}
        return Channel(tuple(words), columns, best.success, best.chance)
    if isinstance(mechanism, PartitionedMechanism):
        best = mechanism.bayes(prior_V)
        columns = {output: _in_group(mechanism, output, prior_V) for output in wanted}
        return Channel(tuple(words), columns, best.success, best.chance)
    if isinstance(mechanism, DistanceMechanism):
        return _over_vocabulary(words, mechanism, wanted, prior_V / prior_V.sum())
    if not callable(getattr(mechanism, "row", None)):
        raise MisconfiguredError(f"a {type(mechanism).__name__} cannot be read; it has no rows")
    return _by_rows(words, mechanism, wanted, prior_V / prior_V.sum())


def _in_group(mechanism: PartitionedMechanism, output: int, prior_V: Floats) -> Column:
    group = int(mechanism.partition.group_V[output])
    start, end = (int(edge) for edge in mechanism.partition.starts_G1[group : group + 2])
    column_K = mechanism.channel(group).p_XY[:, output - start]
    words_K = np.arange(start, end)
    return Column(words_K, column_K, words_K[np.argsort(-prior_V[start:end], kind="stable")])


def _over_vocabulary(
    words: Sequence[str], mechanism: DistanceMechanism, outputs: list[int], prior_V: Floats
) -> Channel:
    """The MAX_CANDIDATES words of largest prior times likelihood for each output, in one pass over all rows.

    Optimum and chance are those among tokens that are not visibly kept (SANTEXT+ keeps some).
    """
    best = (np.zeros((len(outputs), 0)), np.zeros((len(outputs), 0), dtype=np.int64))
    peak_V, block_s, rows_s = np.zeros(len(prior_V)), [], []
    inputs = np.flatnonzero(prior_V)
    for first, weights_BV in mechanism.rows(inputs):
        rows_B = inputs[first : first + len(weights_BV)]
        joint_BV = weights_BV * (prior_V[rows_B] / 2.0**64)[:, None]
        np.maximum(peak_V, joint_BV.max(axis=0), out=peak_V)
        block_s.append(joint_BV[:, outputs])
        rows_s.append(rows_B)
        if sum(map(len, rows_s)) >= _BLOCK_ROWS or rows_B[-1] == inputs[-1]:
            best = _merged(best, np.concatenate(block_s).T, np.concatenate(rows_s))
            block_s, rows_s = [], []
    kept_V = np.where(mechanism.sensitive_V, 0.0, mechanism.keep) * prior_V
    drawn_V, drawn_share = prior_V - kept_V, 1.0 - float(kept_V.sum())
    unseen_K = np.argsort(-drawn_V, kind="stable")[:MAX_CANDIDATES]
    columns = {
        output: Column(words_K, joint_K / prior_V[words_K], unseen_K)
        for output, joint_K, words_K in zip(outputs, *best, strict=True)
    }
    optimum = (float(peak_V.sum()) - float(kept_V.sum())) / drawn_share
    return Channel(tuple(words), columns, optimum, float(drawn_V.max()) / drawn_share)


def _by_rows(words: Sequence[str], mechanism: WordMechanism, outputs: list[int], prior_V: Floats) -> Channel:
    """The same of any mechanism, row after row. An output that no row has says nothing."""
    peak_V = np.zeros(len(words))
    best: dict[int, list[tuple[float, int]]] = {output: [] for output in outputs}
    for word in np.flatnonzero(prior_V).tolist():
        outputs_K, weights_K = mechanism.row(word)
        if len(outputs_K):
            _check_row(outputs_K, weights_K, len(words))
        joint_K = prior_V[word] * (weights_K / 2.0**64)
        peak_V[outputs_K] = np.maximum(peak_V[outputs_K], joint_K)
        for output, joint in zip(outputs_K.tolist(), joint_K.tolist(), strict=True):
            if output in best:
                best[output].append((joint, word))
    unseen_K = np.argsort(-prior_V, kind="stable")[:MAX_CANDIDATES]
    nothing = Column(unseen_K, np.ones(len(unseen_K)), unseen_K)
    columns = dict.fromkeys(outputs, nothing)
    for output, pairs in best.items():
        if pairs:
            joint_K, words_K = map(np.array, zip(*nlargest(MAX_CANDIDATES, pairs), strict=True))
            columns[output] = Column(words_K, joint_K / prior_V[words_K], unseen_K)
    return Channel(tuple(words), columns, float(peak_V.sum()), float(prior_V.max()))


def _check_row(outputs_K: Ints, weights_K: NDArray[Any], words: int) -> None:
    total = float(weights_K.sum(dtype=np.float64)) / 2.0**64
    if outputs_K.min() < 0 or outputs_K.max() >= words or abs(total - 1) > 1e-6:
        raise MisconfiguredError(
            f"a row of the mechanism has {len(outputs_K)} outputs of {words} words and weights that sum to "
            f"{total:.6g} of 2**64; ids must lie within the words and weights sum to 2**64"
        )


def _merged(best: tuple[Floats, Ints], joint_OB: Floats, rows_B: Ints) -> tuple[Floats, Ints]:
    """(prior times likelihood [O, K], words [O, K]) of the best candidates so far."""
    more = (joint_OB, np.broadcast_to(rows_B, joint_OB.shape))
    joint_OK, words_OK = (np.concatenate(pair, axis=1) for pair in zip(best, more, strict=True))
    if joint_OK.shape[1] <= MAX_CANDIDATES:
        return joint_OK, words_OK
    chosen_OK = np.argpartition(-joint_OK, MAX_CANDIDATES - 1, axis=1)[:, :MAX_CANDIDATES]
    return np.take_along_axis(joint_OK, chosen_OK, 1), np.take_along_axis(words_OK, chosen_OK, 1)


def scored(
    name: str,
    target: WordTarget,
    data: WordData,
    guesses_N: Sequence[str],
    *,
    note: str = "",
    baseline: float | None = None,
) -> Finding:
    """The finding for one guess a drawn token. `baseline` is the prior's guess unless given.

    Raises MisconfiguredError when target, data and guesses do not belong together or nothing is drawn.
    """
    hit_N = right(target, data, guesses_N)
    if baseline is None:
        baseline = float(right(target, data, blind(target)).mean())
    return clustered(
        name,
        METRIC,
        hit_N,
        [count for count in map(_drawn_in, target.seen) if count],
        baseline=baseline,
        note="; ".join(filter(None, (note, _over_all(target, int(hit_N.sum()))))),
        examples=_examples(target, data, guesses_N),
    )


def first(target: WordTarget, data: WordData, count: int) -> tuple[WordTarget, WordData]:
    """The first `count` sentences alone, each as it was sent once."""
    part = replace(target, seen=target.seen[:count], repeats_RN=np.zeros((0, 0), dtype=np.int64))
    return part, WordData(data.plain[:count])


def right(target: WordTarget, data: WordData, guesses_N: Sequence[str]) -> NDArray[np.bool_]:
    """Which drawn tokens [N] are named rightly. Raises MisconfiguredError."""
    if [*map(len, target.seen)] != [*map(len, data.plain)]:
        raise MisconfiguredError("the plain sentences are not those behind the target's, token by token")
    truth = [token.text for token in originals(target.seen, data.plain)]
    if not truth or len(guesses_N) != len(truth):
        raise MisconfiguredError(f"{len(guesses_N)} guesses for {len(truth)} drawn tokens; need one for each")
    return np.array([guess == word for guess, word in zip(guesses_N, truth, strict=True)])


def originals(seen: Sentences, plain: Sentences) -> Iterator[Token]:
    """The plain token behind each drawn one, sentence after sentence; the two must be aligned."""
    for one, other in zip(seen, plain, strict=True):
        yield from (token for drew, token in zip(one, other, strict=True) if drew.kind == "drawn")


def blind(target: WordTarget) -> list[str]:
    """The best guesses without context and output, but with its group, where there are groups."""
    channel = target.channel
    return [channel.words[channel.columns[output].unseen_K[0]] for output in target.outputs_N.tolist()]


def _drawn_in(sentence: Sentence) -> int:
    return sum(token.kind == "drawn" for token in sentence)


def _over_all(target: WordTarget, hits: int) -> str:
    kinds = [token.kind for sentence in target.seen for token in sentence]
    share = (hits + kinds.count("passed")) / len(kinds)
    return f"{share:.3f} of all tokens with the {kinds.count('passed') / len(kinds):.3f} that pass"


def _examples(target: WordTarget, data: WordData, guesses_N: Sequence[str]) -> tuple[Example, ...]:
    """The first sentences that have three drawn tokens or more, else the first with any."""
    guesses = iter(guesses_N)
    made: list[tuple[int, Example]] = []
    for seen, plain in zip(target.seen, data.plain, strict=True):
        recovered = [next(guesses) if token.kind == "drawn" else token.text for token in seen]
        made.append((_drawn_in(seen), Example(_joined(plain), _joined(seen), " ".join(recovered))))
    chosen = [example for count, example in made if count >= 3] or [e for count, e in made if count]
    return tuple(chosen[:MAX_EXAMPLES])


def _joined(sentence: Sentence) -> str:
    return " ".join(token.text for token in sentence)
