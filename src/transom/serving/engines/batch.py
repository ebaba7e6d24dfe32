"""Continuous batching over a causal language model: rows join and leave a running batch between two steps.

Rows are prefilled, short prompts together and long ones in parts between the steps of others, then join the
batch. The caches of shorter rows are padded on the left and masked, and positions count only a row's own
tokens, so a row's answer does not depend on its neighbours (up to the order of floating-point sums).
Threat model: none; the batch runs inside the engine, which reads everything.
Does not protect against: timing. Rows that share a batch slow each other down, measurably.
Source: iteration-level scheduling of Orca (Yu et al., OSDI 2022, section 3.1), without its paged memory.

Shapes: B rows, T cached positions, D model width, H heads, K head width, V vocabulary, F features.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache

from transom.checkpoint.observe import Span
from transom.checkpoint.threads import QuickestThreads
from transom.errors import EngineError
from transom.serving.engines.cache import BatchCache
from transom.serving.engines.job import FinishReason, Job, StateWatch, Step, TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COLDEST = 1e-5  # above 0; colder ones are no numbers of float32
CHUNK = 512  # positions that are prefilled between two steps
Tell = Callable[[Sequence[int]], np.ndarray]


@dataclass
class Row:
    """A job in flight: what it has produced, where its steps go, and its own randomness."""

    job: Job
    emit: Callable[[Step | Exception], None]
    cancelled: bool = False
    length: int = 0  # positions in the cache that are its own
    produced: int = 0
    last_id: int = 0
    alone: bool = False  # it failed in company
    said: Said | None = None  # where it counts
    kept: dict[str, Any] = field(default_factory=dict)  # what a watch remembers of it
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        seed = self.job.seed if self.job.seed is not None else secrets.randbits(63)
        self.generator.manual_seed(seed)


class Batch:
    """The running rows of one model and their shared key-value cache. Used by one thread only.

    Rows that joined are prefilled several at once, up to `CHUNK` positions a call of `prefill`, which is
    `step`'s pause: longer prompts take several.
    """

    def __init__(
        self, model: PreTrainedModel, eos_ids: frozenset[int], watch: StateWatch | None = None
    ) -> None:
        self._model: Any = model
        self._eos_ids, self._watch = eos_ids, watch
        self._cache, self._threads = BatchCache(), QuickestThreads()
        self._waiting: deque[Row] = deque()
        self._prompt: _Prompt | None = None  # which is being read
        self.rows: list[Row] = []

    @property
    def size(self) -> int:
        """Rows that joined and are not done."""
        return len(self.rows) + len(self._waiting) + (len(self._prompt.rows) if self._prompt else 0)

    def join(self, row: Row) -> None:
        """Let a row be prefilled after those before it."""
        self._waiting.append(row)

    @torch.inference_mode()
    def prefill(self) -> None:
        """Read a part of what waits; rows whose prompt ends with it emit their first step, and stay unless it
        was their last. A row that fails does so alone."""
        self._keep([i for i, row in enumerate(self.rows) if not row.cancelled])
        if (prompt := self._prompt or self._next_prompt()) is None:
            return
        self._prompt = None
        try:
            if all(row.cancelled for row in prompt.rows):
                return
            answer = self._read(prompt)
            if prompt.done < prompt.width:
                self._prompt = prompt
                return
            for row in prompt.rows:
                row.length = row.job.prompt_tokens
            both = (*prompt.rows, *self.rows)
            columns = max(row.job.prompt_tokens + row.job.max_tokens for row in both)
            self._cache.join(prompt.cache, columns)
        except Exception as error:
            if len(prompt.rows) > 1:
                self._waiting.extendleft(reversed(prompt.rows))
                for row in prompt.rows:
                    row.alone = True
            else:
                prompt.rows[0].emit(failure(error))
            return
        before, going = len(self.rows), list[int]()
        self.rows += prompt.rows
        try:
            going = self._advance(prompt.rows, *answer)
        except Exception as error:
            for row in prompt.rows:
                row.emit(failure(error))
        self._keep([*range(before), *(before + i for i in going)])

    def _next_prompt(self) -> _Prompt | None:
        """The next rows to be read together: as many as fit in a chunk, else one."""
        found: list[Row] = []
        while self._waiting:
            row = self._waiting[0]
            width = max(one.job.prompt_tokens for one in (*found, row))
            together = not (self._by_itself(row) or any(map(self._by_itself, found)))
            if found and not (together and width * (len(found) + 1) <= CHUNK):
                break
            self._waiting.popleft()
            if not row.cancelled:
                found.append(row)
        return _Prompt(found, max(row.job.prompt_tokens for row in found)) if found else None

    def _by_itself(self, row: Row) -> bool:
        """What reads states, or embeddings, is given one whole prompt."""
        return row.alone or row.job.features or row.job.prompt_embeds is not None

    def _read(self, prompt: _Prompt) -> tuple[Tensor, Tell | None]:
        """The next part of a prompt."""
        rows, device = prompt.rows, self._model.device
        if rows[0].job.prompt_embeds is not None:
            embeds_TD = torch.from_numpy(rows[0].job.prompt_embeds).to(device, self._model.dtype)
            given: dict[str, Tensor] = {"inputs_embeds": embeds_TD[None]}
            end = prompt.width
        else:
            end = prompt.width if rows[0].job.features else min(prompt.done + CHUNK, prompt.width)
            given = prompt.part(end, device)
        rows[0].length = end if len(rows) == 1 else rows[0].length
        prompt.done = end
        return self._forward(rows, **given, past_key_values=prompt.cache, logits_to_keep=1)

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every row; finished and cancelled rows leave. Where memory is short the row that came
        last fails, and the others go on."""
        self._keep([i for i, row in enumerate(self.rows) if not row.cancelled])
        if not self.rows:
            return
        self._cache.make_room()
        device = self._model.device
        lengths_B = torch.tensor([row.length for row in self.rows], device=device)
        width = self._cache.width
        columns_T = torch.arange(width + 1, device=device)
        mask_BT = columns_T >= width - lengths_B[:, None]
        for row in self.rows:
            row.length += 1
        try:
            answer = self._forward(
                self.rows,
                input_ids=torch.tensor([[row.last_id] for row in self.rows], device=device),
                attention_mask=None if len(self.rows) == 1 else mask_BT.long(),
                position_ids=lengths_B[:, None],
                past_key_values=self._cache,
            )
        except Exception as error:
            if not out_of_memory(error) or len(self.rows) == 1:
                raise
            for row in self.rows:
                row.length -= 1
            self.rows[-1].emit(failure(error))
            self._keep(list(range(len(self.rows) - 1)))
            return
        self._cache.advanced()
        self._keep(self._advance(self.rows, *answer))

    def drop(self) -> list[Row]:
        """Drop the running rows and return them."""
        rows, self.rows, self._cache = self.rows, [], BatchCache()
        return rows

    def clear(self) -> list[Row]:
        """Drop all rows and return them."""
        rows = [*self.drop(), *(self._prompt.rows if self._prompt else ()), *self._waiting]
        self._prompt = None
        self._waiting.clear()
        return rows

    def _forward(self, rows: list[Row], **given: Any) -> tuple[Tensor, Tell | None]:
        """The last logits [B, V], and what tells features of the states behind them if a row asks."""
        forward = partial(self._model, **given, use_cache=True)
        if (
            "position_ids" in given and given["position_ids"].shape[1] == 1
        ):  # a step; prompts take all threads
            forward = self._threads.used_for(len(rows))(forward)
        if self._watch is None or not any(row.job.features for row in rows):
            return forward().logits[:, -1], None
        spans = [Span(row.length, row.job.prompt_tokens, row.kept) for row in rows]
        answer, tell = self._watch.run(forward, spans)
        return answer.logits[:, -1], tell

    def _advance(self, rows: list[Row], logits_BV: Tensor, tell: Tell | None) -> list[int]:
        """Choose and emit one token a row; returns the indices of the rows that go on. A row whose numbers
        are not finite fails alone."""
        logits_BV = logits_BV.float()
        finite_B = torch.isfinite(logits_BV.amax(dim=-1)).tolist()
        greedy_B = logits_BV.argmax(dim=-1).tolist()
        steps = [
            self._chosen(row, logits_BV[i], greedy_B[i]) if finite_B[i] else None
            for i, row in enumerate(rows)
        ]
        features_BF = None if tell is None else self._features(tell([row.last_id for row in rows]), len(rows))
        going = []
        for i, (row, step) in enumerate(zip(rows, steps, strict=True)):
            told = None if features_BF is None or not row.job.features else features_BF[i : i + 1].copy()
            if step is None or (told is not None and not np.isfinite(told).all()):
                row.emit(EngineError("the model failed on this job (its numbers are not finite)"))
                continue
            row.emit(replace(step, features_TF=told))
            if step.finish_reason is None:
                going.append(i)
        return going

    def _chosen(self, row: Row, logits_V: Tensor, greedy_id: int) -> Step | None:
        """None where nothing can be drawn."""
        try:
            return next_step(row, logits_V, greedy_id, self._eos_ids)
        except RuntimeError:
            return None

    def _features(self, told_BF: np.ndarray, rows: int) -> np.ndarray:
        size = self._watch.size if self._watch else 0
        if told_BF.shape != (rows, size):
            raise FloatingPointError
        return told_BF

    def _keep(self, kept: list[int]) -> None:
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        self._cache.keep(kept, max((row.length for row in self.rows), default=0))


@dataclass
class _Prompt:
    """Prompts that are read together: shorter ones are padded on the left."""

    rows: list[Row]
    width: int
    done: int = 0
    cache: Any = field(default_factory=lambda: DynamicCache())  # keeps every position; a mask does windows

    def part(self, end: int, device: Any) -> dict[str, Tensor]:
        """What a model is given of columns up to `end`."""
        lengths = [row.job.prompt_tokens for row in self.rows]
        padded = [
            [0] * (self.width - len(one)) + list(one)
            for one in (row.job.prompt_ids or () for row in self.rows)
        ]
        given = {"input_ids": torch.tensor(padded, device=device)[:, self.done : end]}
        if min(lengths) == self.width:
            return given
        first_B1 = self.width - torch.tensor(lengths, device=device)[:, None]
        columns_T = torch.arange(end, device=device)
        positions_BT = (columns_T - first_B1).clamp(min=0)
        return given | {
            "attention_mask": (columns_T >= first_B1).long(),
            "position_ids": positions_BT[:, self.done :],
        }


def out_of_memory(error: Exception) -> bool:
    """Whether it is torch's word for too little memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def failure(error: Exception) -> EngineError:
    """What a row is told of it."""
    if out_of_memory(error):
        return EngineError(
            "the engine has too little memory for this job; ask for less, or lower --max-batch"
        )
    return EngineError(f"the model failed on this job ({type(error).__name__})")


def next_step(row: Row, logits_V: Tensor, greedy_id: int, eos_ids: frozenset[int]) -> Step:
    """The row's next token: drawn, or `greedy_id`, the likeliest, at temperature 0."""
    open_V = logits_V
    if row.job.penalises:
        row.said = row.said or Said(row.job, logits_V)
        open_V = row.said.penalised(logits_V)
        greedy_id = int(open_V.argmax())
    sampled = row.job.temperature > 0
    row.last_id = sample(open_V.cpu(), row.job, row.generator) if sampled else greedy_id
    row.produced += 1
    if row.said is not None:
        row.said.add(row.last_id)
    return Step((row.last_id,), _logprobs(logits_V, row), _finish_reason(row, eos_ids))


class Said:
    """Which tokens stand in a prompt and an answer, and how often in the answer."""

    def __init__(self, job: Job, logits_V: Tensor) -> None:
        self._job, self._times_V = job, torch.zeros_like(logits_V)
        self._there_V = torch.zeros_like(logits_V, dtype=torch.bool)
        self._there_V[list(job.prompt_ids or ())] = True

    def add(self, token: int) -> None:
        """One more of the answer."""
        self._there_V[token] = True
        self._times_V[token] += 1

    def penalised(self, logits_V: Tensor) -> Tensor:
        """Logits, smaller of these tokens, as in vLLM: first `repetition_penalty` of both (Keskar et al.
        2019, arXiv 1909.05858, section 4.1), then what is taken off for each of the answer and every time."""
        job = self._job
        less_V = torch.where(
            logits_V > 0, logits_V / job.repetition_penalty, logits_V * job.repetition_penalty
        )
        off_V = (self._times_V > 0) * job.presence_penalty + self._times_V * job.frequency_penalty
        return torch.where(self._there_V, less_V, logits_V) - off_V


def sample(logits_V: Tensor, job: Job, generator: torch.Generator) -> int:
    """One id, drawn as `chances` has it."""
    return int(torch.multinomial(chances(logits_V, job), 1, generator=generator))


def chances(logits_V: Tensor, job: Job) -> Tensor:
    """The probabilities [V] from which a token is drawn: at the job's temperature, of its `top_k`, of these
    of the smallest set of ids whose mass reaches `top_p`, and of these of those with at least `min_p` times
    the likeliest one's. They need not sum to 1."""
    apart_V = logits_V - logits_V.max()  # or a small temperature makes infinities of it
    if 0 < job.top_k < len(apart_V):
        best = apart_V.topk(job.top_k)
        apart_V = torch.full_like(apart_V, -torch.inf).index_copy(0, best.indices, best.values)
    probs_V = functional.softmax(apart_V / max(job.temperature, _COLDEST), dim=-1)
    if job.top_p < 1.0:
        sorted_V, order_V = probs_V.sort(descending=True)
        beyond_V = sorted_V.cumsum(dim=-1) - sorted_V >= job.top_p
        probs_V = probs_V.index_fill(0, order_V[beyond_V], 0.0)
    if job.min_p > 0:
        probs_V = probs_V.masked_fill(probs_V < job.min_p * probs_V.max(), 0.0)
    return probs_V


def _finish_reason(row: Row, eos_ids: frozenset[int]) -> FinishReason | None:
    ended = row.last_id in eos_ids and not row.job.ignore_eos
    if ended or row.last_id in row.job.stop_ids:
        return "stop"
    return "length" if row.produced >= row.job.max_tokens else None


def _logprobs(logits_V: Tensor, row: Row) -> tuple[TokenLogprob, ...]:
    """Log-probabilities under the model itself, before temperature and top_p."""
    if row.job.logprobs is None:
        return ()
    logprobs_V = functional.log_softmax(logits_V, dim=-1)
    values, ids = logprobs_V.topk(row.job.logprobs)
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return (TokenLogprob(logprobs_V[row.last_id].item(), top),)
