"""Options that several commands share, each declared once, and what is made of them.

Where words are drawn and sent (`transom gateway`, `transom chat`) spending is recorded: in the file of
`--ledger`, else in `$XDG_STATE_HOME/transom/ledger.sqlite` (`~/.local/state` where that is not set), and
nowhere only with `--no-ledger`. Gateways that run at the same time share that file.
Threat model: other users of this machine: the folder of the default ledger is for its owner alone. Does not
protect: what other programs of the user do with the ledger; it holds accounts, times and amounts, no text.
Source: XDG Base Directory Specification 0.8.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from transom.config import Setting
from transom.errors import LedgerError, MisconfiguredError
from transom.privacy.mechanisms import IN_GROUP

if TYPE_CHECKING:
    from transom.enclave.source import EvidenceSource
    from transom.net.listen import Tls
    from transom.privacy.ledger import Ledger
    from transom.privacy.policy import Policy
    from transom.privacy.sanitize import Sanitizer

GATEWAY_CAP = 1000.0
ADDRESS, EVIDENCE, WORDS = "Address", "Evidence of this machine", "Words"

Json = Annotated[bool, typer.Option("--json", help="One JSON object on one line of standard output.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory, a .gguf file, a hub name or 'smollm2'.")
]
CERTIFICATE = typer.Option(help="Certificate (chain) to serve TLS with, PEM.")
CERTIFICATE_KEY = typer.Option(help="The certificate's private key, PEM.")
OWNER_FOLDER = typer.Option(help="The owner's folder of keys; packing makes it.")
EVIDENCE_POLICY = typer.Option(help="Evidence policy (YAML): whom to trust.")


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    port: Annotated[int, Setting("Port to bind; 0 picks a free one.", least=0, most=65535)]
    host: Annotated[str, Setting("Address to bind.", panel=ADDRESS)] = "127.0.0.1"


@dataclass(frozen=True)
class Bind(Address):
    """Where a server listens that is not meant for a network."""

    allow_remote: Annotated[bool, Setting("Bind an address other machines can reach.", panel=ADDRESS)] = False

    def check(self) -> None:
        """Raises MisconfiguredError for an address beyond loopback that was not asked for."""
        from transom.net.listen import require_loopback

        require_loopback(self.host, allow_remote=self.allow_remote)


@dataclass(frozen=True)
class EvidenceOptions:
    """Where evidence of this machine comes from."""

    evidence: Annotated[
        Literal["auto", "gramine", "tsm", "tpm2", "insecure-dev"],
        Setting("Where evidence comes from", panel=EVIDENCE),
    ] = "auto"
    tpm_tcti: Annotated[str, Setting("The TPM's address, as tpm2-tools write it.", panel=EVIDENCE)] = ""
    tpm_key: Annotated[str, Setting("Attestation key: handle or context file.", panel=EVIDENCE)] = ""
    tpm_pcrs: Annotated[
        str, Setting("PCRs to quote, as sha256:0,7 (default: those of the boot).", panel=EVIDENCE)
    ] = ""

    def source(self) -> EvidenceSource:
        """Raises MisconfiguredError where nothing is there to give evidence."""
        from transom.enclave.source import BOOT_PCRS, source_of

        return source_of(
            self.evidence,
            tcti=self.tpm_tcti or None,
            tpm_key=self.tpm_key or None,
            pcrs=self.tpm_pcrs or BOOT_PCRS,
        )


@dataclass(frozen=True)
class PolicyOptions:
    """A word policy and changes to it."""

    preset: Annotated[
        Literal["entities", "sensitive", "words"] | None,
        Setting(
            "What is protected: names and numbers (entities), besides them sensitive and rare words "
            "(sensitive), all words (words, and what a policy of your own says). One of"
        ),
    ] = None
    policy: Annotated[Path | None, Setting("Word policy; the English one by default.")] = None
    overlay: Annotated[Path | None, Setting("YAML file with `kinds:` and `mechanism:`.", panel=WORDS)] = None
    rule: Annotated[
        tuple[str, ...],
        Setting("kind=pass, kind=placeholder or word=EPSILON; repeatable.", panel=WORDS),
    ] = ()

    def load(self) -> Policy:
        """Raises PolicyError."""
        from transom.privacy.policy import load_overlay, load_policy, parse_rule
        from transom.privacy.presets import DEFAULT_PRESET, with_preset

        extra = {} if self.overlay is None else load_overlay(self.overlay)
        preset = self.preset or extra.get("preset") or (DEFAULT_PRESET if self.policy is None else "words")
        policy = with_preset(load_policy(self.policy), preset)
        if extra:
            policy = policy.with_rules(extra.get("kinds", {}), extra.get("mechanism"))
        return policy.with_rules(dict(map(parse_rule, self.rule))) if self.rule else policy


@dataclass(frozen=True)
class WordOptions(PolicyOptions):
    """How words are drawn."""

    epsilon: Annotated[float | None, Setting("Epsilon a word; overrides the policy.", least=0)] = None
    mechanism: Annotated[
        str, Setting(f"Overrides the policy's: {', '.join(IN_GROUP)}, custext+.", panel=WORDS)
    ] = ""

    def sanitizer(self) -> Sanitizer:
        """Raises PolicyError, MisconfiguredError."""
        from transom.privacy.sanitize import Sanitizer

        return Sanitizer(self.load(), self.mechanism or None, self.epsilon)


@dataclass(frozen=True)
class NamedLedger:
    """A ledger that is charged where one is named."""

    ledger: Annotated[Path | None, Setting("Ledger file to charge.")] = None
    cap: Annotated[float | None, Setting("Cap on an account's total epsilon.", least=0)] = None

    def check(self) -> None:
        """Raises MisconfiguredError for a cap on nothing."""
        if self.cap is not None and self.ledger is None:
            raise MisconfiguredError(
                f"--cap {self.cap:g} needs --ledger FILE; without one nothing is counted"
            )

    def open(self, cap: float = math.inf) -> Ledger | None:
        """The ledger, capped at `cap` where no cap is given. Raises LedgerError."""
        return _opened(self.ledger, cap if self.cap is None else self.cap) if self.ledger else None


@dataclass(frozen=True)
class LedgerOptions(NamedLedger):
    """A ledger that is charged unless it is refused."""

    ledger: Annotated[Path | None, Setting("Ledger file; by default one in your state folder.")] = None
    no_ledger: Annotated[bool, Setting("Neither record nor cap what is spent.")] = False

    def check(self) -> None:
        """Raises MisconfiguredError for options that contradict each other."""
        if self.no_ledger and self.ledger is not None:
            raise MisconfiguredError("--ledger and --no-ledger exclude each other; give one of them")
        if self.no_ledger and self.cap is not None:
            raise MisconfiguredError(
                f"--cap {self.cap:g} needs a ledger; without one nothing is counted: leave --no-ledger out"
            )

    def open(self, cap: float = math.inf) -> Ledger | None:
        """The ledger that is named, or the one in the user's state folder. Raises LedgerError."""
        if self.no_ledger:
            return None
        path = self.ledger or default_ledger()
        return _opened(path, cap if self.cap is None else self.cap)


def default_ledger() -> Path:
    """Where spending is recorded if no file is named; its folder is made. Raises LedgerError."""
    named = Path(os.environ.get("XDG_STATE_HOME", ""))
    try:  # a relative path there is invalid, says the specification
        folder = (named if named.is_absolute() else Path.home() / ".local" / "state") / "transom"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise LedgerError(
            f"no folder for the ledger could be made ({type(error).__name__}); name a file with --ledger, or "
            "go without one with --no-ledger"
        ) from None
    return folder / "ledger.sqlite"


def _opened(path: Path, cap: float) -> Ledger:
    from transom.privacy.ledger import Ledger

    return Ledger(path, cap)


def tls_of(certificate: Path | None, key: Path | None) -> Tls | None:
    """The TLS of a server, None where neither is given. Raises MisconfiguredError for one of them alone."""
    from transom.net.listen import Tls

    if (certificate is None) != (key is None):
        raise MisconfiguredError("--tls-cert and --tls-key go together; one of them is missing")
    return Tls(certificate, key) if certificate and key else None
