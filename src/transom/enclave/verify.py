"""Verify evidence: its kind's own check, then the report data, then the policy. All three, or an error.

Threat model: evidence comes from the network, and may be another's, an old one, or for another key. What ties
it to this question is `expected_report_data`, a hash over a fresh nonce and the key in question (see
`evidence.report_data`); the caller makes the nonce and uses it once. Does not protect: what the measured
code then does, and what each kind's module excludes. Source: RFC 9334, section 10 (freshness).
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from transom.enclave import sgx_tdx, snp, tpm2
from transom.enclave.evidence import Claims, Evidence, Kind
from transom.enclave.policy import EvidencePolicy
from transom.errors import EvidenceError, MisconfiguredError


def verify(
    evidence: Evidence, policy: EvidencePolicy, expected_report_data: bytes, now: datetime | None = None
) -> Claims:
    """The claims of evidence that is genuine at `now`, answers this question and is accepted by the policy.

    `now` has a time zone; without it, the clock is read. Raises EvidenceError, which says what is not so.
    """
    now = datetime.now(UTC) if now is None else now
    if now.tzinfo is None:
        raise MisconfiguredError("the time to verify evidence at needs a time zone, got one without")
    claims = _CLAIMS[evidence.kind](evidence, policy, now)
    if not hmac.compare_digest(claims.report_data, expected_report_data):
        raise EvidenceError(
            f"the {evidence.kind} evidence is bound to other report data: it answers another nonce, "
            "or speaks for another key; ask for new evidence"
        )
    policy.accept(claims)
    return claims


def _insecure_dev(evidence: Evidence, policy: EvidencePolicy, now: datetime) -> Claims:
    """Evidence that proves nothing, for development; a rule must allow it, and its trust is "none"."""
    return Claims(kind="insecure-dev", registers={}, report_data=evidence.parts["report_data"])


_CLAIMS: Mapping[Kind, Callable[[Evidence, EvidencePolicy, datetime], Claims]] = {
    "sgx": sgx_tdx.claims,
    "tdx": sgx_tdx.claims,
    "snp": snp.claims,
    "tpm2": tpm2.claims,
    "insecure-dev": _insecure_dev,
}
