"""Ids in, text out, one id after the other, so that the text does not depend on how ids come in pieces.

Where a tokenizer says which bytes a token stands for (byte-level tokens, and the byte tokens `<0x0A>` of
others), bytes are collected until they are a character. Other tokens are decoded with the token before them,
as whether one begins with a space depends on having a predecessor.
Threat model: the ids are a host's, so they may spell anything. Bytes that are no UTF-8 come out as U+FFFD,
and at most three of them are held back. The work for an id does not grow with the answer.
Does not protect: the text itself is the host's.
Source: GPT-2's byte encoder (Radford et al. 2019); Unicode 15, section 3.9, on U+FFFD for maximal subparts.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from transom.checkpoint.tokenizer import guarded
from transom.errors import EngineError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_HELD_TOKENS = 4


# GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and on.
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTE_OF_CHAR = {chr(byte): byte for byte in _PRINTABLE}
_BYTE_OF_CHAR |= {chr(256 + i): byte for i, byte in enumerate(_OTHERS)}


class TokenBytes(dict[int, bytes | None]):
    """The bytes of a tokenizer's tokens, each looked up once; None for one that only its decoder knows."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        decoder = tokenizer.decoder
        self._tokenizer = tokenizer
        self._decoder = json.loads(decoder.__getstate__()) if decoder is not None else {}
        parts = self._decoder.get("decoders", [self._decoder])
        self._kinds = [part.get("type") for part in parts]
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}

    def __missing__(self, token_id: int) -> bytes | None:
        found = self[token_id] = self._find(token_id)
        return found

    def _find(self, token_id: int) -> bytes | None:
        token = self._tokenizer.id_to_token(token_id)
        if token is None or token_id in self._special:
            return b""  # an unknown id, or a control token: no text
        if self._kinds == ["ByteLevel"]:
            known = all(char in _BYTE_OF_CHAR for char in token)
            return bytes(_BYTE_OF_CHAR[char] for char in token) if known else token.encode()
        byte = _BYTE_TOKEN.fullmatch(token) if "ByteFallback" in self._kinds else None
        return bytes.fromhex(byte[1]) if byte else None


class Detokenizer:
    """The text of one answer; incomplete characters are held back until their bytes are there."""

    def __init__(self, tokenizer: Tokenizer, token_bytes: TokenBytes | None = None) -> None:
        self._tokenizer = tokenizer
        self._bytes = TokenBytes(tokenizer) if token_bytes is None else token_bytes
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._context: list[int] = []  # the latest ids that are no control tokens
        self._held: list[int] = []

    def feed(self, ids: Sequence[int]) -> str:
        """The text that `ids` complete, possibly empty."""
        raws = [self._bytes[token_id] for token_id in ids]
        if None in raws or self._held:
            return "".join(map(self._one, ids))
        self._context = next(
            ([i] for i, raw in zip(reversed(ids), reversed(raws), strict=True) if raw), self._context
        )
        return self._characters.decode(b"".join(raws))  # type: ignore[arg-type]

    def close(self) -> str:
        """What is still held back; bytes that never became a character come out as U+FFFD."""
        return self._release() + self._characters.decode(b"", final=True)

    def _one(self, token_id: int) -> str:
        raw = self._bytes[token_id]
        if raw is None:
            self._held.append(token_id)
            text = self._decoded(self._held)
            if text.endswith("\ufffd") and len(self._held) < _HELD_TOKENS:
                return ""
            return self._characters.decode(b"", final=True) + self._release()
        if not raw:
            return ""
        text = self._release()
        self._context = [token_id]
        return text + self._characters.decode(raw)

    def _release(self) -> str:
        """The text of the held tokens, after those of the context."""
        if not self._held:
            return ""
        known = self._decoded(self._context)
        text = self._decoded(self._context + self._held)[len(known) :]
        self._context, self._held = self._held, []
        return text

    def _decoded(self, ids: Sequence[int]) -> str:
        with guarded(lambda: EngineError("the model's tokenizer fails on the ids of this answer")):
            return str(self._tokenizer.decode(ids))
