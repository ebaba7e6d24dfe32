"""Intel SGX and TDX evidence: a DCAP quote, checked by the library dcap-qvl against Intel's collateral.

Parts: `quote`, and optionally `collateral`, a JSON object: PEM chains, revocation lists, TCB information and
quoting enclave identity with their signatures, binary values in hex. Collateral is signed by Intel, so it
may come from the attester; without it, it is fetched from the policy's `dcap.pccs`. The library checks
signatures, chains and revocation lists, all of them current at the given time. It also works out the
platform's TCB status and advisories; whether those will do is the policy's decision, so the library is asked
for claims only.
Threat model: the evidence comes from whoever runs the machine. Intel's keys are the root of trust.
Does not protect: physical attacks on memory (interposers); a platform behind on updates that a rule accepts.
Collateral is valid for about a month: whoever supplies it can hold back a newer one for that long.
Source: Intel SGX and TDX DCAP quote formats, versions 3 to 5; SGX report body in SDM volume 3D.
"""

from __future__ import annotations

import asyncio
import json
import threading
from datetime import datetime
from importlib import import_module
from types import ModuleType
from typing import Any

from transom.enclave.evidence import Claims, Evidence
from transom.enclave.policy import EvidencePolicy
from transom.errors import EvidenceError, extra

FETCH_TIMEOUT_S = 20.0

_SGX_DEBUG = 1 << 1  # of ATTRIBUTES, little-endian
_TDX_DEBUG = 0xFF  # of td_attributes, little-endian: any bit of the byte "TD under debug"
_TDX_MIGRATABLE = 1 << 29
_TDX_MEASURED = (  # rules write these names without underscores, as Intel does
    *("mr_td", "rt_mr0", "rt_mr1", "rt_mr2", "rt_mr3", "mr_config_id", "mr_owner", "mr_owner_config"),
    *("mr_seam", "mr_signer_seam"),
)
_TDX_NAMED = ("tee_tcb_svn", "td_attributes", "xfam")


def claims(evidence: Evidence, policy: EvidencePolicy, now: datetime) -> Claims:
    """What an SGX or TDX quote says, once signatures and chains hold at `now`. Raises EvidenceError."""
    library = dcap()
    quote = evidence.parts["quote"]
    seconds = int(now.timestamp())
    if seconds < 0:
        raise EvidenceError(f"no evidence was valid in {now.year}; check the clock")
    try:
        collateral = _collateral(library, evidence, policy)
        wanted = library.QuotePolicy.claims_only(seconds)
        verified = library.QuoteVerifier().verify_with_policy(quote, collateral, seconds, wanted)
        found: dict[str, Any] = json.loads(verified.to_json())
    except ValueError as error:
        raise EvidenceError(f"the {evidence.kind} quote does not verify: {_cause(error)}") from None
    ((shape, report),) = found["report"].items()
    if (evidence.kind == "sgx") != (shape == "SgxEnclave"):
        raise EvidenceError(f"the evidence is labelled {evidence.kind}, its quote is a {shape} quote")
    status, advisories = str(found["tcb"]["status"]), tuple(map(str, found["tcb"]["advisory_ids"]))
    if evidence.kind == "sgx":
        return _sgx(report, status, advisories)
    return _tdx(report, status, advisories)


def _sgx(report: dict[str, Any], status: str, advisories: tuple[str, ...]) -> Claims:
    return Claims(
        kind="sgx",
        registers={
            "mrenclave": report["mr_enclave"],
            "mrsigner": report["mr_signer"],
            "isvprodid": str(report["isv_prod_id"]),
            "attributes": report["attributes"],
        },
        report_data=bytes.fromhex(report["report_data"]),
        svn=report["isv_svn"],
        debug=bool(_bits(report["attributes"]) & _SGX_DEBUG),
        tcb_status=status,
        advisories=advisories,
    )


def _tdx(report: dict[str, Any], status: str, advisories: tuple[str, ...]) -> Claims:
    fields = dict(report)
    while "base" in fields:  # a TDX 1.5 report wraps the 1.0 report
        fields |= fields.pop("base")
    migratable = _bits(fields["td_attributes"]) & _TDX_MIGRATABLE
    if migratable or any(bytes.fromhex(fields.get("mr_service_td", ""))):
        raise EvidenceError("the TDX guest can be migrated, so its memory could be moved elsewhere")
    return Claims(
        kind="tdx",
        registers={name: fields[name] for name in _TDX_NAMED}
        | {name.replace("_", ""): fields[name] for name in _TDX_MEASURED},
        tcb=bytes.fromhex(fields["tee_tcb_svn"]),
        report_data=bytes.fromhex(fields["report_data"]),
        debug=bool(_bits(fields["td_attributes"]) & _TDX_DEBUG),
        tcb_status=status,
        advisories=advisories,
    )


def dcap() -> ModuleType:
    """The library. Raises MissingExtraError."""
    with extra("dcap", "dcap-qvl"):
        return import_module("dcap_qvl")  # it has no typing marker


def _collateral(library: ModuleType, evidence: Evidence, policy: EvidencePolicy) -> Any:
    if (given := evidence.parts.get("collateral")) is not None:
        return library.QuoteCollateralV3.from_json(given.decode("utf-8"))
    if policy.pccs_url is None:
        raise EvidenceError(
            f"the {evidence.kind} evidence brings no collateral and the policy names no source for it; "
            "set dcap.pccs, or let the attester add the part 'collateral'"
        )
    return fetch_collateral(policy.pccs_url, evidence.parts["quote"])


def fetch_collateral(pccs_url: str, quote: bytes, timeout_s: float = FETCH_TIMEOUT_S) -> Any:
    """Collateral (dcap_qvl.QuoteCollateralV3) for a quote, from a PCCS; it blocks a running event loop.

    Raises EvidenceError: no answer in `timeout_s`, or none that can be used.
    """
    library, answers = dcap(), list[Any]()

    async def fetch() -> None:
        answers.append(await asyncio.wait_for(library.get_collateral(pccs_url, quote), timeout_s))

    def work() -> None:
        try:
            asyncio.run(fetch())
        except (ValueError, OSError, RuntimeError) as error:  # TimeoutError is an OSError
            answers.append(error)

    # its own thread, because a running loop cannot be entered a second time
    thread = threading.Thread(target=work, name="dcap-collateral", daemon=True)
    thread.start()
    thread.join(timeout_s + 1)
    answer = answers[0] if answers else TimeoutError()
    if isinstance(answer, Exception):
        raise EvidenceError(
            f"no collateral from {pccs_url} within {timeout_s:g} s ({type(answer).__name__}); "
            "check dcap.pccs, or let the attester add the part 'collateral'"
        )
    return answer


def _bits(hexadecimal: str) -> int:
    return int.from_bytes(bytes.fromhex(hexadecimal), "little")


def _cause(error: ValueError) -> str:
    """The first line of the library's reason, which speaks of structure only, kept short."""
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
