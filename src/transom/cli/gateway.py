"""`transom gateway`: the OpenAI-compatible endpoint on this machine, in front of an engine.

Every option may stand in the file of `--config` too, by its name with `_` for `-`; the command line rules.
Threat model: that of the gateway; this file only reads settings. Keys come from files or the environment,
never from the command line, which other users can see.
Does not protect: traffic between client and gateway; it binds to loopback unless told otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import typer

from transom.cli.app import ConfigFile
from transom.cli.backdoor_live import BackdoorOptions
from transom.cli.enclave import (
    EnclaveOptions,
    TrustOptions,
    bundle_sanitizer,
    bundle_tokenizer,
    check_engine,
    open_enclave,
    probed,
    verified,
)
from transom.cli.hallucination_live import RiskOptions
from transom.cli.obfuscated import MODES, ObfuscatedOptions, open_key
from transom.cli.options import (
    GATEWAY_CAP,
    WORDS,
    Bind,
    EvidenceOptions,
    LedgerOptions,
    WordOptions,
    ledger_for,
)
from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.serving.gateway.config import (
    CLIENTS,
    LOOPBACK_HOSTS,
    PUBLIC_ROLES,
    Examples,
    GatewayConfig,
    KeyFile,
    Limits,
    Mode,
)

if TYPE_CHECKING:
    from transom.privacy.ledger import Ledger
    from transom.privacy.sanitize import Sanitizer
    from transom.serving.engines.base import Engine
    from transom.serving.engines.connect import EngineKind
    from transom.serving.engines.http import Common, Guard
    from transom.serving.gateway.enclave import Enclave

BIND = Bind(port=8000)
DRAWING = ("words", "enclave", "words+obfuscated")  # the modes that draw words


@dataclass(frozen=True)
class ModeOptions:
    """What the gateway does, and before which engine."""

    mode: Annotated[Mode, "How prompts are protected"] = "words"
    engine: Annotated[str, "URL; https unless on loopback."] = "http://127.0.0.1:8001"
    tokenizer: Annotated[str, "The engine's: folder, .gguf or name."] = ""


@dataclass(frozen=True)
class TextOptions:
    """What the caller says of its text, and what is made of the host's."""

    PANEL: ClassVar[str] = WORDS
    public: Annotated[
        tuple[str, ...],
        f"Role whose messages are the program's own and pass ({', '.join(PUBLIC_ROLES)}); repeatable.",
    ] = ()
    examples: Annotated[
        Examples,
        "Assistant messages that are no answer of this gateway: hide them whole, or sanitise them as the "
        "caller's own, if no client ever edits or shortens a history. One of",
    ] = "quote"
    restore_words: Annotated[bool, "Put drawn words in answers back, on this side, at no cost."] = False


@dataclass(frozen=True)
class EngineOptions:
    """How the engine is spoken to."""

    PANEL: ClassVar[str] = "Engine"
    engine_kind: Annotated[
        Literal["auto", "transom", "vllm", "llamacpp", "chat", "split"],
        "chat is any OpenAI-compatible endpoint, split a vendor's transom split serve. One of",
    ] = "auto"
    split: Annotated[Path | None, "The customer's folder of a split tuning, for kind split."] = None
    engine_model: Annotated[str, "The model to ask for (default: the first)."] = ""
    engine_key_file: Annotated[Path | None, "File with the engine's API key (or TRANSOM_ENGINE_KEY)."] = None
    engine_limit_field: Annotated[
        Literal["max_tokens", "max_completion_tokens"], "A chat endpoint's field for the answer limit"
    ] = "max_tokens"
    timeout_s: Annotated[float, Setting("Longest silence of the engine, seconds.", least=0.1)] = 120.0


@dataclass(frozen=True, kw_only=True)
class ClientOptions(Limits):
    """Who may ask, and how much."""

    PANEL: ClassVar[str] = CLIENTS
    api_key_file: Annotated[Path | None, "File of account:key lines; read again when it changes."] = None
    name: Annotated[str, "Published model name (default: the engine's)."] = ""
    alias: Annotated[tuple[str, ...], "Another name of the model that clients may ask for; repeatable."] = ()
    allow_host: Annotated[
        tuple[str, ...],
        "Name, without port, that a Host or Origin header may hold beside loopback's; repeatable. On an "
        "address beyond loopback: the only ones; any if none is given.",
    ] = ()
    request_timeout_s: Annotated[
        float, Setting("Longest wait for a client's request to be whole, seconds.", least=0.1)
    ] = 30.0


def gateway(
    config: ConfigFile = None,
    *,
    chosen: ModeOptions,
    words: WordOptions,
    said: TextOptions,
    books: LedgerOptions,
    bind: Bind = BIND,
    spoken: EngineOptions,
    clients: ClientOptions,
    trust: TrustOptions,
    evidence: EvidenceOptions,
    bundle: EnclaveOptions,
    hidden: ObfuscatedOptions,
    watching: BackdoorOptions,
    judging: RiskOptions,
) -> None:
    """Serve the OpenAI API; in mode words its host never sees private words."""
    from transom.net.listen import listen, serve, url_of
    from transom.serving.engines.evidence import EvidenceGuard
    from transom.serving.gateway.app import create_gateway
    from transom.serving.tokenizer import load_tokenizer

    mode = chosen.mode
    books.check()
    bind.check()
    settings = _settings(mode, bind, clients, said)
    bundle.check(mode)
    hidden.check(mode)
    watching.check(mode)
    judging.check(mode)
    _check_vain(chosen, books)
    signed = verified(bundle) if mode == "enclave" else None
    guard = trust.guard(signed.manifest if signed else None)
    sanitizer: Sanitizer | None = None
    if mode in DRAWING:
        sanitizer = bundle_sanitizer(signed, words) if signed else words.sanitizer()
    substitution, tokens = open_key(hidden) if mode in MODES else (None, None)
    client, kind = _client(chosen, spoken, guard, judging)
    ledger = _ledger(books, sanitizer) if sanitizer is not None else None
    opened: Enclave | None = None
    if signed:
        opened = open_enclave(bundle, evidence, signed, allow_insecure_dev=trust.allow_insecure_dev)
        tokens = bundle_tokenizer(signed)
        check_engine(opened, client, kind)
    elif client.takes == "ids" and tokens is None:
        tokens = load_tokenizer(chosen.tokenizer or _default_tokenizer(client, spoken.split))
    engine_trust = (lambda: guard.trust) if isinstance(guard, EvidenceGuard) else None
    annotators = (*watching.annotators(kind, tokens), *judging.annotators(kind, tokens))
    if len(annotators) > 1:
        raise MisconfiguredError("an engine tells of one detector; give one, or start two gateways")
    app = create_gateway(
        settings, client, tokens, sanitizer, ledger, opened, engine_trust, substitution, annotators
    )
    with listen(bind.host, bind.port) as sock:
        preset = "" if sanitizer is None else f", preset {sanitizer.policy.preset},"
        typer.echo(f"gateway in mode {mode}{preset} at {url_of(sock)}/v1; stop with Ctrl-C", err=True)
        serve(app, sock, request_timeout_s=clients.request_timeout_s)


def _check_vain(chosen: ModeOptions, books: LedgerOptions) -> None:
    """Raises MisconfiguredError for a tokenizer or a cap that this mode has no use for."""
    mode = chosen.mode
    if mode not in DRAWING and books.cap is not None and books.ledger is None:
        raise MisconfiguredError(f"--cap {books.cap:g}: mode {mode} draws no words, so nothing is counted")
    if chosen.tokenizer and mode not in ("plain", "words"):
        source = "bundle's" if mode == "enclave" else "client folder's"
        raise MisconfiguredError(f"mode {mode} uses the {source} tokenizer; leave --tokenizer out")


def _settings(mode: Mode, bind: Bind, clients: ClientOptions, said: TextOptions) -> GatewayConfig:
    return GatewayConfig(
        mode=mode,
        public=said.public,
        examples=said.examples,
        restore_words=said.restore_words,
        model=clients.name or None,
        aliases=clients.alias,
        key_digests=KeyFile(clients.api_key_file) if clients.api_key_file else {},
        hosts=_hosts(bind.host, clients.allow_host),
        **{one.name: getattr(clients, one.name) for one in fields(Limits)},
    )


def _hosts(bound: str, allowed: Sequence[str]) -> tuple[str, ...] | None:
    """The names under which a gateway bound to `bound` may be called; None: any."""
    from transom.net.urls import is_loopback

    if not is_loopback(bound):
        return tuple(allowed) or None
    return (*LOOPBACK_HOSTS, bound, *allowed)


def _client(
    chosen: ModeOptions, options: EngineOptions, guard: Guard | None, judging: RiskOptions
) -> tuple[Engine, EngineKind]:
    from transom.serving.engines.chat import read_key
    from transom.serving.engines.connect import client_of, detect

    url = chosen.engine
    model, key, kind = options.engine_model or None, read_key(options.engine_key_file), options.engine_kind
    if kind == "auto":
        kind = asyncio.run(detect(url, model=model, api_key=key, guard=guard))
    common: Common = {"model": model, "api_key": key, "timeout_s": options.timeout_s, "guard": guard}
    if options.split is not None or kind == "split":
        return _split(chosen, options.split, kind, common), kind
    if kind == "vllm" and (client := judging.client(url, **common)) is not None:
        return client, kind
    return client_of(kind, url, limit_field=options.engine_limit_field, **common), kind


def _split(chosen: ModeOptions, folder: Path | None, kind: EngineKind, common: Common) -> Engine:
    """The customer's part of a split tuning, before its vendor."""
    if folder is None or kind != "split":
        raise MisconfiguredError(
            f"--split FOLDER and an engine of kind split go together; the kind is {kind}"
        )
    if chosen.mode not in ("plain", "words"):
        raise MisconfiguredError(
            f"an engine of kind split serves the modes plain and words, not {chosen.mode}"
        )
    from transom.cli.split_serve import customer_in
    from transom.serving.engines.split import SplitEngine

    return SplitEngine(chosen.engine, customer_in(folder), **common)


def _default_tokenizer(client: Engine, split: Path | None) -> str:
    """The packaged model's, if that is what the engine serves, or that of a split tuning: ids of the wrong
    tokenizer would be noise."""
    if split is not None:
        from transom.cli.split_serve import run_in

        return run_in(split).job.model
    model = probed(client).model
    if "smollm2" not in model.lower() and model != "echo":
        raise MisconfiguredError(f"the engine serves {model!r}: name its tokenizer with --tokenizer")
    return "smollm2"


def _ledger(books: LedgerOptions, sanitizer: Sanitizer) -> Ledger | None:
    ledger = ledger_for(sanitizer, books, GATEWAY_CAP)
    if ledger is not None:
        said = f"spending is recorded in {ledger.path}, up to {ledger.cap_epsilon:g} an account"
    elif sanitizer.mechanism is None:
        said = "no words are drawn: nothing is charged, and no ledger is opened"
    else:
        said = "no ledger: spending is neither recorded nor capped"
    typer.echo(said, err=True)
    return ledger
