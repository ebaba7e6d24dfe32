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
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from transom.cli.options import EvidenceOptions, WordOptions
from transom.enclave.bundle import copy_files, verify_bundle
from transom.enclave.client import obtain_key
from transom.enclave.evidence import Trust
from transom.enclave.manifest import Manifest
from transom.enclave.owner import load_owner_key
from transom.enclave.policy import load_evidence_policy
from transom.enclave.table import open_table
from transom.errors import MisconfiguredError
from transom.net.pin import parse_pin
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Engine, EngineCard
from transom.serving.engines.evidence import EvidenceGuard
from transom.serving.engines.http import Pinned
from transom.serving.gateway.enclave import Enclave, ExtractionMeter
from transom.serving.tokenizer import ChatTokenizer, load_tokenizer

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True)
class EnclaveOptions:
    """A bundle, and who releases its key."""

    PANEL: ClassVar[str] = "Mode enclave"
    bundle: Annotated[Path | None, "Bundle from transom pack (its client half)."] = None
    owner_key: Annotated[Path | None, "The owner's public key, owner.pub."] = None
    broker: Annotated[str, "URL of the owner's key broker, https."] = ""
    broker_pin: Annotated[str, "The broker's TLS key (default: a certificate authority)."] = ""

    def check(self, mode: str) -> None:
        """Raises MisconfiguredError if one is given in vain."""
        if mode != "enclave" and any(vars(self).values()):
            raise MisconfiguredError(
                f"--bundle, --owner-key, --broker and --broker-pin are for mode enclave, not for mode {mode}"
            )


@dataclass(frozen=True)
class TrustOptions:
    """What ties the engine's TLS key."""

    PANEL: ClassVar[str] = "Trust in the engine"
    engine_pin: Annotated[str, "The engine's TLS key, sha256//BASE64."] = ""
    evidence_policy: Annotated[Path | None, "Evidence policy that the engine must satisfy."] = None
    attestor: Annotated[str, "URL of transom attest serve beside the engine."] = ""
    allow_insecure_dev: Annotated[bool, "Accept evidence that proves nothing (trust=none)."] = False

    def guard(self, manifest: Manifest | None) -> Pinned | EvidenceGuard | None:
        """The engine's evidence, a pin as given, or the only pin that the owner signed.

        Before a bundle, evidence does not replace the owner's word on who may receive rows: it must be for a
        key that the manifest names, if it names any. Raises MisconfiguredError, also for a manifest when
        nothing ties the key.
        """
        pin, signed = self.engine_pin, manifest.server_pins if manifest else ()
        if self.evidence_policy is not None or self.attestor:
            if pin or not self.attestor or self.evidence_policy is None:
                raise MisconfiguredError(
                    "--evidence-policy POLICY and --attestor URL go together, and learn the engine's key "
                    "from there; leave --engine-pin out"
                )
            return EvidenceGuard(
                self.attestor,
                load_evidence_policy(self.evidence_policy),
                keys=[parse_pin(one).fingerprint for one in signed] or None,
                allow_insecure_dev=self.allow_insecure_dev,
            )
        if manifest is None:
            return Pinned(parse_pin(pin)) if pin else None
        if pin and signed and pin not in signed:
            raise MisconfiguredError(f"--engine-pin {pin} is not among the pins that the owner signed")
        if not pin and len(signed) != 1:
            raise MisconfiguredError(
                f"the bundle names {len(signed)} engine keys; choose one with --engine-pin, or "
                "--evidence-policy"
            )
        return Pinned(parse_pin(pin or signed[0]))


@dataclass(frozen=True)
class SignedBundle:
    """A bundle whose every file its owner signed, and the owner's key that said so."""

    folder: Path
    manifest: Manifest
    owner_key: Ed25519PublicKey


def verified(options: EnclaveOptions) -> SignedBundle:
    """The bundle, checked in full. Raises BundleError, and MisconfiguredError if an option is missing."""
    if options.bundle is None or options.owner_key is None or not options.broker:
        raise MisconfiguredError("mode enclave needs --bundle DIR, --owner-key FILE and --broker URL")
    owner_key = load_owner_key(options.owner_key)
    return SignedBundle(options.bundle, verify_bundle(options.bundle, owner_key), owner_key)


def bundle_tokenizer(bundle: SignedBundle) -> ChatTokenizer:
    """The tokenizer, from files that are checked as they are copied into this process's own folder.

    Raises BundleError, CheckpointError.
    """
    with TemporaryDirectory() as folder:
        copy_files(bundle.folder, bundle.manifest, Path(folder))
        return load_tokenizer(Path(folder))


def bundle_sanitizer(bundle: SignedBundle, words: WordOptions) -> Sanitizer:
    """The sanitiser of the word policy that the bundle demands, as it stands in its file.

    Raises MisconfiguredError for another policy, and for options that would change what was attested.
    """
    given = {name: value for name, value in vars(words).items() if name != "policy"}
    changed = [f"--{name}" for name, value in given.items() if value not in (None, "", ())]
    if changed:
        raise MisconfiguredError(
            f"mode enclave runs the word policy that the bundle names; {', '.join(changed)} would change it. "
            "Build a policy that says so (transom words build), and have it packed"
        )
    loaded, wanted = load_policy(words.policy), bundle.manifest.policy_sha256
    if loaded.sha256 != wanted:
        raise MisconfiguredError(
            f"the bundle is for the word policy {wanted}, this gateway has {loaded.sha256}; give the "
            "bundle's policy with --policy"
        )
    return Sanitizer(loaded)


def open_enclave(
    options: EnclaveOptions, evidence: EvidenceOptions, bundle: SignedBundle, *, allow_insecure_dev: bool
) -> Enclave:
    """Attest, get the data key, open the table. Raises EvidenceError, BrokerError, BundleError."""
    if evidence.evidence == "insecure-dev" and not allow_insecure_dev:
        raise MisconfiguredError(
            "--evidence insecure-dev proves nothing to the owner; it also needs --allow-insecure-dev"
        )
    manifest = bundle.manifest
    released = asyncio.run(
        obtain_key(
            options.broker,
            manifest,
            bundle.owner_key,
            evidence.source(),
            manifest.policy_sha256,
            ssl=parse_pin(options.broker_pin) if options.broker_pin else None,
            allow_insecure_dev=allow_insecure_dev,
        )
    )
    table = open_table(bundle.folder, manifest, released.data_key)
    meter = ExtractionMeter(manifest.rows, manifest.extraction_share)
    mark_log(released.trust)
    typer.echo(f"bundle {manifest.bundle} opened, trust={released.trust}", err=True)
    return Enclave(table, meter, manifest.model, released.trust, released.measurement)


def check_engine(enclave: Enclave, client: Engine, kind: str) -> None:
    """Raises BundleError before serving if the engine is not the bundle's, MissingExtraError for vLLM."""
    if kind == "vllm":  # its format is written by torch, which takes seconds to import
        import numpy as np

        from transom.serving.engines.embeds import as_torch_save

        as_torch_save(np.zeros((1, 1), np.float32))

    enclave.check(probed(client))


def probed(client: Engine) -> EngineCard:
    """What the engine says of itself, over connections that are closed again."""

    async def ask() -> EngineCard:
        try:
            return await client.probe()
        finally:
            await client.close()

    return asyncio.run(ask())


def mark_log(trust: Trust) -> None:
    """Every log line of this process from now on says what its evidence can prove."""
    form = f"transom trust={trust} %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, force=True)
