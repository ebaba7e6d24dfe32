"""The embedded engine: a causal language model in this process, served in vLLM's dialect.

One worker thread owns the model. Requests wait for a place (`admission`), join the running batch, and leave
it when they are finished or their client has gone.
Threat model: none of its own. The engine is the host: it reads every prompt it is given.
Does not protect against: anything. Put the gateway in front of it.

Shapes: T tokens, D model width.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any, Final

from transom.checkpoint.generation import usual_sampling
from transom.checkpoint.load import Checkpoint
from transom.errors import EngineDownError, MisconfiguredError, NotYetError
from transom.serving.engines.admission import Admission
from transom.serving.engines.job import Job, StateWatch, Step

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from transom.serving.engines.batch import Row

_ROW_TOKENS = 2048  # of each row, where nobody says


class EmbeddedEngine:
    """A generator over a loaded checkpoint. Close it, or use it as a context manager.

    `max_batch` rows run together, whose cache has room for `cache_tokens`, rows times the longest of them;
    others wait, for `wait_s` at most. `context_tokens` bounds prompt and answer together (default: what the
    model was trained for). `watch` reads the features of states that requests may ask for. Linear layers of
    the checkpoint's model are packed in place (`packed`).
    """

    backend: Final = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        model: str | None = None,
        max_batch: int = 8,
        context_tokens: int | None = None,
        cache_tokens: int | None = None,
        wait_s: float = 600.0,
        watch: StateWatch | None = None,
    ) -> None:
        from transom.checkpoint.packed import pack
        from transom.serving.engines.batch import Batch

        network: Any = checkpoint.model
        if network.get_output_embeddings() is None or not network.can_generate():
            raise NotYetError(
                f"{checkpoint.source.name!r} does not generate text; give a causal language model"
            )
        if max_batch < 1:
            raise MisconfiguredError(f"max_batch must be at least 1, got {max_batch}")
        trained_tokens = int(network.config.max_position_embeddings)
        self.model = model or checkpoint.source.name
        context_tokens = min(context_tokens or trained_tokens, trained_tokens)
        self.cache_tokens = cache_tokens or max(context_tokens, max_batch * min(context_tokens, _ROW_TOKENS))
        self.context_tokens = min(context_tokens, self.cache_tokens)
        self.vocabulary_size = int(network.config.vocab_size)
        self.embedding_size: int | None = int(network.config.hidden_size)
        self.tokenizer: Tokenizer | None = checkpoint.tokenizer.tokenizer if checkpoint.tokenizer else None
        self.feature_size = watch.size if watch else 0
        self.sampling = usual_sampling(checkpoint)
        pack(network)
        self._batch = Batch(network, eos_ids_of(checkpoint), watch)
        self._admission = Admission(max_batch, self.cache_tokens, _places, wait_s)
        self._waiting: deque[Row] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._worker = threading.Thread(target=self._work, name="transom-engine", daemon=True)
        self._worker.start()

    def __enter__(self) -> EmbeddedEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop after the current step; jobs that have not finished get EngineDownError."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._worker.join()

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """The job's steps, one token each. Closing the generator takes the job out of the batch."""
        from transom.serving.engines.batch import Row

        loop = asyncio.get_running_loop()
        steps: asyncio.Queue[Step | Exception] = asyncio.Queue()

        def emit(item: Step | Exception) -> None:
            if not row.cancelled:
                try:
                    loop.call_soon_threadsafe(steps.put_nowait, item)
                except RuntimeError:  # the loop is gone, and with it whoever waited
                    row.cancelled = True

        row = Row(job, emit)
        async with self._admission.place(job.prompt_tokens + job.max_tokens):
            self._submit(row)
            try:
                reason = None
                while reason is None:
                    item = await steps.get()
                    if isinstance(item, Exception):
                        raise item
                    reason = item.finish_reason
                    yield item
            finally:
                row.cancelled = True

    def _submit(self, row: Row) -> None:
        with self._wake:
            if self._closed:
                raise EngineDownError("the engine is closed")
            self._waiting.append(row)
            self._wake.notify()

    def _work(self) -> None:
        from transom.serving.engines.batch import failure

        while True:
            newcomers = self._admit()
            if self._closed:
                break
            for row in newcomers:
                self._batch.join(row)
            self._batch.prefill()
            try:
                self._batch.step()
            except Exception as error:  # ends the rows that it was for, and the engine goes on
                for row in self._batch.drop():
                    row.emit(failure(error))
        for row in [*self._batch.clear(), *newcomers, *self._waiting]:
            row.emit(EngineDownError("the engine was closed before the answer was complete"))

    def _admit(self) -> list[Row]:
        """Rows that came; waits while there is nothing at all to do."""
        with self._wake:
            while not (self._waiting or self._batch.size or self._closed):
                self._wake.wait()
            newcomers = [row for row in self._waiting if not row.cancelled]
            self._waiting.clear()
            return newcomers


def _places(tokens: Sequence[int]) -> int:
    """What the batch's cache needs: all rows are as wide as the longest."""
    return len(tokens) * max(tokens)


def eos_ids_of(checkpoint: Checkpoint) -> frozenset[int]:
    """The ids that end an answer, by the model's settings and its tokenizer's."""
    found: set[int] = set()
    for settings in (checkpoint.model.generation_config, checkpoint.model.config):
        ids = getattr(settings, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    if checkpoint.tokenizer and (text := checkpoint.tokenizer.specials.get("eos_token")):
        token_id = checkpoint.tokenizer.tokenizer.token_to_id(text)
        found.update([] if token_id is None else [token_id])
    return frozenset(found)
