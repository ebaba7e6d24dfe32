"""Text to ids and back for the gateway: chat template, control tokens kept out of content, streams of ids.

Threat model: the chat template comes with a checkpoint and is trusted neither with the machine nor with
content (`template`). User text may hold anything, control tokens included.
Does not protect: a malicious template chooses the words around the content; token counts and ids are what the
engine sees.

A rendering is encoded whole, so that ids agree with the model's own tooling. For that, the control tokens of
the template's own text are spelled with characters that nobody can guess, and a tokenizer that knows them by
these names only finds none in content. A control token is one that is special, that the template writes, or
whose name is put between bars; other added tokens (runs of space, HTML tags) are words as any.
Source: tokenizers' added-token matching; chat templates as in transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram

from transom.checkpoint.source import find
from transom.checkpoint.tokenizer import guarded, tokenizer_of
from transom.errors import CheckpointError, RefusedError, ReplaceableError
from transom.serving.detokenizer import Detokenizer, TokenBytes
from transom.serving.template import ChatTemplate, Messages, Rendered

_PLANS = 128
_PROBE = "Hello, world! 1234 don't\n\n\té 世界 🙂 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab"
_BROKEN = "the tokenizer fails on ordinary text; restore tokenizer.json, or the GGUF file"
_UNREAD = "the model's tokenizer fails on this text; nothing was sent. Shorten or change it"
_BARRED = re.compile(r"<[|｜].+[|｜]>", re.DOTALL)


@dataclass(frozen=True)
class Encoded:
    """A prompt as the engine gets it: `text` (template included) and its `ids`."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class _Plan:
    """A rendering with its control tokens spelled in secret, and its ends as ids where these are the same
    whatever the content.
    """

    pieces: tuple[str | int, ...]
    head_ids: tuple[int, ...] = ()
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
        with guarded(lambda: CheckpointError(_BROKEN)):
            self._whole = (
                tokenizer if tokenizer.padding is tokenizer.truncation is None else _unbounded(tokenizer)
            )
            self._read(chat_template, dict(specials or {}), eos_ids)
            self._probe()

    def _read(self, chat_template: str | None, specials: dict[str, str], eos_ids: Sequence[int]) -> None:
        added = sorted(self._whole.get_added_tokens_decoder().items())
        special = [token.content for _, token in added if token.special]
        self._template = ChatTemplate(chat_template, specials, special) if chat_template else None
        written = self._template.literals if self._template else ""
        controls = {token_id: token for token_id, token in added if _is_control(token, written)}
        self._content, self._names, self._ids = _without(self._whole, dict(added), controls)
        longest_first = sorted(map(re.escape, self._names), key=len, reverse=True)
        self._control = re.compile("|".join(longest_first) or "(?!)")
        self._control_ids = frozenset(controls) - {_unknown_id(self._whole)}
        self._splits = _splits_at_controls(self._whole, list(controls.values()))
        self._planned = lru_cache(_PLANS)(self._plan)
        self._bytes = TokenBytes(self._whole)
        self._before, self._after = _added_around(self._whole)
        eos = self._whole.token_to_id(specials.get("eos_token", ""))
        self.eos_ids = tuple(sorted({*eos_ids, *([] if eos is None else [eos])}))
        self.vocab_size = max(self._whole.get_vocab(with_added_tokens=True).values()) + 1

    def _probe(self) -> None:
        """Have the library meet ordinary texts, so that what it cannot do shows before a request."""
        for text in ("", " ", _PROBE, "".join(self._names.values())):
            self._content.encode(text, add_special_tokens=False)
        ids = self._whole.encode(_PROBE, add_special_tokens=False).ids
        self._whole.decode(ids)
        if not ids:
            raise CheckpointError("the tokenizer makes no ids of a text; restore tokenizer.json")

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    def check_chat(self, messages: Messages) -> None:
        """Raises as `encode_chat` does where the template is the reason."""
        self._render(messages)

    def encode_text(self, text: str) -> Encoded:
        """Ids of a bare prompt: the tokenizer's own start token, then `text`, of which no part is control."""
        ids = self._encode(text, [(text, "prompt")])
        return Encoded(text, (*self._before, *ids, *self._after))

    def encode_chat(self, messages: Messages) -> Encoded:
        """Ids of a conversation of (role, content), the answer's opening included.

        Raises `RefusedError` if the template rejects the conversation, drops or alters a content field, or
        would take words of it for its own.
        """
        rendered = self._render(messages)
        plan = self._planned(rendered.pieces)
        text = Rendered(plan.pieces, rendered.hidden).text
        ids = self._encode(text, [(text, f"messages[{i}].content") for i, (_, text) in enumerate(messages)])
        return Encoded(rendered.text, (*plan.head_ids, *ids, *plan.tail_ids))

    def token_text(self, token_id: int) -> str:
        """One token as text; bytes that are not a whole character become U+FFFD."""
        return self._whole.decode([token_id], skip_special_tokens=False)

    def detokenizer(self) -> Detokenizer:
        """A fresh incremental decoder for one answer."""
        return Detokenizer(self._whole, self._bytes)

    def _render(self, messages: Messages) -> Rendered:
        if self._template is None:
            raise ReplaceableError(
                "this model has no chat template; use /v1/completions instead, or serve a directory with a "
                "chat_template.jinja or a GGUF file with tokenizer.chat_template"
            )
        return self._template.render(messages)

    def _encode(self, text: str, contents: Messages) -> list[int]:
        """Ids of a text whose control tokens are spelled in secret."""
        ids = self._ids_of(text, contents[0][1])
        known = self._ids.get
        self._refuse_controls([i for i in ids if i not in self._ids], contents)
        return [known(i, i) for i in ids]

    def _ids_of(self, text: str, param: str) -> list[int]:
        refusal = RefusedError(_UNREAD, param=param, code="tokenizer_fails")
        with guarded(lambda: refusal):
            return list(self._content.encode(text, add_special_tokens=False).ids)

    def _refuse_controls(self, ids: Sequence[int], contents: Messages) -> None:
        """Raise if there is one that the text spells in the vocabulary's own words."""
        if self._control_ids.isdisjoint(ids):
            return
        alone = [(self._ids_of(text, param), param) for text, param in contents]
        found = [param for ids, param in alone if not self._control_ids.isdisjoint(ids)]
        raise RefusedError(
            "the text holds a control token that this vocabulary cannot spell any other way; remove it",
            param=(found or [contents[0][1]])[0],
            code="control_token",
        )

    def _plan(self, pieces: tuple[str | int, ...]) -> _Plan:
        """With the ids of what comes before and after all content, up to the nearest control tokens."""
        named = [part if isinstance(part, int) else self._named(part) for part in pieces]
        first, last = str(pieces[0]), str(pieces[-1])
        ends = [found.end() for found in self._control.finditer(first)]
        starts = [found.start() for found in self._control.finditer(last)]
        if not self._splits or len(pieces) < 3 or not (ends and starts):
            return _Plan(tuple(named))
        head, tail = first[: ends[-1]], last[starts[0] :]
        named[0] = first[ends[-1] :]
        named[-1] = last[: starts[0]]
        ends_ids = (tuple(self._encode(self._named(end), [(end, "messages")])) for end in (head, tail))
        return _Plan(tuple(named), *ends_ids)

    def _named(self, text: str) -> str:
        return self._control.sub(lambda found: self._names[found[0]], text)


def load_tokenizer(source: str | Path) -> ChatTokenizer:
    """From a checkpoint directory, a GGUF file, or a name that checkpoints are found by; imports no torch.

    Raises CheckpointError and NotYetError.
    """
    files = tokenizer_of(find(source))
    return ChatTokenizer(files.tokenizer, files.chat_template, files.specials, files.eos_ids)


def _is_control(token: AddedToken, written: str) -> bool:
    text = token.content
    if not text.replace("▁", " ").strip():
        return False
    return bool(token.special or text in written or _BARRED.fullmatch(text))


def _unbounded(tokenizer: Tokenizer) -> Tokenizer:
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_padding()
    copy.no_truncation()
    return copy


def _without(
    tokenizer: Tokenizer, added: Mapping[int, AddedToken], controls: Mapping[int, AddedToken]
) -> tuple[Tokenizer, dict[str, str], dict[int | None, int]]:
    """The tokenizer that knows control tokens by other names only, these names, and its added ids as ours.

    The vocabulary is shared, not copied.
    """
    made = Tokenizer(tokenizer.model)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        if getattr(tokenizer, part) is not None:
            setattr(made, part, getattr(tokenizer, part))
    secret = "".join(chr(0x100000 + secrets.randbelow(0xFFF0)) for _ in range(5))
    names = {token.content: f"{secret}{chr(0xF0000 + i)}" for i, token in enumerate(controls.values())}
    made.add_tokens([token for token_id, token in added.items() if token_id not in controls])
    made.add_special_tokens(
        [
            AddedToken(names[token.content], lstrip=token.lstrip, rstrip=token.rstrip, normalized=False)
            for token in controls.values()
        ]
    )
    texts = {token_id: names.get(token.content, token.content) for token_id, token in added.items()}
    return made, names, {made.token_to_id(text): token_id for token_id, text in texts.items()}


def _added_around(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts before and after a text by itself."""
    added = tokenizer.encode("a")
    ours = [i for i, sequence in enumerate(added.sequence_ids) if sequence is not None]
    if not ours:
        return tuple(added.ids), ()
    return tuple(added.ids[: ours[0]]), tuple(added.ids[ours[-1] + 1 :])


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    model = tokenizer.model
    if isinstance(model, Unigram):  # which does not tell it otherwise
        unknown = json.loads(model.__getstate__()).get("unk_id")
        return unknown if isinstance(unknown, int) else None
    return tokenizer.token_to_id(model.unk_token or "")


def _splits_at_controls(tokenizer: Tokenizer, controls: Sequence[AddedToken]) -> bool:
    """Whether what stands on one side of a control token has no influence on the ids of the other side.

    So it is where control tokens take no neighbouring space along, nothing is normalised, and every stretch
    between two of them is cut into words by itself.
    """
    splitter = tokenizer.pre_tokenizer
    steps = json.loads(splitter.__getstate__()) if splitter is not None else {}
    kinds = [step for step in steps.get("pretokenizers", [steps]) if step]
    apart = all(
        step["type"] in ("Digits", "Split") or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
        for step in kinds
    )
    plain = not any(token.lstrip or token.rstrip or token.single_word for token in controls)
    return bool(controls and kinds) and tokenizer.normalizer is None and apart and plain
