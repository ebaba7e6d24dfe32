"""A checkpoint's tokenizer as a `tokenizers.Tokenizer`, from a directory or a GGUF file, without torch.

Threat model: as for the rest of a checkpoint, broken files; errors say which file.
Does not protect against: text that spells control tokens. `Tokenizer.encode` recognises them; keeping them
out of user text is the gateway's part.
Source: a GGUF stores byte-level BPE as GPT-2 does (vocabulary, merges) and names its pre-tokenisation rule.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.gguf import read_gguf_head
from transom.checkpoint.source import Source, find, read_json
from transom.errors import CheckpointError, NotYetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_CONTROL, _USER_DEFINED = 3, 4  # GGUF token types that are matched whole
_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_SPLITS = {"llama-bpe": _LLAMA3_SPLIT, "qwen2": _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")}


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer, its chat template ("" if there is none), its special tokens by role (`eos_token`, ...)."""

    tokenizer: Tokenizer
    chat_template: str
    specials: dict[str, str] = field(default_factory=dict)


def export_tokenizer(path: str | Path) -> TokenizerFiles:
    """The tokenizer of a checkpoint directory, a GGUF file, or one of the names `find` knows.

    Raises CheckpointError (absent or broken) and NotYetError (a GGUF whose tokenizer is not byte-level BPE).
    """
    return tokenizer_of(find(path))


def tokenizer_of(source: Source) -> TokenizerFiles:
    """As `export_tokenizer`, for a source already found."""
    return _from_gguf(source.path) if source.kind == "gguf" else _from_directory(source.path)


def _from_directory(folder: Path) -> TokenizerFiles:
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; save the tokenizer in its fast format beside the model")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file} is not a tokenizer this version reads; restore it") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    config_file = folder / "tokenizer_config.json"
    config = read_json(config_file) if config_file.exists() else {}
    return TokenizerFiles(tokenizer, _template(folder, config), _specials(config))


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
        raise CheckpointError(f"{file} is not UTF-8 text; restore it") from error


def _specials(config: dict[str, Any]) -> dict[str, str]:
    """By the names that templates know them by: `eos_token` and others, and those of a model's own."""
    named = config.get("extra_special_tokens")
    found = {role: entry for role, entry in config.items() if role.endswith("_token")}
    found |= named if isinstance(named, dict) else {}
    texts = {
        role: entry.get("content") if isinstance(entry, dict) else entry for role, entry in found.items()
    }
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _from_gguf(path: Path) -> TokenizerFiles:
    from tokenizers import AddedToken, Tokenizer, decoders
    from tokenizers.models import BPE

    metadata = read_gguf_head(path).metadata
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise NotYetError(
            f"{path}: the GGUF tokenizer {kind!r} is not read yet; give a directory with tokenizer.json"
        )
    try:
        tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
        merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
        model = BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    except Exception as error:  # KeyError, TypeError, or the library's bare Exception
        raise CheckpointError(
            f"{path} holds no usable tokenizer ({type(error).__name__}); download it again"
        ) from error
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _pre_tokenizer(rule)
    tokenizer.decoder = decoders.ByteLevel()
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        texts = [text for text, type_id in zip(tokens, types, strict=True) if type_id == wanted]
        added = [AddedToken(text, normalized=False, special=special) for text in texts]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    specials = _gguf_specials(metadata, tokens)
    if metadata.get("tokenizer.ggml.add_bos_token") and "bos_token" in specials:
        _prepend(tokenizer, specials["bos_token"])
    return TokenizerFiles(tokenizer, str(metadata.get("tokenizer.chat_template", "")), specials)


def _gguf_specials(metadata: dict[str, Any], tokens: list[str]) -> dict[str, str]:
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {role: metadata.get(f"tokenizer.ggml.{key}_token_id") for role, key in keys.items()}
    return {role: tokens[i] for role, i in ids.items() if isinstance(i, int) and 0 <= i < len(tokens)}


def _pre_tokenizer(rule: str) -> Any:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

    if rule in ("smollm", "starcoder", "refact", "command-r"):
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])
    if rule in _SPLITS:
        split = Split(Regex(_SPLITS[rule]), behavior="isolated")
        return Sequence([split, ByteLevel(add_prefix_space=False, use_regex=False)])
    if rule in ("gpt-2", "default"):
        return ByteLevel(add_prefix_space=False)
    raise NotYetError(
        f"the GGUF pre-tokenisation rule {rule!r} is not known; give a directory with tokenizer.json"
    )


def _prepend(tokenizer: Tokenizer, token: str) -> None:
    from tokenizers.processors import TemplateProcessing

    token_id = tokenizer.token_to_id(token)
    tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, token_id)])
