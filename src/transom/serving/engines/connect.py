"""Which client fits an engine: as told, or found out by asking the engine who serves its model.

Threat model: that of `http`; the probe sends no content.
Does not protect: an engine may claim to be another, and then fails as garbage, not silently.
"""

from __future__ import annotations

from typing import Literal, TypedDict, get_args

from transom.errors import MisconfiguredError
from transom.serving.engines.base import Engine
from transom.serving.engines.chat import ChatEngine
from transom.serving.engines.client import IdsEngine, read_card
from transom.serving.engines.http import EngineHttp, Guard
from transom.serving.engines.llamacpp import LlamaCppEngine

EngineKind = Literal["auto", "transom", "vllm", "llamacpp", "chat"]
_KINDS: dict[str, EngineKind] = {"transom": "transom", "vllm": "vllm", "llamacpp": "llamacpp"}


class _Common(TypedDict):
    model: str | None
    api_key: str | None
    timeout_s: float
    guard: Guard | None


async def detect(
    url: str, *, model: str | None = None, api_key: str | None = None, guard: Guard | None = None
) -> EngineKind:
    """The kind of engine at `url`; an unknown one is a chat endpoint. Raises EngineError."""
    http = EngineHttp(url, api_key=api_key, guard=guard)
    try:
        card = read_card(await http.get("/v1/models"), model)
    finally:
        await http.close()
    return _KINDS.get(card.owner, "chat")


def client_of(
    kind: EngineKind,
    url: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    timeout_s: float = 120.0,
    limit_field: str = "max_tokens",
    guard: Guard | None = None,
) -> Engine:
    """The client for a known kind of engine; `limit_field` is for chat endpoints."""
    common: _Common = {"model": model, "api_key": api_key, "timeout_s": timeout_s, "guard": guard}
    if kind == "chat":
        return ChatEngine(url, limit_field=limit_field, **common)
    if limit_field != "max_tokens":
        raise MisconfiguredError(f"limit field {limit_field!r} is for chat endpoints, not for kind {kind!r}")
    if kind == "llamacpp":
        return LlamaCppEngine(url, **common)
    if kind in ("transom", "vllm"):
        return IdsEngine(url, vllm=kind == "vllm", **common)
    raise MisconfiguredError(f"engine kind {kind!r} is not one of {', '.join(get_args(EngineKind))}")
