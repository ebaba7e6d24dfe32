"""Small vocabularies in GGUF files around a model of eight dimensions, to be asked what a text becomes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
ALPHABET = {byte: chr(byte) for byte in _PRINTABLE} | {byte: chr(256 + i) for i, byte in enumerate(_HIDDEN)}
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
_D = 8

SNIPPETS = [
    *"abzABZ019'!?.,$+=<>^~|`/\\_-(){}[]\"#%&*;:@ \t\n\r\0\a\v",
    *("éÉßǅſİªʰяЯاअि漢字かカ한ࠀ²¼٣Ⅻ€’“…。，،、ﬁ"), *("\x85", "\xa0", "\u3000", "\u2028", "\ufffd", "\u0301"),
    *("\u200d", "👩", "🏽", "👩‍👩‍👧", "\U00010400", "\U00020000", "'s", "'LL", "'Ve", "123456789", "  "),
    *("    ", "\n\n", "\r\n", " a", " B", " 1", "ab", "Ab", "aB", "ABc"),
]  # fmt: skip


def texts_of(seed: int, count: int, snippets: Sequence[str] = SNIPPETS, longest: int = 9) -> list[str]:
    """Random texts out of snippets, the same for the same seed."""
    draw = random.Random(seed)
    return ["".join(draw.choices(snippets, k=draw.randint(1, longest))) for _ in range(count)]


def spelled(text: str) -> str:
    """A text in the alphabet of byte-level pieces."""
    return "".join(ALPHABET[byte] for byte in text.encode())


def words_vocabulary(texts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Pieces and merges that make every part of these texts one piece, so that a text's ids are its words."""
    parts = {
        text[start:end]
        for text in map(spelled, texts)
        for start in range(len(text))
        for end in range(start + 2, len(text) + 1)
    }
    made = sorted(parts, key=lambda part: (len(part), part))
    merges = [f"{part[:cut]} {part[cut:]}" for part in made for cut in range(1, len(part))]
    return [*ALPHABET.values(), *made], merges


def byte_level(tokens: Sequence[str], merges: Sequence[str] = ("a b",), /, **keys: Any) -> dict[str, Any]:
    """The keys of a byte-level tokenizer; a keyword of value None takes a key away."""
    plain = {"model": "gpt2", "pre": "gpt-2", "tokens": list(tokens), "merges": list(merges)}
    return {name: value for name, value in (plain | keys).items() if value is not None}


def sentence_piece(pieces: Sequence[str], scores: Sequence[float], /, **keys: Any) -> dict[str, Any]:
    """The keys of a SentencePiece tokenizer: <unk>, <s>, </s>, the bytes, then `pieces` with their scores."""
    plain = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", *BYTE_PIECES, *pieces],
        "scores": np.array([0.0] * 259 + list(scores), np.float32),
        "token_type": np.array([2, 3, 3] + [6] * 256 + [1] * len(pieces), np.int32),
    }
    return {name: value for name, value in (plain | keys).items() if value is not None}


def write_vocabulary(path: Path, keys: Mapping[str, Any], rows: int | None = None) -> Path:
    """A GGUF with these `tokenizer.ggml` keys (or full names) and a random model; integers become uint32."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    for add in (writer.add_embedding_length, writer.add_feed_forward_length):
        add(_D)
    for one in (writer.add_block_count, writer.add_head_count, writer.add_head_count_kv):
        one(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, value in keys.items():
        _add(writer, name if "." in name else f"tokenizer.ggml.{name}", value)
    _add_weights(writer, rows or len(keys.get("tokens", "ab")))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    if isinstance(value, np.ndarray):
        kind = gguf.GGUFValueType.FLOAT32 if value.dtype.kind == "f" else gguf.GGUFValueType.INT32
        writer.add_key_value(name, value.tolist(), gguf.GGUFValueType.ARRAY, sub_type=kind)
    elif isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)


def _add_weights(writer: gguf.GGUFWriter, rows: int) -> None:
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (rows, _D), "output": (rows, _D)}
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes |= {f"blk.0.{part}": (_D, _D) for part in parts}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", draw.normal(size=shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(_D, np.float32))
