"""Continuous batching over a causal language model: rows join and leave a running batch between two steps.

A row is prefilled alone, then joins the batch. The caches of shorter rows are padded on the left and masked,
and positions count only a row's own tokens, so a row's answer does not depend on its neighbours (up to the
order of floating-point sums).
Threat model: none; the batch runs inside the engine, which reads everything.
Does not protect against: timing. Rows that share a batch slow each other down, measurably.
Source: iteration-level scheduling of Orca (Yu et al., OSDI 2022, section 3.1), without its paged memory.

Shapes: B rows, T cached positions, D model width, H heads, K head width, V vocabulary, F features.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from transom.checkpoint.observe import Span
from transom.errors import EngineError
from transom.serving.engines.job import FinishReason, Job, StateWatch, Step, TokenLogprob

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    kept: dict[str, Any] = field(default_factory=dict)  # what a watch remembers of it
    generator: torch.Generator = field(default_factory=torch.Generator)

    def __post_init__(self) -> None:
        seed = self.job.seed if self.job.seed is not None else secrets.randbits(63)
        self.generator.manual_seed(seed)


class Batch:
    """The running rows of one model and their shared key-value cache. Used by one thread only."""

    def __init__(
        self, model: PreTrainedModel, eos_ids: frozenset[int], watch: StateWatch | None = None
    ) -> None:
        self._model: Any = model
        self._eos_ids, self._watch = eos_ids, watch
        self._cache: Any = None
        self.rows: list[Row] = []

    @torch.inference_mode()
    def join(self, row: Row) -> None:
        """Prefill a row and emit its first step; it stays in the batch unless that was its last."""
        from transformers import DynamicCache

        cache = DynamicCache()  # its layers keep every position, as the mask does the sliding of windows
        row.length = row.job.prompt_tokens
        answer = self._forward([row], **self._prompt(row.job), past_key_values=cache, logits_to_keep=1)
        if self._advance([row], *answer):
            self._cache = cache if not self.rows else _merged(self._cache, cache)
            self.rows.append(row)

    @torch.inference_mode()
    def step(self) -> None:
        """One token for every row; finished and cancelled rows leave."""
        self._keep([i for i, row in enumerate(self.rows) if not row.cancelled])
        if not self.rows:
            return
        device = self._model.device
        lengths_B = torch.tensor([row.length for row in self.rows], device=device)
        width = self._cache.get_seq_length()
        columns_T = torch.arange(width + 1, device=device)
        for row in self.rows:
            row.length += 1
        answer = self._forward(
            self.rows,
            input_ids=torch.tensor([[row.last_id] for row in self.rows], device=device),
            attention_mask=(columns_T >= width - lengths_B[:, None]).long(),
            position_ids=lengths_B[:, None],
            past_key_values=self._cache,
        )
        self._keep(self._advance(self.rows, *answer))

    def clear(self) -> list[Row]:
        """Drop all rows and return them."""
        rows, self.rows, self._cache = self.rows, [], None
        return rows

    def _forward(self, rows: list[Row], **given: Any) -> tuple[Tensor, Tell | None]:
        """The last logits [B, V], and what tells features of the states behind them if a row asks."""
        forward = partial(self._model, **given, use_cache=True)
        if self._watch is None or not any(row.job.features for row in rows):
            return forward().logits[:, -1], None
        spans = [Span(row.length, row.job.prompt_tokens, row.kept) for row in rows]
        answer, tell = self._watch.run(forward, spans)
        return answer.logits[:, -1], tell

    def _prompt(self, job: Job) -> dict[str, Tensor]:
        if job.prompt_embeds is not None:
            embeds_TD = torch.from_numpy(job.prompt_embeds).to(self._model.device, self._model.dtype)
            return {"inputs_embeds": embeds_TD[None]}
        return {"input_ids": torch.tensor([job.prompt_ids], device=self._model.device)}

    def _advance(self, rows: list[Row], logits_BV: Tensor, tell: Tell | None) -> list[int]:
        """Choose and emit one token a row; returns the indices of the rows that go on. A row whose numbers
        are not finite fails alone."""
        logits_BV = logits_BV.float()
        finite_B = torch.isfinite(logits_BV.amax(dim=-1)).tolist()
        greedy_B = logits_BV.argmax(dim=-1).tolist()
        steps = [
            next_step(row, logits_BV[i], greedy_B[i], self._eos_ids) if finite_B[i] else None
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

    def _features(self, told_BF: np.ndarray, rows: int) -> np.ndarray:
        size = self._watch.size if self._watch else 0
        if told_BF.shape != (rows, size):
            raise FloatingPointError
        return told_BF

    def _keep(self, kept: list[int]) -> None:
        if len(kept) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in kept]
        if not self.rows:
            self._cache = None
            return
        width = max(row.length for row in self.rows)
        for layer in self._cache.layers:
            layer.keys = layer.keys[kept, :, -width:]
            layer.values = layer.values[kept, :, -width:]


def next_step(row: Row, logits_V: Tensor, greedy_id: int, eos_ids: frozenset[int]) -> Step:
    """The row's next token: drawn, or `greedy_id`, the likeliest, at temperature 0."""
    sampled = row.job.temperature > 0
    row.last_id = sample(logits_V.cpu(), row.job, row.generator) if sampled else greedy_id
    row.produced += 1
    return Step((row.last_id,), _logprobs(logits_V, row), _finish_reason(row, eos_ids))


def sample(logits_V: Tensor, job: Job, generator: torch.Generator) -> int:
    """One id drawn at the job's temperature from the smallest set of ids whose mass reaches `top_p`."""
    probs_V = functional.softmax(logits_V / job.temperature, dim=-1)
    if job.top_p < 1.0:
        sorted_V, order_V = probs_V.sort(descending=True)
        beyond_V = sorted_V.cumsum(dim=-1) - sorted_V >= job.top_p
        probs_V = probs_V.index_fill(0, order_V[beyond_V], 0.0)
    return int(torch.multinomial(probs_V, 1, generator=generator))


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


def _merged(cache: Any, newcomer: Any) -> Any:
    width = max(cache.get_seq_length(), newcomer.get_seq_length())
    for layer, other in zip(cache.layers, newcomer.layers, strict=True):
        layer.keys = torch.cat([_widened(layer.keys, width), _widened(other.keys, width)])
        layer.values = torch.cat([_widened(layer.values, width), _widened(other.values, width)])
    return cache


def _widened(states_BHTK: Tensor, width: int) -> Tensor:
    return functional.pad(states_BHTK, (0, 0, width - states_BHTK.shape[-2], 0))
