"""What computes a model's answers: llama.cpp or torch, by what it is and what is wanted of it.

llama.cpp is the faster by far where it can: a GGUF, on the processor, with ids in and out. Torch runs all
others, takes embeddings, and tells of states. The weights are the same, those of llama.cpp stay quantised,
and it rounds what it multiplies them with: answers agree for most of their length, not to the bit.
Threat model: none. Does not protect anything. Source: none.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from transom.checkpoint.load import load
from transom.checkpoint.source import Source, find
from transom.errors import MisconfiguredError
from transom.serving.engines.embedded import EmbeddedEngine
from transom.serving.engines.llamacpp_inside import LlamaCppGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from transom.checkpoint.load import Checkpoint, Dtype
    from transom.serving.engines.job import StateWatch

Backend = Literal["auto", "llamacpp", "torch"]


def open_engine(
    checkpoint: str,
    *,
    backend: Backend = "auto",
    dtype: Dtype | None = None,
    device: str = "cpu",
    watch: Callable[[Checkpoint], StateWatch] | None = None,
    **more: Any,
) -> EmbeddedEngine | LlamaCppGenerator:
    """The engine of a checkpoint, with the settings that both have. Raises as `load` does, and
    MisconfiguredError for what llama.cpp cannot do."""
    source = find(checkpoint)
    reason = _cannot(source, dtype, device, watch)
    if backend == "llamacpp" and reason:
        raise MisconfiguredError(f"--backend llamacpp: {reason}; use --backend torch, or auto")
    wanted = backend == "llamacpp" or (
        backend == "auto" and importlib.util.find_spec("xllamacpp") is not None
    )
    if wanted and not reason:
        return LlamaCppGenerator(source, **more)
    found = load(checkpoint, dtype=dtype or ("float32" if device == "cpu" else "bfloat16"), device=device)
    return EmbeddedEngine(found, watch=watch(found) if watch else None, **more)


def _cannot(source: Source, dtype: str | None, device: str, watch: object) -> str:
    """Why llama.cpp cannot; empty if it can."""
    if source.kind != "gguf":
        return "it runs GGUF files, and this is a folder of safetensors"
    if device != "cpu":
        return f"it runs on the processor here, not on {device}"
    if dtype is not None:
        return f"a GGUF's weights are as they are, and --dtype {dtype} would change them"
    return "it tells nothing of states, which a detector reads" if watch else ""
