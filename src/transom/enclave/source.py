"""Where evidence comes from: Gramine's pseudo-files, Linux configfs-tsm, or a TPM through tpm2-tools.

    source = source_of("auto", tpm_key="0x81010001")
    evidence = source.collect(report_data(source.kind, *enclave_fields(nonce, public, policy_sha256)))

A source fetches and never judges: whoever gets the evidence verifies it. `collect` blocks (a TPM takes
milliseconds in software, up to half a second in hardware), so event loops call it in a thread.
Threat model: the host may answer with anything or not at all; a wrong answer fails verification, a silent TPM
meets a time limit. The kernel and Gramine have no time limit of their own here: their files block until the
platform answers. Two callers in one Gramine process share one file of report data; the loser's evidence fails
verification. Does not protect: `InsecureDevEvidence` proves nothing at all and is for tests and laptops.
Source: Linux Documentation/ABI/testing/configfs-tsm-report; Gramine manual, "Attestation and secret
provisioning"; AMD GHCB specification 56421, section 4.1.8.1 (certificate table); tpm2-tools manual.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

from transom.enclave.evidence import Evidence, Kind
from transom.errors import MisconfiguredError, system_errors

Name = Literal["auto", "gramine", "tsm", "tpm2", "insecure-dev"]
GRAMINE = Path("/dev/attestation")
TSM = Path("/sys/kernel/config/tsm/report")
BOOT_PCRS = "sha256:0,1,2,3,4,5,6,7,8,9,11,14"  # firmware, boot loader, secure boot, kernel, owner's keys
_ENTRY_BYTES = 24
_PROVIDERS: dict[str, Kind] = {"tdx_guest": "tdx", "sev_guest": "snp"}
_CERTIFICATES = {  # written in the table as they are read, most significant byte first
    "vcek": uuid.UUID("63da758d-e664-4564-adc5-f4b93be8accd").bytes,
    "ask": uuid.UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782").bytes,
    "ark": uuid.UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae").bytes,
}


class EvidenceSource(Protocol):
    """Collects evidence of one kind for the given report data. Raises MisconfiguredError if it cannot."""

    @property
    def kind(self) -> Kind: ...

    def collect(self, report_data: bytes) -> Evidence: ...


@dataclass(frozen=True)
class InsecureDevEvidence:
    """Evidence without any proof, for development: its trust is `none`."""

    kind: Kind = "insecure-dev"

    def collect(self, report_data: bytes) -> Evidence:
        return Evidence(self.kind, {"report_data": report_data})


@dataclass(frozen=True)
class GramineSource:
    """An SGX quote of this process, which runs under Gramine with `sgx.remote_attestation = "dcap"`."""

    root: Path = GRAMINE
    kind: Kind = "sgx"

    def collect(self, report_data: bytes) -> Evidence:
        attestation = _read(self.root / "attestation_type").decode("ascii", "replace").strip("\0\n ")
        if attestation != "dcap":
            raise MisconfiguredError(
                f"Gramine's attestation type is {attestation!r}; "
                "set sgx.remote_attestation = 'dcap' in its manifest"
            )
        _write(self.root / "user_report_data", report_data)
        return Evidence(self.kind, {"quote": _read(self.root / "quote")})


@dataclass(frozen=True)
class TsmSource:
    """A TDX quote or SEV-SNP report of this virtual machine, from configfs-tsm (Linux 6.7 or later)."""

    root: Path = TSM

    @cached_property
    def kind(self) -> Kind:
        """`tdx` or `snp`, as the kernel's provider is named."""
        with _entry(self.root) as entry:
            provider = _read(entry / "provider").decode("ascii", "replace").strip()
        if provider not in _PROVIDERS:
            raise MisconfiguredError(
                f"{self.root} is served by {provider!r}; Transom knows {', '.join(_PROVIDERS)}"
            )
        return _PROVIDERS[provider]

    def collect(self, report_data: bytes) -> Evidence:
        kind = self.kind
        with _entry(self.root) as entry:
            before = _read(entry / "generation").strip()
            _write(entry / "inblob", report_data)
            report = _read(entry / "outblob")
            table = _read(entry / "auxblob") if kind == "snp" else b""
            after = _read(entry / "generation").strip()
        if not (before.isdigit() and after.isdigit()) or int(after) != int(before) + 1:
            raise MisconfiguredError("another process wrote to this report's entry; try again")
        if kind == "tdx":
            return Evidence(kind, {"quote": report})
        return Evidence(kind, {"report": report, **certificates_of(table)})


@dataclass(frozen=True)
class Tpm2Source:
    """A quote over `pcrs` by the attestation key `key`: a persistent handle (0x81...) or a context file.

    `tcti` says where the TPM is, as tpm2-tools write it ("device:/dev/tpmrm0"); None leaves it to them.
    The key must have an empty authorisation value. A context file needs a resource manager, as tpmrm0 is.
    The public area is read once, so a key replaced under the same handle gives evidence that is refused.
    """

    tcti: str | None
    key: str
    pcrs: str = BOOT_PCRS
    timeout_s: float = 10.0
    kind: Kind = "tpm2"

    def __post_init__(self) -> None:
        selected = re.fullmatch(r"sha256:(\d{1,2}(?:,\d{1,2})*)", self.pcrs)
        numbers = [int(number) for number in selected[1].split(",")] if selected else []
        if not numbers or numbers != sorted(set(numbers)) or numbers[-1] > 23:
            raise MisconfiguredError(
                f"PCRs are written sha256:0,7,16, ascending and at most 23; got {self.pcrs!r}"
            )
        if not re.fullmatch(r"0x81[0-9a-fA-F]{6}", self.key) and not Path(self.key).is_file():
            raise MisconfiguredError(
                f"the TPM key {self.key!r} is neither a persistent handle (0x81 and six digits) nor a file"
            )

    def collect(self, report_data: bytes) -> Evidence:
        parts = self._run(
            "tpm2_quote",
            ["-l", self.pcrs, "-q", report_data.hex(), "-g", "sha256", "-F", "values"],
            {"quote": "-m", "signature": "-s", "pcrs": "-o"},
        )
        return Evidence(self.kind, {**parts, "attestation_key": self._public})

    @cached_property
    def _public(self) -> bytes:
        return self._run("tpm2_readpublic", ["-f", "tss"], {"public": "-o"})["public"]

    def _run(self, tool: str, options: list[str], outputs: dict[str, str]) -> dict[str, bytes]:
        """The files a tool writes about the key; `outputs` maps their names to the options that take them."""
        program = shutil.which(tool)
        if program is None:
            raise MisconfiguredError(f"{tool} is not on the PATH; install tpm2-tools")
        command = [program, "-Q", "-c", self.key, *options]
        if self.tcti is not None:
            command += ["-T", self.tcti]
        with tempfile.TemporaryDirectory(prefix="transom-tpm-") as folder:  # holds what will be sent anyway
            for name, option in outputs.items():
                command += [option, str(Path(folder) / name)]
            self._call(command)
            return {name: _read(Path(folder) / name) for name in outputs}

    def _call(self, command: list[str]) -> None:
        tool = Path(command[0]).name
        try:
            done = subprocess.run(  # noqa: S603 (a list of our own, no shell)
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise MisconfiguredError(f"{tool} gave no answer within {self.timeout_s:g} s") from None
        except OSError as error:
            raise MisconfiguredError(f"{tool} could not be started ({error.strerror})") from None
        if done.returncode != 0:
            errors = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "ERROR" in line]
            raise MisconfiguredError(
                f"{tool} failed with the key {self.key} and the TPM at {self.tcti or 'its default place'}: "
                f"{errors[0][:200] if errors else f'exit status {done.returncode}'}"
            )


def source_of(
    name: Name, *, tcti: str | None = None, tpm_key: str | None = None, pcrs: str = BOOT_PCRS
) -> EvidenceSource:
    """The source of that name; `auto` is Gramine, configfs-tsm, or a TPM if a key is given, never a fake.

    Raises MisconfiguredError where nothing is there to give evidence.
    """
    if name == "insecure-dev":
        return InsecureDevEvidence()
    if name == "gramine" or (name == "auto" and GRAMINE.exists()):
        return GramineSource(GRAMINE)
    if name == "tsm" or (name == "auto" and TSM.exists()):
        return TsmSource(TSM)
    if tpm_key is None:
        raise MisconfiguredError(
            "no TPM key is given: name a persistent handle or a context file"
            + (f"; neither {GRAMINE} nor {TSM} is there" if name == "auto" else "")
        )
    return Tpm2Source(tcti, tpm_key, pcrs)


def certificates_of(table: bytes) -> dict[str, bytes]:
    """The parts `vcek`, `ask` and `ark` of a GHCB certificate table: GUID, offset and length, then DER.

    Raises MisconfiguredError if the table is malformed or lacks one: the host must put them there.
    """
    found = {}
    for start in range(0, len(table) - _ENTRY_BYTES + 1, _ENTRY_BYTES):
        guid = table[start : start + 16]
        if guid == bytes(16):
            break
        offset, length = struct.unpack_from("<II", table, start + 16)
        if offset + length > len(table):
            raise MisconfiguredError(
                f"the host's SEV-SNP certificate table of {len(table)} bytes is cut short"
            )
        found[guid] = table[offset : offset + length]
    missing = [name for name, guid in _CERTIFICATES.items() if not found.get(guid)]
    if missing:
        raise MisconfiguredError(
            f"the host gives this guest no {', '.join(missing)} certificate of its processor; "
            "the host's operator loads them into the extended guest request's certificate table"
        )
    return {name: found[guid] for name, guid in _CERTIFICATES.items()}


@contextmanager
def _entry(root: Path) -> Iterator[Path]:
    """A report entry of our own, so that nobody else's options are in it; the kernel fills the directory."""
    entry = root / f"transom-{secrets.token_hex(8)}"
    with system_errors(
        f"cannot make an entry in {root}",
        "it takes root in a TDX or SEV-SNP guest with Linux 6.7 or later and configfs mounted",
    ):
        entry.mkdir()
    try:
        yield entry
    finally:
        with suppress(OSError):  # a left entry is harmless and must not hide what went wrong before
            entry.rmdir()


def _read(path: Path) -> bytes:
    with system_errors(f"cannot read {path}"):
        return path.read_bytes()


def _write(path: Path, data: bytes) -> None:
    """One write to a file that is there; a pseudo-file takes its value whole."""
    with system_errors(f"cannot write {path}"), os.fdopen(os.open(path, os.O_WRONLY), "wb", 0) as file:
        written = file.write(data)
    if written != len(data):
        raise MisconfiguredError(f"{path} took {written} of {len(data)} bytes")
