"""A mechanism of a user's own in the audit of words: a function of words, or an object on word ids.

A function takes a word and returns one that the policy draws; what it does is learned by calling it, so that
its table is an estimate. An object with `sample`, `row` and `guarantee`, as `WordMechanism` describes them,
is read exactly. Which words are drawn, pass or become placeholders is the policy's choice either way.

Threat model: the mechanism is the user's own code and runs with all the rights of the audit; the attacker
calls it as often as it likes. Does not protect against: draws that depend on one another, which look weaker
here than they are.
Source: own design.

Shapes: N draws, V vocabulary.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from transom.audit.attack import load_object
from transom.errors import MisconfiguredError, NotYetError
from transom.privacy.channel import BayesAttack, Ints, Weights
from transom.privacy.guarantee import Guarantee
from transom.privacy.partition import WordMechanism
from transom.privacy.policy import Policy
from transom.report.statistics import Floats

_DRAWS, _FEWEST, _TRIED = 100, 10, 20  # calls for a word's row, at the least, and to see how long one takes
_MOST_S = 60.0


def own_mechanism(mechanism: object, policy: Policy) -> str | WordMechanism:
    """What a `Sanitizer` takes, from a name, `module:object`, an object or a function of words.

    Raises MisconfiguredError for anything else.
    """
    name = mechanism if isinstance(mechanism, str) else getattr(mechanism, "__name__", "the mechanism")
    if isinstance(mechanism, str):
        if ":" not in mechanism:
            return mechanism
        mechanism = load_object(mechanism)
    if isinstance(mechanism, type):
        raise MisconfiguredError(f"{name} is a class; name an object made of it")
    if all(callable(getattr(mechanism, part, None)) for part in ("sample", "row", "guarantee")):
        return mechanism  # type: ignore[return-value]
    if not callable(mechanism):
        raise MisconfiguredError(
            f"{name} is a {type(mechanism).__name__}, neither a function of a word nor an object with "
            "sample, row and guarantee"
        )
    return _affordable(WordFunction(name, mechanism, policy.words, policy.word_ids), policy.prior_V)


@dataclass(frozen=True, eq=False)
class WordFunction:
    """A function of words as a mechanism on ids; words in `asked` (None: all) are learned by `draws` each."""

    name: str
    function: Callable[[str], object] = field(repr=False)
    words: tuple[str, ...] = field(repr=False)
    word_ids: Mapping[str, int] = field(repr=False)
    draws: int = _DRAWS
    asked: frozenset[int] | None = field(default=None, repr=False)

    def sample(self, word_ids_N: Ints) -> Ints:
        """One call a word."""
        with redirect_stdout(sys.stderr):  # standard output is the report's
            return np.array([self._drawn(self.words[word]) for word in word_ids_N], dtype=np.int64)

    def _drawn(self, word: str) -> int:
        try:
            output = self.function(word)
        except Exception as error:  # its text may hold the word
            raise MisconfiguredError(f"{self.name} raised {type(error).__name__} on a word") from None
        found = self.word_ids.get(output.lower()) if isinstance(output, str) else None
        if found is None:
            what = "a word that it does not draw" if isinstance(output, str) else f"a {type(output).__name__}"
            raise MisconfiguredError(
                f"{self.name} must return words that the policy draws, and returned {what}; give it a policy "
                "with its words (transom words build)"
            )
        return found

    def row(self, word_id: int) -> tuple[Ints, Weights]:
        """The outputs that were seen, by how often; none for a word that is not asked about."""
        if self.asked is not None and word_id not in self.asked:
            return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64)
        drawn_N = self.sample(np.full(self.draws, word_id))
        outputs, counts = np.unique(drawn_N, return_counts=True)
        weights = [min(2**64 * count // self.draws, 2**64 - 1) for count in counts.tolist()]
        return outputs, np.array(weights, dtype=np.uint64)

    def guarantee(self) -> Guarantee:
        """None but what an audit measures."""
        return Guarantee(kind="empirical", unit="one draw of one word", adjacency="any two words")

    def exact_epsilon(self) -> float:
        """Unbounded: draws prove no bound."""
        return math.inf

    def bayes(self, prior_V: Floats, pass_share: float = 0.0) -> BayesAttack:
        """Not known exactly: the audit's attacks estimate it."""
        raise NotYetError(f"{self.name} is a function, of which no exact attacker is computed; attack it")


def _affordable(mechanism: WordFunction, prior_V: NDArray[Any]) -> WordFunction:
    """With fewer draws a word, then with fewer words, the likeliest, where calls take long."""
    started = time.monotonic()
    mechanism.sample(np.full(_TRIED, int(np.argmax(prior_V))))
    calls = int(_MOST_S * _TRIED / max(time.monotonic() - started, 1e-9))
    draws = min(_DRAWS, max(_FEWEST, calls // len(prior_V)))
    asked = None
    if calls // draws < len(prior_V):
        asked = frozenset(np.argsort(-prior_V, kind="stable")[: calls // draws].tolist())
    return WordFunction(mechanism.name, mechanism.function, mechanism.words, mechanism.word_ids, draws, asked)
