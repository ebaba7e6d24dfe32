"""Client of a vLLM that writes its hidden states to a folder which this side can read.

vLLM's `extract_hidden_states` puts the states of a request into a safetensors file when the request ends, and
tells the file's name; it does so for no stream. So an answer is asked for in pieces, and the states of each
are read, told to whoever makes features of them, and deleted with their lock.
Threat model: that of `http`; the folder is shared with the engine's host, who may put anything there. A name
is one file of this folder, no link, and no larger than what was asked for; tokens and shapes must be right.
Does not protect: states are nearly the text itself. Until it is read, or where reading fails, who can read
the folder has them: keep it in memory, for these two users alone. States may be a lie.
Source: vLLM, `ExampleHiddenStatesConnector`.

Shapes: T tokens of prompt and answer but the last, L layers, D model width, S tokens of a piece.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from transom.errors import EngineGarbageError, EngineTimeoutError, MisconfiguredError
from transom.serving.engines.base import Call, Delta, EngineCard, FinishReason, Ids, Json
from transom.serving.engines.bounds import Meter
from transom.serving.engines.checks import count
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.http import Common
from transom.serving.engines.pieces import in_pieces, piece_seed

if TYPE_CHECKING:
    import numpy as np

_NAME = re.compile(
    r"cmpl-[\w.-]{1,200}\.safetensors"
)  # as vLLM calls a completion's; nothing else is deleted
_HEADER_BYTES, _NUMBER_BYTES, _ID_BYTES = 1 << 16, 4, 8
_WAIT_S, _STALE_S, _PLAIN = 0.002, 3600.0, 1 << 20


class Teller(Protocol):
    """Makes features of states. `layers` are counted as vLLM does: n is what comes out of the first n."""

    @property
    def layers(self) -> Sequence[int]: ...

    @property
    def width(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def probe(self) -> Ids: ...

    def check(self, states_TLD: Any) -> None:
        """Raises MisconfiguredError unless these are the states of the tokens in `probe`."""

    def rows(self, states_SLD: Any, ids: Ids, *, first: bool) -> np.ndarray:
        """Features [S, size] of the steps in which these ids were chosen; `first`: they begin an answer."""


class VllmStatesEngine(IdsEngine):
    """A vLLM at `url` that writes states to `folder`; `teller` makes the features of them."""

    def __init__(self, url: str, teller: Teller, folder: Path, **common: Unpack[Common]) -> None:
        super().__init__(url, vllm=True, **common)
        self._teller, self._folder = teller, folder
        self._open: set[asyncio.Task[Any]] = set()  # that nobody may wait for

    async def _ask_card(self) -> EngineCard:
        """Raises MisconfiguredError for an engine that writes no states, or those of other layers."""
        card = await super()._ask_card()
        probe = self._teller.probe
        call = Call(prompts=(probe,), max_tokens=1, temperature=0)
        await asyncio.to_thread(self._sweep)
        _, states_TLD = await self._asked(self._asking(call, card), lambda _answer: probe)
        await asyncio.to_thread(self._teller.check, states_TLD)
        return replace(card, features=self._teller.size)

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        """See `Engine.generate`."""
        if not call.features:
            async with aclosing(super().generate(call)) as whole:
                async for delta in whole:
                    yield delta
            return
        if call.embeds:
            raise MisconfiguredError(
                "states are told of token ids, not of embeddings; use mode plain or words"
            )
        async with aclosing(in_pieces(call, partial(self._piece, call), ahead=False)) as deltas:
            async for delta in deltas:
                yield delta

    async def _piece(
        self, call: Call, prompt: Ids, before: Ids, length: int, index: int, meter: Meter
    ) -> Delta:
        """The next ids of an answer of which `before` is there, with their features."""
        whole = prompt + before
        seed = None if call.seed is None else piece_seed(call.seed, index % call.n, len(before))
        part = replace(call, prompts=(whole,), n=1, max_tokens=length, seed=seed, stream=False, features=0)
        card = self._card or await self.probe()
        given: list[Delta] = []

        def read(answer: Any) -> Ids:
            given.extend(self._parsed(answer, part))
            ok = len(given) == 1 and given[0].finish_reason is not None and 0 < len(given[0].ids) <= length
            if not ok:
                raise EngineGarbageError("the engine did not send the one piece of an answer asked for")
            return *whole, *given[0].ids[:-1]

        states_TLD = (await self._asked(self._asking(part, card), read, meter.plain_bytes))[1]
        ids = given[0].ids
        reason: FinishReason | None = given[0].finish_reason
        if reason == "length" and len(ids) == length < call.max_tokens - len(before):
            reason = None  # there is more to ask for
        steps_SLD = states_TLD[len(whole) - 1 :]
        rows = await asyncio.to_thread(self._teller.rows, steps_SLD, ids, first=not before)
        return replace(given[0], index=index, finish_reason=reason, features_TF=rows)

    async def _asked(self, body: Json, read: Callable[[Any], Ids], limit: int = _PLAIN) -> tuple[Any, Any]:
        """An answer, and the states of the tokens that `read` finds in it. Whoever asked may leave: what the
        engine writes is waited for and deleted all the same."""
        work = asyncio.create_task(self._answer(body, read, limit))
        self._open.add(work)
        work.add_done_callback(self._open.discard)
        return await asyncio.shield(work)

    async def _answer(self, body: Json, read: Callable[[Any], Ids], limit: int) -> tuple[Any, Any]:
        answer = await self._post(self._path, body, limit)
        file = self._file(answer)
        try:
            return answer, await self._states(file, read(answer))
        finally:
            for one in (file, Path(f"{file}.lock")):
                with suppress(OSError):
                    one.unlink()

    def _asking(self, call: Call, card: EngineCard) -> Json:
        return self._body(call, card) | {"kv_transfer_params": {"include_output_tokens": True}}

    def _file(self, answer: Any) -> Path:
        """Where the states lie. Raises MisconfiguredError where none are written."""
        told = answer.get("kv_transfer_params") if isinstance(answer, dict) else None
        path = told.get("hidden_states_path") if isinstance(told, dict) else None
        name = path.rpartition("/")[2] if isinstance(path, str) else ""
        if not _NAME.fullmatch(name):
            raise MisconfiguredError(f"the engine writes no states; start vLLM with {self._how()}")
        return self._folder / name

    async def _states(self, file: Path, ids: Ids) -> Any:
        """Of these tokens, float32 [T, L, D]. Raises MisconfiguredError where none are written here, and
        EngineError."""
        await self._written(Path(f"{file}.lock"))
        return await asyncio.to_thread(self._read, file, ids)

    def _sweep(self) -> None:
        """Delete what an earlier gateway left, and is older than any answer may take."""
        for file in self._folder.glob("cmpl-*.safetensors*"):
            with suppress(OSError):
                if time.time() - file.lstat().st_mtime > _STALE_S:
                    file.unlink()

    async def _written(self, lock: Path) -> None:
        """Wait for vLLM to let go of the lock that it took before it answered."""
        ends_s = time.monotonic() + self._timeout_s
        try:
            opened = _opened(lock)
        except OSError as error:
            raise MisconfiguredError(
                f"the engine wrote no states to {self._folder} ({type(error).__name__}); start vLLM on this "
                f"machine, or with a disk that both see, with {self._how()}"
            ) from None
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return
                if time.monotonic() > ends_s:
                    raise EngineTimeoutError("the engine did not write its states in time")
                await asyncio.sleep(_WAIT_S)
        finally:
            os.close(opened)

    def _read(self, file: Path, ids: Ids) -> Any:
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        shape = (len(ids), len(self._teller.layers), self._teller.width)
        most = _HEADER_BYTES + len(ids) * (_ID_BYTES + shape[1] * shape[2] * _NUMBER_BYTES)
        try:
            found = load(_bytes(file, most))
            states_TLD, told_T = found["hidden_states"], found["token_ids"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise EngineGarbageError(f"the engine's states cannot be read ({type(error).__name__})") from None
        if tuple(states_TLD.shape) != shape or not states_TLD.is_floating_point():
            raise MisconfiguredError(
                f"the engine wrote states of {tuple(states_TLD.shape)}, {shape} were expected; start vLLM "
                f"with {self._how()}"
            )
        if told_T.ndim != 1 or tuple(told_T.tolist()) != ids:
            raise EngineGarbageError("the engine wrote the states of other tokens")
        states_TLD = states_TLD.float()
        if not torch.isfinite(states_TLD).all():
            raise EngineGarbageError("the engine wrote states that are not finite")
        return states_TLD

    def _how(self) -> str:
        return vllm_options(self._teller.layers, self._folder)


def _bytes(file: Path, most: int) -> bytes:
    """Of a file that is no link; a pipe is empty. Raises OSError and ValueError."""
    with os.fdopen(_opened(file), "rb") as opened:
        data = opened.read(most + 1) or b""
    if len(data) > most:
        raise ValueError
    return data


def _opened(file: Path) -> int:
    return os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)


def vllm_options(layers: Sequence[int], folder: Path) -> str:
    """What to start vLLM with, so that it writes states of these layers to a folder."""
    ids = ", ".join(str(count(one)) for one in layers)
    return (
        '--speculative-config \'{"method": "extract_hidden_states", "num_speculative_tokens": 1, '
        f'"draft_model_config": {{"hf_config": {{"eagle_aux_hidden_state_layer_ids": [{ids}]}}}}}}\' '
        '--kv-transfer-config \'{"kv_connector": "ExampleHiddenStatesConnector", "kv_role": "kv_producer", '
        f'"kv_connector_extra_config": {{"shared_storage_path": "{folder.absolute()}"}}}}\''
    )
