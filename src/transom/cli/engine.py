"""`transom engine MODEL`: serve a model in the dialect the gateway speaks.

Every option may stand in the file of `--config` too, by its name with `_` for `-`; the command line rules.
Threat model: the engine is the host; it reads every prompt it is sent. It has no authentication, and TLS only
with a certificate, so it binds to loopback unless told otherwise.
Does not protect against: other users of this machine.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from transom.checkpoint.load import Dtype
from transom.cli.app import ConfigFile
from transom.cli.options import CERTIFICATE, CERTIFICATE_KEY, Bind, tls_of
from transom.cli.output import progress
from transom.config import Setting
from transom.errors import MisconfiguredError
from transom.net.listen import listen, serve, url_of
from transom.serving.engines.backends import Backend, open_engine

if TYPE_CHECKING:
    from transom.checkpoint.load import Checkpoint
    from transom.serving.engines.job import StateWatch

BIND = Bind(port=8001)


@dataclass(frozen=True)
class RunOptions:
    """How a model runs."""

    backend: Annotated[
        Backend,
        "What computes: llamacpp for a GGUF, torch for all others, embeddings, and detectors. One of",
    ] = "auto"
    device: Annotated[str, "Where the model runs: cpu, cuda, cuda:1."] = "cpu"
    dtype: Annotated[Dtype | None, "Of torch; by default float32 on cpu, else bfloat16."] = None
    max_batch: Annotated[int, Setting("Requests that generate together.", least=1)] = 8
    context: Annotated[int, Setting("Tokens of prompt and answer (0: the model's).", least=0)] = 0
    cache_tokens: Annotated[
        int, Setting("Tokens for which there is memory, of all requests (0: by backend).", least=0)
    ] = 0
    wait_s: Annotated[float, Setting("Longest wait for a place, seconds.", least=0)] = 600.0
    name: Annotated[str, "The model's name in requests (default: as MODEL)."] = ""
    backdoor_detector: Annotated[
        Path | None,
        "Tell gateways what heads do with a prompt: a file of transom backdoor fit, theirs too.",
    ] = None
    risk_detector: Annotated[
        Path | None,
        "Tell gateways what states do in an answer: a file of transom hallucination fit, theirs too.",
    ] = None

    @property
    def detector(self) -> str | None:
        """The option by which states are told of. Raises MisconfiguredError for two."""
        given = [
            name
            for name, value in (
                ("--backdoor-detector", self.backdoor_detector),
                ("--risk-detector", self.risk_detector),
            )
            if value is not None
        ]
        if len(given) > 1:
            raise MisconfiguredError(f"{' and '.join(given)}: an engine tells of one; start two engines")
        return given[0] if given else None


@dataclass(frozen=True)
class EchoOptions:
    """An engine without a model."""

    PANEL: ClassVar[str] = "Engine echo"
    first_token_s: Annotated[float, Setting("Delay, in seconds.", least=0)] = 0.0
    width: Annotated[int, Setting("Take embeddings of this width (0: none).", least=0)] = 0


def engine(
    config: ConfigFile = None,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A directory, a .gguf file, a hub name, 'smollm2', or 'echo' (no model at all).",
        ),
    ] = "smollm2",
    *,
    bind: Bind = BIND,
    running: RunOptions,
    tls_cert: Annotated[Path | None, CERTIFICATE] = None,
    tls_key: Annotated[Path | None, CERTIFICATE_KEY] = None,
    echo: EchoOptions,
) -> None:
    """Serve a model: completions with ids or embeddings in, ids out, streamed, and batched."""
    bind.check()
    tls = tls_of(tls_cert, tls_key)
    if running.detector and model == "echo":
        raise MisconfiguredError(f"{running.detector}: an echo has no states; name a model, or leave it out")
    backend = ""
    with listen(bind.host, bind.port) as sock, ExitStack() as stack:
        if model == "echo":
            from transom.serving.engines.echo import EchoEngine

            name, width = running.name or "echo", echo.width or None
            app = EchoEngine(
                model=name, embedding_size=width, first_token_s=echo.first_token_s, record=False
            ).app()
        else:
            from transom.serving.engines.server import create_engine_app

            with progress(f"loading {model}"):
                loaded = open_engine(
                    model,
                    backend=running.backend,
                    dtype=running.dtype,
                    device=running.device,
                    watch=partial(_watch, running) if running.detector else None,
                    model=running.name or None,
                    max_batch=running.max_batch,
                    context_tokens=running.context or None,
                    cache_tokens=running.cache_tokens or None,
                    wait_s=running.wait_s,
                )
            stack.callback(loaded.close)
            name, backend, app = loaded.model, f"{loaded.backend}, ", create_engine_app(loaded)
        wire = "plain text" if tls is None else "TLS"
        url = f"{url_of(sock, tls)}/v1"
        typer.echo(
            f"serving {name} at {url} ({backend}{wire}, no authentication); stop with Ctrl-C", err=True
        )
        serve(app, sock, tls)


def _watch(running: RunOptions, checkpoint: Checkpoint) -> StateWatch:
    """What reads the states behind prompts or answers. Raises MisconfiguredError."""
    if running.risk_detector is not None:
        from transom.trust.hallucination import detector as risks
        from transom.trust.hallucination.live import RiskWatch

        return RiskWatch(checkpoint, risks.read_detector(running.risk_detector))
    from transom.trust.backdoor.detector import read_detector
    from transom.trust.backdoor.live import HeadWatch

    if running.backdoor_detector is None:
        raise ValueError(running)
    return HeadWatch(checkpoint, read_detector(running.backdoor_detector))
