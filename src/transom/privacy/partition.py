"""A public partition of a vocabulary into groups of words, and the mechanisms that stay inside a group.

Word ids are contiguous by group, so a group is a range and the score tables lie end to end in one flat array.

Threat model: everybody knows the partition, the scores and the mechanism; the group of a word is public by
design.
Does not protect: the group's identity (its part of speech, its topic); that a word was sanitised at all.
Source: groups as in CUSTEXT (Chen et al. 2023, arXiv 2207.01193), without its input-dependent scores; tables
as in `transom.privacy.channel`.

Legend: G groups, V vocabulary, K words of a group, S flat scores, N draws.
"""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from transom.errors import MisconfiguredError
from transom.privacy.channel import (
    BayesAttack,
    Channel,
    Floats,
    Ints,
    Weights,
    bayes,
    checked_prior,
    exact_epsilon,
    search,
    thresholds,
)
from transom.privacy.guarantee import Guarantee

# With so many words the slowest law (`optimal`) takes about 20 s and every law less than 200 MB.
LARGEST_GROUP = 128
_FEW = 64  # draws up to which arrays cost more than they save
_ENTRIES = 2**18  # about so many numbers a step of a calibration works on: they stay in the cache


@dataclass(frozen=True, eq=False)
class Partition:
    """`starts_G1` int32 [G + 1]: group g holds the words `range(starts[g], starts[g + 1])`, 2 to 128.

    `scores_S` uint8, the groups' K x K tables end to end, row = input; 255 stands for a score of 1.
    """

    starts_G1: NDArray[np.int32]
    scores_S: NDArray[np.uint8]

    def __post_init__(self) -> None:
        starts = self.starts_G1
        if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0:
            raise MisconfiguredError("starts must be [G + 1] and begin with 0")
        sizes = _sizes(starts)
        if sizes.min() < 2:
            raise MisconfiguredError(f"every group needs two words or more, the smallest has {sizes.min()}")
        if sizes.max() > LARGEST_GROUP:
            raise MisconfiguredError(
                f"a group holds at most {LARGEST_GROUP} words, the largest has {sizes.max()}; "
                "build the groups anew with a smaller group size"
            )
        if self.scores_S.dtype != np.uint8 or self.scores_S.shape != ((sizes**2).sum(),):
            raise MisconfiguredError(f"scores must be uint8 [{(sizes**2).sum()}], got {self.scores_S.shape}")

    @property
    def groups(self) -> int:
        """Number of groups, G."""
        return len(self.starts_G1) - 1

    @property
    def words(self) -> int:
        """Number of words, V."""
        return int(self.starts_G1[-1])

    @cached_property
    def group_V(self) -> Ints:
        """The group of each word, int64 [V]."""
        return np.repeat(np.arange(self.groups), _sizes(self.starts_G1))

    @cached_property
    def _offsets_G(self) -> Ints:
        return np.concatenate([[0], np.cumsum(_sizes(self.starts_G1) ** 2)])

    def scores(self, group: int) -> Floats:
        """Scores [K, K] in [0, 1] of one group; entry (x, y) says how well y stands in for x."""
        size = int(self.starts_G1[group + 1] - self.starts_G1[group])
        flat = self.scores_S[self._offsets_G[group] : self._offsets_G[group + 1]]
        return flat.reshape(size, size).astype(np.float64) / 255.0


class WordMechanism(Protocol):
    """A randomised map from word ids to word ids."""

    @property
    def name(self) -> str:
        """The name under which `build` makes it."""
        ...

    def sample(self, word_ids_N: Ints) -> Ints:
        """An independent draw per word, int64 [N]."""
        ...

    def row(self, word_id: int) -> tuple[Ints, Weights]:
        """The possible outputs of a word and their integer weights, which sum to 2**64."""
        ...

    def guarantee(self) -> Guarantee:
        """What one draw promises."""
        ...

    def exact_epsilon(self) -> float:
        """Epsilon computed from the integers, over all pairs of neighbouring words."""
        ...

    def bayes(self, prior_V: Floats, pass_share: float = 0.0) -> BayesAttack:
        """The best attacker under a public prior; `pass_share` of the tokens pass, that is, are recovered."""
        ...


@dataclass(frozen=True, eq=False)
class PartitionedMechanism:
    """One channel a group, made when a word of the group is first drawn, then kept; or all by `prepare_all`.

    `make` takes the scores [G, K, K] of groups of one size; what it makes of a group may not depend on the
    others. `sample` searches a dense padded table (8 V K_max bytes, touched only for groups in use). Two
    threads that make the same channel write the same numbers, so no lock is needed.
    """

    name: str
    partition: Partition
    promise: Guarantee
    make: Callable[[Floats], list[Channel]]
    _channels: dict[int, Channel] = field(default_factory=dict, init=False, repr=False)
    _thresholds_VK: Weights = field(init=False, repr=False)
    _last_V: Ints = field(init=False, repr=False)
    _ready_G: NDArray[np.bool_] = field(init=False, repr=False)
    _rows: dict[int, tuple[int, array[int], int]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        sizes_G = _sizes(self.partition.starts_G1)
        shape = (self.partition.words, int(sizes_G.max()) - 1)
        object.__setattr__(self, "_thresholds_VK", np.zeros(shape, dtype=np.uint64))
        object.__setattr__(self, "_last_V", np.repeat(sizes_G - 1, sizes_G))
        object.__setattr__(self, "_ready_G", np.zeros(len(sizes_G), dtype=np.bool_))

    def channel(self, group: int) -> Channel:
        """The integer table [K, K] of one group."""
        self._make([group])
        return self._channels[group]

    def prepare_all(self) -> None:
        """Make every group's channel now, many at a time, so that no later draw waits for one.

        The integers are those that `channel` would make one by one.
        """
        self._make(range(self.partition.groups))
        for group in np.flatnonzero(~self._ready_G).tolist():
            self._fill(group)

    def sample(self, word_ids_N: Ints) -> Ints:
        """An independent draw per word, int64 [N]; an id outside the vocabulary raises MisconfiguredError."""
        words = np.asarray(word_ids_N, dtype=np.int64)
        if words.size <= _FEW:
            return np.array(self._few(words.tolist()), dtype=np.int64)
        if words.min() < 0 or words.max() >= self.partition.words:
            raise MisconfiguredError(f"word ids must lie in [0, {self.partition.words})")
        groups_N = self.partition.group_V[words]
        fresh = np.unique(groups_N[~self._ready_G[groups_N]]).tolist()
        self._make(fresh)
        for group in fresh:
            self._fill(group)
        return self.partition.starts_G1[groups_N] + search(self._thresholds_VK, self._last_V, words)

    def _few(self, word_ids: list[int]) -> list[int]:
        """As `sample`, without the overhead of arrays."""
        drawn = memoryview(os.urandom(8 * len(word_ids))).cast("Q").tolist()
        outputs = []
        for word_id, number in zip(word_ids, drawn, strict=True):
            start, thresholds_K, last = self._rows.get(word_id) or self._row(word_id)
            outputs.append(start + min(bisect_right(thresholds_K, number), last))
        return outputs

    def _row(self, word_id: int) -> tuple[int, array[int], int]:
        """The first word of a word's group, the thresholds of its row, and its last possible output."""
        if not 0 <= word_id < self.partition.words:
            raise MisconfiguredError(f"word ids must lie in [0, {self.partition.words})")
        group = int(self.partition.group_V[word_id])
        if not self._ready_G[group]:
            self._fill(group)
        start, last = int(self.partition.starts_G1[group]), int(self._last_V[word_id])
        row = start, array("Q", self._thresholds_VK[word_id, :last].tobytes()), last
        self._rows[word_id] = row
        return row

    def _make(self, groups: Iterable[int]) -> None:
        """Make what is missing of these groups' channels, groups of one size together."""
        starts, missing = self.partition.starts_G1, defaultdict(list)
        for group in groups:
            if group not in self._channels:
                missing[int(starts[group + 1] - starts[group])].append(group)
        for size, alike in missing.items():
            step = max(1, _ENTRIES // size**3)
            for chunk in (alike[first : first + step] for first in range(0, len(alike), step)):
                scores_GKK = np.stack([self.partition.scores(group) for group in chunk])
                self._channels.update(zip(chunk, self.make(scores_GKK), strict=True))

    def _fill(self, group: int) -> None:
        rows = slice(self.partition.starts_G1[group], self.partition.starts_G1[group + 1])
        table_KK, last_K = thresholds(self.channel(group).weights_XY)
        padded = np.full((len(table_KK), self._thresholds_VK.shape[1]), np.uint64(2**64 - 1))
        padded[:, : table_KK.shape[1]] = table_KK
        self._thresholds_VK[rows], self._last_V[rows] = padded, last_K
        self._ready_G[group] = True

    def row(self, word_id: int) -> tuple[Ints, Weights]:
        """The words of the group and their weights (read-only)."""
        group = int(self.partition.group_V[word_id])
        start, end = self.partition.starts_G1[group : group + 2]
        return np.arange(start, end), self.channel(group).weights_XY[word_id - start]

    def guarantee(self) -> Guarantee:
        """What one draw promises, within a group."""
        return self.promise

    def exact_epsilon(self) -> float:
        """The largest exact epsilon over all groups; makes every group's channel."""
        self._make(range(self.partition.groups))
        return max(exact_epsilon(self.channel(group)) for group in range(self.partition.groups))

    def bayes(self, prior_V: Floats, pass_share: float = 0.0) -> BayesAttack:
        """The attacker knows the group; `chance` is naming its likeliest word; guesses are word ids [V].

        `pass_share` is the share of tokens that are sent unchanged: recovered with certainty, with and
        without the mechanism's output, so both figures are mixed with it. The prior is over sanitised words.
        """
        prior = checked_prior(prior_V, self.partition.words)
        mass_G = np.add.reduceat(prior, self.partition.starts_G1[:-1])
        used = np.flatnonzero(mass_G).tolist()
        self._make(used)
        success = chance = 0.0
        guess_V = np.arange(self.partition.words)
        for group in used:
            start, end = self.partition.starts_G1[group : group + 2]
            attack, mass = bayes(self._channels[group], prior[start:end]), float(mass_G[group])
            success, chance = success + mass * attack.success, chance + mass * attack.chance
            guess_V[start:end] = start + attack.guess_Y
        return BayesAttack(with_passed(success, pass_share), with_passed(chance, pass_share), guess_V)


def in_group_promise(epsilon: float, source: str) -> Guarantee:
    """What a table for each public group promises of one word."""
    return Guarantee(
        kind="pure-dp",
        unit="one draw of one word",
        adjacency="any two words of the same public group",
        epsilon=epsilon,
        assumptions=("the groups and scores are public and independent of the text", "os.urandom is secure"),
        discloses=("the group of each word", "which words are sanitised"),
        source=source,
    )


def one_by_one(table: Callable[[Floats], Channel]) -> Callable[[Floats], list[Channel]]:
    """A maker of one group's channel as the `make` of a `PartitionedMechanism`."""
    return lambda scores_GKK: [table(scores_KK) for scores_KK in scores_GKK]


def _sizes(starts_G1: NDArray[np.int32]) -> Ints:
    starts = starts_G1.astype(np.int64)
    return starts[1:] - starts[:-1]


def with_passed(rate: float, pass_share: float) -> float:
    """A recovery rate over all tokens when `pass_share` of them is recovered with certainty."""
    if not 0.0 <= pass_share <= 1.0:
        raise MisconfiguredError(f"pass_share must lie in [0, 1], got {pass_share}")
    return pass_share + (1.0 - pass_share) * rate
