"""What the gateway costs: latency, requests a second beside LiteLLM's, memory, and what a long prompt stalls.

    python benchmarks/gateway_overhead.py [--quick] [--json] [--litellm-python /path/to/venv/bin/python]

Gateway and LiteLLM's proxy take turns on core 0; the echo upstream and wrk, the load, are on core 1, all in
one run. Chat requests of one short message, with template and tokenisation, keep-alive; each has a seed of
its own, so that mode words draws and charges for every one. `rps_words_ratio_today` compares mode words with
the build of commit TODAY, taken from git, in the same run; `rps_ratio_today` likewise in mode plain.
`cold_ratio` is the time of the first request that a gateway gets, 20,000 characters of varied vocabulary in
mode words, over that of later ones like it; `stall_ms` what a short request waits longer beside the first one
than it takes alone. Needs wrk (apt-get install wrk) and, for the comparison, an environment with
litellm[proxy]. A quick run watches memory over 2,000 requests only.
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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

from _bench import TODAY, parser, report, today

GATEWAY_CORE, LOAD_CORE = 0, max(0, min(1, (os.cpu_count() or 1) - 1))
CONNECTIONS = 32
PROMPT_TOKENS = 512
FIRST_TOKEN_S = 0.2
LONG_CHARS = 20_000
ANSWER_TOKENS = 16


def listening() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """`listen` and `serve` of the package that runs, which the build compared with has elsewhere."""
    try:
        from transom.net import listen as module
    except ImportError:
        module = import_module("transom.serving.local")
    return module.listen, module.serve


def serve_echo(port: int, first_token_s: float) -> None:
    """The upstream: an echo without delays, or with a fixed first token."""
    from transom.serving.engines.echo import EchoEngine

    listen, serve = listening()
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
    from transom.serving.tokenizer import load_tokenizer

    engine, tokenizer = IdsEngine(f"http://127.0.0.1:{upstream}"), load_tokenizer("smollm2")
    if mode == "words":
        ledger = Ledger(Path(folder) / f"ledger-{port}", 1e9)
        sanitizer = Sanitizer(load_policy())
        app = create_gateway(GatewayConfig(mode="words"), engine, tokenizer, sanitizer, ledger)
    else:
        app = create_gateway(GatewayConfig(), engine, tokenizer)
    listen, serve = listening()
    serve(app, listen("127.0.0.1", port))


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(
    core: int, port: int, *command: str, wait_s: float = 90.0, source: Path | None = None
) -> Iterator[int]:
    """A server in its own process, pinned to `core`; yields its process id once it answers on `port`.

    With `source` it runs the package that lies there.
    """
    environment = {
        **os.environ,
        **({} if source is None else {"PYTHONPATH": str(source)}),
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
    """Whether a server speaks HTTP there; a socket may listen before its application has started."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
    try:
        connection.request("GET", "/healthz")
        connection.getresponse().read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
    return True


def own(role: str, *values: object) -> tuple[str, ...]:
    """The command line of this script in the role of a server."""
    return (sys.executable, __file__, f"--{role}", *map(str, values))


def chat_body(model: str, *, words: int = 12, stream: bool = False) -> bytes:
    content = "Tell me what the weather in the mountains will be like this week. " * max(1, words // 12)
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": ANSWER_TOKENS}
    return json.dumps({**body, "stream": True} if stream else body).encode()


def load(port: int, body: bytes, seconds: float, folder: str) -> float:
    """Requests a second that wrk gets answered with 200, from the load's core; no two bodies are equal."""
    script = Path(folder) / "post.lua"
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        'wrk.headers["Authorization"] = "Bearer sk-1234"\nlocal serial = os.time() * 1000\n'
        "request = function()\n    serial = serial + 1\n    return wrk.format(nil, nil, nil, "
        f"[==[{body.decode()[:-1]}]==] .. ', \"seed\": ' .. serial .. '}}')\nend\n"
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


def long_bodies(count: int) -> list[bytes]:
    """Requests of LONG_CHARS characters, each with words from all over the vocabulary in its own order."""
    from transom.privacy.policy import load_policy

    words, random = list(load_policy().words), Random(0)
    bodies = []
    for _ in range(count):
        text = " ".join(random.sample(words, len(words)))[:LONG_CHARS]
        messages = [{"role": "user", "content": text}]
        bodies.append(json.dumps({"model": "echo", "messages": messages, "max_tokens": 1}).encode())
    return bodies


def beside(port: int, long: bytes) -> tuple[float, float]:
    """Milliseconds that a long request takes, and the longest that a short one takes meanwhile."""
    path, took_ms = "/v1/chat/completions", [0.0]
    thread = Thread(target=lambda: took_ms.__setitem__(0, timed(port, path, [long])[0]))
    longest_ms, serial = 0.0, 0
    thread.start()
    while thread.is_alive():
        serial += 1
        longest_ms = max(longest_ms, *timed(port, path, [numbered(chat_body("echo"), serial)]))
    thread.join()
    return took_ms[0], longest_ms


def numbered(body: bytes, serial: int) -> bytes:
    return body[:-1] + b', "seed": %d}' % serial


def cold(echo: int, rounds: int, folder: str) -> dict[str, float]:
    """`cold_ratio` and `stall_ms`, medians over `rounds` gateways, each started anew."""
    ratios, stalls = [], []
    for _ in range(rounds):
        port, bodies = free_port(), long_bodies(6)
        with process(GATEWAY_CORE, port, *own("gateway", port, echo, "words", folder)):
            first_ms, longest_ms = beside(port, bodies[0])
            warm_ms = statistics.median(beside(port, body)[0] for body in bodies[1:])
            short = [numbered(chat_body("echo"), -serial) for serial in range(1, 51)]
            alone_ms = statistics.median(timed(port, "/v1/chat/completions", short))
        ratios.append(first_ms / warm_ms)
        stalls.append(longest_ms - alone_ms)
    return {"cold_ratio": statistics.median(ratios), "stall_ms": statistics.median(stalls)}


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
        if source := today(folder):
            for name, mode in (("rps_today", "plain"), ("rps_words_today", "words")):
                ports[name] = free_port()
                command = own("gateway", ports[name], echo, mode, folder)
                start(process(GATEWAY_CORE, ports[name], *command, source=source))
        if python := find_litellm(args.litellm_python):
            ports["litellm_rps"] = start(litellm(python, echo, folder))
        record |= {"litellm_rps": None, **throughput(ports, body, seconds, turns, folder)}
        record["rss_growth_mb_10k"] = rss_growth_mb(pid, plain, body, record["rps"], watched, folder)
        record |= cold(echo, 1 if args.quick else 5, folder)
    with ExitStack() as stack:
        stack.enter_context(process(LOAD_CORE, slow, *own("echo", slow, FIRST_TOKEN_S)))
        stack.enter_context(
            process(GATEWAY_CORE, timed_plain, *own("gateway", timed_plain, slow, "plain", folder))
        )
        stream_body = chat_body("echo", words=480, stream=True)
        there, through = paired_ms(slow, timed_plain, stream_body, rounds, stream=True)
        record["ttft_overhead_pct"] = 100 * (through - there) / there
    for name, over, under in (
        ("rps_ratio", "rps", "litellm_rps"),
        ("rps_ratio_today", "rps", "rps_today"),
        ("rps_words_ratio_today", "rps_words", "rps_words_today"),
    ):
        record[name] = record[over] / record[under] if record.get(under) else None
    return record


TARGETS = {
    "overhead_ms_median": "<= 4",
    "ttft_overhead_pct": "<= 2",
    "rps_ratio": ">= 10",
    "rss_growth_mb_10k": "<= 20",
    "rps_words_ratio_today": ">= 1.5",
    "cold_ratio": "<= 3",
    "stall_ms": "<= 50",
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
    if record["rps_words_ratio_today"] is None:
        print(f"no commit {TODAY} here: run in a checkout for the ratios to that build", file=sys.stderr)
    if record["litellm_rps"] is None:
        print("no litellm here: give --litellm-python for litellm_rps and rps_ratio", file=sys.stderr)
    rows = [{"field": key, "value": value, "target": TARGETS.get(key, "")} for key, value in record.items()]
    report("gateway_overhead", record, rows, args)
    return None


if __name__ == "__main__":
    main()
