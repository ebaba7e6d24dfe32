"""What the gateway asks of an engine, as values and one protocol.

Threat model: the engine's host reads all it is sent and may answer anything; see `http`, `bounds` and
`checks` for how its answers are bounded and checked.
Does not protect: what is in a call has left; deciding what may be in it is the gateway's business.

Shapes: T tokens, D model width, F features of a token.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

    from transom.privacy.guarantee import Guarantee

Ids = tuple[int, ...]
Json = dict[str, Any]
FinishReason = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn; None leaves it to the engine.

    In this order: what was said is made less likely (`repetition_penalty` of prompt and answer, `presence_`
    and `frequency_penalty` of the answer), then `temperature` (0 takes the likeliest), `top_k` (0: all),
    `top_p`, and `min_p` of the likeliest one's probability.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None


SAMPLING = tuple(one.name for one in fields(Sampling))


def sampling_of(said: object) -> Json:
    """What it says of sampling, by name; None where it says nothing."""
    return {name: getattr(said, name, None) for name in SAMPLING}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call(Sampling):
    """One request to an engine: token ids in `prompts`, or `embeds` in their place, or chat `messages`.

    Each of `embeds` is one prompt, float32 [T, D]. `tenant` is an opaque name that separates prefix caches;
    `stop_ids` end an answer. `features` is how many numbers the engine tells of the states behind each token
    (its card says so), 0 not to be told. None leaves the choice to the engine.
    """

    prompts: tuple[Ids, ...] = field(default=(), repr=False)
    embeds: tuple[np.ndarray, ...] = field(default=(), repr=False, compare=False)
    messages: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    max_tokens: int
    n: int = 1
    seed: int | None = None
    logprobs: int | None = None
    features: int = 0
    stop_ids: Ids = ()
    stream: bool = False
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """Natural log-probability of a generated token and of the likeliest alternatives.

    A token is an id, or its text where the engine speaks text.
    """

    token: int | str
    logprob: float
    top: tuple[tuple[int | str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """The next piece of choice `index` (prompt number * n + choice): ids, or text from a text engine.

    The last piece of a choice has a `finish_reason`. `hidden_chars` is the length of reasoning that is
    counted and not shown. `usage` is (prompt, completion) tokens of the whole call, from engines that count.
    `features_TF`, where asked for, is float32 with one row an id.
    """

    index: int
    ids: Ids = ()
    text: str = ""
    scores: tuple[TokenScore, ...] = ()
    finish_reason: FinishReason | None = None
    usage: tuple[int, int] | None = None
    hidden_chars: int = 0
    features_TF: np.ndarray | None = field(default=None, repr=False, compare=False)


class Engine(Protocol):
    """A client of one engine. Closing the generator of `generate` closes the connection and so cancels."""

    @property
    def takes(self) -> Literal["ids", "text"]:
        """Whether calls carry token ids or messages."""

    @property
    def takes_embeds(self) -> bool:
        """Whether calls may carry embeddings in place of token ids."""

    async def probe(self) -> EngineCard:
        """Which model is served, and how much fits; asked before each request, before its words are drawn.

        Raises EngineError, also where it is seen that nothing listens any more.
        """

    def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """Pieces of all choices as they come; for a call that does not stream, one piece a choice."""

    async def close(self) -> None:
        """Close idle connections; the client opens new ones when used again."""


@dataclass(frozen=True, slots=True)
class EngineCard:
    """What an engine says of itself: the model's name and who serves it.

    Its context in tokens and its model's width (hidden size) are None if it does not tell. `features` is how
    many numbers it tells of the states behind a token, `sampling` how it draws where nobody says. `promise`
    is our own client's, where it sends states with noise in place of what it is called with.
    """

    model: str
    owner: str = ""
    context_tokens: int | None = None
    width: int | None = None
    features: int = 0
    sampling: Mapping[str, float] = field(default_factory=dict)
    promise: Guarantee | None = None
