"""llama.cpp in this process, for a GGUF: several times torch's speed for the tokens of an answer.

Its server listens on a loopback port of its own with a key that was drawn for it, and `llamacpp`'s client
speaks to it, so that no id or score is missing. Each job has a slot of its own with an equal share of the
cache; in a shared cache its scores would change with what its neighbours have there. Sampling has the torch
engine's order, but penalties of presence and frequency are of the prompt too.
Threat model: none of its own: the engine is the host. Other users of the machine cannot ask the port.
Does not protect: what llama.cpp keeps of a prompt in a slot is reused by a later one that begins alike, which
timing tells.
Source: llama.cpp, tools/server/README.md.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from http.client import HTTPConnection, HTTPException
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from transom.checkpoint.generation import GGUF_SAMPLING
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import gguf_model
from transom.checkpoint.gguf_tokenizer import gguf_tokenizer
from transom.checkpoint.source import Source
from transom.errors import EngineDownError, MisconfiguredError, RefusedError, extra
from transom.serving.engines.admission import Admission
from transom.serving.engines.base import Call, Delta, TokenScore, sampling_of
from transom.serving.engines.job import FinishReason, Job, Step, TokenLogprob
from transom.serving.engines.llamacpp import LlamaCppEngine

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_START_S, _ANSWER_S = 600.0, 600.0
_USUAL_TOKENS, _LEAST_SHARE = 32768, 4096  # of all jobs and of each, where nobody says
_CLOSE_S = 10.0
_SPIN, _SPINS = "GOMP_SPINCOUNT", "1000"
_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_ORDER = {"samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"]}
_SILENT = -1  # or it logs what it does, a line a request


def library() -> Any:
    """The module xllamacpp. Its compute threads wait for each other on the processor; where other programs
    keep every core busy, so long a wait as libgomp's own makes an answer take a hundred times as long.

    What the environment says of it stands. Raises MissingExtraError.
    """
    own = not any(name in os.environ for name in (_SPIN, "OMP_WAIT_POLICY"))
    if own:
        os.environ[_SPIN] = _SPINS  # which libgomp reads when it is loaded
    try:
        with extra("llamacpp", "xllamacpp"):
            return import_module("xllamacpp")
    finally:
        if own:
            del os.environ[_SPIN]


class LlamaCppGenerator:
    """A generator over a GGUF. Close it, or use it as a context manager.

    `max_batch` jobs run together, each of an equal share of `cache_tokens` tokens; others wait for `wait_s`
    at most. Raises MissingExtraError, CheckpointError for a broken file and MisconfiguredError for one that
    llama.cpp does not load.
    """

    backend: Final = "llamacpp"
    embedding_size: Final = None
    feature_size = 0
    sampling: Final = GGUF_SAMPLING

    def __init__(
        self,
        source: Source,
        *,
        model: str | None = None,
        max_batch: int = 8,
        context_tokens: int | None = None,
        cache_tokens: int | None = None,
        wait_s: float = 600.0,
        threads: int | None = None,
    ) -> None:
        xllamacpp = library()
        head = read_gguf_head(source.path)
        settings = gguf_model(head).settings
        trained_tokens = int(settings["max_position_embeddings"])
        files = gguf_tokenizer(source.path, head)
        self.model = model or source.name
        self.context_tokens = min(context_tokens or trained_tokens, trained_tokens)
        self.vocabulary_size = int(settings["vocab_size"])
        self.tokenizer: Tokenizer | None = files.tokenizer
        usual = min(self.context_tokens, max(_LEAST_SHARE, _USUAL_TOKENS // max_batch))
        self.cache_tokens = cache_tokens or max_batch * (self.context_tokens if context_tokens else usual)
        share = self.cache_tokens // max_batch
        if share < 1 or (context_tokens and share < self.context_tokens):
            raise MisconfiguredError(
                f"--cache-tokens {cache_tokens} are {share} for each of {max_batch} requests, too few for "
                f"--context {self.context_tokens}; raise it, or lower --max-batch or --context"
            )
        self.context_tokens = min(self.context_tokens, share)
        self._ends = frozenset(files.eos_ids)
        self._admission = Admission(max_batch, self.context_tokens, max, wait_s)
        self._slots = list(range(max_batch))
        self._closed = False
        self._running: set[_Stop] = set()
        self._state = threading.Condition()
        self._key = secrets.token_hex(32)
        params: Any = xllamacpp.CommonParams()
        params.model.path = str(source.path)
        params.n_parallel, params.kv_unified, params.n_ctx = max_batch, False, self.cache_tokens
        params.hostnames, params.port, params.api_keys = ["127.0.0.1"], 0, [self._key]
        params.endpoint_slots, params.ui, params.verbosity = False, False, _SILENT
        params.warmup, params.fit_params = False, False  # which take longer than they save
        params.cache_ram_mib, params.n_ctx_checkpoints = 0, 0  # memory is `cache_tokens`, and no more
        if threads is not None:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        try:
            self._server: Any = xllamacpp.Server(params)
        except Exception as error:
            raise MisconfiguredError(
                f"llama.cpp does not load {source.path} ({type(error).__name__}); use --backend torch"
            ) from None
        self._url = str(self._server.listening_address)
        self._wait()

    def __enter__(self) -> LlamaCppGenerator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop; jobs that have not finished get EngineDownError."""
        with self._state:
            self._closed = True
            for one in self._running:
                one.tell()
            idle = self._state.wait_for(lambda: not self._running, _CLOSE_S)
        if idle:  # the server waits for whoever reads from it, and would hold up this thread with them
            self._server = None

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """See `Generator.generate`."""
        if job.prompt_ids is None:
            raise RefusedError("llama.cpp takes no embeddings; start the engine with --backend torch")
        drawn = sampling_of(job) | ({} if job.penalises else dict.fromkeys(_PENALTIES))
        call = Call(
            prompts=(job.prompt_ids,), max_tokens=job.max_tokens, **drawn, seed=job.seed,
            logprobs=job.logprobs, stream=True,
            stop_ids=tuple(job.stop_ids | (frozenset() if job.ignore_eos else self._ends)),
        )  # fmt: skip
        async with self._admission.place(job.prompt_tokens + job.max_tokens):
            stop = self._enter()
            slot = self._slots.pop()
            client = LlamaCppEngine(self._url, api_key=self._key, timeout_s=_ANSWER_S)
            try:
                deltas = client.pieces(call, _ORDER | {"id_slot": slot, "ignore_eos": job.ignore_eos})
                async with aclosing(deltas):
                    while (delta := await stop.or_next(deltas)) is not None:
                        yield _step(delta)
            finally:
                await client.close()
                self._slots.append(slot)
                with self._state:
                    self._running.discard(stop)
                    self._state.notify_all()

    def _enter(self) -> _Stop:
        with self._state:
            if self._closed:
                raise EngineDownError("the engine is closed")
            self._running.add(stop := _Stop())
            return stop

    def _wait(self) -> None:
        """For the model to be loaded. Raises EngineDownError."""
        address, ends_s = urlsplit(self._url), time.monotonic() + _START_S
        while time.monotonic() < ends_s:
            connection = HTTPConnection(address.hostname or "", address.port, timeout=5)
            try:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except (OSError, HTTPException):
                pass
            finally:
                connection.close()
            time.sleep(0.02)
        raise EngineDownError("llama.cpp did not start in time")


class _Stop:
    """Tells one running job, from any thread, that the engine closes."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._told = self._loop.create_future()

    def tell(self) -> None:
        with suppress(RuntimeError):  # its loop is gone
            self._loop.call_soon_threadsafe(self._told.cancel)

    async def or_next(self, deltas: AsyncGenerator[Delta, None]) -> Delta | None:
        """The next piece, None after the last. Raises EngineDownError when told."""
        coming = asyncio.ensure_future(anext(deltas, None))
        try:
            await asyncio.wait({coming, self._told}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            raise EngineDownError("the engine was closed before the answer was complete")
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)


def _step(delta: Delta) -> Step:
    reason = delta.finish_reason
    ended: FinishReason | None = reason if reason in (None, "length") else "stop"
    return Step(delta.ids, tuple(map(_scored, delta.scores)), ended)


def _scored(score: TokenScore) -> TokenLogprob:
    return TokenLogprob(score.logprob, tuple((int(one), value) for one, value in score.top))
