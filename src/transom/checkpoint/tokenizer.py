"""A checkpoint's tokenizer as a `tokenizers.Tokenizer`, from a directory or a GGUF file, without torch.

Threat model: as for the rest of a checkpoint, broken files; errors say which file.
Does not protect against: text that spells control tokens. `Tokenizer.encode` recognises them; keeping them
out of user text is the gateway's part.
Source: tokenizer.json as the `tokenizers` library writes it; generation settings as transformers does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.source import Source, damaged, find, read_json
from transom.errors import CheckpointError, TransomError
from transom.files import write_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Beside additional_chat_templates/ and the model's config.json, the files that `tokenizer_of` reads.
_READ = {
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
    "generation_config.json",
}  # fmt: skip


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer, its chat template ("" if there is none), its special tokens by role (`eos_token`, ...).

    `eos_ids` are the ids that end an answer, sorted.
    """

    tokenizer: Tokenizer
    chat_template: str
    specials: dict[str, str] = field(default_factory=dict)
    eos_ids: tuple[int, ...] = ()


@contextmanager
def guarded(refusal: Callable[[], TransomError]) -> Iterator[None]:
    """Raises `refusal()` for whatever the tokenizers library raises, a panic of its own included.

    A panic is no `Exception`, and would end a server; what is Python's own to end it passes.
    """
    try:
        yield
    except (TransomError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise refusal() from error


def export_tokenizer(path: str | Path) -> TokenizerFiles:
    """The tokenizer of a checkpoint directory, a GGUF file, or one of the names `find` knows.

    Raises CheckpointError (absent or broken) and NotYetError (a kind of GGUF tokenizer not known here).
    """
    return tokenizer_of(find(path))


def tokenizer_of(source: Source) -> TokenizerFiles:
    """As `export_tokenizer`, for a source already found."""
    with guarded(lambda: damaged(f"{source.path}: its tokenizer is not one this version reads")):
        if source.kind == "gguf":
            from transom.checkpoint.gguf_tokenizer import gguf_tokenizer

            return gguf_tokenizer(source.path)
        return _from_directory(source.path)


def _from_directory(folder: Path) -> TokenizerFiles:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; save the tokenizer in its fast format beside the model")
    with guarded(lambda: damaged(f"{file} is not a tokenizer this version reads")):
        tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config = _json(folder / "tokenizer_config.json")
    older = {} if "added_tokens_decoder" in config else _json(folder / "special_tokens_map.json")
    specials = _specials(config | older)
    known = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    eos_ids = set(_eos_ids(folder, known))
    eos = tokenizer.token_to_id(specials.get("eos_token", ""))
    eos_ids |= set() if eos is None else {eos}
    return TokenizerFiles(tokenizer, _template(folder, config), specials, tuple(sorted(eos_ids)))


def tokenizer_files(files: TokenizerFiles, settings: Path | None = None) -> dict[str, bytes]:
    """The files of a folder from which the same tokenizer is read again, by name.

    Each of its parts stands in one place, wherever the source had it. Generation settings are those of the
    folder `settings`, in which the tokenizer's ends end an answer.
    """
    own = {role: text for role, text in files.specials.items() if not role.endswith("_token")}
    record: dict[str, Any] = {role: text for role, text in files.specials.items() if role not in own}
    record |= {"tokenizer_class": "PreTrainedTokenizerFast"}
    record |= {"extra_special_tokens": own} if own else {}
    record |= {"chat_template": files.chat_template} if files.chat_template else {}
    written = {
        "tokenizer.json": files.tokenizer.to_str().encode(),
        "tokenizer_config.json": json.dumps(record, indent=2).encode(),
    }
    generation = _json(settings / "generation_config.json") if settings else {}
    generation |= {"eos_token_id": list(files.eos_ids)} if files.eos_ids else {}
    if generation:
        written["generation_config.json"] = json.dumps(generation, indent=2).encode()
    return written


def write_tokenizer(files: TokenizerFiles, folder: Path, settings: Path | None = None) -> list[str]:
    """Write `tokenizer_files` and delete what else a tokenizer would be read from; the names written."""
    written = tokenizer_files(files, settings)
    for name in _READ - written.keys():
        (folder / name).unlink(missing_ok=True)
    for name, data in written.items():
        write_file(folder / name, data)
    return sorted(written)


def _eos_ids(folder: Path, known: int) -> list[int]:
    """The ids that end an answer: generation_config.json's, where it names some, else config.json's.

    `known` is the tokenizer's number of ids; a model may have more. Raises CheckpointError.
    """
    size = _json(folder / "config.json").get("vocab_size")
    known = max(known, size if type(size) is int else 0)
    for file in ("generation_config.json", "config.json"):
        value = _json(folder / file).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(one) is int and 0 <= one < known for one in ids):
            raise CheckpointError(
                f"{folder / file}: eos_token_id is {value!r:.80}, not ids from 0 to {known - 1}; correct it"
            )
        return ids
    return []


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.exists() else {}


def _template(folder: Path, config: dict[str, Any]) -> str:
    """The template for a plain conversation; files come before the configuration."""
    more = (folder / "additional_chat_templates").glob("*.jinja")
    files = {"default": folder / "chat_template.jinja", **{file.stem: file for file in sorted(more)}}
    named: Any = {name: file for name, file in files.items() if file.is_file()}
    if "default" in named:
        return _text(named["default"])
    template = named or config.get("chat_template") or ""
    if isinstance(template, list):  # several by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default", "")
    return template if isinstance(template, str) else ""


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise damaged(f"{file} is not UTF-8 text") from error


def _specials(config: dict[str, Any]) -> dict[str, str]:
    """By the names that templates know them by: `eos_token` and others, and those of a model's own."""
    named = config.get("extra_special_tokens")
    found = {role: entry for role, entry in config.items() if role.endswith("_token")}
    found |= named if isinstance(named, dict) else {}
    texts = {
        role: entry.get("content") if isinstance(entry, dict) else entry for role, entry in found.items()
    }
    return {role: text for role, text in texts.items() if isinstance(text, str)}
