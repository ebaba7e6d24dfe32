"""The evidence policy: a YAML file of rules, each naming one attester that is accepted, and the decision.

    allow:
      - kind: sgx
        registers: {mrenclave: 8f3c...}      # all must match; a kind's minimum is in REQUIRED
        min_svn: 3
        min_tcb: "d3..."                     # snp, tdx: no part's version below this one's, byte by byte
        tcb_status: [UpToDate]               # the default; each further status is an exception you name
        advisories: []                       # vendor advisories you accept
      - kind: tpm2
        registers: {pcrs: "sha256:0,7,16", pcr_digest: 77ab..., attestation_key: 000b...}
    max_age_s: 300          # how long evidence counts before new evidence is asked for
    dcap: {pccs: "https://pccs.example/"}   # where collateral comes from if the evidence brings none
    snp: {ark_sha256: [..], crl: amd.crl}   # further AMD roots, and their revocation list

Everything not named is refused: an unknown key, another register, a debug platform, any status but UpToDate.
Threat model: whoever can write this file decides whom to trust. Does not protect: a measurement proves which
code runs, not that the code is good. Source: RFC 9334, section 8.5 (appraisal policy for evidence).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, get_args

from transom.config import Setting, read_config
from transom.enclave.evidence import Claims, Kind
from transom.errors import EvidenceError, system_errors

REQUIRED: Mapping[Kind, tuple[frozenset[str], ...]] = {  # a rule names at least one of these sets
    "sgx": (frozenset({"mrenclave"}), frozenset({"mrsigner", "isvprodid"})),
    "tdx": (frozenset({"mrtd", "rtmr0", "rtmr1", "rtmr2"}),),
    "snp": (frozenset({"measurement"}),),
    "tpm2": (frozenset({"pcrs", "pcr_digest", "attestation_key"}),),
    "insecure-dev": (frozenset(),),
}
_TEXT_REGISTERS = ("pcrs", "isvprodid")
_HEX, _IS_HEX = "(?:[0-9a-fA-F]{2})", "be a string of whole bytes in hex (quote it)"


@dataclass(frozen=True)
class Rule:
    """One accepted attester, as in the module's docstring. `debug` accepts what its owner can look into."""

    kind: Annotated[Kind, Setting(sentence=f"a rule's kind must be one of {', '.join(get_args(Kind))}")]
    registers: Annotated[
        Mapping[str, str], Setting(wanted="map names to strings (quote hex and numbers)")
    ] = field(default_factory=dict)
    min_svn: Annotated[int, Setting(least=0)] = 0
    min_tcb: Annotated[str, Setting(pattern=f"{_HEX}*", wanted=_IS_HEX)] = ""
    tcb_status: tuple[str, ...] = ("UpToDate",)
    advisories: tuple[str, ...] = ()
    debug: bool = False

    def problems(self) -> Iterator[str]:
        """Why this is no rule."""
        for name, text in self.registers.items():
            if name not in _TEXT_REGISTERS and not re.fullmatch(f"{_HEX}+", text):
                yield f"{name} must {_IS_HEX}, got text of {len(text)} characters"
        if not any(needed <= set(self.registers) for needed in REQUIRED[self.kind]):
            wanted = " or ".join("{" + ", ".join(sorted(one)) + "}" for one in REQUIRED[self.kind])
            yield f"a {self.kind} rule must name the registers {wanted}; got {sorted(self.registers)}"

    def objection(self, claims: Claims) -> str | None:
        """Why this rule does not accept the claims; None if it does."""
        for name, wanted in self.registers.items():
            found = claims.registers.get(name)
            if found != wanted:
                return f"{name} is {found or 'absent'}, {wanted} is allowed"
        if claims.debug and not self.debug:
            return "it runs in debug mode, in which its owner can read its memory"
        if claims.svn < self.min_svn:
            return f"its security version is {claims.svn}, at least {self.min_svn} is allowed"
        floor = bytes.fromhex(self.min_tcb)
        if floor and (
            len(floor) != len(claims.tcb) or any(a < b for a, b in zip(claims.tcb, floor, strict=True))
        ):
            return f"its TCB is {claims.tcb.hex() or 'not told'}, no part below {self.min_tcb} is allowed"
        if claims.tcb_status not in self.tcb_status:
            return f"its TCB status is {claims.tcb_status}, {', '.join(self.tcb_status)} is allowed"
        unknown = sorted(set(claims.advisories) - set(self.advisories))
        return f"advisories {', '.join(unknown)} apply to it" if unknown else None

    def normal(self) -> Rule:
        """The rule with its hex in lower case, as claims have it."""
        registers = {
            name: text if name in _TEXT_REGISTERS else text.lower() for name, text in self.registers.items()
        }
        return replace(self, registers=registers, min_tcb=self.min_tcb.lower())


@dataclass(frozen=True)
class _Dcap:
    pccs: str | None = None


@dataclass(frozen=True)
class _Snp:
    ark_sha256: tuple[str, ...] = ()
    crl: Path | None = None


@dataclass(frozen=True)
class _File:
    allow: Annotated[
        tuple[Annotated[Rule, Setting(sentence="a rule must be a mapping")], ...],
        Setting(filled=True, sentence="'allow' must be a list with at least one rule; see docs/enclave.md"),
    ]
    max_age_s: Annotated[float, Setting(above=0, most=86_400, wanted="be above 0 and at most 86400")] = 300.0
    dcap: _Dcap = _Dcap()
    snp: _Snp = _Snp()


@dataclass(frozen=True)
class EvidencePolicy:
    """The accepted attesters, and where their vendors' material comes from. See the module's docstring."""

    allow: tuple[Rule, ...]
    max_age_s: float = 300.0
    pccs_url: str | None = None
    ark_sha256: tuple[str, ...] = ()
    crl: bytes | None = field(default=None, repr=False)  # DER

    def accept(self, claims: Claims) -> Rule:
        """The rule that accepts the claims. Raises EvidenceError, with every rule's objection."""
        return accept(self.allow, claims)


def accept(rules: Sequence[Rule], claims: Claims) -> Rule:
    """The first rule that accepts the claims. Raises EvidenceError, with every rule's objection."""
    objections = []
    for rule in [one for one in rules if one.kind == claims.kind]:
        objection = rule.objection(claims)
        if objection is None:
            return rule
        objections.append(objection)
    if not objections:
        raise EvidenceError(
            f"no rule allows evidence of kind {claims.kind}; name its measurement in the policy"
        )
    raise EvidenceError(f"{claims.kind} evidence is not accepted: {'; or '.join(objections)}")


def load_evidence_policy(path: str | Path) -> EvidencePolicy:
    """Read a policy file. Raises MisconfiguredError, which names every key that is wrong."""
    read = read_config(_File, path, what="the evidence policy")
    return EvidencePolicy(
        allow=tuple(rule.normal() for rule in read.allow),
        max_age_s=read.max_age_s,
        pccs_url=read.dcap.pccs or None,
        ark_sha256=read.snp.ark_sha256,
        crl=_revocations(read.snp.crl),
    )


def _revocations(path: Path | None) -> bytes | None:
    if path is None:
        return None
    with system_errors(f"cannot read snp.crl {path.name!r}"):
        return path.read_bytes()
