"""`transom attest`: the companion that proves an engine's TLS key, and a certificate to begin with.

Threat model: see `serving.attestor`. The private key stays in a file that only its owner may read.
Does not protect: it must run inside the machine it speaks for, and be part of what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Prove an engine's TLS key with attestation evidence.")


@app.command()
def serve(
    tls_cert: Annotated[Path, typer.Option(help="The engine's certificate (chain), PEM.")],
    tls_key: Annotated[Path, typer.Option(help="Its private key, PEM; it must belong to the certificate.")],
    evidence: Annotated[
        str, typer.Option(help="Where evidence comes from: auto, gramine, tsm, tpm2 or insecure-dev.")
    ] = "auto",
    tcti: Annotated[str, typer.Option(help="The TPM's address, as device:/dev/tpmrm0.")] = "",
    tpm_key: Annotated[
        str, typer.Option(help="The TPM's attestation key: a persistent handle or a context file.")
    ] = "",
    pcrs: Annotated[
        str, typer.Option(help="PCRs to quote, as sha256:0,7 (default: those of the boot).")
    ] = "",
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 picks a free one.", min=0, max=65535)] = 8443,
    allow_remote: Annotated[bool, typer.Option(help="Bind an address other machines can reach.")] = False,
) -> None:
    """Hand out evidence for the TLS key of the engine beside this, over TLS with that same key."""
    from transom.enclave.evidence import TRUST
    from transom.enclave.source import BOOT_PCRS, source_of
    from transom.net.listen import Tls, listen, require_loopback, url_of
    from transom.net.listen import serve as serve_app
    from transom.net.pin import format_pin
    from transom.serving.attestor import create_attestor, spki_of

    require_loopback(host, allow_remote=allow_remote)
    tls = Tls(tls_cert, tls_key)
    source = source_of(evidence, tcti=tcti or None, tpm_key=tpm_key or None, pcrs=pcrs or BOOT_PCRS)
    spki = spki_of(tls_cert)
    with listen(host, port) as sock:
        typer.echo(
            f"{source.kind} evidence (trust={TRUST[source.kind]}) for {format_pin(spki)} "
            f"at {url_of(sock, tls)}; stop with Ctrl-C",
            err=True,
        )
        serve_app(create_attestor(source, spki), sock, tls)


@app.command()
def cert(
    out: Annotated[Path, typer.Option(help="Directory for tls.pem and tls.key; neither may exist.")],
    name: Annotated[str, typer.Option(help="The host's name, for the certificate.")] = "localhost",
) -> None:
    """Make a self-signed certificate, and print the pin of its key."""
    from transom.net.pin import format_pin, make_certificate

    typer.echo(format_pin(make_certificate(out, name).fingerprint))
