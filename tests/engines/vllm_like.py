"""A server that answers as a vLLM does which writes hidden states to a folder, of a model that is given."""

from __future__ import annotations

import fcntl
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


@dataclass
class VllmLike:
    """`layers` as vLLM counts them. `spoil` may change what is written, or the answer's file name."""

    model: Any
    folder: Path
    layers: Sequence[int]
    spoil: Callable[[Path, dict[str, torch.Tensor]], str | None] = lambda _file, _tensors: None
    writes: bool = True
    lock: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._open: list[int] = []

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/version", lambda _: JSONResponse({"version": "0.32.0"})),
                Route("/v1/models", lambda _: JSONResponse({"data": [{"id": "m", "owned_by": "vllm"}]})),
                Route("/v1/completions", self.complete, methods=["POST"]),
            ]
        )

    async def complete(self, request: Request) -> JSONResponse:
        body = await request.json()
        self.asked.append(body)
        ids, answer = list(body["prompt"]), list[int]()
        while len(answer) < body["max_tokens"]:
            with torch.no_grad():
                out = self.model(input_ids=torch.tensor([ids + answer]), output_hidden_states=True)
            answer.append(int(out.logits[0, -1].argmax()))
            if answer[-1] in (body.get("stop_token_ids") or ()):
                break
        ended = answer[-1] in (body.get("stop_token_ids") or ())
        choice = {"index": 0, "token_ids": answer, "finish_reason": "stop" if ended else "length"}
        made: dict[str, Any] = {"choices": [choice]}
        if self.writes:
            made["kv_transfer_params"] = {"hidden_states_path": self._write(ids + answer[:-1])}
        return JSONResponse(made)

    def _write(self, ids: list[int]) -> str:
        states, last = [], len(self.model.model.layers)
        hook = self.model.model.norm.register_forward_pre_hook(lambda _m, given: states.append(given[0]))
        with torch.no_grad():
            out = self.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        hook.remove()
        each = [states[0][0] if one == last else out.hidden_states[one][0] for one in self.layers]
        tensors = {"hidden_states": torch.stack(each, dim=1), "token_ids": torch.tensor(ids)}
        file = self.folder / f"cmpl-{next(self._numbers)}.safetensors"
        lock = os.open(f"{file}.lock", os.O_CREAT | os.O_WRONLY, 0o644)
        if not self.lock:
            Path(f"{file}.lock").unlink()
        fcntl.flock(lock, fcntl.LOCK_EX)
        name = self.spoil(file, tensors)
        if not file.is_symlink() and not file.exists():
            save_file(tensors, file)
        if name == "held":
            self._open.append(lock)  # nobody lets go of it
            return str(file)
        os.close(lock)
        return name or str(file)
