"""`transom broker` and `transom broker-log`: the owner's side of a key release, and what it has written down.

Threat model: the network, and whoever asks; see transom.enclave.broker. The owner's folder and the log belong
to the owner alone.
Does not protect against: other programs of the owner on this machine, which can read its keys.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated

import typer


def broker(
    owner: Annotated[Path, typer.Option(help="The owner's folder of keys, as pack made it.")],
    bundle: Annotated[list[Path], typer.Option(help="A bundle to release the key of; repeat for more.")],
    policy: Annotated[Path, typer.Option(help="The evidence policy (YAML): whom to trust.")],
    tls_cert: Annotated[Path, typer.Option(help="PEM certificate of this broker.")],
    tls_key: Annotated[Path, typer.Option(help="PEM private key of that certificate.")],
    log: Annotated[Path, typer.Option(help="The release log; made if absent, verified if not.")],
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to bind; 0 picks a free one.", min=0, max=65535)] = 8443,
    allow_insecure_dev: Annotated[
        bool, typer.Option(help="Accept evidence that proves nothing, where the policy has a rule for it.")
    ] = False,
) -> None:
    """Release the keys of bundles to attested enclaves, and log each attempt."""
    from transom.enclave.broker import create_broker
    from transom.enclave.log import ReleaseLog
    from transom.enclave.manifest import load_manifest
    from transom.enclave.owner import Owner
    from transom.enclave.policy import load_evidence_policy
    from transom.net.listen import Tls, listen, serve, url_of
    from transom.net.pin import format_pin, spki_sha256

    tls = Tls(tls_cert, tls_key)
    keys = Owner(owner, create=False)
    manifests = [load_manifest(folder, keys.public_key) for folder in bundle]
    for manifest in manifests:
        keys.data_key(manifest.bundle)  # a key that is missing is better missed now than at the first release
    app = create_broker(
        keys,
        {manifest.bundle: manifest for manifest in manifests},
        load_evidence_policy(policy),
        ReleaseLog(log),
        allow_insecure_dev=allow_insecure_dev,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("transom.enclave").setLevel(logging.INFO)
    sock = listen(host, port)
    with sock:
        for manifest in manifests:
            use = "production" if manifest.production else "development"
            typer.echo(f"holding the key of {manifest.bundle} ({manifest.model}, {use})", err=True)
        if allow_insecure_dev:
            typer.echo("trust=none: insecure-dev evidence is accepted where the policy allows it", err=True)
        pin = format_pin(spki_sha256(_certificate(tls_cert)))
        typer.echo(f"serving at {url_of(sock, tls)} with the TLS key {pin}; stop with Ctrl-C", err=True)
        serve(app, sock, tls)


def broker_log(
    file: Annotated[Path, typer.Argument(help="A release log.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Verify the chain of a release log, and print its head to be noted elsewhere."""
    from transom.enclave.log import log_head

    head = log_head(file)
    if as_json:
        typer.echo(json.dumps({"entries": head.entries, "head": head.sha256}))
        return
    typer.echo(f"{head.entries} entries, unbroken; the head is {head.sha256}")


def _certificate(path: Path) -> bytes:
    """The first certificate of a PEM file, in DER."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from transom.net.pin import x509

    der: bytes = x509().load_pem_x509_certificate(path.read_bytes()).public_bytes(Encoding.DER)
    return der
