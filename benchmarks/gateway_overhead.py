"""What the gateway costs: latency added, requests a second beside LiteLLM's, memory over 10,000 requests.

    python benchmarks/gateway_overhead.py [--quick] [--json] [--litellm-python /path/to/venv/bin/python]

Gateway and LiteLLM's proxy take turns on core 0; the echo upstream and wrk, the load, are on core 1, all in
one run. Chat requests of one short message, with template and tokenisation, keep-alive. Needs wrk
(apt-get install wrk) and, for the comparison, an environment with litellm[proxy]. A quick run watches memory
over 2,000 requests only.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from _bench import parser, report

GATEWAY_CORE, LOAD_CORE = 0, max(0, min(1, (os.cpu_count() or 1) - 1))
CONNECTIONS = 32
PROMPT_TOKENS = 512
FIRST_TOKEN_S = 0.2
ANSWER_TOKENS = 16


def serve_echo(port: int, first_token_s: float) -> None:
    """The upstream: an echo without delays, or with a fixed first token."""
    from transom.serving.engines.echo import EchoEngine
    from transom.serving.local import listen, serve

    serve(
        EchoEngine(record=False, first_token_s=first_token_s, chunk_tokens=64).app(),
        listen("127.0.0.1", port),
    )


def serve_gateway(port: int, upstream: int, mode: str, folder: str) -> None:
    """The gateway, with the packaged model's tokenizer and template; mode words with the durable ledger."""
    from transom.privacy.ledger import Ledger
    from transom.privacy.policy import load_policy
    from transom.privacy.sanitize import Sanitizer
    from transom.serving.engines.client import IdsEngine
    from transom.serving.gateway.app import create_gateway
    from transom.serving.gateway.config import GatewayConfig
    from transom.serving.local import listen, serve
    from transom.serving.tokenizer import load_tokenizer

    engine, tokenizer = IdsEngine(f"http://127.0.0.1:{upstream}"), load_tokenizer("smollm2")
    if mode == "words":
        ledger = Ledger(Path(folder) / f"ledger-{port}", 1e9)
        sanitizer = Sanitizer(load_policy())
        app = create_gateway(GatewayConfig(mode="words"), engine, tokenizer, sanitizer, ledger)
    else:
        app = create_gateway(GatewayConfig(), engine, tokenizer)
    serve(app, listen("127.0.0.1", port))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(core: int, port: int, *command: str, wait_s: float = 90.0) -> Iterator[int]:
    """A server in its own process, pinned to `core`; yields its process id once it answers on `port`."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "LITELLM_LOG": "ERROR",
        "TOKENIZERS_PARALLELISM": "false",
    }
    running = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        deadline = time.monotonic() + wait_s
        while not answers(port):
            if running.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{Path(command[0]).name} {command[1]} did not start")
            time.sleep(0.1)
        yield running.pid
    finally:
        running.terminate()
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


def answers(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def own(role: str, *values: object) -> tuple[str, ...]:
    """The command line of this script in the role of a server."""
    return (sys.executable, __file__, f"--{role}", *map(str, values))


def chat_body(model: str, *, words: int = 12, stream: bool = False) -> bytes:
    content = "Tell me what the weather in the mountains will be like this week. " * max(1, words // 12)
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": ANSWER_TOKENS}
    return json.dumps({**body, "stream": True} if stream else body).encode()


def load(port: int, body: bytes, seconds: float, folder: str) -> float:
    """Requests a second that wrk gets answered with 200, from the load's core."""
    script = Path(folder) / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f'wrk.headers["Authorization"] = "Bearer sk-1234"\nwrk.body = [==[{body.decode()}]==]\n'
    )
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    done = subprocess.run(
        [
            "taskset",
            "-c",
            str(LOAD_CORE),
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{round(seconds)}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
            url,
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    if "Non-2xx" in done:
        raise SystemExit(f"the server on port {port} refuses the load:\n{done}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", done)[1])  # type: ignore[index]


def timed(port: int, path: str, bodies: list[bytes]) -> list[float]:
    """Milliseconds from request to first byte of the body, one request after the other, one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    times_ms = []
    for body in bodies:
        start_s = time.perf_counter()
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read(1)
        times_ms.append(1000 * (time.perf_counter() - start_s))
        if answer.status != 200:
            raise SystemExit(f"{path} on port {port} answered {answer.status}")
        answer.read()
    return times_ms


def engine_body(*, stream: bool) -> bytes:
    """What the gateway sends for the 512-token prompt, to call the engine directly with."""
    body = {"model": "echo", "prompt": list(range(1000, 1000 + PROMPT_TOKENS)), "max_tokens": ANSWER_TOKENS}
    return json.dumps({**body, "stream": stream, "return_token_ids": True}).encode()


def paired_ms(direct: int, gateway: int, body: bytes, rounds: int, *, stream: bool) -> tuple[float, float]:
    """Median time direct and through the gateway, the two taken in turn."""
    there, through = [], []
    timed(gateway, "/v1/chat/completions", [body] * 3)
    for _ in range(rounds):
        there += timed(direct, "/v1/completions", [engine_body(stream=stream)] * 5)
        through += timed(gateway, "/v1/chat/completions", [body] * 5)
    return statistics.median(there), statistics.median(through)


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def rss_growth_mb(pid: int, port: int, body: bytes, rps: float, requests: int, folder: str) -> float:
    """Growth of resident memory over `requests` further requests, after a warm-up."""
    load(port, body, 2, folder)
    before_mb = rss_mb(pid)
    load(port, body, max(2.0, requests / rps), folder)
    return rss_mb(pid) - before_mb


@contextmanager
def litellm(python: str, upstream: int, folder: str) -> Iterator[int]:
    """LiteLLM's proxy on the gateway's core, one worker, in front of the same echo's chat endpoint."""
    config = Path(folder) / "litellm.yaml"
    parameters = {"model": "openai/echo", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}
    settings = {"dangerously_permit_weak_or_unset_master_key": True}  # spares it the key check
    models = [{"model_name": "echo", "litellm_params": parameters}]
    config.write_text(json.dumps({"model_list": models, "general_settings": settings}))
    port = free_port()
    script = "import sys; from litellm import run_server; sys.exit(run_server())"
    arguments = ("--config", str(config), "--port", str(port), "--host", "127.0.0.1", "--num_workers", "1")
    with process(GATEWAY_CORE, port, python, "-c", script, *arguments, wait_s=180):
        time.sleep(2)
        yield port


def throughput(
    ports: dict[str, int], body: bytes, seconds: float, turns: int, folder: str
) -> dict[str, float]:
    """Median requests a second of each server; they take turns, so that all meet the same neighbours."""
    rates: dict[str, list[float]] = {name: [] for name in ports}
    for port in ports.values():
        load(port, body, 2, folder)
    for _ in range(turns):
        for name, port in ports.items():
            rates[name].append(load(port, body, seconds / turns, folder))
    return {name: statistics.median(measured) for name, measured in rates.items()}


def find_litellm(given: str | None) -> str | None:
    if given:
        return given
    return sys.executable if importlib.util.find_spec("litellm") else None


def measure(args: Any, folder: str) -> dict[str, Any]:
    seconds, turns, rounds, watched = (4.0, 2, 3, 2_000) if args.quick else (25.0, 5, 20, 10_000)
    echo, slow, plain, words, timed_plain = (free_port() for _ in range(5))
    body, long_body = chat_body("echo"), chat_body("echo", words=480)
    record: dict[str, Any] = {}
    with ExitStack() as stack:
        stack.enter_context(process(LOAD_CORE, echo, *own("echo", echo, 0.0)))
        start = stack.enter_context
        pid = start(process(GATEWAY_CORE, plain, *own("gateway", plain, echo, "plain", folder)))
        there, through = paired_ms(echo, plain, long_body, 5 * rounds, stream=False)
        record["overhead_ms_median"] = through - there
        start(process(GATEWAY_CORE, words, *own("gateway", words, echo, "words", folder)))
        ports = {"rps": plain, "rps_words": words}
        if python := find_litellm(args.litellm_python):
            ports["litellm_rps"] = start(litellm(python, echo, folder))
        record |= {"litellm_rps": None, **throughput(ports, body, seconds, turns, folder)}
        record["rss_growth_mb_10k"] = rss_growth_mb(pid, plain, body, record["rps"], watched, folder)
    with ExitStack() as stack:
        stack.enter_context(process(LOAD_CORE, slow, *own("echo", slow, FIRST_TOKEN_S)))
        stack.enter_context(
            process(GATEWAY_CORE, timed_plain, *own("gateway", timed_plain, slow, "plain", folder))
        )
        stream_body = chat_body("echo", words=480, stream=True)
        there, through = paired_ms(slow, timed_plain, stream_body, rounds, stream=True)
        record["ttft_overhead_pct"] = 100 * (through - there) / there
    ratio = record["rps"] / record["litellm_rps"] if record["litellm_rps"] else None
    return {**record, "rps_ratio": ratio}


TARGETS = {
    "overhead_ms_median": "<= 4",
    "ttft_overhead_pct": "<= 2",
    "rps_ratio": ">= 10",
    "rss_growth_mb_10k": "<= 20",
}


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--litellm-python", help="python of an environment with litellm[proxy]")
    flags.add_argument("--echo", nargs=2, help="(internal) serve the upstream: PORT FIRST_TOKEN_S")
    flags.add_argument("--gateway", nargs=4, help="(internal) serve the gateway: PORT UPSTREAM MODE FOLDER")
    args = flags.parse_args()
    if args.echo:
        return serve_echo(int(args.echo[0]), float(args.echo[1]))
    if args.gateway:
        port, upstream, mode, folder = args.gateway
        return serve_gateway(int(port), int(upstream), mode, folder)
    if shutil.which("wrk") is None:
        raise SystemExit("wrk, the load generator, is missing; run: apt-get install -y wrk")
    with tempfile.TemporaryDirectory() as folder:
        record = measure(args, folder)
    if record["litellm_rps"] is None:
        print("no litellm here: give --litellm-python for litellm_rps and rps_ratio", file=sys.stderr)
    rows = [{"field": key, "value": value, "target": TARGETS.get(key, "")} for key, value in record.items()]
    report("gateway_overhead", record, rows, args)
    return None


if __name__ == "__main__":
    main()
