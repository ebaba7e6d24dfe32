"""One question through a gateway with the official `openai` client, and how the exchange is shown.

Threat model: the model's host reads what the gateway sends it and may answer anything, terminal escapes
too, so control characters are replaced before they reach the screen. The client never goes through a proxy
named in the environment, and speaks plain HTTP to this machine only.
Does not protect: what `host_saw` shows; the private text on the user's own screen.
Source: OpenAI API reference (chat completion chunks); the field `transom` is the gateway's own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from transom.errors import (
    EngineDownError,
    EngineError,
    EngineGarbageError,
    EngineTimeoutError,
    MissingExtraError,
    RefusedError,
    TransomError,
    extra,
)
from transom.net.listen import serve_in_thread
from transom.net.urls import check_url
from transom.privacy.ledger import Ledger
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.backends import open_engine
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from openai import OpenAI


Message = Mapping[str, str]
_CAN_READ = {
    "obfuscated": "and can read if it has the base model: the text itself",
    "words+obfuscated": "and can read if it has the base model: the sanitised words",
}
_NOT_SHOWN = ("question", "answer", "host_can_read", "public", "annotations")


@dataclass(frozen=True)
class Exchange:
    """A question, its answer, and what the host saw of it. `epsilon_spent` is this request's alone."""

    question: str = field(repr=False)
    answer: str = field(repr=False)
    host_saw: str = field(repr=False)
    mode: str
    guarantee: Mapping[str, Any] | None
    epsilon_spent: float
    epsilon_total: float | None
    bayes: Mapping[str, Any] | None
    public: Sequence[str] = field(default=(), repr=False)  # stretches of what the host saw
    host_can_read: str | None = field(default=None, repr=False)  # None also from an older gateway
    annotations: Mapping[str, Any] = field(default_factory=dict, repr=False)


@contextmanager
def embedded_engine(model: str, on_body: Callable[[bytes], None] | None = None) -> Iterator[str]:
    """The embedded engine on a free loopback port; yields its URL. `on_body` sees every byte it receives."""
    from transom.serving.engines.server import create_engine_app

    with (
        open_engine(model, max_batch=1) as engine,  # for one person
        serve_in_thread(create_engine_app(engine, on_body=on_body)) as url,
    ):
        yield url


@contextmanager
def words_gateway(
    engine_url: str,
    model: str,
    sanitizer: Sanitizer,
    ledger: Ledger | None = None,
    *,
    restore_words: bool = False,
) -> Iterator[str]:
    """A gateway in mode words before an engine that takes ids; yields its URL.

    `model` names the checkpoint whose tokenizer the gateway uses.
    """
    from transom.serving.engines.client import IdsEngine
    from transom.serving.gateway.app import create_gateway

    app = create_gateway(
        GatewayConfig(mode="words", restore_words=restore_words),
        IdsEngine(engine_url),
        load_tokenizer(model),
        sanitizer,
        ledger,
    )
    with serve_in_thread(app) as url:
        yield url


def require_openai() -> Any:
    """The official client's module. Raises MissingExtraError; call it before anything slow."""
    with extra("chat", "openai"):
        return import_module("openai")


@contextmanager
def connect(gateway_url: str) -> Iterator[OpenAI]:
    """The official client of a gateway; its key, if it wants one, comes from TRANSOM_API_KEY."""
    openai = require_openai()
    client = openai.OpenAI(
        base_url=f"{check_url(gateway_url)}/v1",
        api_key=os.environ.get("TRANSOM_API_KEY", "none"),
        max_retries=0,
        http_client=openai.DefaultHttpxClient(trust_env=False),
    )
    with client:
        yield client


def ask(
    client: OpenAI,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    session: str | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Exchange:
    """Send a conversation that ends with a question; `on_text` gets the answer's pieces as they come.

    Raises the TransomError that the gateway reports, or EngineDownError when there is no gateway.
    """
    import openai

    headers = {"X-Transom-Show-Host": "1"} | ({"X-Transom-Session": session} if session else {})
    body = {"model": "transom", "messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0}
    answer: list[str] = []
    shown: Mapping[str, Any] | None = None
    try:
        stream = client.chat.completions.create(**body, stream=True, extra_headers=headers)  # type: ignore[call-overload]
        for chunk in stream:
            for choice in chunk.choices:
                answer.append(choice.delta.content or "")
                if on_text is not None:
                    on_text(printable(answer[-1]))
            shown = (chunk.model_extra or {}).get("transom", shown)
    except openai.APIError as error:
        raise reported(error) from None
    if shown is None:
        raise EngineGarbageError("the server did not say what the host saw; is it a Transom gateway?")
    return Exchange(
        question=messages[-1]["content"],
        answer="".join(answer),
        host_can_read=shown.get("host_can_read"),
        public=shown.get("public", ()),
        annotations=shown.get("annotations") or {},
        **{name: shown[name] for name in Exchange.__dataclass_fields__ if name not in _NOT_SHOWN},
    )


def reported(error: Any) -> TransomError:
    """The gateway's error as the exception it was there, so that the exit code is the same here."""
    import openai

    if isinstance(error, openai.APITimeoutError):
        return EngineTimeoutError("the gateway did not answer in time")
    if isinstance(error, openai.APIConnectionError):
        return EngineDownError(f"no connection to the gateway at {error.request.url}; is it running?")
    body = error.body if isinstance(error.body, Mapping) else {}
    known = next((kind for kind in kinds() if kind.code == body.get("code")), None)
    message = printable(str(body.get("message") or "the gateway refused the request"))
    if known is not None and known is not MissingExtraError:
        return known(message)
    status = getattr(error, "status_code", 500)
    return RefusedError(message, status=status) if status < 500 else EngineError(message)


def kinds(root: type[TransomError] = TransomError) -> list[type[TransomError]]:
    """Every class of the exception tree."""
    return [root, *(leaf for child in root.__subclasses__() for leaf in kinds(child))]


def printable(text: str) -> str:
    """`text` without the control characters that steer a terminal."""
    return "".join(
        c if c in "\n\t" or c.isprintable() or (c.isspace() and c > " ") else "\ufffd" for c in text
    )


def judged(exchange: Exchange) -> list[str]:
    """What a gateway with a detector says of the answer: its risk, why, and the sentences at risk."""
    lines = []
    for note in _mappings(exchange.annotations.get("hallucination")):
        if not isinstance(risk := note.get("risk"), float):
            lines.append(f"not judged: {note.get('reason') or note.get('error')}")
            continue
        why = note.get("why")
        reasons = "; ".join(map(str, why)) if isinstance(why, list) else ""
        lines.append(f"risk of being made up {risk:.2f}{f': {reasons}' if reasons else ''}")
        for one in _mappings(note.get("sentences")):
            start, end, own = one.get("start"), one.get("end"), one.get("risk")
            if one.get("flagged") is True and isinstance(start, int) and isinstance(end, int):
                lines.append(
                    f"  {own:.2f} {exchange.answer[start:end].strip()}" if isinstance(own, float) else ""
                )
    return [printable(line) for line in lines if line]


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def render(exchange: Exchange) -> RenderableType:
    """Two columns, what the user sees and exactly what the host saw, over the figures."""
    own = Group(
        Text("you asked", "dim"),
        Text(printable(exchange.question), "bold"),
        Text("\nyou read", "dim"),
        Text(printable(exchange.answer.strip())),
    )
    seen = [Text("the host saw", "dim"), _seen(exchange)]
    if exchange.host_can_read is not None:
        label = _CAN_READ.get(exchange.mode, "and can read")
        seen += [Text(f"\n{label}", "dim"), Text(printable(exchange.host_can_read), "red")]
    host = Group(*seen)
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=1)
    table.add_column(ratio=1)
    table.add_row(Panel(own, title="your side", border_style="green"), Panel(host, title="the host's side"))
    return Group(table, Text("\n".join(figures(exchange)), "cyan"))


def _seen(exchange: Exchange) -> Text:
    """What the host saw, in red; public text in green."""
    text, shown, end = printable(exchange.host_saw), Text(), 0
    for public in map(printable, exchange.public):
        start = text.find(public, end)
        if start >= 0:
            shown.append(text[end:start], "red").append(public, "green")
            end = start + len(public)
    return shown.append(text[end:], "red")


def figures(exchange: Exchange) -> list[str]:
    """Guarantee, spending and attacker, a line each."""
    if exchange.guarantee is None:
        return [f"mode {exchange.mode}: the host read everything"]
    promise = exchange.guarantee
    total = "" if exchange.epsilon_total is None else f", {exchange.epsilon_total:g} in all so far"
    lines = [
        f"guarantee: {promise['kind']}, {promise['unit']}; neighbours: {promise['adjacency']}",
        f"epsilon spent: {exchange.epsilon_spent:g}{total}",
    ]
    if exchange.bayes and exchange.bayes["words"]:
        attack = exchange.bayes
        lines.append(
            f"the best attacker on single words recovers {attack['recovered']} of {attack['words']} drawn "
            f"(expected {attack['success']:.0%}; {attack['chance']:.0%} without looking)"
        )
    return lines
