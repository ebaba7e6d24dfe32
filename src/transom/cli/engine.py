"""`transom engine`: serve a model in the dialect the gateway speaks.

Threat model: the engine is the host; it reads every prompt it is sent. It has no authentication, and TLS only
with a certificate, so it binds to loopback unless told otherwise.
Does not protect against: other users of this machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from transom.checkpoint.load import Dtype

if TYPE_CHECKING:
    from transom.net.listen import Tls


def engine(
    model: Annotated[
        str,
        typer.Option(help="A directory, a .gguf file, a hub name, 'smollm2', or 'echo' (no model at all)."),
    ] = "smollm2",
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 picks a free one.", min=0, max=65535)] = 8001,
    device: Annotated[str, typer.Option(help="Where the model runs: cpu, cuda, cuda:1.")] = "cpu",
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16 or float16 (default: float32 on cpu, else bfloat16).")
    ] = "",
    max_batch: Annotated[int, typer.Option(help="Requests that generate together.", min=1)] = 8,
    context: Annotated[int, typer.Option(help="Tokens of prompt and answer (0: the model's).", min=0)] = 0,
    name: Annotated[str, typer.Option(help="The model's name in requests (default: as --model).")] = "",
    first_token_s: Annotated[float, typer.Option(help="Delay of the echo engine, in seconds.", min=0)] = 0.0,
    allow_remote: Annotated[bool, typer.Option(help="Bind an address other machines can reach.")] = False,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Serve TLS with this certificate (chain), PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key, PEM.")] = None,
    width: Annotated[
        int, typer.Option(help="Embeddings of this width are taken by the echo engine (0: none).", min=0)
    ] = 0,
) -> None:
    """Serve a model: completions with ids or embeddings in, ids out, streamed, and batched."""
    from transom.net.listen import listen, require_loopback, serve, url_of

    require_loopback(host, allow_remote=allow_remote)
    tls = _tls(tls_cert, tls_key)
    with listen(host, port) as sock:
        url = url_of(sock, tls)
        if model == "echo":
            from transom.serving.engines.echo import EchoEngine

            _announce(name or "echo", url, tls)
            echo = EchoEngine(
                model=name or "echo", embedding_size=width or None, first_token_s=first_token_s, record=False
            )
            serve(echo.app(), sock, tls)
            return
        from transom.checkpoint.load import load
        from transom.serving.engines.embedded import EmbeddedEngine
        from transom.serving.engines.server import create_engine_app

        chosen = dtype or ("float32" if device == "cpu" else "bfloat16")
        checkpoint = load(model, dtype=_dtype(chosen), device=device)
        with EmbeddedEngine(
            checkpoint, model=name or None, max_batch=max_batch, context_tokens=context or None
        ) as running:
            _announce(running.model, url, tls)
            serve(create_engine_app(running), sock, tls)


def _dtype(name: str) -> Dtype:
    from transom.errors import MisconfiguredError

    known: dict[str, Dtype] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    if name not in known:
        raise MisconfiguredError(f"--dtype must be one of {', '.join(known)}, got {name!r}")
    return known[name]


def _tls(certificate: Path | None, key: Path | None) -> Tls | None:
    from transom.errors import MisconfiguredError
    from transom.net.listen import Tls

    if (certificate is None) != (key is None):
        raise MisconfiguredError("--tls-cert and --tls-key go together; one of them is missing")
    return Tls(certificate, key) if certificate and key else None


def _announce(model: str, url: str, tls: Tls | None) -> None:
    wire = "plain text" if tls is None else "TLS"
    typer.echo(f"serving {model} at {url}/v1 ({wire}, no authentication); stop with Ctrl-C", err=True)
