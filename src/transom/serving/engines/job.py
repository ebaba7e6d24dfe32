"""The nouns of generation: a job goes in, steps come out, a generator turns one into the other.

Threat model: none; an engine sees everything it is given. What it may be given is the gateway's business.
Does not protect anything: these values hold prompts in the clear, so none of them is ever logged.

Shapes: B rows, T tokens, D model width, F features of a token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

import numpy as np

from transom.checkpoint.observe import Span

if TYPE_CHECKING:
    from tokenizers import Tokenizer

FinishReason = Literal["stop", "length"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One completion to generate, already validated. Exactly one prompt is set.

    Tokens are drawn as `base.Sampling` has it, by default of all. `stop_ids` end the answer and are its last
    id; the model's own end-of-text ids do the same unless `ignore_eos`. `logprobs` asks for so many
    alternatives a token (None: for nothing), `features` for what the generator tells of the model's states.
    """

    max_tokens: int
    prompt_ids: tuple[int, ...] | None = field(default=None, repr=False)
    prompt_embeds: np.ndarray | None = field(default=None, repr=False, compare=False)  # float32 [T, D]
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop_ids: frozenset[int] = frozenset()
    ignore_eos: bool = False
    logprobs: int | None = None
    features: bool = False

    @property
    def penalises(self) -> bool:
        """Whether what was said becomes less likely."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1.0, 0.0, 0.0)

    @property
    def prompt_tokens(self) -> int:
        """Length of the prompt in tokens."""
        return len(self.prompt_ids) if self.prompt_ids is not None else len(self.prompt_embeds)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of the generated token, and of the likeliest alternatives as (id, logprob)."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Step:
    """Newly generated ids. The last step of a job, and no other, carries a `finish_reason`.

    When it is "stop", the last id is the stop id itself: it is reported as an id and left out of the text.
    `logprobs` is empty, or holds one entry an id; `features_TF` is None, or float32 with one row an id.
    """

    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    features_TF: np.ndarray | None = field(default=None, repr=False, compare=False)


class StateWatch(Protocol):
    """What an engine tells of the states behind a token: `size` numbers, reduced while the model runs.

    The engine calls it from its worker thread, and only while somebody asks for features.
    """

    size: int

    def run(
        self, forward: Callable[[], T], spans: Sequence[Span]
    ) -> tuple[T, Callable[[Sequence[int]], np.ndarray]]:
        """What `forward` returns, and what tells float32 [B, F] of the last position of each row, given the
        token that was then chosen for each.

        There is one of `spans` a row. Shorter rows are padded on the left.
        """


class Generator(Protocol):
    """What the engine server serves.

    `backend` says what computes. `embedding_size` is None where embeddings are not taken, `feature_size` how
    many numbers it can tell of the states behind each generated token (0: none). `sampling` is what it takes
    where a request says nothing, by the names of `base.Sampling`.
    """

    model: str
    context_tokens: int
    vocabulary_size: int
    feature_size: int

    @property
    def sampling(self) -> Mapping[str, float]: ...

    @property
    def backend(self) -> str: ...

    @property
    def embedding_size(self) -> int | None: ...

    tokenizer: Tokenizer | None

    def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """Yield at least one step, the last with a finish reason. Closing the generator cancels the job."""


async def answers(
    generate: Callable[[Job], AsyncGenerator[Step, None]], jobs: Sequence[Job]
) -> AsyncGenerator[tuple[int, Step], None]:
    """The steps of all jobs as they come, each with its job's place; leaving early cancels them all."""
    if len(jobs) == 1:
        async with aclosing(generate(jobs[0])) as steps:
            async for step in steps:
                yield 0, step
        return
    queue: asyncio.Queue[tuple[int, Step] | Exception | None] = asyncio.Queue(maxsize=256)

    async def pump(index: int, job: Job) -> None:
        try:
            async with aclosing(generate(job)) as steps:
                async for step in steps:
                    await queue.put((index, step))
            await queue.put(None)
        except Exception as error:
            await queue.put(error)

    tasks = [asyncio.create_task(pump(index, job)) for index, job in enumerate(jobs)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def joined(steps: Sequence[Step]) -> Step:
    """One job's steps as one."""
    ids = tuple(i for step in steps for i in step.ids)
    logprobs = tuple(entry for step in steps for entry in step.logprobs)
    features = [step.features_TF for step in steps if step.features_TF is not None]
    return Step(ids, logprobs, steps[-1].finish_reason, np.concatenate(features) if features else None)
