"""The tokenizer inside a GGUF file, as llama.cpp reads it: byte pairs ("gpt2") and SentencePiece ("llama").

Every key under `tokenizer.` is used, listed here as without influence, or refused by name. What a key leaves
unsaid is llama.cpp's default, odd ones included (BOS and EOS are id 11 of a "gpt2" file that names none).
Threat model: broken and hostile files: lists of unequal lengths, wrong types, ids out of range, duplicates.
Does not protect: against a vocabulary that is well-formed and wrong. Departures from llama.cpp, on purpose:
text is never merged into a control or byte piece; of several control tokens that overlap in a text the first
is matched, not the longest; two candidates for one fill-in-the-middle role both end an answer.
Source: llama.cpp's behaviour as measured; Kudo and Richardson 2018 (SentencePiece).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transom.checkpoint.gguf import GgufHead, broken, read_gguf_head
from transom.checkpoint.gguf_ends import CONTROL_TEXTS, FILL_ROLES, end_ids
from transom.checkpoint.gguf_splits import SPLIT_RULES, SplitRule
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import CheckpointError, NotYetError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6  # token types; 0 undefined, 5 unused
_SPACE = "\u2581"  # how SentencePiece spells a space
_BYTES = {f"<0x{byte:02X}>" for byte in range(256)}
_ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding")
_PREFIX = "tokenizer.ggml."
_USED = {"model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_eos_token"}
_USED |= {"eos_token_ids", "add_space_prefix", *(f"{role}_token_id" for role in (*_ROLES, *FILL_ROLES))}
_WITHOUT_INFLUENCE = {"token_type_count", "mask_token_id", "cls_token_id"}
_WITHOUT_INFLUENCE |= {"seperator_token_id", "separator_token_id"}  # by both spellings
_OFF_ONLY = {"add_sep_token", "remove_extra_whitespaces", "suppress_tokens", "precompiled_charsmap"}
_ELSEWHERE = {"tokenizer.chat_template", "tokenizer.chat_templates", "tokenizer.huggingface.json"}


@dataclass(frozen=True)
class _Vocabulary:
    """Pieces by id with their types, ids by piece, and the ids of the roles that are set."""

    tokens: list[str]
    types: list[int]
    ids: dict[str, int]
    roles: dict[str, int]


def gguf_tokenizer(path: Path, head: GgufHead | None = None) -> TokenizerFiles:
    """The tokenizer of a GGUF file, whose head may have been read. Raises CheckpointError (broken),
    NotYetError (not known here)."""
    head = head or read_gguf_head(path)
    keys = _Keys(path, head.metadata)
    kind = keys.get("model", str)
    if kind not in ("gpt2", "llama"):
        raise keys.unread(f"the GGUF tokenizer {kind!r} is not read yet")
    keys.check_names()
    rule = _rule(keys) if kind == "gpt2" else SplitRule((), add_bos=True, bos_id=1)
    defaults = {"eos": 11} if kind == "gpt2" else {"eos": 2, "unknown": 0}
    vocabulary = _vocabulary(keys, defaults | {"bos": rule.bos_id})
    _check_embedding(path, head, len(vocabulary.tokens))
    tokenizer = _byte_level(keys, vocabulary, rule) if kind == "gpt2" else _sentence_piece(keys, vocabulary)
    _add_tokens(tokenizer, vocabulary, keys)
    _add_ends(tokenizer, vocabulary, keys, rule.add_bos)
    template = keys.get("tokenizer.chat_template", str, "")
    ends = end_ids(vocabulary.ids, vocabulary.roles)
    _check_ends(keys, ends)
    return TokenizerFiles(tokenizer, template, _specials(vocabulary), ends)


def _check_ends(keys: _Keys, ends: tuple[int, ...]) -> None:
    """Some engines end an answer at a list of ids; llama.cpp does not read it. They must be ends anyway."""
    others = [one for one in keys.listed("eos_token_ids", (int,)) or [] if one not in ends]
    if others:
        raise NotYetError(
            f"{keys.path}: tokenizer.ggml.eos_token_ids names the id {others[0]}, at which llama.cpp goes on "
            "and other engines end; delete the key, or give a directory with tokenizer.json"
        )


class _Keys:
    """Checked access to a file's tokenizer keys; a name without "tokenizer." is one of `tokenizer.ggml`."""

    def __init__(self, path: Path, metadata: dict[str, Any]) -> None:
        self.path, self._metadata = path, metadata

    def get(self, name: str, kind: type, default: Any = None) -> Any:
        """A single value; an absent key is its default."""
        value = self._metadata.get(self._full(name))
        if value is None:
            return default
        if type(value) is not kind:
            raise self.broken(name, f"is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def listed(self, name: str, kinds: tuple[type, ...], length: int | None = None) -> list[Any] | None:
        """A list of values of `kinds`, one a token where `length` is given; None when the key is absent."""
        value = self._metadata.get(self._full(name))
        if value is None:
            return None
        if not isinstance(value, list) or not all(type(one) in kinds for one in value):
            raise self.broken(name, f"is no list of {kinds[0].__name__}")
        if length is not None and len(value) != length:
            raise self.broken(name, f"has {len(value)} entries for {length} tokens")
        return value

    def check_names(self) -> None:
        """Raises NotYetError for a key that asks for what is not done here."""
        known = {_PREFIX + name for name in _USED | _WITHOUT_INFLUENCE} | _ELSEWHERE
        known |= {_PREFIX + name for name in _OFF_ONLY if not self._metadata.get(_PREFIX + name)}
        asked = [
            key
            for key in self._metadata.keys() - known
            if key.startswith("tokenizer.") and not key.startswith("tokenizer.chat_template.")
        ]
        if asked:
            raise self.unread(f"{', '.join(sorted(asked))} would change the tokenizer and is not read yet")

    def broken(self, name: str, what: str) -> CheckpointError:
        """The error that says what is wrong with a key."""
        return broken(f"{self.path}: {self._full(name)} {what}")

    def unread(self, what: str) -> NotYetError:
        """The error that says what is not done here."""
        return NotYetError(f"{self.path}: {what}; give a directory with tokenizer.json")

    def _full(self, name: str) -> str:
        return name if name.startswith(("tokenizer.", "general.")) else _PREFIX + name


def _rule(keys: _Keys) -> SplitRule:
    name = keys.get("pre", str, "") or "default"
    if name not in SPLIT_RULES:
        raise keys.unread(f"the GGUF pre-tokenisation rule {name!r} is not known")
    return SPLIT_RULES[name]


def _vocabulary(keys: _Keys, defaults: Mapping[str, int | None]) -> _Vocabulary:
    texts = keys.listed("tokens", (str,))
    if not texts:
        raise keys.broken("tokens", "is missing or empty")
    tokens = [text or f"[EMPTY_{i}]" for i, text in enumerate(texts)]
    types = keys.listed("token_type", (int,), len(tokens)) or [_NORMAL] * len(tokens)
    if not all(0 <= one <= _BYTE for one in set(types)):
        raise keys.broken("token_type", "holds unknown types")
    ids = {text: i for i, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise keys.broken("tokens", f"repeats {len(tokens) - len(ids)} pieces")
    roles = {role: i for role, i in defaults.items() if i is not None and i < len(ids)}
    for role in (*_ROLES, *FILL_ROLES):
        token_id = keys.get(f"{role}_token_id", int)
        if token_id is not None:
            if not 0 <= token_id < len(ids):
                raise keys.broken(f"{role}_token_id", f"is {token_id}, and there are {len(ids)} tokens")
            roles[FILL_ROLES.get(role, role)] = token_id
    return _Vocabulary(tokens, _retyped(types, ids, roles), ids, roles)


def _retyped(types: list[int], ids: dict[str, int], roles: dict[str, int]) -> list[int]:
    """llama.cpp takes some pieces for control tokens by their text, whatever type the file gives them."""
    types = list(types)
    for role, texts in CONTROL_TEXTS.items():
        for text in texts if role not in roles else ():
            if text in ids:
                types[ids[text]] = _CONTROL
    return types


def _check_embedding(path: Path, head: GgufHead, tokens: int) -> None:
    for tensor in head.tensors:
        if tensor.name == "token_embd.weight" and tensor.shape[-1] != tokens:
            raise broken(
                f"{path}: the vocabulary has {tokens} tokens, the embedding {tensor.shape[-1]} rows: they "
                "belong to different models"
            )


def _byte_level(keys: _Keys, vocabulary: _Vocabulary, rule: SplitRule) -> Tokenizer:
    from tokenizers import Regex, Tokenizer, decoders
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split

    lines = keys.listed("merges", (str,))
    if lines is None:
        raise keys.broken("merges", "is missing")
    if _BYTE in vocabulary.types:
        raise keys.broken("token_type", "marks byte pieces, which a byte-level vocabulary has none of")
    merges = [(line.partition(" ")[0], line.partition(" ")[2]) for line in dict.fromkeys(lines)]
    ids = vocabulary.ids
    missing = sorted(set(ByteLevel.alphabet()).difference(ids))
    merges = _leading_somewhere(merges, ids, missing)
    if not all(one in ids and two in ids and one + two in ids for one, two in merges):  # the library panics
        raise keys.broken("merges", "names pieces that are not in the vocabulary")
    tokenizer = Tokenizer(BPE(vocab=ids, merges=merges, ignore_merges=rule.ignore_merges))
    steps: list[Any] = [Split(Regex(split), behavior="isolated") for split in rule.splits]
    steps.append(ByteLevel(add_prefix_space=False, use_regex=False))
    if missing:  # bytes without a piece are dropped, and what stood around them is not merged
        steps.append(Split(Regex(f"[{re.escape(''.join(missing))}]"), behavior="removed"))
    tokenizer.pre_tokenizer = Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _leading_somewhere(
    merges: list[tuple[str, str]], ids: Mapping[str, int], missing: Sequence[str]
) -> list[tuple[str, str]]:
    """Without merges of bytes that have no piece into no piece that goes no further: all that is dropped."""
    lost, sides = set(missing), {side for pair in merges for side in pair}
    return [
        (one, two)
        for one, two in merges
        if not lost.issuperset(one + two) or one + two in ids or one + two in sides
    ]


def _sentence_piece(keys: _Keys, vocabulary: _Vocabulary) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, normalizers
    from tokenizers.models import BPE

    merges = _merges(keys, vocabulary)
    tokenizer = Tokenizer(BPE(vocab=vocabulary.ids, merges=merges, byte_fallback=True))
    prefix = keys.get("add_space_prefix", bool, True)
    before = [normalizers.Prepend(_SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", _SPACE)])
    after = [decoders.Strip(" ", 1, 0)] if prefix else []
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *after]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(keys: _Keys, vocabulary: _Vocabulary) -> list[tuple[str, str]]:
    """Pairs of pieces that make a piece, by its score: SentencePiece merges the best piece first."""
    tokens, ids = vocabulary.tokens, vocabulary.ids
    scores = keys.listed("scores", (float, int), len(tokens)) or [0.0] * len(tokens)
    if not all(map(math.isfinite, scores)):
        raise keys.broken("scores", "holds scores that are not finite")
    if not ids.keys() >= _BYTES:
        raise keys.broken("tokens", f"lacks {len(_BYTES - ids.keys())} of the pieces <0x00> to <0xFF>")
    made = [i for i, text in enumerate(tokens) if _is_made(text, vocabulary.types[i])]
    pieces = {tokens[i] for i in made}
    merges: list[tuple[str, str]] = []
    last = math.nan
    for i in sorted(made, key=scores.__getitem__, reverse=True):
        text, count = tokens[i], len(merges)
        for cut in range(1, len(text)):
            if text[:cut] in pieces and text[cut:] in pieces:
                merges.append((text[:cut], text[cut:]))
        if len(merges) == count:
            continue
        if scores[i] == last:
            raise keys.unread("pieces share a score, so which is merged first depends on the text")
        last = scores[i]
    if not pieces.issuperset("".join(pieces)):
        raise keys.unread("pieces hold characters that are no pieces themselves")
    return merges


def _is_made(text: str, kind: int) -> bool:
    """Whether text can become this piece by merging. User-defined ones are cut out before that, unless they
    are spelled with what a space turns into afterwards.
    """
    if kind == _USER_DEFINED:
        return _SPACE in text
    return kind not in (_UNKNOWN, _CONTROL) and text not in _BYTES


def _add_tokens(tokenizer: Tokenizer, vocabulary: _Vocabulary, keys: _Keys) -> None:
    from tokenizers import AddedToken

    name = keys.get("general.name", str, "").lower()
    strips = "phi-3" in name or "phi3" in name  # the file has no place for it, so llama.cpp goes by the name
    for kinds in ((_CONTROL, _UNKNOWN), (_USER_DEFINED,)):
        special = _CONTROL in kinds
        added = [
            AddedToken(
                text,
                normalized=False,
                special=special,
                rstrip=strips and text not in ("<unk>", "<s>", "<|endoftext|>"),
            )
            for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
            if kind in kinds
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)


def _add_ends(tokenizer: Tokenizer, vocabulary: _Vocabulary, keys: _Keys, bos: bool) -> None:
    from tokenizers.processors import TemplateProcessing

    before = ["bos"] if keys.get("add_bos_token", bool, bos) else []
    after = ["eos"] if keys.get("add_eos_token", bool, False) else []
    ends = []
    for role in before + after:
        if role not in vocabulary.roles:
            raise keys.broken(f"add_{role}_token", f"is set, and no {role}_token_id is")
        token_id = vocabulary.roles[role]
        ends.append({"id": role, "ids": [token_id], "tokens": [vocabulary.tokens[token_id]]})
    if ends:
        single = [*before, "$A", *after]
        tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=ends)


def _specials(vocabulary: _Vocabulary) -> dict[str, str]:
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    roles = {name: vocabulary.roles.get(role) for role, name in names.items()}
    return {name: vocabulary.tokens[i] for name, i in roles.items() if i is not None}
