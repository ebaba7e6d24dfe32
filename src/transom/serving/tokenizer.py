"""Text to ids and back for the gateway: chat template, control tokens kept out of content, streams of ids.

Threat model: the chat template comes with a checkpoint and is not trusted with the machine (it runs in
jinja2's sandbox) nor with content (it only ever sees unguessable sentinels, so none of its logic depends on
user text). User text may hold anything, control tokens included. Does not protect: a malicious template
chooses the words around the content; token counts and ids are what the engine sees.

A rendering is encoded whole, so that ids agree with the model's own tooling, whenever no control token
touches content. Otherwise it is encoded piece by piece, content with a tokenizer that knows no control token.
Source: tokenizers' added-token matching; chat templates as in transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
import secrets
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import itemgetter
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from transom.checkpoint.source import find
from transom.checkpoint.tokenizer import tokenizer_of
from transom.errors import CheckpointError, RefusedError, ReplaceableError
from transom.serving.detokenizer import Detokenizer, TokenBytes

_RENDERINGS = 128


@dataclass(frozen=True)
class Encoded:
    """A prompt as the engine gets it: `text` (template included) and its `ids`."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Rendering:
    """A conversation's template text with the indices of its messages, and its ends as ids where these are
    the same whatever the content.
    """

    pieces: list[str | int]
    head: str = ""
    head_ids: tuple[int, ...] = ()
    tail: str = ""
    tail_ids: tuple[int, ...] = ()


class ChatTokenizer:
    """A tokenizer with its chat template; `eos_ids` are the ids that end an answer."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        chat_template: str | None = None,
        specials: Mapping[str, str] | None = None,
        eos_ids: Sequence[int] = (),
    ) -> None:
        spec = json.loads(tokenizer.to_str())
        spec["truncation"] = spec["padding"] = None
        self._specials = dict(specials or {})
        self._whole = Tokenizer.from_str(json.dumps(spec))
        controls = [
            token for token in spec["added_tokens"] if token["special"] or not token["content"].isspace()
        ]
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token not in controls]
        self._bytes = TokenBytes(self._whole)
        self._content = Tokenizer.from_str(json.dumps(spec))
        self._control_ids = frozenset(token["id"] for token in controls) - {
            _unknown_id(spec["model"], self._whole)
        }
        self._template = _compile(chat_template) if chat_template else None
        # Content never steers a template: its rendering depends on the roles alone, unless it asks the time.
        self._timeless = "strftime_now" not in (chat_template or "")
        self._rendered: dict[tuple[str, ...], _Rendering] = {}
        self._controls = tuple(token["content"] for token in controls)
        self._splits = _splits_at_controls(spec, controls)
        eos = self._whole.token_to_id(self._specials.get("eos_token", ""))
        self.eos_ids = tuple(sorted({*eos_ids, *([] if eos is None else [eos])}))
        self.vocab_size = max(self._whole.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    def check_roles(self, roles: Sequence[str]) -> None:
        """Raises as `encode_chat` does for conversations of these roles, whatever their content."""
        self._pieces(tuple(roles))

    def encode_text(self, text: str) -> Encoded:
        """Ids of a bare prompt: the tokenizer's own start token, then `text`, of which no part is control."""
        encoding = self._content.encode(text, add_special_tokens=False)
        self._refuse_controls(encoding.ids, "prompt")
        return Encoded(text, tuple(self._content.post_process(encoding, None, True).ids))

    def encode_chat(self, messages: Sequence[tuple[str, str]]) -> Encoded:
        """Ids of a conversation of (role, content), the answer's opening included.

        Raises `RefusedError` if the template rejects the roles, or drops or alters a content field.
        """
        rendering = self._pieces(tuple([role for role, _ in messages]))
        text, spans, parts = "", [], []
        for piece in rendering.pieces:
            if isinstance(piece, int):
                content = messages[piece][1]
                spans.append((len(text), len(text) + len(content)))
                parts.append((content, piece))
                text += content
            else:
                parts.append((piece, -1))
                text += piece
        start, end = len(rendering.head), len(text) - len(rendering.tail)
        encoding = self._whole.encode(text[start:end], add_special_tokens=False)
        ids = encoding.ids
        at = [i for i, token in enumerate(ids) if token in self._control_ids]
        if any(_touches(encoding.token_to_chars(i), start, spans) for i in at):
            return Encoded(text, tuple(self._encode_apart(parts)))
        return Encoded(text, (*rendering.head_ids, *ids, *rendering.tail_ids))

    def token_text(self, token_id: int) -> str:
        """One token as text; bytes that are not a whole character become U+FFFD."""
        return self._whole.decode([token_id], skip_special_tokens=False)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder for one answer."""
        return Detokenizer(self._whole, self._bytes)

    def _encode_apart(self, parts: Sequence[tuple[str, int]]) -> list[int]:
        ids: list[int] = []
        for text, index in parts:
            tokenizer = self._whole if index < 0 else self._content
            part = tokenizer.encode(text, add_special_tokens=False).ids
            if index >= 0:
                self._refuse_controls(part, f"messages[{index}].content")
            ids += part
        return ids

    def _refuse_controls(self, ids: Sequence[int], param: str) -> None:
        if not self._control_ids.isdisjoint(ids):
            raise RefusedError(
                "the text holds a control token that this vocabulary cannot spell any other way; remove it",
                param=param,
                code="control_token",
            )

    def _pieces(self, roles: tuple[str, ...]) -> _Rendering:
        known = self._rendered.get(roles)
        if known is not None:
            return known
        pieces = self._render(roles)
        if not (self._timeless and len(self._rendered) < _RENDERINGS and len(roles) <= _RENDERINGS):
            return _Rendering(pieces)
        self._rendered[roles] = rendering = self._encoded_ends(pieces)
        return rendering

    def _encoded_ends(self, pieces: list[str | int]) -> _Rendering:
        """With the ids of what comes before and after all content, up to the nearest control tokens."""
        first, last = str(pieces[0]), str(pieces[-1])
        if not self._splits or len(pieces) < 3:
            return _Rendering(pieces)
        head = first[: max(first.rfind(c) + len(c) if c in first else 0 for c in self._controls)]
        tail = last[min(last.find(c) if c in last else len(last) for c in self._controls) :]
        if _may_cross(head, tail, self._controls):
            return _Rendering(pieces)
        head_ids, tail_ids = (self._whole.encode(end, add_special_tokens=False).ids for end in (head, tail))
        return _Rendering(pieces, head, tuple(head_ids), tail, tuple(tail_ids))

    def _render(self, roles: Sequence[str]) -> list[str | int]:
        """The template's own text and, in place of each content field, the index of its message."""
        if self._template is None:
            raise ReplaceableError("this model has no chat template; use /v1/completions instead")
        nonce = f"f{secrets.token_hex(16)}f"
        fields = [{"role": role, "content": f"{nonce}{i}z"} for i, role in enumerate(roles)]
        try:
            text = self._template.render(messages=fields, add_generation_prompt=True, **self._specials)
        except _RejectedError as error:
            message = f"the chat template rejects this conversation: {error}"
            raise RefusedError(message, param="messages") from None
        except Exception as error:  # a checkpoint's template may fail in any way it likes
            message = f"the chat template fails on these roles ({type(error).__name__})"
            raise RefusedError(message, param="messages") from None
        first, *rest = text.split(nonce)
        pieces: list[str | int] = [first]
        for part in rest:
            digits, mark, between = part.partition("z")
            if not mark or not digits.isdigit():
                break
            pieces += [int(digits), between]
        lost = set(range(len(roles))).difference(piece for piece in pieces if isinstance(piece, int))
        if lost or len(pieces) != 2 * len(rest) + 1:
            raise RefusedError(
                "the chat template drops or alters this message's content; nothing was sent",
                param=f"messages[{min(lost, default=0)}].content",
                code="template_alters_content",
            )
        return pieces


def load_tokenizer(source: str | Path) -> ChatTokenizer:
    """From a checkpoint directory, a GGUF file, or a name that checkpoints are found by; imports no torch.

    Raises CheckpointError and NotYetError.
    """
    files = tokenizer_of(find(source))
    return ChatTokenizer(files.tokenizer, files.chat_template, files.specials, files.eos_ids)


def _unknown_id(model: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    return tokenizer.token_to_id(model.get("unk_token") or "")


def _touches(span: tuple[int, int] | None, offset: int, contents: Sequence[tuple[int, int]]) -> bool:
    if span is None:
        return True
    first, last = offset + span[0], offset + span[1]
    before = bisect_left(contents, last, key=itemgetter(0))  # so many contents start before its end
    return before > 0 and contents[before - 1][1] > first


def _splits_at_controls(spec: Mapping[str, Any], controls: Sequence[Mapping[str, Any]]) -> bool:
    """Whether what stands on one side of a control token has no influence on the ids of the other side.

    So it is where control tokens take no neighbouring space along, nothing is normalised, and every stretch
    between two of them is cut into words by itself.
    """
    steps = spec["pre_tokenizer"] or {}
    kinds = [step for step in steps.get("pretokenizers", [steps]) if step]
    apart = all(
        step["type"] in ("Digits", "Split") or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
        for step in kinds
    )
    plain = not any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in controls)
    return bool(controls and kinds) and spec["normalizer"] is None and apart and plain


def _may_cross(head: str, tail: str, controls: Sequence[str]) -> bool:
    """Whether a control token could begin in the head and end in what follows, or reach into the tail."""
    parts = [(control[:cut], control[cut:]) for control in controls for cut in range(1, len(control))]
    into = (end.startswith(tail) or tail.startswith(end) for _, end in parts) if tail else iter(())
    return any(bool(head) and head.endswith(begin) for begin, _ in parts) or any(into)


class _RejectedError(Exception):
    """Raised by a template through `raise_exception`; the message is the template's own, never content."""


def _reject(message: str) -> NoReturn:
    raise _RejectedError(str(message)[:200])


def _tojson(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)  # jinja2's own escapes HTML


def _compile(source: str) -> Any:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _reject
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise CheckpointError(f"the chat template does not parse: {error}") from error
