"""`transom broker` and `transom broker-log`: the owner's side of a key release, and what it has written down.

Threat model: the network, and whoever asks; see transom.enclave.broker. The owner's folder and the log belong
to the owner alone.
Does not protect against: other programs of the owner on this machine, which can read its keys.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from transom.cli.options import (
    CERTIFICATE,
    CERTIFICATE_KEY,
    EVIDENCE_POLICY,
    OWNER_FOLDER,
    Address,
    Json,
)
from transom.cli.output import answer
from transom.enclave.log import ReleaseLog, log_head
from transom.enclave.manifest import load_manifest
from transom.enclave.owner import Owner
from transom.enclave.policy import load_evidence_policy
from transom.net.listen import Tls, listen, serve, url_of
from transom.net.pin import format_pin

ADDRESS = Address(port=8443)


def broker(
    owner: Annotated[Path, OWNER_FOLDER],
    bundle: Annotated[list[Path], "A bundle to release the key of; repeat for more."],
    evidence_policy: Annotated[Path, EVIDENCE_POLICY],
    tls_cert: Annotated[Path, CERTIFICATE],
    tls_key: Annotated[Path, CERTIFICATE_KEY],
    log: Annotated[Path, "The release log; made if absent, verified if not."],
    address: Address = ADDRESS,
    allow_insecure_dev: Annotated[
        bool,
        typer.Option("--allow-insecure-dev", help="Accept evidence that proves nothing, if the policy does."),
    ] = False,
) -> None:
    """Release the keys of bundles to attested enclaves, and log each attempt."""
    from transom.enclave.broker import create_broker
    from transom.serving.attestor import spki_of

    tls = Tls(tls_cert, tls_key)
    keys = Owner(owner, create=False)
    manifests = [load_manifest(folder, keys.public_key) for folder in bundle]
    for manifest in manifests:
        keys.data_key(manifest.bundle)  # a key that is missing is better missed now than at the first release
    app = create_broker(
        keys,
        {manifest.bundle: manifest for manifest in manifests},
        load_evidence_policy(evidence_policy),
        ReleaseLog(log),
        allow_insecure_dev=allow_insecure_dev,
    )
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("transom.enclave").setLevel(logging.INFO)
    with listen(address.host, address.port) as sock:
        for manifest in manifests:
            use = "production" if manifest.production else "development"
            typer.echo(f"holding the key of {manifest.bundle} ({manifest.model}, {use})", err=True)
        if allow_insecure_dev:
            typer.echo("trust=none: insecure-dev evidence is accepted where the policy allows it", err=True)
        pin = format_pin(spki_of(tls_cert))
        typer.echo(f"serving at {url_of(sock, tls)} with the TLS key {pin}; stop with Ctrl-C", err=True)
        serve(app, sock, tls)


def broker_log(
    file: Annotated[Path, typer.Argument(help="A release log.")],
    as_json: Json = False,
) -> None:
    """Verify the chain of a release log, and print its head to be noted elsewhere."""
    head = log_head(file)
    text = f"{head.entries} entries, unbroken; the head is {head.sha256}"
    answer({"entries": head.entries, "head": head.sha256}, text, as_json=as_json)
