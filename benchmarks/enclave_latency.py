"""What mode enclave costs: its own steps at 256 tokens, a whole request against plain mode, a key release.

    python benchmarks/enclave_latency.py [--quick] [--json]

The packaged model is packed and opened as a user would. `added_ms_median` is the time of the mode's own steps
(sanitise, charge a durable ledger, template and tokenise, check and look rows up, encode them for the wire)
in requests of about 256 tokens to an echo that takes embeddings, over TLS to a pinned key; the engine's time
is not in it. `end_to_end_added_ms_median` is the whole request less the same ids sent to the echo directly.
`overhead_ratio` compares mode enclave with plain mode on the embedded engine, 32 greedy tokens.
`words_share_of_inference_pct` is what sanitising the words (lexing, kinds, draws, placeholders) takes of a
whole request on the embedded engine, about 256 prompt tokens and up to 64 answer tokens; the method's authors
report 0.6 to 0.74 % on their machine and models. No two timed requests are equal: a repeated one would be
answered with its first draws.
`key_release_ms` runs from before the nonce is asked for until the data key is in memory, with a software
TPM's quote (swtpm, tpm2-tools; null without them). `bytes_up_ratio`: request bytes to those of the ids as
JSON.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from _bench import parser, report
from transom.enclave.bundle import pack
from transom.enclave.client import obtain_key
from transom.enclave.log import ReleaseLog
from transom.enclave.owner import Owner
from transom.enclave.policy import EvidencePolicy, Rule
from transom.enclave.source import BOOT_PCRS, Tpm2Source
from transom.enclave.table import open_table
from transom.net.listen import Tls, serve_in_thread
from transom.net.pin import KeyPin, make_certificate
from transom.privacy.ledger import Ledger
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.client import IdsEngine
from transom.serving.engines.embeds import as_safetensors
from transom.serving.engines.http import Pinned
from transom.serving.gateway.app import create_gateway
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.enclave import Enclave, ExtractionMeter
from transom.serving.tokenizer import load_tokenizer

PROMPT_TOKENS = 256
ANSWER_TOKENS = 32
SHARE_ANSWER_TOKENS = 64
TARGETS = {"words_share_of_inference_pct": "<= 0.74"}
KEY = "0x81010001"
SENTENCE = "The weather in the mountains was cold and the old bridge near our village was closed for repair. "


@contextmanager
def engine(model: str, folder: Path, *options: str) -> Iterator[str]:
    """`transom engine` in its own process, with TLS; yields its URL."""
    command = [sys.executable, "-m", "transom.cli.main", "engine", model, "--port", "0", *options]
    command += ["--tls-cert", str(folder / "tls.pem"), "--tls-key", str(folder / "tls.key")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            for line in running.stderr:
                if found := re.search(r"https://127\.0\.0\.1:\d+", line):
                    yield found[0]
                    return
            raise SystemExit("the engine did not start")
        finally:
            running.kill()


class Session:
    """One kept connection; `post` returns the answer and its milliseconds."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme == "https":
            context = ssl._create_unverified_context()  # noqa: S323  our own server; what is timed is the way
            self._connection: Any = http.client.HTTPSConnection(parts.netloc, timeout=120, context=context)
        else:
            self._connection = http.client.HTTPConnection(parts.netloc, timeout=120)

    def post(self, path: str, body: dict[str, Any], **headers: str) -> tuple[dict[str, Any], float]:
        data = json.dumps(body)
        start_s = time.perf_counter()
        self._connection.request("POST", path, data, {"Content-Type": "application/json", **headers})
        answer = self._connection.getresponse()
        content = answer.read()
        elapsed_ms = (time.perf_counter() - start_s) * 1e3
        if answer.status != 200:
            raise SystemExit(f"{path} answered {answer.status}")
        return json.loads(content), elapsed_ms

    def steps(self) -> dict[str, float]:
        """Milliseconds in each step of all requests so far."""
        self._connection.request("GET", "/metrics")
        text = self._connection.getresponse().read().decode()
        found = re.findall(r'transom_step_seconds_total\{step="(\w+)"\} (\S+)', text)
        return {name: float(value) * 1e3 for name, value in found}


def chat(tokens: int, text: str = "") -> dict[str, Any]:
    message = {"role": "user", "content": text or SENTENCE * 16}
    return {"model": "transom", "messages": [message], "max_tokens": tokens, "temperature": 0}


def numbered(prompt: str, number: int) -> str:
    """`prompt` as a text of its own: the gateway answers an equal request of one account from its memory."""
    return f"{number}. {prompt}"


def prompt_of(tokenizer: Any, ids: int) -> str:
    """A text whose rendered prompt, once sanitised, is close to `ids` tokens."""
    words = (SENTENCE * 40).split()
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        text = numbered(" ".join(words[:middle]), 0)
        length = len(tokenizer.encode_chat([("user", text)]).ids)
        low, high = (middle, high) if length <= ids else (low, middle - 1)
    return " ".join(words[:low])


def own_steps(url: str, direct_url: str, prompt: str, runs: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median milliseconds of each step, and of whole requests through the gateway and directly."""
    gateway, direct = Session(url), Session(direct_url)
    first = chat(1, numbered(prompt, runs))
    shown, _ = gateway.post("/v1/chat/completions", first, **{"X-Transom-Show-Host": "1"})
    ids = shown["transom"]["host_token_ids"]
    steps: dict[str, list[float]] = {}
    whole: dict[str, list[float]] = {"gateway": [], "direct": []}
    before = gateway.steps()
    for number in range(runs):
        _, elapsed_ms = gateway.post("/v1/chat/completions", chat(1, numbered(prompt, number)))
        whole["gateway"].append(elapsed_ms)
        after = gateway.steps()
        for name in after:
            steps.setdefault(name, []).append(after[name] - before[name])
        before = after
        body = {"model": "smollm2", "prompt": ids, "max_tokens": 1, "return_token_ids": True}
        whole["direct"].append(direct.post("/v1/completions", body)[1])
    medians = {name: statistics.median(values) for name, values in steps.items()}
    del medians["engine"]
    return medians, {name: statistics.median(values) for name, values in whole.items()} | {"ids": len(ids)}


def encode_ms(table: Any, tokens: int, runs: int) -> tuple[float, float]:
    """Median milliseconds to write rows as the request's JSON, and its bytes over those of the ids."""
    ids = np.random.default_rng(0).integers(0, table.rows_count, tokens)
    rows_TD, took = table.rows(ids), []
    for _ in range(runs):
        start_s = time.perf_counter()
        body = json.dumps({"prompt_embeds": as_safetensors(rows_TD)}).encode()
        took.append((time.perf_counter() - start_s) * 1e3)
    return statistics.median(took), len(body) / len(json.dumps({"prompt": ids.tolist()}))


def overhead_ratio(url: str, plain_url: str, prompt: str, runs: int) -> float:
    """Median whole request in mode enclave over the same sanitised words in plain mode."""
    took: dict[str, list[float]] = {"enclave": [], "plain": []}
    for number in range(runs):
        enclave, plain = Session(url), Session(plain_url)  # a server drops connections idle for seconds
        shown, elapsed_ms = enclave.post(
            "/v1/chat/completions",
            chat(ANSWER_TOKENS, numbered(prompt, number)),
            **{"X-Transom-Show-Host": "1"},
        )
        took["enclave"].append(elapsed_ms)
        saw = re.search(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", shown["transom"]["host_saw"], re.S)
        assert saw is not None
        took["plain"].append(plain.post("/v1/chat/completions", chat(ANSWER_TOKENS, saw[1]))[1])
    return statistics.median(took["enclave"]) / statistics.median(took["plain"])


def words_share(url: str, prompt: str, runs: int) -> dict[str, float]:
    """Medians over whole requests in mode enclave: percent that sanitising takes, its ms, all ms, tokens."""
    taken: dict[str, list[float]] = {}
    for number in range(runs):
        gateway = Session(url)
        before = gateway.steps().get("text", 0.0)
        answer, whole_ms = gateway.post(
            "/v1/chat/completions", chat(SHARE_ANSWER_TOKENS, numbered(prompt, runs + number))
        )
        text_ms = gateway.steps()["text"] - before
        one = {"pct": 100 * text_ms / whole_ms, "text_ms": text_ms, "whole_ms": whole_ms}
        for name, value in (one | answer["usage"]).items():
            taken.setdefault(name, []).append(value)
    return {name: statistics.median(values) for name, values in taken.items()}


@contextmanager
def software_tpm(folder: Path) -> Iterator[str | None]:
    """A software TPM with one attestation key; yields its TCTI, or None where the tools are absent."""
    if not all(map(shutil.which, ("swtpm", "tpm2_createprimary", "tpm2_evictcontrol", "tpm2_quote"))):
        yield None
        return
    server, control = folder / "s", folder / "s.ctrl"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--server"]
    command += [f"type=unixio,path={server}", "--ctrl", f"type=unixio,path={control}"]
    with subprocess.Popen([*command, "--flags", "not-need-init,startup-clear"]) as running:
        while not (server.exists() and control.exists()):
            time.sleep(0.01)
        tcti = f"swtpm:path={server}"
        attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
        context = str(folder / "key.ctx")
        for tool in (
            [
                "tpm2_createprimary",
                "-C",
                "o",
                "-G",
                "ecc256:ecdsa-sha256:null",
                "-a",
                attributes,
                "-c",
                context,
            ],
            ["tpm2_evictcontrol", "-C", "o", "-c", context, KEY],
            ["tpm2_flushcontext", "-t"],
        ):
            subprocess.run([tool[0], "-T", tcti, "-Q", *tool[1:]], check=True)
        try:
            yield tcti
        finally:
            running.kill()


def key_release_ms(folder: Path, owner: Owner, tcti: str, tls: Tls, pin: KeyPin, runs: int) -> list[float]:
    """Milliseconds from asking for a nonce to the key in memory, once a run."""
    from datetime import UTC, datetime

    from transom.enclave import tpm2
    from transom.enclave.broker import create_broker

    source = Tpm2Source(tcti, KEY, BOOT_PCRS)
    claims = tpm2.claims(source.collect(bytes(32)), EvidencePolicy(allow=()), datetime.now(UTC))
    rules = (Rule("tpm2", dict(claims.registers)),)
    policy_sha256 = load_policy(None).sha256
    manifest = pack(
        "smollm2", folder / "tpm-bundle", owner, production=False, rules=rules, policy_sha256=policy_sha256
    )
    log = ReleaseLog(folder / "releases.jsonl")
    app = create_broker(owner, {manifest.bundle: manifest}, EvidencePolicy(rules), log)
    took = []
    with serve_in_thread(app, tls=tls) as url:
        for _ in range(runs):
            start_s = time.perf_counter()
            asyncio.run(obtain_key(url, manifest, owner.public_key, source, policy_sha256, ssl=pin))
            took.append((time.perf_counter() - start_s) * 1e3)
    return took


def main() -> None:
    """Measure, print the table, store the record."""
    args = parser(__doc__).parse_args()
    runs = 15 if args.quick else 200
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pin, policy = make_certificate(folder), load_policy(None)
        tls = Tls(folder / "tls.pem", folder / "tls.key")
        owner = Owner(folder / "owner")
        rule = Rule("insecure-dev")
        manifest = pack(
            "smollm2", folder / "bundle", owner, production=False, rules=(rule,), policy_sha256=policy.sha256
        )
        tokenizer = load_tokenizer(folder / "bundle" / "client")
        table = open_table(folder / "bundle" / "client", manifest, owner.data_key(manifest.bundle))
        prompt = prompt_of(tokenizer, PROMPT_TOKENS)

        def gateway(engine_url: str, mode: Any) -> str:
            client = IdsEngine(engine_url, guard=Pinned(pin))
            if mode == "plain":
                return str(
                    stack.enter_context(serve_in_thread(create_gateway(GatewayConfig(), client, tokenizer)))
                )
            opened = Enclave(table, ExtractionMeter(manifest.rows, 1.0), manifest.model, "none", "")
            book = stack.enter_context(Ledger(folder / f"ledger-{len(engine_url)}-{time.time_ns()}", 1e9))
            app = create_gateway(GatewayConfig(mode=mode), client, tokenizer, Sanitizer(policy), book, opened)
            return str(stack.enter_context(serve_in_thread(app)))

        echo = stack.enter_context(
            engine("echo", folder, "--name", "smollm2", "--width", str(manifest.width))
        )
        steps, whole = own_steps(gateway(echo, "enclave"), echo, prompt, runs)
        steps["encode"], bytes_up_ratio = encode_ms(table, int(whole["ids"]), runs)
        real = stack.enter_context(
            engine(str(folder / "bundle" / "server"), folder, "--name", "smollm2", "--device", args.device)
        )
        protected, whole_runs = gateway(real, "enclave"), 3 if args.quick else 10
        ratio = overhead_ratio(protected, gateway(real, "plain"), prompt, whole_runs)
        share = words_share(protected, prompt, whole_runs)
        tpm_folder = stack.enter_context(tempfile.TemporaryDirectory())
        tcti = stack.enter_context(software_tpm(Path(tpm_folder)))
        release = key_release_ms(folder, owner, tcti, tls, pin, 5 if args.quick else 50) if tcti else []
    added = sum(steps.values())
    record = {
        "added_ms_median": added,
        "prompt_tokens": whole["ids"],
        "steps_ms": steps,
        "end_to_end_added_ms_median": whole["gateway"] - whole["direct"],
        "bytes_up_ratio": bytes_up_ratio,
        "overhead_ratio": ratio,
        "words_share_of_inference_pct": share["pct"],
        "words_share_text_ms": share["text_ms"],
        "words_share_whole_ms": share["whole_ms"],
        "words_share_prompt_tokens": share["prompt_tokens"],
        "words_share_answer_tokens": share["completion_tokens"],
        "key_release_ms": statistics.median(release) if release else None,
        "key_release_ms_max": max(release, default=None),
        "runs": runs,
    }
    rows = [{"step": name, "ms": value, "share": value / added} for name, value in steps.items()]
    rows += [
        {"step": name, "ms": record[name]}
        for name in ("added_ms_median", "end_to_end_added_ms_median", "key_release_ms")
    ]
    rows.append({"step": "overhead_ratio", "ms": ratio})
    rows += [{"step": name, "ms": value} for name, value in record.items() if name.startswith("words_share")]
    rows = [row | {"target": TARGETS.get(str(row["step"]), "")} for row in rows]
    report("enclave_latency", record, rows, args)


if __name__ == "__main__":
    main()
