"""Load a model and its tokenizer from a directory, a GGUF file, a packaged model or a hub name.

Threat model: files that are broken or would run code; see `source`. Remote code is never trusted.
Does not protect against: a model that was trained to misbehave.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from transom.checkpoint.families import CHECKED
from transom.checkpoint.generation import generation_settings
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import class_config, gguf_model
from transom.checkpoint.gguf_weights import gguf_weights
from transom.checkpoint.resolve import (
    MAKING,
    TASKS,
    check_fit,
    is_tied,
    libraries,
    model_class,
    model_config,
    task_class,
)
from transom.checkpoint.source import Source, check, find, read_json, stored_tensors
from transom.checkpoint.structure import quantised_by
from transom.checkpoint.tokenizer import TokenizerFiles, tokenizer_of
from transom.errors import CheckpointError, MisconfiguredError, NotYetError, ReplaceableError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16"]
Task = Literal["causal-lm", "masked-lm", "sequence-classification", "token-classification"]


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode, its tokenizer (None where it has none) and where both came from."""

    model: PreTrainedModel
    tokenizer: TokenizerFiles | None
    source: Source


def load(
    source: str | Path,
    *,
    dtype: Dtype = "float32",
    device: str = "cpu",
    task: Task | None = None,
    num_labels: int | None = None,
    trainable: Collection[str] = (),
) -> Checkpoint:
    """Load a checkpoint; `source` is a path, "smollm2", "minilm" or a hub name.

    `task` says what the model is for, where that is not what its files say: the trunk is the files', a head
    that they lack, or have for another number of labels, starts from torch's random numbers. `num_labels` is
    the size of a classifier. `trainable` are patterns of parameters' names ("*", "score.*") that keep
    gradients; the model is in evaluation mode all the same.
    Raises CheckpointError (absent, broken, a pickle), NotYetError (an architecture that is not known, or not
    for the task), MisconfiguredError (dtype, device, task, a pattern that no parameter has),
    ReplaceableError (quantised in a way that is not read here), MissingExtraError.
    """
    _check_task(task, num_labels)
    found = find(source)
    check(found)
    if found.kind == "gguf":
        gguf_model(read_gguf_head(found.path))  # may be refused, and costs less than the libraries
    _transformers, torch = libraries()
    if dtype not in get_args(Dtype):
        raise MisconfiguredError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    check_device(device)
    has_tokenizer = found.kind == "gguf" or (found.path / "tokenizer.json").exists()
    tokenizer = tokenizer_of(found) if has_tokenizer else None  # may be refused, costs less than the weights
    try:
        model = _read(found, getattr(torch, dtype), task, num_labels)
    except (CheckpointError, NotYetError):
        raise
    except Exception as error:
        method = quantised_by(read_json(found.path / "config.json")) if found.kind == "directory" else None
        if method not in (None, "fp8"):
            raise ReplaceableError(
                f"{found.path} holds weights quantised by {method}, which the installed libraries do not "
                f"read here ({type(error).__name__}); give what they were made from (bf16, fp16 or fp8), or "
                "a GGUF"
            ) from error
        raise CheckpointError(
            f"{found.path} could not be loaded ({type(error).__name__}); restore its files"
        ) from error
    _leave_gradients(model, trainable)
    return Checkpoint(model.to(device).eval(), tokenizer, found)


def check_device(device: str) -> None:
    """Raises MisconfiguredError unless torch can hold a tensor there."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise MisconfiguredError(f"device {device!r} is not usable here; use cpu") from None


def _check_task(task: str | None, num_labels: int | None) -> None:
    if task is not None and task not in get_args(Task):
        raise MisconfiguredError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
    if num_labels is not None and (task is None or "classification" not in task or num_labels < 1):
        raise MisconfiguredError(f"num_labels is for a classifier and at least 1, got {num_labels}")


def _leave_gradients(model: Any, patterns: Collection[str]) -> None:
    model.requires_grad_(False)
    patterns = [patterns] if isinstance(patterns, str) else patterns
    for pattern in patterns:
        named = model.named_parameters(remove_duplicate=False)
        chosen = [parameter for name, parameter in named if fnmatchcase(name, pattern)]
        if not chosen:
            raise MisconfiguredError(f"no parameter of the model is named {pattern!r}; none would be trained")
        for parameter in chosen:
            parameter.requires_grad_(True)


def _read(found: Source, dtype: Any, task: Task | None, num_labels: int | None) -> Any:
    if found.kind == "gguf":
        return _read_gguf(found, dtype, task or "causal-lm", num_labels)
    tensors = stored_tensors(found.path)
    config = model_config(found, tensors)
    if num_labels is not None:
        config.num_labels = num_labels
    wanted = None if task is None else task_class(found, config, task)
    check_fit(found, config, tensors, wanted)
    generation_settings(found.path, config.vocab_size if config.model_type in CHECKED else None)
    with MAKING:
        model, _info = (wanted or model_class(found, config)).from_pretrained(
            found.path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=num_labels is not None,
        )
    if hasattr(config, "tie_word_embeddings"):  # or the next who saves it would drop a head of its own
        model.config.tie_word_embeddings = is_tied(config, tensors)
    return model


def _read_gguf(found: Source, dtype: Any, task: Task, num_labels: int | None) -> Any:
    """A model of the head's class, or of a task with a head that starts from torch's random numbers, filled
    with one dequantised weight after another."""
    from transformers.initialization import no_init_weights

    path, (transformers, torch) = found.path, libraries()
    head = read_gguf_head(path)
    described = gguf_model(head)
    config, speaks = class_config(described), task == "causal-lm"
    if num_labels is not None:
        config.num_labels = num_labels
    auto = getattr(transformers, TASKS[task])
    task_class(found, config, task)  # may be refused
    with MAKING, no_init_weights() if speaks else nullcontext():
        model = auto.from_config(config, dtype=dtype)
    class_name = type(model).__name__
    wanted = model.state_dict()
    if speaks and config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    if not speaks:  # its own head is new, the file's is left
        wanted = {
            name: value for name, value in wanted.items() if name.startswith(f"{model.base_model_prefix}.")
        }
    there = described.weights.keys() - (set() if speaks else {"lm_head.weight"})
    if wanted.keys() != there:
        differing = sorted(wanted.keys() ^ there)
        raise NotYetError(f"{class_name} has not the weights of {path}, such as {differing[0]!r}")
    with torch.no_grad():
        for name, values in gguf_weights(head, described):
            if name not in wanted:
                continue
            if values.shape != wanted[name].shape:
                raise NotYetError(f"{path}: {class_name} has another shape for {name!r}")
            wanted[name].copy_(values)
    with MAKING:  # or another thread's making would have it do nothing
        model.tie_weights()
    return model
