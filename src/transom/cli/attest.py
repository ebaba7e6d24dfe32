"""`transom attest`: the companion that proves an engine's TLS key, and a certificate to begin with.

Threat model: see `serving.attestor`. The private key stays in a file that only its owner may read.
Does not protect: it must run inside the machine it speaks for, and be part of what is measured.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from transom.cli.app import App
from transom.cli.options import CERTIFICATE, CERTIFICATE_KEY, Bind, EvidenceOptions
from transom.enclave.evidence import TRUST
from transom.net.listen import Tls, listen, url_of
from transom.net.listen import serve as serve_app
from transom.net.pin import format_pin, make_certificate

BIND = Bind(port=8443)
app = App(no_args_is_help=True, help="Prove an engine's TLS key with attestation evidence.")


@app.command()
def serve(
    tls_cert: Annotated[Path, CERTIFICATE],
    tls_key: Annotated[Path, CERTIFICATE_KEY],
    evidence: EvidenceOptions,
    bind: Bind = BIND,
) -> None:
    """Hand out evidence for the TLS key of the engine beside this, over TLS with that same key."""
    from transom.serving.attestor import create_attestor, spki_of

    bind.check()
    tls = Tls(tls_cert, tls_key)
    source = evidence.source()
    spki = spki_of(tls_cert)
    with listen(bind.host, bind.port) as sock:
        typer.echo(
            f"{source.kind} evidence (trust={TRUST[source.kind]}) for {format_pin(spki)} "
            f"at {url_of(sock, tls)}; stop with Ctrl-C",
            err=True,
        )
        serve_app(create_attestor(source, spki), sock, tls)


@app.command()
def cert(
    out: Annotated[Path, "Directory for tls.pem and tls.key; neither may exist."],
    name: Annotated[str, "The host's name, for the certificate."] = "localhost",
) -> None:
    """Make a self-signed certificate, and print the pin of its key."""
    typer.echo(format_pin(make_certificate(out, name).fingerprint))
