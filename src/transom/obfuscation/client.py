"""The client folder with the real tokenizer, and the placeholder tokenizer that the host gets instead.

    CLIENT/client.json              fingerprint and vocabulary of the plain checkpoint, and its stop ids
    CLIENT/tokenizer.json, tokenizer_config.json, generation_config.json

The host's tokenizer spells id 17 as `<17>`: engines load it, `<17><4>` goes back to the ids, and nothing of
the real vocabulary is in it. Templates, tokenisation and detokenisation happen at the client.
Threat model: the host reads everything in the output folder.
Does not protect: the tokenizer of an open model is public; what is hidden is which id stands for which token.
Source: arXiv 2603.01499 (the client maps ids before and after the engine).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transom.checkpoint.generation import GENERATION_FILE, SAMPLING, SPECIALS, generation_settings
from transom.checkpoint.source import Source
from transom.checkpoint.tokenizer import TokenizerFiles, tokenizer_of, write_tokenizer
from transom.config import read_config
from transom.errors import CheckpointError, MisconfiguredError
from transom.files import write_file
from transom.obfuscation.keyfile import KeyFile

if TYPE_CHECKING:
    import numpy as np

CLIENT_FILE = "client.json"
VERSION = 1


@dataclass(frozen=True)
class Client:
    """What a client folder is for: a checkpoint by fingerprint, its number of ids, its plain stop ids."""

    source: str
    vocabulary: int
    stop_ids: tuple[int, ...]

    def require_key(self, key: KeyFile) -> None:
        """Raises MisconfiguredError unless the key file was made for this folder's checkpoint."""
        key.require_source(self.source)
        if key.vocabulary != self.vocabulary:
            raise MisconfiguredError(
                f"the key file knows {key.vocabulary} ids, the client folder {self.vocabulary}; make it again"
            )


@dataclass(frozen=True)
class _File(Client):
    """As it stands in the file."""

    version: Literal[1]


def load_client(folder: str | Path) -> Client:
    """Read `client.json` of a client folder. Raises MisconfiguredError."""
    path = Path(folder) / CLIENT_FILE
    try:
        read = read_config(_File, path, what="the client file")
    except MisconfiguredError as error:
        raise MisconfiguredError(
            f"{path} is no client file of version {VERSION}; give the folder that `transom obfuscate` wrote: "
            f"{error}"
        ) from None
    return Client(read.source, read.vocabulary, read.stop_ids)


def write_client(found: Source, config: Mapping[str, Any], key: KeyFile, folder: str | Path) -> Client:
    """Write the client folder: the plain tokenizer, template and stop ids of the source.

    A folder that is there already must be the same checkpoint's; it is written again. Raises CheckpointError
    (no tokenizer, or one with ids that the model lacks), MisconfiguredError (another checkpoint's folder).
    """
    folder = Path(folder)
    if folder.exists() and any(folder.iterdir()):
        key.require_source(load_client(folder).source)
    files = tokenizer_of(found)
    largest = max(files.tokenizer.get_vocab(with_added_tokens=True).values(), default=0)
    if largest >= key.vocabulary:
        raise CheckpointError(
            f"the tokenizer knows the id {largest}, the embedding has {key.vocabulary} rows: they belong to "
            "different models, or tokens were added without resizing the embedding; resize it and save again"
        )
    client = Client(key.source, key.vocabulary, stop_ids(files, key.vocabulary))
    write_tokenizer(files, folder, found.path if found.kind == "directory" else None)
    write_file(folder / CLIENT_FILE, json.dumps({"version": VERSION, **asdict(client)}, indent=2).encode())
    return client


def stop_ids(files: TokenizerFiles, vocabulary: int) -> tuple[int, ...]:
    """The plain ids that end an answer, of which the model must know all. Raises CheckpointError."""
    unknown = [token_id for token_id in files.eos_ids if token_id >= vocabulary]
    if unknown:
        raise CheckpointError(
            f"the id {unknown[0]} ends an answer, and the model knows {vocabulary}; correct its eos_token_id"
        )
    return files.eos_ids


def host_files(found: Source, config: Mapping[str, Any], tau_V: np.ndarray) -> dict[str, bytes]:
    """The placeholder tokenizer and generation settings for the output folder, by file name.

    `config` is the plain configuration; ids in it are mapped with `tau_V` (int64, [V], plain to obfuscated).
    Of the generation settings only sampling defaults and mapped special ids are kept: any other may name ids.
    Raises CheckpointError as `generation_settings`.
    """
    plain = generation_settings(found.path, config["vocab_size"]) if found.kind == "directory" else {}
    generation: dict[str, Any] = {name: plain[name] for name in SAMPLING if name in plain}
    for name in SPECIALS:
        value = plain.get(name, config.get(name))
        mapped = [int(tau_V[one]) for one in _ids(value)]
        if mapped:
            generation[name] = mapped if isinstance(value, list) else mapped[0]
    tokens = {role: _ids(generation.get(f"{role}_id")) for role in ("eos_token", "bos_token", "pad_token")}
    named = {role: f"<{ids[0]}>" for role, ids in tokens.items() if ids}
    record = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    return {
        "tokenizer.json": placeholder_tokenizer(len(tau_V)).encode(),
        "tokenizer_config.json": json.dumps(record, indent=2).encode(),
        GENERATION_FILE: json.dumps(generation, indent=2).encode(),
    }


def placeholder_tokenizer(vocabulary: int) -> str:
    """tokenizer.json of a tokenizer whose id 17 is the text `<17>`, and nothing else."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    words = {f"<{token_id}>": token_id for token_id in range(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<0>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<\d+>"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return str(tokenizer.to_str())


def _ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(one) for one in value] if isinstance(value, list) else [int(value)]
