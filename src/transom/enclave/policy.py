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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from transom.config import load_yaml
from transom.enclave.evidence import Claims, Kind
from transom.errors import EvidenceError, MisconfiguredError

REQUIRED: Mapping[Kind, tuple[frozenset[str], ...]] = {  # a rule names at least one of these sets
    "sgx": (frozenset({"mrenclave"}), frozenset({"mrsigner", "isvprodid"})),
    "tdx": (frozenset({"mrtd", "rtmr0", "rtmr1", "rtmr2"}),),
    "snp": (frozenset({"measurement"}),),
    "tpm2": (frozenset({"pcrs", "pcr_digest", "attestation_key"}),),
    "insecure-dev": (frozenset(),),
}
_RULE_KEYS = {"kind", "registers", "min_svn", "min_tcb", "tcb_status", "advisories", "debug"}


@dataclass(frozen=True)
class Rule:
    """One accepted attester, as in the module's docstring. `debug` accepts what its owner can look into."""

    kind: Kind
    registers: Mapping[str, str] = field(default_factory=dict)
    min_svn: int = 0
    min_tcb: str = ""
    tcb_status: tuple[str, ...] = ("UpToDate",)
    advisories: tuple[str, ...] = ()
    debug: bool = False

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

    def to_json(self) -> dict[str, Any]:
        """The rule as it stands in a policy file or a manifest."""
        return {
            "kind": self.kind,
            "registers": dict(self.registers),
            "min_svn": self.min_svn,
            "min_tcb": self.min_tcb,
            "tcb_status": list(self.tcb_status),
            "advisories": list(self.advisories),
            "debug": self.debug,
        }


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
    for rule in rules:
        if rule.kind != claims.kind:
            continue
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
    """Read a policy file. Raises MisconfiguredError, which names the key that is wrong."""
    path = Path(path)
    try:
        value = load_yaml(path.read_text("utf-8"))
    except OSError as error:
        raise MisconfiguredError(f"cannot read the evidence policy {path} ({error.strerror})") from None
    except ValueError as error:
        raise MisconfiguredError(f"cannot read the evidence policy {path}: {error}") from None
    top = _object(value, {"allow", "max_age_s", "dcap", "snp"}, f"evidence policy {path}")
    dcap = _object(top.get("dcap", {}), {"pccs"}, "dcap")
    snp = _object(top.get("snp", {}), {"ark_sha256", "crl"}, "snp")
    max_age_s = top.get("max_age_s", 300.0)
    if not isinstance(max_age_s, int | float) or isinstance(max_age_s, bool) or not 0 < max_age_s <= 86_400:
        raise MisconfiguredError(f"max_age_s must be above 0 and at most 86400, got {max_age_s!r}")
    crl = None
    if "crl" in snp:
        try:
            crl = (path.parent / str(snp["crl"])).read_bytes()
        except OSError as error:
            raise MisconfiguredError(f"cannot read snp.crl {snp['crl']!r} ({error.strerror})") from None
    return EvidencePolicy(
        allow=parse_rules(top.get("allow")),
        max_age_s=float(max_age_s),
        pccs_url=str(dcap["pccs"]) if dcap.get("pccs") else None,
        ark_sha256=_strings(snp.get("ark_sha256", []), "snp.ark_sha256"),
        crl=crl,
    )


def parse_rules(value: object) -> tuple[Rule, ...]:
    """Rules from a list of JSON or YAML objects. Raises MisconfiguredError."""
    if not isinstance(value, list) or not value:
        raise MisconfiguredError("'allow' must be a list with at least one rule; see docs/enclave.md")
    return tuple(_rule(one) for one in value)


def _rule(value: object) -> Rule:
    fields = _object(value, _RULE_KEYS, "a rule")
    kind = fields.get("kind")
    if kind not in get_args(Kind):
        raise MisconfiguredError(f"a rule's kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    raw = fields.get("registers", {})
    if not isinstance(raw, dict) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in raw.items()
    ):
        raise MisconfiguredError(
            f"registers of a {kind} rule must map names to strings (quote hex and numbers)"
        )
    registers = {name: _normal(name, text) for name, text in raw.items()}
    if not any(needed <= set(registers) for needed in REQUIRED[cast(Kind, kind)]):
        wanted = " or ".join("{" + ", ".join(sorted(one)) + "}" for one in REQUIRED[cast(Kind, kind)])
        raise MisconfiguredError(f"a {kind} rule must name the registers {wanted}; got {sorted(registers)}")
    min_svn, debug = fields.get("min_svn", 0), fields.get("debug", False)
    if type(min_svn) is not int or min_svn < 0 or type(debug) is not bool:
        raise MisconfiguredError("min_svn must be a whole number from 0, debug must be true or false")
    return Rule(
        kind=cast(Kind, kind),
        registers=registers,
        min_svn=min_svn,
        min_tcb=_hex("min_tcb", fields["min_tcb"]) if fields.get("min_tcb") else "",
        tcb_status=_strings(fields.get("tcb_status", ["UpToDate"]), "tcb_status"),
        advisories=_strings(fields.get("advisories", []), "advisories"),
        debug=debug,
    )


def _normal(name: str, text: str) -> str:
    return text if name in ("pcrs", "isvprodid") else _hex(name, text)


def _hex(name: str, text: object) -> str:
    if not isinstance(text, str) or not re.fullmatch(r"(?:[0-9a-fA-F]{2})+", text):
        raise MisconfiguredError(
            f"{name} must be a string of whole bytes in hex (quote it), got {str(text)[:80]!r}"
        )
    return text.lower()


def _object(value: object, keys: set[str], what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MisconfiguredError(f"{what} must be a mapping, got {type(value).__name__}")
    unknown = sorted(str(key) for key in value if key not in keys)
    if unknown:
        raise MisconfiguredError(
            f"{what} does not know {', '.join(unknown)}; it knows {', '.join(sorted(keys))}"
        )
    return cast(dict[str, Any], value)


def _strings(value: object, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise MisconfiguredError(f"{what} must be a list of strings, got {type(value).__name__}")
    return tuple(value)
