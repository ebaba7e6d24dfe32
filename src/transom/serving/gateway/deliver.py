"""One request's way back: the engine's pieces, revealed, annotated and written, and what the host saw.

Threat model: the engine may answer anything; see `answer` for what is made of it.
Does not protect: the answer is the host's; what an annotator says of it is advice.
Source: OpenAI API reference; server-sent events.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from starlette.types import Send

from transom.errors import EngineGarbageError
from transom.privacy.guarantee import Guarantee
from transom.serving.annotate import Annotator
from transom.serving.dialect import usage_of
from transom.serving.engines.base import Call, Engine, Ids, Json
from transom.serving.engines.wire import SSE_DONE, SSE_END, send_event, send_event_start, send_json
from transom.serving.gateway.annotations import Annotations
from transom.serving.gateway.answer import ANSWER_CHARS, Choice, Piece
from transom.serving.gateway.charge import Charger
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.enclave import Enclave
from transom.serving.gateway.metrics import Metrics
from transom.serving.gateway.obfuscated import Substitution
from transom.serving.gateway.requests import AnyRequest
from transom.serving.gateway.respond import Writer
from transom.serving.gateway.responses import ResponsesWriter
from transom.serving.gateway.words import Veil, Veiled
from transom.serving.tokenizer import ChatTokenizer


@dataclass(frozen=True)
class Caller:
    """Who asks: the account that pays, the session (None: none), whether to show what the host saw.

    `repeat` is the name that the request shares with its repeats, where there is no session.
    """

    account: str
    session: str | None = field(default=None, repr=False)
    show_host: bool = False
    repeat: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Gateway:
    """The parts that every request uses."""

    config: GatewayConfig
    engine: Engine
    tokenizer: ChatTokenizer | None
    veil: Veil | None
    charger: Charger | None
    metrics: Metrics
    enclave: Enclave | None = None
    substitution: Substitution | None = None
    annotators: tuple[Annotator, ...] = ()


@dataclass
class Exchange:
    """What one request must remember between its call and its answer."""

    gateway: Gateway
    caller: Caller
    request: AnyRequest
    call: Call
    choices: list[Choice]
    writer: Writer | ResponsesWriter
    prompts: Sequence[Ids] = field(repr=False)
    host_saw: Sequence[str] = field(repr=False)
    host_can_read: Sequence[str] = field(default=(), repr=False)  # once it has undone what hides it, at most
    veiled: Veiled | None = None
    epsilon_total: float | None = None
    annotations: Annotations | None = None
    engine_usage: tuple[int, int] | None = None
    promise: Guarantee | None = None  # of an engine that is sent states with noise

    @property
    def usage(self) -> dict[str, int] | None:
        """Token counts: our own where we tokenise, else what the engine says (0 if it never counts).

        None when we closed the stream of an engine of text at a stop string: nobody has counted then.
        """
        if self.prompts:
            return usage_of(sum(map(len, self.prompts)), sum(c.tokens for c in self.choices))
        if self.engine_usage is None and any(choice.cut for choice in self.choices):
            return None
        return usage_of(*(self.engine_usage or (0, 0)))

    async def complete(self, send: Send) -> None:
        """Answer with one JSON object."""
        async with aclosing(self._pieces()) as pieces:
            async for _ in pieces:
                pass
        answer = self.writer.whole(self.choices, self.usage)
        shown, headers = self._finish()
        if shown is not None:
            answer["transom"] = shown
        await send_json(send, answer, headers=headers)

    async def stream(self, send: Send) -> None:
        """Answer with server-sent events; the status line waits for the engine's first piece."""
        writer, opened = self.writer, False
        async with aclosing(self._pieces()) as pieces:
            async for choice, piece, said in pieces:
                events: list[Json] = []
                if not opened:
                    await send_event_start(send)
                    opened, events = True, writer.opening()
                if piece.text or piece.scores or piece.finish_reason or said:
                    events += writer.chunk(choice, piece, {"annotations": said} if said else None)
                for event in events:
                    await send_event(send, event)
        for event in writer.closing(self.choices, self.usage, self._finish()[0]):
            await send_event(send, event)
        await send(SSE_DONE if writer.done else SSE_END)

    async def _pieces(self) -> AsyncGenerator[tuple[Choice, Piece, Json | None], None]:
        """The pieces of all choices, and what is said of each.

        Leaving early, or when every choice has ended, cancels the engine.
        """
        unfinished, chars = len(self.choices), 0
        substitution = self.gateway.substitution
        annotations = self.annotations
        with self.gateway.metrics.step("engine"):
            async with aclosing(self.gateway.engine.generate(self.call)) as deltas:
                async for delta in deltas:
                    if substitution is not None:
                        delta = substitution.reveal_delta(delta)
                    if delta.usage is not None:
                        self.engine_usage = delta.usage
                    choice = self.choices[delta.index]
                    if choice.finish_reason is not None:
                        continue
                    piece = choice.feed(delta)
                    chars += len(piece.text)
                    if chars > ANSWER_CHARS:
                        raise EngineGarbageError(
                            f"the engine's answer has more than {ANSWER_CHARS} characters"
                        )
                    yield choice, piece, None if annotations is None else annotations.hear(delta, piece)
                    unfinished -= choice.finish_reason is not None
                    if not unfinished and any(choice.cut for choice in self.choices):
                        return
        if unfinished:
            raise EngineGarbageError("the engine ended without finishing every choice")

    def _finish(self) -> tuple[Json | None, dict[str, str]]:
        """Count, annotate, remember the answers, and describe what the host saw if asked; with headers.

        An answer that is withheld is not remembered: nobody will resend it.
        """
        gateway, usage = self.gateway, self.usage
        if usage is not None:
            gateway.metrics.tokens("prompt", usage["prompt_tokens"])
            gateway.metrics.tokens("completion", usage["completion_tokens"])
        notes, headers = self.annotations.close() if self.annotations else (None, {})
        if gateway.veil is not None and self.veiled is not None and self.request.chat:
            for answer in self.choices:
                gateway.veil.remember(self.veiled, answer.text, answer.host_text)
        shown = self._shown() if self.caller.show_host else None
        return (shown if notes is None else (shown or {}) | {"annotations": notes}), headers

    def _shown(self) -> Json:
        ids = [list(prompt) for prompt in self.prompts]
        hidden = self.gateway.substitution is not None or self.promise is not None
        shown: Json = {
            "mode": self.gateway.config.mode,
            "host_saw": "\n".join(self.host_saw),
            "host_token_ids": None if self.promise else ids[0] if len(ids) == 1 else ids,
            "host_can_read": "\n".join(self.host_can_read) if hidden else None,
            "guarantee": self.promise.to_dict() if self.promise else None,
            "epsilon_spent": _finite(self.veiled.epsilon if self.veiled else 0.0),
            "epsilon_total": _finite(self.epsilon_total),
            "counts": {},
            "bayes": None,
        }
        if self.gateway.enclave is not None:  # the engine's owner maps rows back to these ids
            shown |= {
                "trust": self.gateway.enclave.trust,
                "measurement": self.gateway.enclave.measurement,
            }
        if self.gateway.substitution is not None:
            shown["guarantee"] = self.gateway.substitution.guarantee().to_dict()
        if self.veiled is not None and self.gateway.veil is not None:
            shown |= self.gateway.veil.explain(self.veiled)
            if self.promise is not None:
                shown["states_guarantee"] = self.promise.to_dict()
        return shown


def _finite(epsilon: float | None) -> float | str | None:
    return "inf" if epsilon is not None and math.isinf(epsilon) else epsilon  # JSON has no infinity
