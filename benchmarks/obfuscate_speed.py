"""How fast and in how much memory a checkpoint is obfuscated.

    python benchmarks/obfuscate_speed.py [--quick] [--json] [--device cuda]

`ratio_to_bare_matmul`: time of all tasks of a plan over the time of nothing but their matrix products,
replayed on random matrices of the same shapes and dtype (one thread; the space, made once a run, is timed
apart as `space_s`). `gflops_per_core` counts those products over the whole time. `layer_14b_s`: one random
layer with the shapes of a 14B Qwen2 (5120 wide, 13,824 inside, 40 heads, 8 of them for keys).
`peak_over_largest_tensor`: `transom obfuscate` of a random float32 checkpoint of about a billion parameters
with two workers (one starts only when there is room for it beside the others): (`peak_mb` - `imports_mb` -
`keys_mb`) over the largest tensor in float32. The peak is the proportional set size (PSS of smaps_rollup: a
page that k processes share counts 1/k in each), summed over processes and sampled every 20 ms; imports are
the same sum for the same command on a tiny checkpoint, beside as many workers as started, which only import;
`keys_mb` is what keys must take (see `keys_bytes`). `peak_with_keys_over_largest_tensor` does not subtract
the keys.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

for library in ("OMP", "OPENBLAS", "MKL"):  # one thread: figures are by core, and are read by numpy's import
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

import numpy as np  # noqa: E402

from _bench import parser, report  # noqa: E402

QWEN2_14B = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 5120,
    "intermediate_size": 13_824, "num_hidden_layers": 1, "num_attention_heads": 40, "num_key_value_heads": 8,
    "head_dim": 128, "vocab_size": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "max_position_embeddings": 4096, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip


IMPORTS = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
if __name__ == "__main__":
    from transom.cli.main import run
    run(sys.argv[1:])
    with ProcessPoolExecutor({workers}, mp_context=get_context("spawn")) as pool:
        made = "cryptography.hazmat.primitives"
        for module in ("torch", "transom.obfuscation.pool", "transom.obfuscation.plan",
                       f"{{made}}.ciphers", f"{{made}}.kdf.hkdf"):
            list(pool.map(exec, [f"import {{module}}"] * 4 * {workers}))
        list(pool.map(time.sleep, [1] * {workers}))
"""


def random_state(config: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    """Random weights of one model by its own class, bfloat16."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    settings = AutoConfig.for_model(**config)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.bfloat16)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def products_of(work: Any) -> list[tuple[tuple[int, ...], tuple[int, ...], Any]]:
    """Shapes and dtype of every matrix product that `work()` runs."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                seen.append((tuple(args[0].shape), tuple(args[1].shape), args[0].dtype))
            return func(*args, **(kwargs or {}))

    with Watch():
        work()
    return seen


def replay_s(products: list[tuple[tuple[int, ...], tuple[int, ...], Any]], device: str) -> float:
    """Seconds for the products alone, operands made before the clock runs."""
    import torch

    total_s = 0.0
    for left, right, dtype in products:
        a, b = (torch.randn(shape, dtype=dtype, device=device) for shape in (left, right))
        start_s = time.perf_counter()
        torch.matmul(a, b)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        total_s += time.perf_counter() - start_s
    return total_s


def flops(products: list[tuple[tuple[int, ...], tuple[int, ...], Any]]) -> float:
    """Floating-point operations of the products."""
    return sum(2.0 * np.prod(left) * right[-1] for left, right, _ in products)


def time_plan(config: Mapping[str, Any], device: str, h: int) -> dict[str, float]:
    """Seconds of a whole plan over random weights, of its products alone, and of making the space."""
    import torch

    from transom.obfuscation.keys import Settings, Space
    from transom.obfuscation.plan import norm_names, plan, run

    settings = Settings(h=h)
    state = {name: tensor.to(device) for name, tensor in random_state(config).items()}
    start_s = time.perf_counter()
    space = Space(bytes(32), int(config["hidden_size"]), settings)
    space.key("warm"), space.inverse("warm")
    space_s = time.perf_counter() - start_s
    tasks = plan(config, settings)
    kappas = dict.fromkeys(norm_names(tasks), 1.0)

    def work() -> None:
        for task in tasks:
            run(task, {name: state[name] for name in task.sources}, space, config, kappas)

    products = products_of(work)
    start_s = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    total_s = time.perf_counter() - start_s
    bare_s = replay_s(products, device)
    return {"total_s": total_s, "bare_s": bare_s, "space_s": space_s, "flops": flops(products)}


def resident_bytes(pid: int) -> tuple[int, int]:
    """Proportional resident memory of a process and its children, and how many processes that are."""
    total, count, waiting = 0, 0, [pid]
    while waiting:
        one = waiting.pop()
        try:
            rollup = Path(f"/proc/{one}/smaps_rollup").read_text()
            total += (
                int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:"))) * 1024
            )
            waiting += map(int, Path(f"/proc/{one}/task/{one}/children").read_text().split())
            count += 1
        except (OSError, StopIteration, ProcessLookupError):
            continue
    return total, count


def peak_bytes(command: list[str]) -> tuple[int, int]:
    """Largest resident memory, children included, and the most processes, while the command runs."""
    peak, most = 0, 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        done = threading.Event()

        def watch() -> None:
            nonlocal peak, most
            while not done.wait(0.02):
                resident, count = resident_bytes(running.pid)
                peak, most = max(peak, resident), max(most, count)

        watcher = threading.Thread(target=watch)
        watcher.start()
        _, errors = running.communicate()
        done.set()
        watcher.join()
    if running.returncode:
        raise SystemExit(errors.decode()[-500:])
    return peak, most


def peak_ratio(folder: Path, sizes: Mapping[str, int], workers: int) -> dict[str, float]:
    """Peak memory of `transom obfuscate` on a random checkpoint, over its largest tensor in float32."""
    from transom.checkpoint.tiny import tiny_llama
    from transom.obfuscation.keys import Settings

    source = tiny_llama(folder / "model", **sizes)
    largest_bytes = 4 * sizes["hidden_size"] * max(sizes["intermediate_size"], 400)

    def line(model: Path, name: str) -> list[str]:
        places = ["--out", str(folder / name), "--key", str(folder / f"{name}.key")]
        return [
            "obfuscate", str(model), "--no-audit", "--preset", "exact", "--workers", str(workers), *places
        ]  # fmt: skip

    peak, most = peak_bytes([sys.executable, "-m", "transom.cli.main", *line(source, "out")])
    started = most - 2  # beside the command itself and Python's own tracker of resources
    tiny = tiny_llama(folder / "tiny")
    imports, _ = peak_bytes([sys.executable, "-c", IMPORTS.format(workers=started), *line(tiny, "none")])
    keys = keys_bytes(sizes["hidden_size"], Settings().h, started)
    return {
        "peak_mb": peak / 1e6,
        "imports_mb": imports / 1e6,
        "keys_mb": keys / 1e6,
        "largest_tensor_mb": largest_bytes / 1e6,
        "workers_started": started,
        "over_largest": (peak - imports - keys) / largest_bytes,
        "with_keys_over_largest": (peak - imports) / largest_bytes,
    }


def keys_bytes(d: int, h: int, workers: int) -> int:
    """What keys must take in float32: the shared bases P and Q [d, w] with the rows [h / 2, w] that labels
    mix in, once; and in each worker the one key [d, w] it is using, with its mixture [d, h / 2]."""
    w, r = d + 2 * h, h // 2
    return 4 * (2 * (d + r) * w + workers * d * (w + r))


def main() -> None:
    """Measure, print the table, store the record."""
    args = parser(__doc__).parse_args()
    import torch

    torch.set_num_threads(1)
    small = QWEN2_14B | {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 8}
    timed = {
        "1024 wide": time_plan(small | {"num_key_value_heads": 2, "num_hidden_layers": 2}, args.device, 64)
    }
    sizes = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 4}
    if not args.quick:
        timed["14B layer"] = time_plan(QWEN2_14B, args.device, 128)
        sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
    heads = {"num_attention_heads": sizes["hidden_size"] // 64, "num_key_value_heads": 8, "head_dim": 64}
    with tempfile.TemporaryDirectory() as folder:
        peak = peak_ratio(Path(folder), sizes | heads, 2)
    judged = timed["1024 wide" if args.quick else "14B layer"]
    record = {
        "ratio_to_bare_matmul": judged["total_s"] / judged["bare_s"],
        "gflops_per_core": judged["flops"] / judged["total_s"] / 1e9,
        "layer_14b_s": None if args.quick else judged["total_s"],
        "space_14b_s": None if args.quick else judged["space_s"],
        "peak_over_largest_tensor": peak["over_largest"],
        "peak_with_keys_over_largest_tensor": peak["with_keys_over_largest"],
        "keys_mb": peak["keys_mb"],
        "peak_mb": peak["peak_mb"],
        "imports_mb": peak["imports_mb"],
        "largest_tensor_mb": peak["largest_tensor_mb"],
        "timed": timed,
    }
    rows = [{"plan": name, **{k: v for k, v in one.items() if k != "flops"}} for name, one in timed.items()]
    rows.append({"plan": "peak over largest tensor", "total_s": peak["over_largest"]})
    report("obfuscate_speed", record, rows, args)


if __name__ == "__main__":
    main()
