"""The whole way in its own processes, as in a deployment: TPM, pack, broker, engine, gateway, client.

Every connection between them goes through a relay that records it. The user's machine is everything but the
engine; its enclave is the gateway's process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from transom.cli.main import run
from transom.net.listen import serve_in_thread
from transom.net.pin import format_pin, make_certificate, parse_pin
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.http import Pinned
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.tokenizer import load_tokenizer

from .search import Searcher, file_blocks, memory_blocks, needles
from .swtpm_fixtures import needs_tpm, software_tpm

HERE = Path(__file__).parent
PCR = "sha256:0,7,16"
QUESTION = "What did Marguerite eat with 4815 friends after the quokka was fed?"
CLIENT = """
import json, sys
from openai import OpenAI
client = OpenAI(base_url=sys.argv[1] + "/v1", api_key="none")
response = client.chat.completions.with_raw_response.create(
    model="transom", messages=[{"role": "user", "content": sys.argv[2]}], temperature=0, max_tokens=24,
    extra_headers={"X-Transom-Show-Host": "1"},
)
answer = response.parse()
print(json.dumps({"answer": answer.choices[0].message.content, "transom": answer.model_extra["transom"],
                  "trust": response.headers["x-transom-trust"]}), flush=True)
sys.stdin.read()
"""

pytestmark = [needs_tpm, pytest.mark.timeout(600)]


@dataclass
class Deployment:
    """Everything that runs, and where it keeps its files."""

    folder: Path
    processes: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    urls: dict[str, str] = field(default_factory=dict)
    recordings: list[Path] = field(default_factory=list)
    pins: dict[str, str] = field(default_factory=dict)
    said: dict[str, object] = field(default_factory=dict)

    def start(self, name: str, *command: str) -> subprocess.Popen[str]:
        with (self.folder / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                cwd=self.folder, env=os.environ | {"TMPDIR": str(self.folder / "user" / "tmp")},
            )  # fmt: skip
        self.processes[name] = process
        return process

    def command(self, name: str, *arguments: str) -> str:
        """Start `transom ...` and wait for the URL it announces."""
        self.start(name, sys.executable, "-m", "transom.cli.main", *arguments)
        self.urls[name] = self.announced(name)
        return self.urls[name]

    def announced(self, name: str) -> str:
        log, deadline = self.folder / f"{name}.log", time.monotonic() + 180
        while time.monotonic() < deadline:
            if found := re.search(r"https?://127\.0\.0\.1:\d+", log.read_text()):
                return found[0]
            assert self.processes[name].poll() is None, f"{name} ended: {log.read_text()[-2000:]}"
            time.sleep(0.05)
        raise AssertionError(f"{name} did not start: {log.read_text()[-2000:]}")

    def relayed(self, name: str) -> str:
        """The URL of a recording relay in front of a service."""
        record = self.folder / f"{name}.wire"
        target = self.urls[name].removeprefix("https://").removeprefix("http://")
        relay = self.start(f"{name}-relay", sys.executable, str(HERE / "relay.py"), target, str(record))
        assert relay.stdout is not None
        self.recordings.append(record)
        scheme = self.urls[name].partition(":")[0]
        return f"{scheme}://127.0.0.1:{int(relay.stdout.readline())}"

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            with process:  # closes its pipes
                process.wait()


def transom(*arguments: str) -> None:
    assert run([str(argument) for argument in arguments]) == 0


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("way")
    running = Deployment(folder)
    (folder / "user" / "tmp").mkdir(parents=True)
    with ExitStack() as stack:
        tpm = stack.enter_context(software_tpm(folder / "tpm"))
        stack.callback(running.stop)
        for name in ("engine", "broker"):
            running.pins[name] = format_pin(make_certificate(folder / name).fingerprint)
        policy = folder / "accept.yaml"
        policy.write_text(json.dumps({"allow": [tpm_rule(tpm)]}))
        transom(
            "pack", "smollm2", "--out", folder / "bundle", "--owner", folder / "owner", "--evidence-policy",
            policy, "--server-pin", running.pins["engine"],
        )  # fmt: skip
        transom("pack", "verify", folder / "bundle", "--owner-key", folder / "owner" / "owner.pub")
        running.command(
            "engine", "engine", "bundle/server", "--name", "smollm2", "--port", "0",
            "--tls-cert", "engine/tls.pem", "--tls-key", "engine/tls.key",
        )  # fmt: skip
        running.command(
            "broker", "broker", "--owner", "owner", "--bundle", "bundle/client",
            "--evidence-policy", str(policy), "--log", "releases.jsonl",
            "--tls-cert", "broker/tls.pem", "--tls-key", "broker/tls.key",
            "--port", "0",
        )  # fmt: skip
        user = folder / "user"
        (folder / "bundle" / "client").rename(user / "bundle")
        (folder / "owner" / "owner.pub").rename(user / "owner.pub")
        running.command(
            "gateway", "gateway", "--mode", "enclave", "--bundle", "user/bundle",
            "--owner-key", "user/owner.pub", "--broker", running.relayed("broker"),
            "--broker-pin", running.pins["broker"], "--engine", running.relayed("engine"),
            "--engine-kind", "transom", "--evidence", "tpm2", "--tpm-tcti", tpm.tcti, "--tpm-key", tpm.key,
            "--tpm-pcrs", PCR, "--ledger", "user/spent.sqlite", "--port", "0",
        )  # fmt: skip
        client = running.start("client", sys.executable, "-c", CLIENT, running.relayed("gateway"), QUESTION)
        assert client.stdout is not None
        running.said = json.loads(client.stdout.readline() or (folder / "client.log").read_text())
        running.processes["tpm"] = tpm.process  # type: ignore[assignment]
        yield running
        del running.processes["tpm"]  # ended by its own context


def tpm_rule(tpm: object) -> dict[str, object]:
    """A rule for the TPM as it is now: its claims, read from a quote of our own."""
    from datetime import UTC, datetime

    from transom.enclave import tpm2
    from transom.enclave.policy import EvidencePolicy
    from transom.enclave.source import source_of

    source = source_of("tpm2", tcti=tpm.tcti, tpm_key=tpm.key, pcrs=PCR)  # type: ignore[attr-defined]
    claims = tpm2.claims(source.collect(bytes(32)), EvidencePolicy(allow=()), datetime.now(UTC))
    return {"kind": "tpm2", "registers": dict(claims.registers)}


@pytest.fixture(scope="module")
def searcher(deployment: Deployment) -> Searcher:
    """For 200 random rows of the table, in every form in which a process might hold one."""
    return Searcher(needles(table_rows(deployment)))


def table_rows(deployment: Deployment) -> np.ndarray:
    from safetensors import safe_open

    shard = deployment.folder / "bundle" / "server" / "model.safetensors"
    with safe_open(shard, "np") as tensors:
        table_VD = tensors.get_slice("model.embed_tokens.weight")
        chosen = np.random.default_rng(0).choice(table_VD.get_shape()[0], 200, replace=False)
        return np.concatenate([table_VD[int(row) : int(row) + 1] for row in chosen])


def test_the_host_saw_sanitised_words_only(deployment: Deployment) -> None:
    said, seen = deployment.said, deployment.said["transom"]
    assert isinstance(seen, dict)
    assert (seen["mode"], seen["trust"], said["trust"]) == ("enclave", "boot-state", "boot-state")
    assert not {"Marguerite", "4815", "quokka"} & set(re.findall(r"\w+", seen["host_saw"]))
    assert seen["epsilon_spent"] > 0
    assert seen["epsilon_total"] == pytest.approx(seen["epsilon_spent"])


def test_the_answer_equals_plain_modes(deployment: Deployment) -> None:
    """The same sanitised words, sent in plain mode as token ids to the same engine, get the same answer."""
    from openai import OpenAI

    seen = deployment.said["transom"]
    assert isinstance(seen, dict)
    words = re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", seen["host_saw"], re.S)
    assert words is not None
    tokenizer = load_tokenizer(deployment.folder / "user" / "bundle")
    engine = IdsEngine(deployment.urls["engine"], guard=Pinned(parse_pin(deployment.pins["engine"])))
    with (
        serve_in_thread(create_gateway(GatewayConfig(mode="plain"), engine, tokenizer)) as url,
        OpenAI(base_url=f"{url}/v1", api_key="none") as client,
    ):
        plain = client.chat.completions.create(
            model="transom",
            messages=[{"role": "user", "content": words[1]}],
            temperature=0,
            max_tokens=24,
            extra_headers={"X-Transom-Show-Host": "1"},
        )
    assert plain.model_extra is not None
    assert plain.model_extra["transom"]["host_token_ids"] == seen["host_token_ids"]
    restored = plain.choices[0].message.content or ""
    hidden = re.findall(r"\[\w+\]|\w+", words[1])
    for placeholder, value in zip(hidden, re.findall(r"\w+", QUESTION), strict=True):
        if placeholder.startswith("["):
            restored = restored.replace(placeholder, value)
            restored = restored.replace(placeholder.strip("[]"), value)  # where the limit cut it
    answer = re.sub(r"\[(\w+)\?\]", r"[\1]", str(deployment.said["answer"]))  # the model made one up
    assert answer == restored
    assert len(restored) > 10


def test_no_row_on_the_wire(deployment: Deployment, searcher: Searcher) -> None:
    for record in deployment.recordings:
        assert record.stat().st_size > 500, record.name
        assert sum(map(searcher.count, file_blocks(record, searcher.longest))) == 0, record.name


def test_no_row_in_the_users_files(deployment: Deployment, searcher: Searcher) -> None:
    files = [path for path in (deployment.folder / "user").rglob("*") if path.is_file()]
    files += [*deployment.folder.glob("*.log"), deployment.folder / "releases.jsonl"]
    assert {"spent.sqlite", "manifest.json", "releases.jsonl"} <= {path.name for path in files}
    for path in files:
        assert sum(map(searcher.count, file_blocks(path, searcher.longest))) == 0, path.name


def test_no_row_in_the_memory_of_any_process_but_the_enclave(
    deployment: Deployment, searcher: Searcher
) -> None:
    def rows_in(name: str) -> int:
        pid = deployment.processes[name].pid
        return sum(map(searcher.count, memory_blocks(pid, searcher.longest)))

    # The method finds what is there: nearly every row is one stretch of the enclave's memory.
    assert rows_in("gateway") >= 190
    others = sorted(set(deployment.processes) - {"gateway", "engine"})  # the engine is the owner's machine
    assert {"broker", "client", "tpm", "broker-relay", "engine-relay", "gateway-relay"} <= set(others)
    assert {name: rows_in(name) for name in others} == dict.fromkeys(others, 0)


def test_the_search_finds_rows_in_every_form(deployment: Deployment) -> None:
    """The oracle's own test: a row is found raw or in base64, at any alignment, its neighbours are not."""
    import base64

    rows_ND = table_rows(deployment)
    search = Searcher(needles(rows_ND[:1]))
    for form in ("<f4", "<f2"):
        raw = rows_ND[0].astype(form).tobytes()
        assert all(search.count(bytes(shift) + raw) for shift in range(4))
        assert all(search.count(base64.b64encode(b"x" * shift + raw)) for shift in range(6))
    assert search.count(rows_ND[1:].astype("<f4").tobytes()) == 0


def test_the_release_is_in_an_unbroken_log(deployment: Deployment) -> None:
    transom("broker-log", deployment.folder / "releases.jsonl")
    entries = [json.loads(line) for line in (deployment.folder / "releases.jsonl").read_text().splitlines()]
    assert [(entry["kind"], entry["trust"], entry["decision"]) for entry in entries] == [
        ("tpm2", "boot-state", "released")
    ]
