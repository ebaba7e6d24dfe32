"""Load a model and its tokenizer from a directory, a GGUF file, a packaged model or a hub name.

Threat model: files that are broken or would run code; see `source`. Remote code is never trusted.
Does not protect against: a model that was trained to misbehave.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transom.checkpoint.families import CHECKED
from transom.checkpoint.generation import generation_settings
from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_config import class_config, gguf_model
from transom.checkpoint.gguf_weights import gguf_weights
from transom.checkpoint.resolve import check_fit, is_tied, libraries, model_class, model_config
from transom.checkpoint.source import Source, check, find, read_json, stored_tensors
from transom.checkpoint.structure import quantised_by
from transom.checkpoint.tokenizer import TokenizerFiles, tokenizer_of
from transom.errors import CheckpointError, MisconfiguredError, NotYetError, ReplaceableError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Checkpoint:
    """A model in evaluation mode, its tokenizer (None where it has none) and where both came from."""

    model: PreTrainedModel
    tokenizer: TokenizerFiles | None
    source: Source


def load(source: str | Path, *, dtype: Dtype = "float32", device: str = "cpu") -> Checkpoint:
    """Load a checkpoint; `source` is a path, "smollm2", "minilm" or a hub name.

    Raises CheckpointError (absent, broken, a pickle), NotYetError (an architecture that is not known),
    MisconfiguredError (dtype or device), ReplaceableError (quantised in a way that is not read here),
    MissingExtraError.
    """
    found = find(source)
    check(found)
    if found.kind == "gguf":
        gguf_model(read_gguf_head(found.path))  # may be refused, and costs less than the libraries
    transformers, torch = libraries()
    _check_device(torch, dtype, device)
    tokenizer = _tokenizer(found)  # which may be refused and costs less than the weights
    try:
        model = _read(found, transformers, torch, getattr(torch, dtype))
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
    model.requires_grad_(False)
    return Checkpoint(model.to(device).eval(), tokenizer, found)


def _check_device(torch: Any, dtype: str, device: str) -> None:
    if dtype not in ("float32", "bfloat16", "float16"):
        raise MisconfiguredError(f"dtype must be float32, bfloat16 or float16, got {dtype!r}")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise MisconfiguredError(f"device {device!r} is not usable here; use cpu") from None


def _read(found: Source, transformers: Any, torch: Any, dtype: Any) -> Any:
    if found.kind == "gguf":
        return _read_gguf(found.path, transformers, torch, dtype)
    tensors = stored_tensors(found.path)
    config = model_config(found, tensors)
    check_fit(found, config, tensors)
    generation_settings(found.path, config.vocab_size if config.model_type in CHECKED else None)
    model, _info = model_class(found, config).from_pretrained(
        found.path,
        config=config,
        dtype=dtype,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    if hasattr(config, "tie_word_embeddings"):  # or the next who saves it would drop a head of its own
        model.config.tie_word_embeddings = is_tied(config, tensors)
    return model


def _read_gguf(path: Path, transformers: Any, torch: Any, dtype: Any) -> Any:
    """A model of the head's class, filled with one dequantised weight after another."""
    from transformers.initialization import no_init_weights

    head = read_gguf_head(path)
    described = gguf_model(head)
    config = class_config(described)
    with no_init_weights():
        model = getattr(transformers, described.class_name)._from_config(config, dtype=dtype)
    wanted = model.state_dict()
    if config.tie_word_embeddings:
        del wanted["lm_head.weight"]
    if wanted.keys() != described.weights.keys():
        differing = sorted(wanted.keys() ^ described.weights.keys())
        raise NotYetError(f"{described.class_name} has not the weights of {path}, such as {differing[0]!r}")
    with torch.no_grad():
        for name, values in gguf_weights(head, described):
            if values.shape != wanted[name].shape:
                raise NotYetError(f"{path}: {described.class_name} has another shape for {name!r}")
            wanted[name].copy_(values)
    model.tie_weights()
    return model


def _tokenizer(found: Source) -> TokenizerFiles | None:
    if found.kind == "directory" and not (found.path / "tokenizer.json").exists():
        return None
    return tokenizer_of(found)
