"""`transom gateway`: the OpenAI-compatible endpoint on this machine, in front of an engine.

Threat model: that of the gateway; this file only reads settings. Keys come from files or the environment,
never from the command line, which other users can see.
Does not protect: traffic between client and gateway; it binds to loopback unless told otherwise.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

if TYPE_CHECKING:
    from transom.privacy.ledger import Ledger
    from transom.privacy.sanitize import Sanitizer
    from transom.serving.engines.base import Engine
    from transom.serving.engines.connect import EngineKind
    from transom.serving.engines.http import Guard
    from transom.serving.gateway.enclave import Enclave
    from transom.serving.gateway.obfuscated import Substitution
    from transom.serving.tokenizer import ChatTokenizer

DEFAULT_BUDGET = 1000.0
TRUST, ENCLAVE, OBFUSCATED = "Trust in the engine", "Mode enclave", "Modes obfuscated, words+obfuscated"


def gateway(
    engine: Annotated[str, typer.Option(help="The engine's URL; https unless on loopback.")] = (
        "http://127.0.0.1:8001"
    ),
    engine_kind: Annotated[
        str, typer.Option(help="auto, transom, vllm, llamacpp, or chat (any OpenAI-compatible endpoint).")
    ] = "auto",
    engine_model: Annotated[str, typer.Option(help="The model to ask for (default: the first).")] = "",
    engine_key_file: Annotated[
        Path | None, typer.Option(help="File with the engine's API key (or TRANSOM_ENGINE_KEY).")
    ] = None,
    engine_limit_field: Annotated[
        str,
        typer.Option(
            help="A chat endpoint's field for the answer limit: max_tokens or max_completion_tokens."
        ),
    ] = "max_tokens",
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            "--model",
            help="Directory, .gguf or name with the engine's tokenizer; not for chat endpoints.",
        ),
    ] = "",
    mode: Annotated[
        str,
        typer.Option(
            help="plain, words (sanitised), enclave (sanitised, sent as embeddings), obfuscated (permuted "
            "ids for an obfuscated checkpoint), or words+obfuscated."
        ),
    ] = "words",
    policy: Annotated[
        Path | None, typer.Option(help="Word policy (default: the shipped English one).")
    ] = None,
    mechanism: Annotated[str, typer.Option(help="Overrides the policy's mechanism.")] = "",
    epsilon: Annotated[
        float | None, typer.Option(help="Epsilon a word; overrides the policy.", min=0)
    ] = None,
    rule: Annotated[
        list[str] | None, typer.Option(help="kind=pass, kind=placeholder or word=EPSILON; repeatable.")
    ] = None,
    ledger: Annotated[Path | None, typer.Option(help="Ledger file: spending durable and capped.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Cap on an account's total epsilon in the ledger.", min=0, show_default="1000"),
    ] = None,
    name: Annotated[str, typer.Option(help="Published model name (default: the engine's).")] = "",
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of account:key lines to accept; read again when it changes.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 picks a free one.", min=0, max=65535)] = 8000,
    allow_remote: Annotated[bool, typer.Option(help="Bind an address other machines can reach.")] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, without port, that a Host or Origin header may hold beside loopback's; repeatable. "
            "On an address beyond loopback: the only ones; any if none is given."
        ),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(help="Largest request (413 above).", min=1024)] = 4 * 2**20,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longest prompt (0: the engine's).", min=0)] = 0,
    answer_tokens: Annotated[
        int, typer.Option(help="Answer limit where a chat request has none.", min=1)
    ] = 512,
    retry_minutes: Annotated[
        float,
        typer.Option(help="How long an identical request without a session reuses its draws.", min=0),
    ] = 10.0,
    timeout_s: Annotated[
        float, typer.Option(help="Longest silence of the engine, seconds.", min=0.1)
    ] = 120.0,
    request_timeout_s: Annotated[
        float, typer.Option(help="Longest wait for a client's request to be whole, seconds.", min=0.1)
    ] = 30.0,
    engine_pin: Annotated[
        str, typer.Option(help="The engine's TLS key, sha256//BASE64.", rich_help_panel=TRUST)
    ] = "",
    require_evidence: Annotated[
        Path | None,
        typer.Option(help="Evidence policy that the engine must satisfy.", rich_help_panel=TRUST),
    ] = None,
    attestor: Annotated[
        str,
        typer.Option(help="URL of transom attest serve beside the engine.", rich_help_panel=TRUST),
    ] = "",
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle from transom pack (its client half).", rich_help_panel=ENCLAVE)
    ] = None,
    owner_key: Annotated[
        Path | None, typer.Option(help="The bundle owner's public key.", rich_help_panel=ENCLAVE)
    ] = None,
    broker: Annotated[str, typer.Option(help="The owner's key broker, https.", rich_help_panel=ENCLAVE)] = "",
    broker_pin: Annotated[
        str,
        typer.Option(
            help="The broker's TLS key (default: a certificate authority).", rich_help_panel=ENCLAVE
        ),
    ] = "",
    evidence: Annotated[
        str,
        typer.Option(help="auto, gramine, tsm, tpm2 or insecure-dev.", rich_help_panel=ENCLAVE),
    ] = "auto",
    tpm_tcti: Annotated[
        str, typer.Option(help="Where the TPM is, as tpm2-tools write it.", rich_help_panel=ENCLAVE)
    ] = "",
    tpm_key: Annotated[
        str, typer.Option(help="Attestation key: handle or context file.", rich_help_panel=ENCLAVE)
    ] = "",
    tpm_pcrs: Annotated[
        str,
        typer.Option(
            help="PCRs to quote, as sha256:0,7 (default: those of the boot).", rich_help_panel=ENCLAVE
        ),
    ] = "",
    allow_insecure_dev: Annotated[
        bool, typer.Option(help="Accept to run without any proof (trust=none).", rich_help_panel=ENCLAVE)
    ] = False,
    key: Annotated[
        Path | None, typer.Option(help="Key file from transom obfuscate.", rich_help_panel=OBFUSCATED)
    ] = None,
    client_folder: Annotated[
        Path | None,
        typer.Option(
            "--client", help="The client's folder; KEY.client by default.", rich_help_panel=OBFUSCATED
        ),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(
            help="The checkpoint's card, or the folder with it; the client folder's by default.",
            rich_help_panel=OBFUSCATED,
        ),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option(help="File whose first line opens the key file.", rich_help_panel=OBFUSCATED),
    ] = None,
) -> None:
    """Serve the OpenAI API on this machine; in mode words the engine's host never sees the private words."""
    from transom.cli.enclave import (
        bundle_sanitizer,
        bundle_tokenizer,
        check_engine,
        guard_of,
        open_enclave,
        options_of,
        verified,
    )
    from transom.cli.obfuscated import open_key
    from transom.cli.obfuscated import options_of as obfuscated_options_of
    from transom.errors import MisconfiguredError
    from transom.net.listen import listen, require_loopback, serve, url_of
    from transom.serving.engines.evidence import EvidenceGuard
    from transom.serving.gateway.app import create_gateway
    from transom.serving.gateway.config import GatewayConfig, KeyFile, Mode
    from transom.serving.tokenizer import load_tokenizer

    if mode not in get_args(Mode):
        raise MisconfiguredError(f"--mode must be one of {', '.join(get_args(Mode))}, got {mode!r}")
    if budget is not None and ledger is None:
        raise MisconfiguredError(f"--budget {budget:g} needs --ledger FILE; without one nothing is counted")
    require_loopback(host, allow_remote=allow_remote)
    config = GatewayConfig(
        mode=cast(Mode, mode),
        model=name or None,
        key_digests=KeyFile(api_key_file) if api_key_file else {},
        max_body_bytes=max_body_bytes,
        max_prompt_tokens=max_prompt_tokens or None,
        answer_tokens=answer_tokens,
        retry_minutes=retry_minutes,
        hosts=_hosts(host, allow_host or []),
    )
    options = options_of(
        mode, bundle, owner_key, broker, broker_pin, evidence=evidence, tpm_tcti=tpm_tcti, tpm_key=tpm_key,
        tpm_pcrs=tpm_pcrs, allow_insecure_dev=allow_insecure_dev,
    )  # fmt: skip
    hidden = obfuscated_options_of(mode, key, client_folder, card, passphrase_file)
    if (options or hidden) and tokenizer:
        source = "bundle's" if options else "client folder's"
        raise MisconfiguredError(f"mode {mode} uses the {source} tokenizer; leave --tokenizer out")
    signed = verified(options) if options else None
    guard = guard_of(
        signed.manifest if signed else None, engine_pin, require_evidence, attestor, allow_insecure_dev
    )
    overrides = {"--mechanism": mechanism, "--epsilon": epsilon is not None, "--rule": rule}
    sanitizer: Sanitizer | None = None
    if signed:
        sanitizer = bundle_sanitizer(signed, policy, overrides)
    elif mode in ("words", "words+obfuscated"):
        sanitizer = _sanitizer(policy, mechanism or None, epsilon, rule or [])
    substitution: Substitution | None = None
    tokens: ChatTokenizer | None = None
    if hidden:
        substitution, tokens = open_key(hidden)
    client, kind = _client(
        engine, engine_kind, engine_model or None, engine_key_file, timeout_s, engine_limit_field, guard
    )
    account = _ledger(ledger, DEFAULT_BUDGET if budget is None else budget) if sanitizer is not None else None
    opened: Enclave | None = None
    if options and signed:
        opened, tokens = open_enclave(options, signed), bundle_tokenizer(signed)
        check_engine(opened, client, kind)
    elif client.takes == "ids" and tokens is None:
        tokens = load_tokenizer(tokenizer or _default_tokenizer(client))
    engine_trust = (lambda: guard.trust) if isinstance(guard, EvidenceGuard) else None
    app = create_gateway(config, client, tokens, sanitizer, account, opened, engine_trust, substitution)
    with listen(host, port) as sock:
        typer.echo(f"gateway in mode {mode} at {url_of(sock)}/v1; stop with Ctrl-C", err=True)
        serve(app, sock, request_timeout_s=request_timeout_s)


def parse_rules(rules: list[str]) -> dict[str, str | float]:
    """`kind=pass`, `kind=placeholder` or `kind=NUMBER` as a mapping. Raises MisconfiguredError."""
    from transom.errors import MisconfiguredError

    parsed: dict[str, str | float] = {}
    for rule in rules:
        kind, _, value = rule.partition("=")
        if value in ("pass", "placeholder"):
            parsed[kind] = value
            continue
        try:
            parsed[kind] = float(value)
        except ValueError:
            message = f"--rule must be kind=pass, kind=placeholder or word=EPSILON, got {rule!r}"
            raise MisconfiguredError(message) from None
    return parsed


def _hosts(bound: str, allowed: list[str]) -> tuple[str, ...] | None:
    """The names under which a gateway bound to `bound` may be called; None: any."""
    from transom.net.urls import is_loopback
    from transom.serving.gateway.config import LOOPBACK_HOSTS

    if not is_loopback(bound):
        return tuple(allowed) or None
    return (*LOOPBACK_HOSTS, bound, *allowed)


def _client(
    url: str,
    kind: str,
    model: str | None,
    key_file: Path | None,
    timeout_s: float,
    limit_field: str,
    guard: Guard | None,
) -> tuple[Engine, EngineKind]:
    from transom.serving.engines.chat import read_key
    from transom.serving.engines.connect import client_of, detect

    key = read_key(key_file)
    chosen = cast("EngineKind", kind)
    if kind == "auto":
        chosen = asyncio.run(detect(url, model=model, api_key=key, guard=guard))
    client = client_of(
        chosen, url, model=model, api_key=key, timeout_s=timeout_s, limit_field=limit_field, guard=guard
    )
    return client, chosen


def _default_tokenizer(client: Engine) -> str:
    """The packaged model's, if that is what the engine serves: ids of the wrong tokenizer would be noise."""
    from transom.errors import MisconfiguredError

    async def ask() -> str:
        try:
            return (await client.probe()).model
        finally:
            await client.close()

    model = asyncio.run(ask())
    if "smollm2" not in model.lower() and model != "echo":
        raise MisconfiguredError(f"the engine serves {model!r}: name its tokenizer with --tokenizer")
    return "smollm2"


def _sanitizer(
    path: Path | None, mechanism: str | None, epsilon: float | None, rules: list[str]
) -> Sanitizer:
    from transom.privacy.policy import load_policy
    from transom.privacy.sanitize import Sanitizer

    policy = load_policy(path)
    if rules:
        policy = policy.with_rules(parse_rules(rules))
    return Sanitizer(policy, mechanism, epsilon)


def _ledger(path: Path | None, budget: float) -> Ledger | None:
    from transom.privacy.ledger import Ledger

    if path is None:
        typer.echo("no --ledger: spending is neither recorded nor capped", err=True)
        return None
    return Ledger(path, budget)
