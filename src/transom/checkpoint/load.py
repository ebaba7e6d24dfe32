"""Load a model and its tokenizer from a directory, a GGUF file, a packaged model or a hub name.

Threat model: files that are broken or would run code; see `source`. Remote code is never trusted.
Does not protect against: a model that was trained to misbehave.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.gguf_llama import is_plain_llama, read_llama
from transom.checkpoint.resolve import check_fit, is_tied, libraries, model_class, model_config
from transom.checkpoint.source import (
    INDEX_FILE,
    WEIGHTS_FILE,
    Source,
    check,
    find,
    read_json,
    stored_tensors,
    weight_files,
)
from transom.checkpoint.tokenizer import TokenizerFiles, tokenizer_of
from transom.errors import CheckpointError, MisconfiguredError, NotYetError

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
    MisconfiguredError (dtype or device), MissingExtraError.
    """
    transformers, torch = libraries()
    _check_device(torch, dtype, device)
    found = find(source)
    check(found)
    try:
        model = _read(found, transformers, torch, getattr(torch, dtype))
    except (CheckpointError, NotYetError):
        raise
    except Exception as error:
        raise CheckpointError(
            f"{found.path} could not be loaded ({type(error).__name__}); restore its files"
        ) from error
    model.requires_grad_(False)
    return Checkpoint(model.to(device).eval(), _tokenizer(found), found)


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
    _check_index(found.path)
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


def _check_index(folder: Path) -> None:
    """transformers wants an index to have metadata, if empty ones, where other engines do without."""
    index = folder / INDEX_FILE
    if weight_files(folder) != [WEIGHTS_FILE] and not isinstance(read_json(index).get("metadata"), dict):
        raise CheckpointError(f"{index} has no metadata; restore it, or add an empty object of that name")


def _read_gguf(path: Path, transformers: Any, torch: Any, dtype: Any) -> Any:
    if is_plain_llama(read_gguf_head(path)):
        config, weights = read_llama(path, transformers, torch)
        loaded = transformers.LlamaForCausalLM.from_pretrained(
            None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True
        )
        return _complete(path, *loaded)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=dtype, local_files_only=True
    )
    # It names a quantisation that the dequantised weights no longer have, and would be saved along.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _complete(path: Path, model: Any, info: dict[str, Any]) -> Any:
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise CheckpointError(f"{path} lacks {len(missing)} tensors, first {missing[0]!r}; restore it")
    return model


def _tokenizer(found: Source) -> TokenizerFiles | None:
    if found.kind == "directory" and not (found.path / "tokenizer.json").exists():
        return None
    return tokenizer_of(found)
