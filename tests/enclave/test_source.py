"""Sources of evidence: a real software TPM, fake files of Gramine and configfs-tsm, and their failures."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from transom.enclave import source as source_module
from transom.enclave import tpm2
from transom.enclave.evidence import report_data
from transom.enclave.policy import EvidencePolicy
from transom.enclave.source import (
    BOOT_PCRS,
    EvidenceSource,
    GramineSource,
    InsecureDevEvidence,
    Tpm2Source,
    TsmSource,
    certificates_of,
    source_of,
)
from transom.errors import MisconfiguredError

from .swtpm_fixtures import ATTESTATION, SoftwareTpm, needs_tpm, software_tpm

NOW = datetime(2026, 1, 1, tzinfo=UTC)
QUESTION = report_data("tpm2", "test", b"question")
LONG_QUESTION = report_data("snp", "test", b"question")
VCEK, ASK, ARK = (
    bytes.fromhex(guid)
    for guid in (
        "63da758de6644564adc5f4b93be8accd",
        "4ab7b379bbac4fe4a02f05aef327c782",
        "c0b406a4a803495297433fb6014cd0ae",
    )
)
VLEK = bytes.fromhex("a8074bc2a25a483eaae639c045a0b8a1")


# A TPM


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    with software_tpm(tmp_path_factory.mktemp("tpm")) as running:
        yield running


def tool(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@needs_tpm
def test_tpm_source_leaves_nothing_behind_and_reads_the_key_once(
    tpm: SoftwareTpm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs, temporary = tmp_path / "programs", tmp_path / "temporary"
    programs.mkdir()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    found = Tpm2Source(tpm.tcti, tpm.key)
    first, public = found.collect(QUESTION), tpm.public
    assert list(temporary.iterdir()) == []
    (programs / "tpm2_quote").symlink_to(shutil.which("tpm2_quote") or "")
    monkeypatch.setenv("PATH", str(programs))  # without tpm2_readpublic
    second = found.collect(QUESTION)
    assert first.parts["attestation_key"] == second.parts["attestation_key"] == public
    assert first.parts["quote"] != second.parts["quote"]
    claims = tpm2.claims(second, EvidencePolicy(allow=()), NOW)
    assert claims.registers["pcrs"] == BOOT_PCRS


@needs_tpm
def test_tpm_source_takes_a_context_file(tpm: SoftwareTpm) -> None:
    template = ["-G", "ecc256:ecdsa-sha256:null", "-a", ATTESTATION]
    tpm.run("tpm2_createprimary", "-C", "e", *template, "-c", "file.ctx")
    tpm.run("tpm2_flushcontext", "-t")
    key = str(tpm.folder / "file.ctx")
    evidence = Tpm2Source(tpm.tcti, key, "sha256:7").collect(QUESTION)
    tpm.run("tpm2_flushcontext", "-t")
    assert tpm2.claims(evidence, EvidencePolicy(allow=()), NOW).report_data == QUESTION


@needs_tpm
def test_tpm_without_that_key(tpm: SoftwareTpm) -> None:
    with pytest.raises(MisconfiguredError, match=r"tpm2_quote failed with the key 0x8100ffff"):
        Tpm2Source(tpm.tcti, "0x8100ffff").collect(QUESTION)


@needs_tpm
def test_tpm_lost_between_two_questions(tmp_path: Path) -> None:
    with software_tpm(tmp_path) as own:
        source = Tpm2Source(own.tcti, own.key)
        source.collect(QUESTION)
        own.stop()
        with pytest.raises(MisconfiguredError, match="tpm2_quote failed"):
            source.collect(QUESTION)


@needs_tpm
def test_no_tpm(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="Failed to open") as refused:
        Tpm2Source(f"device:{tmp_path / 'tpm0'}", "0x81010001").collect(QUESTION)
    assert QUESTION.hex() not in str(refused.value)


def test_no_tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MisconfiguredError, match="tpm2_quote is not on the PATH; install tpm2-tools"):
        Tpm2Source(None, "0x81010001").collect(QUESTION)


def test_tool_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tool(tmp_path, "tpm2_quote", f"echo $$ > {tmp_path}/pid\nexec /bin/sleep 600")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MisconfiguredError, match=r"tpm2_quote gave no answer within 0\.5 s"):
        Tpm2Source(None, "0x81010001", timeout_s=0.5).collect(QUESTION)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 0", "cannot read .*quote"),  # says yes and writes nothing
        ("exit 3", "exit status 3"),
        ("echo 'ERROR: no' >&2; exit 1", "ERROR: no"),
    ],
)
def test_tool_that_misbehaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, said: str
) -> None:
    tool(tmp_path, "tpm2_quote", script)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MisconfiguredError, match=said):
        Tpm2Source(None, "0x81010001").collect(QUESTION)


def test_tool_that_is_no_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tpm2_quote").write_bytes(b"\x7fELF garbage")
    (tmp_path / "tpm2_quote").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MisconfiguredError, match="could not be started"):
        Tpm2Source(None, "0x81010001").collect(QUESTION)


@pytest.mark.parametrize(
    "pcrs", ["", "0,1", "sha1:0", "sha256:", "sha256:7,0", "sha256:0,0", "sha256:24", "sha256:0+sha1:0"]
)
def test_selections_that_make_no_sense(pcrs: str) -> None:
    with pytest.raises(MisconfiguredError, match="PCRs are written"):
        Tpm2Source(None, "0x81010001", pcrs)


@pytest.mark.parametrize("key", ["owner", "0x1", "--help", "", "0x40000001"])
def test_keys_that_are_none(key: str) -> None:
    with pytest.raises(MisconfiguredError, match="neither a persistent handle"):
        Tpm2Source(None, key)


# Gramine


@pytest.fixture
def gramine(tmp_path: Path) -> Path:
    """Gramine's files, as they stand before anything is asked."""
    for name, content in {"attestation_type": b"dcap", "user_report_data": b"", "quote": b"a quote"}.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_gramine(gramine: Path) -> None:
    evidence = GramineSource(gramine).collect(LONG_QUESTION)
    assert evidence.kind == GramineSource(gramine).kind == "sgx"
    assert dict(evidence.parts) == {"quote": b"a quote"}
    assert (gramine / "user_report_data").read_bytes() == LONG_QUESTION


def test_gramine_without_attestation(gramine: Path) -> None:
    (gramine / "attestation_type").write_bytes(b"none")
    with pytest.raises(MisconfiguredError, match="type is 'none'"):
        GramineSource(gramine).collect(LONG_QUESTION)
    assert (gramine / "user_report_data").read_bytes() == b""


@pytest.mark.parametrize("name", ["attestation_type", "user_report_data", "quote"])
def test_gramine_without_a_file(gramine: Path, name: str) -> None:
    (gramine / name).unlink()
    with pytest.raises(MisconfiguredError, match=name):
        GramineSource(gramine).collect(LONG_QUESTION)
    assert not (gramine / name).exists()


# configfs-tsm


def certificate_table(*entries: tuple[bytes, bytes]) -> bytes:
    """A GHCB certificate table with its terminating entry, and the certificates behind it."""
    head, body, start = b"", b"", 24 * (len(entries) + 1)
    for guid, certificate in entries:
        head += guid + struct.pack("<II", start + len(body), len(certificate))
        body += certificate
    return head + bytes(24) + body


FULL_TABLE = certificate_table((VLEK, b"ignored"), (ARK, b"ark"), (VCEK, b"vcek"), (ASK, b"ask"))


class FakeTsm:
    """configfs in a plain folder: a new directory is filled with files at once, and goes with its files.

    `inblob` and `outblob` are pipes, so that the report is made of what was written, and after it; `counted`
    is the generation that this leaves (7 at first).
    """

    def __init__(self, provider: str, auxblob: bytes = b"", counted: str = "8\n") -> None:
        self.provider, self.auxblob, self.counted = provider, auxblob, counted
        self.asked: list[bytes] = []
        self.threads: dict[Path, threading.Thread] = {}

    def mkdir(self, entry: Path) -> None:
        os.mkdir(entry)  # noqa: PTH102 (Path.mkdir is what this replaces)
        (entry / "provider").write_text(f"{self.provider}\n")
        (entry / "auxblob").write_bytes(self.auxblob)
        (entry / "generation").write_text("7\n")
        for pipe in ("inblob", "outblob"):
            os.mkfifo(entry / pipe)
        self.threads[entry] = threading.Thread(target=self._serve, args=(entry,), daemon=True)
        self.threads[entry].start()

    def rmdir(self, entry: Path) -> None:
        while self.threads[entry].is_alive():  # if nobody wrote, an end without a byte lets the thread go
            with suppress(OSError):
                os.close(os.open(entry / "inblob", os.O_WRONLY | os.O_NONBLOCK))
            self.threads[entry].join(timeout=0.01)
        for file in entry.iterdir():
            file.unlink()
        os.rmdir(entry)  # noqa: PTH106

    def _serve(self, entry: Path) -> None:
        question = (entry / "inblob").read_bytes()
        if question:
            self.asked.append(question)
            (entry / "generation").write_text(self.counted)
            (entry / "outblob").write_bytes(b"report for " + question)


@pytest.fixture
def configfs(monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeTsm], FakeTsm]:
    """Make directories become entries of the given fake."""

    def put(fake: FakeTsm) -> FakeTsm:
        monkeypatch.setattr(Path, "mkdir", lambda entry: fake.mkdir(entry))
        monkeypatch.setattr(Path, "rmdir", lambda entry: fake.rmdir(entry))
        return fake

    return put


Put = Callable[[FakeTsm], FakeTsm]


def test_tdx(tmp_path: Path, configfs: Put) -> None:
    fake = configfs(FakeTsm("tdx_guest"))
    source = TsmSource(tmp_path)
    assert source.kind == "tdx"
    evidence = source.collect(LONG_QUESTION)
    assert (evidence.kind, dict(evidence.parts)) == ("tdx", {"quote": b"report for " + LONG_QUESTION})
    assert fake.asked == [LONG_QUESTION]
    assert list(tmp_path.iterdir()) == []


def test_snp_brings_its_certificates(tmp_path: Path, configfs: Put) -> None:
    configfs(FakeTsm("sev_guest", FULL_TABLE))
    evidence = TsmSource(tmp_path).collect(LONG_QUESTION)
    assert evidence.kind == "snp"
    assert dict(evidence.parts) == {
        "report": b"report for " + LONG_QUESTION,
        "vcek": b"vcek",
        "ask": b"ask",
        "ark": b"ark",
    }


def test_each_question_has_an_entry_of_its_own(tmp_path: Path, configfs: Put) -> None:
    fake = configfs(FakeTsm("tdx_guest"))
    source = TsmSource(tmp_path)
    for _ in range(3):
        source.collect(LONG_QUESTION)
    assert len({entry.name for entry in fake.threads}) == 4  # one more to learn the provider, once


@pytest.mark.parametrize("counted", ["9\n", "7\n", "", "many\n", "-8\n"])
def test_report_that_another_process_changed(tmp_path: Path, configfs: Put, counted: str) -> None:
    configfs(FakeTsm("tdx_guest", counted=counted))
    with pytest.raises(MisconfiguredError, match="another process"):
        TsmSource(tmp_path).collect(LONG_QUESTION)
    assert list(tmp_path.iterdir()) == []


def test_unknown_provider(tmp_path: Path, configfs: Put) -> None:
    configfs(FakeTsm("arm_cca_guest"))
    with pytest.raises(MisconfiguredError, match="'arm_cca_guest'"):
        _ = TsmSource(tmp_path).kind


def test_no_configfs(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match="configfs mounted"):
        TsmSource(tmp_path / "absent").collect(LONG_QUESTION)


def test_folder_that_no_kernel_fills(tmp_path: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"cannot read .*provider"):
        TsmSource(tmp_path).collect(LONG_QUESTION)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("gone", [VCEK, ASK, ARK])
def test_certificate_that_the_host_lacks(gone: bytes) -> None:
    names = {VCEK: "vcek", ASK: "ask", ARK: "ark"}
    table = certificate_table(*((guid, b"der") for guid in names if guid != gone))
    with pytest.raises(MisconfiguredError, match=f"no {names[gone]} certificate"):
        certificates_of(table)


@pytest.mark.parametrize("table", [b"", bytes(24), bytes(4096), certificate_table((VLEK, b"der"))])
def test_host_without_certificates(table: bytes) -> None:
    with pytest.raises(MisconfiguredError, match="no vcek, ask, ark certificate"):
        certificates_of(table)


def test_every_truncated_table_is_refused() -> None:
    assert set(certificates_of(FULL_TABLE)) == {"vcek", "ask", "ark"}
    for end in range(len(FULL_TABLE)):
        with pytest.raises(MisconfiguredError):
            certificates_of(FULL_TABLE[:end])


def test_certificate_outside_the_table_is_refused() -> None:
    for offset, length in [(0xFFFFFFFF, 1), (24, 0xFFFFFFFF), (48, 1)]:
        with pytest.raises(MisconfiguredError, match="cut short"):
            certificates_of(VCEK + struct.pack("<II", offset, length) + bytes(24))


# The choice


def test_development_evidence_carries_the_report_data() -> None:
    evidence = InsecureDevEvidence().collect(LONG_QUESTION)
    assert (evidence.kind, dict(evidence.parts)) == ("insecure-dev", {"report_data": LONG_QUESTION})


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which nothing is: `gramine` and `tsm` in the folder are where the platforms would be."""
    monkeypatch.setattr(source_module, "GRAMINE", tmp_path / "gramine")
    monkeypatch.setattr(source_module, "TSM", tmp_path / "tsm")
    return tmp_path


def test_auto_takes_gramine_then_tsm_then_a_tpm(platform: Path) -> None:
    tpm = source_of("auto", tpm_key="0x81010001", tcti="device:/dev/tpmrm0", pcrs="sha256:7")
    assert tpm == Tpm2Source("device:/dev/tpmrm0", "0x81010001", "sha256:7")
    (platform / "tsm").mkdir()
    assert source_of("auto", tpm_key="0x81010001") == TsmSource(platform / "tsm")
    (platform / "gramine").mkdir()
    assert source_of("auto", tpm_key="0x81010001") == GramineSource(platform / "gramine")


def test_auto_never_takes_the_fake(platform: Path) -> None:
    with pytest.raises(MisconfiguredError, match=r"no TPM key.*neither .*gramine nor .*tsm"):
        source_of("auto")


def test_named_sources(platform: Path) -> None:
    sources: list[EvidenceSource] = [
        source_of("gramine"),
        source_of("tsm"),
        source_of("tpm2", tpm_key="0x81010001"),
        source_of("insecure-dev"),
    ]
    assert [type(one) for one in sources] == [GramineSource, TsmSource, Tpm2Source, InsecureDevEvidence]
    for absent in sources[:2]:
        with pytest.raises(MisconfiguredError, match=str(platform)):
            absent.collect(LONG_QUESTION)


def test_tpm_needs_a_key() -> None:
    with pytest.raises(MisconfiguredError, match="no TPM key is given"):
        source_of("tpm2")
