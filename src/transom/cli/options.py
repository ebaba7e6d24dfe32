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
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from transom.config import Setting
from transom.enclave.source import BOOT_PCRS, EvidenceSource, Name, source_of
from transom.errors import LedgerError, MisconfiguredError, PolicyError
from transom.net.listen import Tls, require_loopback
from transom.privacy.claims import Claims
from transom.privacy.kinds import Recogniser, Rule
from transom.privacy.ledger import Ledger
from transom.privacy.lists import watch_lists
from transom.privacy.mechanisms import IN_GROUP
from transom.privacy.policy import Policy, load_overlay, load_policy, parse_rule
from transom.privacy.presets import DEFAULT_PRESET, Preset, with_preset
from transom.privacy.sanitize import Sanitizer

GATEWAY_CAP = 1000.0
ADDRESS, WORDS = "Address", "Words"

Json = Annotated[bool, typer.Option("--json", help="One JSON object on one line of standard output.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="A directory, a .gguf file, a hub name or 'smollm2'.")
]
CERTIFICATE = "Certificate (chain) to serve TLS with, PEM."
CERTIFICATE_KEY = "The certificate's private key, PEM."
OWNER_FOLDER = "The owner's folder of keys; packing makes it."
EVIDENCE_POLICY = "Evidence policy (YAML): whom to trust."


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
        require_loopback(self.host, allow_remote=self.allow_remote)


@dataclass(frozen=True)
class EvidenceOptions:
    """Where evidence of this machine comes from."""

    PANEL: ClassVar[str] = "Evidence of this machine"
    evidence: Annotated[Name, "Where evidence comes from"] = "auto"
    tpm_tcti: Annotated[str, "The TPM's address, as tpm2-tools write it."] = ""
    tpm_key: Annotated[str, "Attestation key: handle or context file."] = ""
    tpm_pcrs: Annotated[str, "PCRs to quote, as sha256:0,7 (default: those of the boot)."] = ""

    def source(self) -> EvidenceSource:
        """Raises MisconfiguredError where nothing is there to give evidence."""
        return source_of(
            self.evidence,
            tcti=self.tpm_tcti or None,
            tpm_key=self.tpm_key or None,
            pcrs=self.tpm_pcrs or BOOT_PCRS,
        )


@dataclass(frozen=True)
class PolicyFile:
    """A policy file and changes to it."""

    policy: Annotated[Path | None, Setting("Word policy; the English one by default.", panel=WORDS)] = None
    overlay: Annotated[Path | None, Setting("YAML file with `kinds:` and `mechanism:`.", panel=WORDS)] = None
    rule: Annotated[
        tuple[str, ...], Setting("kind=pass, kind=placeholder or word=EPSILON; repeatable.", panel=WORDS)
    ] = ()

    def under(self, preset: str | None) -> Policy:
        """The policy under a preset, or under the one that suits where none is named. Raises PolicyError."""
        extra = {} if self.overlay is None else load_overlay(self.overlay)
        chosen = preset or extra.get("preset") or (DEFAULT_PRESET if self.policy is None else "words")
        policy = with_preset(load_policy(self.policy), chosen)
        if extra:
            policy = policy.with_rules(extra.get("kinds", {}), extra.get("mechanism"))
        return policy.with_rules(_rules(self.rule)) if self.rule else policy


@dataclass(frozen=True)
class PolicyOptions(PolicyFile):
    """A word policy and changes to it."""

    preset: Annotated[
        Preset | None,
        "What is protected. One of",
    ] = None

    def load(self) -> Policy:
        """Raises PolicyError."""
        return self.under(self.preset)


@dataclass(frozen=True)
class ListOptions:
    """The user's own lists, and who else looks for what is private."""

    lists: Annotated[
        Path | None,
        Setting("Your own lists (YAML): names, terms, patterns, what is allowed, public text.", panel=WORDS),
    ] = None
    recogniser: Annotated[
        tuple[str, ...],
        Setting("Who else looks for names: presidio[:MODEL] or module:object; repeatable.", panel=WORDS),
    ] = ()

    @property
    def given(self) -> bool:
        """Whether there are any."""
        return self.lists is not None or bool(self.recogniser)

    def claims(self) -> Claims:
        """What the lists and recognisers find. Raises MisconfiguredError."""
        lists = None
        if self.lists is not None:
            lists = watch_lists(self.lists)
        return Claims(lists, {name: recogniser_of(name) for name in self.recogniser})


@dataclass(frozen=True)
class WordOptions(ListOptions, PolicyOptions):
    """How words are drawn."""

    epsilon: Annotated[float | None, Setting("Epsilon a word; overrides the policy.", least=0)] = None
    mechanism: Annotated[
        str, Setting(f"Overrides the policy's: {', '.join(IN_GROUP)}, custext+.", panel=WORDS)
    ] = ""

    def sanitizer(self) -> Sanitizer:
        """Raises PolicyError, MisconfiguredError."""
        policy = self.load()
        given = [f"--{name}" for name in ("epsilon", "mechanism") if getattr(self, name) not in (None, "")]
        if given and policy.preset == "entities" and not policy.draws:
            raise MisconfiguredError(
                f"preset entities draws no words, so {' and '.join(given)} would do nothing; "
                "choose --preset sensitive or words"
            )
        return Sanitizer(policy, self.mechanism or None, self.epsilon, claims=self.claims())


def sanitizer_under(
    changes: PolicyFile, preset: str, epsilon: float | None = None, claims: Claims | None = None
) -> Sanitizer:
    """One preset's; an epsilon is for whatever it draws, and a preset that draws nothing stays so.

    Raises PolicyError, MisconfiguredError.
    """
    policy = changes.under(preset)
    return Sanitizer(policy, None, epsilon if policy.draws else None, claims=claims)


def _rules(options: Iterable[str]) -> dict[str, Rule]:
    """The rule for each kind. Raises PolicyError for two that contradict each other."""
    rules: dict[str, Rule] = {}
    for kind, rule in map(parse_rule, options):
        if rules.setdefault(kind, rule) != rule:
            raise PolicyError(
                f"--rule {kind}={rules[kind]} and {kind}={rule} contradict each other; give one"
            )
    return rules


def recogniser_of(name: str) -> Recogniser:
    """Presidio, of `presidio[:MODEL]`, or the object at `module:object`. Raises MisconfiguredError."""
    library, _, model = name.partition(":")
    if library == "presidio":
        from transom.privacy.presidio import DEFAULT_MODEL, Presidio

        return Presidio(model or DEFAULT_MODEL)
    from transom.audit.attack import load_object

    found = load_object(name)
    if isinstance(found, type) or not callable(getattr(found, "find", None)):
        what = "a class; name an object made of it" if isinstance(found, type) else "without find(text)"
        raise MisconfiguredError(f"the recogniser {name} is {what}")
    recogniser: Recogniser = found
    return recogniser


@dataclass(frozen=True)
class NamedLedger:
    """A ledger that is charged where one is named."""

    ledger: Annotated[Path | None, "Ledger file to charge."] = None
    cap: Annotated[float | None, Setting("Cap on an account's total epsilon.", least=0)] = None

    def check(self) -> None:
        """Raises MisconfiguredError for a cap on nothing."""
        if self.cap is not None and self.ledger is None:
            raise MisconfiguredError(
                f"--cap {self.cap:g} needs --ledger FILE; without one nothing is counted"
            )

    def open(self, cap: float = math.inf) -> Ledger | None:
        """The ledger, capped at `cap` where no cap is given. Raises LedgerError."""
        return Ledger(self.ledger, cap if self.cap is None else self.cap) if self.ledger else None


@dataclass(frozen=True)
class LedgerOptions(NamedLedger):
    """A ledger that is charged unless it is refused."""

    ledger: Annotated[Path | None, "Ledger file; by default one in your state folder."] = None
    no_ledger: Annotated[bool, "Neither record nor cap what is spent."] = False

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
        return NamedLedger(self.ledger or default_ledger(), self.cap).open(cap)


def ledger_for(sanitizer: Sanitizer, books: LedgerOptions, cap: float = math.inf) -> Ledger | None:
    """The ledger that draws are charged to; none where nothing is ever drawn.

    Raises LedgerError, and MisconfiguredError for a cap on nothing.
    """
    if sanitizer.mechanism is not None:
        return books.open(cap)
    if books.cap is not None:
        raise MisconfiguredError(
            f"--cap {books.cap:g}: preset {sanitizer.policy.preset} draws no words, so nothing is counted; "
            "leave it out, or choose --preset words"
        )
    return None


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


def tls_of(certificate: Path | None, key: Path | None) -> Tls | None:
    """The TLS of a server, None where neither is given. Raises MisconfiguredError for one of them alone."""
    if (certificate is None) != (key is None):
        raise MisconfiguredError("--tls-cert and --tls-key go together; one of them is missing")
    return Tls(certificate, key) if certificate and key else None
