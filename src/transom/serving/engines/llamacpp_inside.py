"""llama.cpp in this process, for a GGUF: several times torch's speed for the tokens of an answer.

Its server listens on a loopback port of its own with a key that was drawn for it, and `llamacpp`'s client
speaks to it, so that no id or score is missing. Each job has a slot of its own with an equal share of the
cache; in a shared cache its scores would change with what its neighbours have there. Sampling is plain:
temperature, then top_p, as in the torch engine.
Threat model: none of its own: the engine is the host. Other users of the machine cannot ask the port.
Does not protect: what llama.cpp keeps of a prompt in a slot is reused by a later one that begins alike, which
timing tells.
Source: llama.cpp, tools/server/README.md.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import gguf_model
from transom.checkpoint.gguf_tokenizer import gguf_tokenizer
from transom.checkpoint.source import Source
from transom.errors import EngineDownError, MisconfiguredError, RefusedError, extra
from transom.serving.engines.admission import Admission
from transom.serving.engines.base import Call, Delta, TokenScore
from transom.serving.engines.job import FinishReason, Job, Step, TokenLogprob
from transom.serving.engines.llamacpp import LlamaCppEngine

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_START_S, _ANSWER_S = 600.0, 600.0
_SHARE_TOKENS = 4096  # of each job, where nobody says
_PLAIN = {"samplers": ["temperature", "top_p"]}
_SILENT = -1  # or it logs what it does, a line a request


class LlamaCppGenerator:
    """A generator over a GGUF. Close it, or use it as a context manager.

    `max_batch` jobs run together, each of an equal share of `cache_tokens` tokens; others wait for `wait_s`
    at most. Raises MissingExtraError, CheckpointError for a broken file and MisconfiguredError for one that
    llama.cpp does not load.
    """

    backend: Final = "llamacpp"
    embedding_size: Final = None
    feature_size = 0

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
        with extra("llamacpp", "xllamacpp"):
            import xllamacpp
        head = read_gguf_head(source.path)
        settings = gguf_model(head).settings
        trained_tokens = int(settings["max_position_embeddings"])
        files = gguf_tokenizer(source.path, head)
        self.model = model or source.name
        self.context_tokens = min(context_tokens or trained_tokens, trained_tokens)
        self.vocabulary_size = int(settings["vocab_size"])
        self.tokenizer: Tokenizer | None = files.tokenizer
        self.cache_tokens = cache_tokens or max_batch * min(self.context_tokens, _SHARE_TOKENS)
        self.context_tokens = min(self.context_tokens, self.cache_tokens // max_batch)
        if self.context_tokens < 1:
            raise MisconfiguredError(f"--cache-tokens {cache_tokens} are too few for {max_batch} requests")
        self._ends = frozenset(files.eos_ids)
        self._admission = Admission(max_batch, self.context_tokens, max, wait_s)
        self._slots = list(range(max_batch))
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
        """Stop; jobs that have not finished fail."""
        self._server = None

    async def generate(self, job: Job) -> AsyncGenerator[Step, None]:
        """See `Generator.generate`."""
        if self._server is None:
            raise EngineDownError("the engine is closed")
        if job.prompt_ids is None:
            raise RefusedError("llama.cpp takes no embeddings; start the engine with --backend torch")
        call = Call(
            prompts=(job.prompt_ids,), max_tokens=job.max_tokens, temperature=job.temperature,
            top_p=job.top_p, seed=job.seed, logprobs=job.logprobs, stream=True,
            stop_ids=tuple(job.stop_ids | (frozenset() if job.ignore_eos else self._ends)),
        )  # fmt: skip
        async with self._admission.place(job.prompt_tokens + job.max_tokens):
            slot = self._slots.pop()
            more = _PLAIN | {"id_slot": slot, "ignore_eos": job.ignore_eos}
            client = LlamaCppEngine(self._url, api_key=self._key, timeout_s=_ANSWER_S)
            try:
                async with aclosing(client.pieces(call, more)) as deltas:
                    async for delta in deltas:
                        yield _step(delta)
            finally:
                self._slots.append(slot)
                await client.close()

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


def _step(delta: Delta) -> Step:
    reason = delta.finish_reason
    ended: FinishReason | None = reason if reason in (None, "length") else "stop"
    return Step(delta.ids, tuple(map(_scored, delta.scores)), ended)


def _scored(score: TokenScore) -> TokenLogprob:
    return TokenLogprob(score.logprob, tuple((int(one), value) for one, value in score.top))
