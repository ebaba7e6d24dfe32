"""`transom link`: keys for a party, a check of the way to the partner, a NATS server for a laptop.

Threat model: that of `transom.link`. The private key stays in a file that only its owner may read; pins and
certificates are public. Does not protect: a partner's certificate that was swapped on its way here.
Source: `transom.link`.
"""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from transom.cli.app import App
from transom.cli.options import Json
from transom.cli.output import answer, progress
from transom.config import Setting, read_config

app = App(no_args_is_help=True, help="Connect two parties.")


@app.command()
def keys(
    out: Annotated[Path, "Folder for tls.pem and tls.key; neither may exist."],
    name: Annotated[str, "The party's name, for the certificate."] = "party",
    as_json: Json = False,
) -> None:
    """Make a party's key and certificate. Give tls.pem to the partner and read the pin to it by phone."""
    from transom.net.pin import format_pin, make_certificate

    pin = format_pin(make_certificate(out, name).fingerprint)
    answer({"certificate": str(out / "tls.pem"), "pin": pin}, pin, as_json=as_json)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="CONFIG", help="The party's link, YAML.")],
    messages: Annotated[int, Setting("Megabytes to send each way.", least=1, most=10_000)] = 32,
    as_json: Json = False,
) -> None:
    """Meet the partner, who runs this too: identities, versions, round trip and bandwidth."""
    from transom.link.check import HEADER_BYTES, MESSAGE_BYTES, measure
    from transom.link.config import LinkConfig, connected

    settings = read_config(LinkConfig, file, what="the link's configuration")
    settings = replace(settings, record=None)  # nothing of a check is kept
    leads = settings.party < settings.partner
    terms, run = {"purpose": "check", "messages": str(messages)}, f"{settings.run[:58]}.check"
    with (
        progress(f"waiting for {settings.partner}", 1.0, quiet=as_json) as bar,
        connected(settings, terms, run=run) as (session, agreed, broker),
    ):
        seen = measure(
            session,
            leads=leads,
            message_bytes=min(MESSAGE_BYTES, agreed.max_bytes - HEADER_BYTES),
            messages=messages,
            timeout_s=settings.timeout_s,
            advance=bar.advance,
        )
        described = dict(broker.describe())  # before the partner leaves
        session.finish(settings.timeout_s)
    record = {"party": settings.party, **asdict(agreed), "broker": described, **asdict(seen)}
    lines = [f"{settings.party} is connected to {settings.partner}"]
    lines += [f"  {name}: {value}" for name, value in described.items()]
    lines += [f"  clocks differ by {agreed.clock_skew_s:.1f} s"] if abs(agreed.clock_skew_s) > 2 else []
    if leads:
        lines.append(f"  round trip {seen.round_trip_ms:.2f} ms")
    lines.append(f"  sent {seen.sent_mb_s:.1f} MB/s, received {seen.received_mb_s:.1f} MB/s")
    answer(record, "\n".join(lines), as_json=as_json)


@app.command()
def nats(
    folder: Annotated[Path, "Where its streams are kept."],
    port: Annotated[int, Setting("Port to bind on this machine.", least=1, most=65535)] = 4222,
    tls: Annotated[Path | None, "Folder with tls.pem and tls.key, of the name localhost."] = None,
) -> None:
    """Run a NATS server with JetStream on this machine alone, until Ctrl-C. With `--tls` the parties name
    its tls.pem as nats_ca."""
    from transom.link.nats_server import server_command, tls_settings

    command = server_command(folder, port, settings="" if tls is None else tls_settings(tls))
    place = f"nats://127.0.0.1:{port}" if tls is None else f"tls://localhost:{port}"
    typer.echo(f"NATS at {place}; stop with Ctrl-C", err=True)
    os.execv(command[0], command)  # noqa: S606  signals are the server's own
