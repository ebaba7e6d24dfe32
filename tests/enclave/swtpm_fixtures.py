"""A real software TPM (swtpm) for tests, with attestation keys and PCRs under the test's control."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ATTESTATION = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
_TOOLS = (
    "swtpm",
    "tpm2_createprimary",
    "tpm2_evictcontrol",
    "tpm2_pcrextend",
    "tpm2_quote",
    "tpm2_readpublic",
)


def absent() -> list[str]:
    """The programs a software TPM needs that are not on the PATH."""
    return [tool for tool in _TOOLS if shutil.which(tool) is None]


PACKAGES = "swtpm swtpm-tools tpm2-tools"
needs_tpm = pytest.mark.skipif(
    bool(absent()), reason=f"not installed: {', '.join(absent())}; to bring them: apt-get install {PACKAGES}"
)


@dataclass(frozen=True)
class SoftwareTpm:
    """A running TPM: `tcti` reaches it, `key` is an attestation key's handle, `public` its TPM2B_PUBLIC."""

    tcti: str
    folder: Path
    process: subprocess.Popen[bytes]
    key: str = "0x81010001"

    @property
    def public(self) -> bytes:
        """The attestation key, as it goes into evidence."""
        return self.read_public(self.key)

    def run(self, tool: str, *arguments: str) -> None:
        """One tpm2-tools call."""
        done = subprocess.run(
            [tool, "-T", self.tcti, "-Q", *arguments], cwd=self.folder, capture_output=True, timeout=30
        )
        assert done.returncode == 0, done.stderr.decode()

    def make_key(
        self, handle: str, attributes: str = ATTESTATION, kind: str = "ecc256:ecdsa-sha256:null"
    ) -> str:
        """A new primary signing key under the owner hierarchy, kept at `handle`."""
        template = ["-G", kind, "-a", attributes, "-u", self._unique()]
        self.run("tpm2_createprimary", "-C", "o", *template, "-c", "key.ctx")
        self.run("tpm2_evictcontrol", "-C", "o", "-c", "key.ctx", handle)
        self.run("tpm2_flushcontext", "-t")  # no resource manager does it
        return handle

    def extend(self, pcr: int, digest: bytes) -> None:
        """Extend a PCR of the SHA-256 bank by 32 bytes."""
        self.run("tpm2_pcrextend", f"{pcr}:sha256={digest.hex()}")

    def read_public(self, key: str) -> bytes:
        """The TPM2B_PUBLIC of a key."""
        self.run("tpm2_readpublic", "-c", key, "-f", "tss", "-o", "key.pub")
        return (self.folder / "key.pub").read_bytes()

    def stop(self) -> None:
        """End the TPM, as a machine loses it."""
        self.process.terminate()
        self.process.wait(timeout=10)

    def _unique(self) -> str:
        """Primary keys are derived from a seed and their template; a random template gives another key."""
        path = self.folder / "unique"
        path.write_bytes((32).to_bytes(2, "little") + os.urandom(32) + (32).to_bytes(2, "little") + bytes(32))
        return str(path)


@contextmanager
def software_tpm(folder: Path) -> Iterator[SoftwareTpm]:
    """Start a TPM with fresh state in `folder`, make one attestation key, and end the TPM at the end."""
    state = folder / "tpm-state"
    state.mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="tpm-") as sockets:  # a socket's path must be short
        server, control = Path(sockets) / "s", Path(sockets) / "s.ctrl"
        options = ["--server", f"type=unixio,path={server}", "--ctrl", f"type=unixio,path={control}"]
        options += ["--flags", "not-need-init,startup-clear"]
        process = subprocess.Popen(
            ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline = time.monotonic() + 10
            while not (server.exists() and control.exists()):
                assert process.poll() is None, "swtpm ended at once"
                assert time.monotonic() < deadline, "swtpm did not open its sockets"
                time.sleep(0.01)
            tpm = SoftwareTpm(tcti=f"swtpm:path={server}", folder=folder, process=process)
            tpm.make_key(tpm.key)
            yield tpm
        finally:
            process.terminate()
            process.wait(timeout=10)
