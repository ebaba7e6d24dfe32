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
from transom.checkpoint.source import Source, check, find
from transom.checkpoint.tokenizer import TokenizerFiles, tokenizer_of
from transom.errors import CheckpointError, MisconfiguredError, MissingExtraError, NotYetError

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


def libraries() -> tuple[Any, Any]:
    """(transformers, torch), the former without its progress bars. Raises MissingExtraError."""
    try:
        import torch
        import transformers
    except ImportError:
        raise MissingExtraError("models", "torch and transformers") from None
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    return transformers, torch


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
    config = transformers.AutoConfig.from_pretrained(
        found.path, local_files_only=True, trust_remote_code=False
    )
    name = (config.architectures or ["none"])[0]
    model_class = _class_of(transformers, name)
    if model_class is None:
        raise NotYetError(f"{found.path}: the installed transformers does not know the architecture {name!r}")
    return _complete(
        found.path,
        *model_class.from_pretrained(
            found.path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        ),
    )


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


def _class_of(transformers: Any, name: str) -> Any:
    found = getattr(transformers, name, None)
    return found if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel) else None


def _tokenizer(found: Source) -> TokenizerFiles | None:
    if found.kind == "directory" and not (found.path / "tokenizer.json").exists():
        return None
    return tokenizer_of(found)
