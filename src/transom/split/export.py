"""What both parties trained, as a plain adapter of peft over the uncut model, which others can read.

`peft.PeftModel.from_pretrained(model, folder)` gives the split model's outputs without noise. Layers keep the
numbers of the uncut model, and a classifier's head is in `modules_to_save`, with its task.
Threat model: a state of another job or half of the two; refused, nothing is written.
Does not protect: the adapter was trained on the texts and may tell of them; audit it.
Source: peft's format, version 0.21.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.cut import three
from transom.errors import CheckpointError
from transom.files import write_file
from transom.split.job import SplitJob
from transom.split.lora import adapter_names, head_modules, head_names, lora_config

if TYPE_CHECKING:
    from torch import Tensor

_PREFIX = "base_model.model."
_TASKS = {"classification": "SEQ_CLS", "causal": "CAUSAL_LM"}


def export_adapter(
    folder: Path, job: SplitJob, model: Any, *weights: Mapping[str, Tensor], base: str | None = None
) -> Path:
    """Write `adapter_config.json` and `adapter_model.safetensors`; returns `folder`.

    `model` is the uncut base, without an adapter. `weights` are each party's trained tensors, as their states
    name them. `base` is what the file calls the base model. Raises CheckpointError unless they are together
    exactly what the job trains.
    """
    from safetensors.torch import save

    _front, middle, tail = three(model, job.after_block)
    blocks = range(0 if job.return_gradient else job.after_block, len(middle.parts.blocks))
    wanted = {*adapter_names(model, job.adapter, blocks)}
    config = lora_config(model, job.adapter, blocks)
    config.task_type, config.base_model_name_or_path = _TASKS[job.task], base
    if job.task == "classification":
        config.modules_to_save = [name.rsplit(".", 1)[-1] for name in head_modules(tail)]
        wanted |= {*head_names(tail)}
    merged = _merged(wanted, weights)
    named = {_PREFIX + name: value.detach().cpu().contiguous() for name, value in sorted(merged.items())}
    write_file(folder / "adapter_model.safetensors", save(named, {"format": "pt"}))
    config.inference_mode = True
    config.save_pretrained(str(folder))
    return folder


def _merged(wanted: set[str], weights: tuple[Mapping[str, Tensor], ...]) -> dict[str, Tensor]:
    merged: dict[str, Tensor] = {}
    for one in weights:
        if twice := sorted(merged.keys() & one.keys()):
            raise CheckpointError(f"both parties have trained {twice[0]!r}; give each one's own state once")
        merged |= one
    if differing := sorted(merged.keys() ^ wanted):
        where = "no state has" if differing[0] in wanted else "the job does not train"
        raise CheckpointError(
            f"{where} {differing[0]!r}, of {len(differing)} such tensors; give the states of both parties of "
            "this job"
        )
    return merged
