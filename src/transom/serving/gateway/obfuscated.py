"""The id stage of the modes obfuscated and words+obfuscated: a secret permutation of token ids.

The engine runs a checkpoint whose weights were obfuscated under the same key, so it answers in permuted ids.
Everything that reads token text (template, stop strings, placeholders, log-probabilities' tokens) runs in
the gateway, on ids mapped back; the engine gets permuted prompt and stop ids, and nothing else of them.
Threat model: the host is honest but curious, and has the obfuscated weights and all traffic.
Does not protect: this is a fixed substitution cipher. The template's tokens are known plaintext; frequencies,
lengths, equality and prefix-cache hits show. A host that has the base model may recover the permutation from
the weights (the checkpoint's card says what was measured); words+obfuscated then leaves sanitised words.
Source: Lin et al., arXiv 2603.01499, the online phase.

Shapes: V vocabulary (the model's embedding rows, which may exceed the tokenizer's).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from transom.errors import EngineGarbageError, MisconfiguredError
from transom.privacy.guarantee import Guarantee
from transom.serving.engines.base import Call, Delta, Ids, TokenScore


class Substitution:
    """`hidden_V[i]` is the id under which the host knows the plain id i.

    `private_against_base_model` is what the checkpoint's card says of a host that has the public model (None:
    nothing). Raises MisconfiguredError for a map that is no permutation.
    """

    def __init__(self, hidden_V: NDArray[np.int64], private_against_base_model: bool | None = None) -> None:
        plain_V = np.argsort(hidden_V, kind="stable")
        if not np.array_equal(hidden_V[plain_V], np.arange(len(hidden_V))):
            raise MisconfiguredError("the token map is no permutation; is the key file whole?")
        self._hide: list[int] = hidden_V.tolist()  # lists, as a few ids are looked up at a time
        self._reveal: list[int] = plain_V.tolist()
        self.vocabulary = len(hidden_V)
        self._private = private_against_base_model

    def hide(self, ids: Sequence[int]) -> Ids:
        """Plain ids as the host knows them."""
        return tuple(self._hide[i] for i in ids)

    def reveal(self, ids: Sequence[int]) -> Ids:
        """The host's ids as plain ones. Raises EngineGarbageError for an id outside the vocabulary."""
        return tuple(map(self._plain, ids))

    def _plain(self, token: int | str) -> int:
        if not isinstance(token, int) or not 0 <= token < self.vocabulary:
            raise EngineGarbageError(
                f"the engine named a token outside the {self.vocabulary} ids of the key's checkpoint; "
                "does it serve that checkpoint?"
            )
        return self._reveal[token]

    def hide_call(self, call: Call) -> Call:
        """The call as the engine gets it."""
        prompts = tuple(self.hide(prompt) for prompt in call.prompts)
        return replace(call, prompts=prompts, stop_ids=self.hide(call.stop_ids))

    def reveal_delta(self, delta: Delta) -> Delta:
        """A piece of the engine's answer in plain ids. Raises EngineGarbageError."""
        scores = tuple(map(self._reveal_score, delta.scores))
        return replace(delta, ids=self.reveal(delta.ids), scores=scores)

    def guarantee(self) -> Guarantee:
        """What this stage alone promises: nothing formal."""
        assumption = "the host does not have the base model"
        if self._private:
            assumption = (
                "the host, which may have the base model, does no better than the attacks on the card"
            )
        return Guarantee(
            kind="empirical",
            unit="all requests under one key",
            adjacency="prompts with the same pattern of repeated tokens",
            epsilon=None,
            assumptions=(assumption,),
            discloses=("lengths", "token frequencies", "which tokens are equal, in and across requests"),
            source="Lin et al., arXiv 2603.01499",
        )

    def _reveal_score(self, score: TokenScore) -> TokenScore:
        top = tuple((self._plain(other), logprob) for other, logprob in score.top)
        return TokenScore(self._plain(score.token), score.logprob, top)


def placeholders(ids: Sequence[int]) -> str:
    """Permuted ids as the text that the host's tokenizer has for them."""
    return " ".join(f"<{i}>" for i in ids)
