"""Engines in processes of their own, for benchmarks: the embedded one, llama.cpp's server, vLLM's server.

Each serves a checkpoint directory on a free port of loopback and is stopped afterwards.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

TOP = 1000  # log-probabilities a position
LLAMACPP = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.port, p.hostnames = sys.argv[1], int(sys.argv[2]), ["127.0.0.1"]
p.n_ctx, p.n_parallel, p.cpuparams.n_threads = 1024, 1, 1
server = xllamacpp.Server(p)
sys.stdin.read()
"""
EMBEDDED = """
import sys, torch, uvicorn
from transom.checkpoint.load import load
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.dialect import Limits
from transom.serving.engines.server import create_engine_app
torch.set_num_threads(1)
engine = EmbeddedEngine(load(sys.argv[1], dtype=sys.argv[3]))
app = create_engine_app(engine, limits=Limits(logprobs=int(sys.argv[4])))
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
"""


@contextmanager
def engine(kind: str, folder: Path, dtype: str, vllm_python: str = "") -> Iterator[Callable[[], Any]]:
    """Makes clients of an engine that serves `folder`; `dtype` is float32 or bfloat16 (llama.cpp: F16)."""
    from transom.serving.engines.client import IdsEngine
    from transom.serving.engines.llamacpp import LlamaCppEngine

    port = _free_port()
    url = f"http://127.0.0.1:{port}"
    if kind == "llama.cpp":
        from transom.obfuscation.gguf_writer import write_gguf

        file = write_gguf(folder, folder.with_suffix(".gguf"))
        with _running([sys.executable, "-c", LLAMACPP, str(file), str(port)], f"{url}/health"):
            yield partial(LlamaCppEngine, url)
    elif kind == "embedded":
        command = [sys.executable, "-c", EMBEDDED, str(folder), str(port), dtype, str(TOP)]
        with _running(command, f"{url}/healthz"):
            yield partial(IdsEngine, url)
    else:
        command = [
            vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host",
            "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len", "512", "--enforce-eager",
            "--max-logprobs", str(TOP),
        ]  # fmt: skip
        with _running(command, f"{url}/health"):
            yield partial(IdsEngine, url, vllm=True, timeout_s=900.0)


@contextmanager
def _running(command: Sequence[str], health: str) -> Iterator[None]:
    quiet = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {
        "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    process = subprocess.Popen(command, env=os.environ | environment, **quiet)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 600
        while not _healthy(health):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the engine did not start: {command[0]} {command[1]}")
            time.sleep(0.5)
        yield
    finally:
        process.terminate()
        process.wait(60)


def _healthy(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:  # noqa: S310  our own URL on loopback
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])
