"""What `transom gateway --mode enclave` does before it serves: check, attest, open.

The bundle's signature and files are checked against the owner's key, evidence is collected here, the broker's
release is verified, and the table is opened in this process's memory. Every failure stops the start.
Threat model: the bundle, the broker and the network may be anybody's until checked; the owner's public key
is the anchor (in a real enclave it is part of the measured configuration).
Does not protect: with `--allow-insecure-dev` nothing is proven to the owner; trust=none says so everywhere.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from transom.errors import MisconfiguredError

if TYPE_CHECKING:
    from transom.enclave.evidence import Trust
    from transom.enclave.manifest import Manifest
    from transom.enclave.source import EvidenceSource
    from transom.privacy.sanitize import Sanitizer
    from transom.serving.engines.http import Guard
    from transom.serving.gateway.enclave import Enclave


@dataclass(frozen=True)
class EnclaveOptions:
    """The command line of mode enclave."""

    bundle: Path | None
    owner_key: Path | None
    broker: str
    broker_pin: str
    evidence: str
    tpm_tcti: str
    tpm_key: str
    tpm_pcrs: str
    allow_insecure_dev: bool
    extraction_share: float


def open_manifest(options: EnclaveOptions) -> Manifest:
    """The verified bundle's manifest. Raises MisconfiguredError for a missing option, BundleError."""
    from transom.enclave.bundle import verify_bundle
    from transom.enclave.owner import load_owner_key

    if options.bundle is None or options.owner_key is None or not options.broker:
        raise MisconfiguredError("mode enclave needs --bundle DIR, --owner-key FILE and --broker URL")
    return verify_bundle(options.bundle, load_owner_key(options.owner_key))


def open_enclave(options: EnclaveOptions, manifest: Manifest, sanitizer: Sanitizer) -> Enclave:
    """Attest, get the data key, open the table. Raises EvidenceError, BrokerError, BundleError."""
    from transom.enclave.client import obtain_key
    from transom.enclave.owner import load_owner_key
    from transom.enclave.pin import parse_pin
    from transom.enclave.table import open_table
    from transom.serving.gateway.enclave import Enclave, ExtractionMeter

    if options.bundle is None or options.owner_key is None:
        raise MisconfiguredError("mode enclave needs --bundle DIR and --owner-key FILE")
    policy_sha256 = sanitizer.policy.sha256
    if policy_sha256 != manifest.policy_sha256:
        raise MisconfiguredError(
            f"the bundle is for the word policy {manifest.policy_sha256}, this gateway uses {policy_sha256}; "
            "give the bundle's policy with --policy"
        )
    released = asyncio.run(
        obtain_key(
            options.broker,
            manifest,
            load_owner_key(options.owner_key),
            evidence_source(options),
            policy_sha256,
            ssl=parse_pin(options.broker_pin) if options.broker_pin else None,
            allow_insecure_dev=options.allow_insecure_dev,
        )
    )
    table = open_table(options.bundle, manifest, released.data_key)
    meter = ExtractionMeter(manifest.rows, options.extraction_share)
    mark_log(released.trust)
    typer.echo(f"bundle {manifest.bundle} opened, trust={released.trust}", err=True)
    return Enclave(table, meter, manifest.model, released.trust, released.measurement)


def evidence_source(options: EnclaveOptions) -> EvidenceSource:
    """Where this process's evidence comes from. Raises MisconfiguredError."""
    from transom.enclave.source import BOOT_PCRS, source_of

    if options.evidence == "insecure-dev" and not options.allow_insecure_dev:
        raise MisconfiguredError(
            "--evidence insecure-dev proves nothing to the owner; it also needs --allow-insecure-dev"
        )
    return source_of(
        options.evidence,
        tcti=options.tpm_tcti or None,
        tpm_key=options.tpm_key or None,
        pcrs=options.tpm_pcrs or BOOT_PCRS,
    )


def guard_of(
    manifest: Manifest | None,
    pin: str,
    evidence_policy: Path | None,
    attestor: str,
    allow_insecure_dev: bool,
) -> Guard | None:
    """What ties the engine's TLS key: its evidence, a pin as given, or the only pin that the owner signed.

    Raises MisconfiguredError, also for a manifest when nothing ties the key.
    """
    from transom.enclave.pin import parse_pin
    from transom.enclave.policy import load_evidence_policy
    from transom.serving.engines.evidence import EvidenceGuard
    from transom.serving.engines.http import Pinned

    if evidence_policy is not None:
        if pin or not attestor:
            raise MisconfiguredError(
                "--require-evidence needs --attestor URL, and learns the engine's key from there; leave "
                "--engine-pin out"
            )
        return EvidenceGuard(
            attestor, load_evidence_policy(evidence_policy), allow_insecure_dev=allow_insecure_dev
        )
    if manifest is None:
        return Pinned(parse_pin(pin)) if pin else None
    signed = manifest.server_pins
    if pin and signed and pin not in signed:
        raise MisconfiguredError(f"--engine-pin {pin} is not among the pins that the owner signed")
    if not pin and len(signed) != 1:
        raise MisconfiguredError(
            f"the bundle names {len(signed)} engine keys; choose one with --engine-pin, or --require-evidence"
        )
    return Pinned(parse_pin(pin or signed[0]))


def mark_log(trust: Trust) -> None:
    """Every log line of this process from now on says what its evidence can prove."""
    form = f"transom trust={trust} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, force=True)
