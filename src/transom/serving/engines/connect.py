"""Which client fits an engine: as told, or found out by asking the engine who serves its model.

Threat model: that of `http`; the probe sends no content.
Does not protect: an engine may claim to be another, and then fails as garbage, not silently.
"""

from __future__ import annotations

from typing import Literal, Unpack, get_args

from transom.errors import MisconfiguredError
from transom.serving.engines.base import Engine
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.http import Common
from transom.serving.engines.llamacpp import LlamaCppEngine

EngineKind = Literal["auto", "transom", "vllm", "llamacpp", "chat", "split"]
_KINDS: dict[str, EngineKind] = {
    "transom": "transom",
    "vllm": "vllm",
    "llamacpp": "llamacpp",
    "transom-split": "split",
}


async def detect(url: str, **common: Unpack[Common]) -> EngineKind:
    """The kind of engine at `url`; an unknown one is a chat endpoint. Raises EngineError."""
    engine = IdsEngine(url, **common)
    try:
        return _KINDS.get((await engine.probe()).owner, "chat")
    finally:
        await engine.close()


def client_of(
    kind: EngineKind, url: str, *, limit_field: str = "max_tokens", **common: Unpack[Common]
) -> Engine:
    """The client for a known kind of engine; `limit_field` is for chat endpoints."""
    if kind == "chat":
        return ChatEngine(url, limit_field=limit_field, **common)
    if limit_field != "max_tokens":
        raise MisconfiguredError(f"limit field {limit_field!r} is for chat endpoints, not for kind {kind!r}")
    if kind == "llamacpp":
        return LlamaCppEngine(url, **common)
    if kind in ("transom", "vllm"):
        return IdsEngine(url, vllm=kind == "vllm", **common)
    if kind == "split":
        raise MisconfiguredError("an engine of kind split needs the customer's part: give --split FOLDER")
    raise MisconfiguredError(f"engine kind {kind!r} is not one of {', '.join(get_args(EngineKind))}")
