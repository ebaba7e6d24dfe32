"""A text in a prompt: what stands around it, and which of the prompt's tokens are its own.

Threat model: none here. Does not protect: in a tokenizer that joins the frame's last letter and the text's
first into one token, that token is the text's.
Source: the offsets of `tokenizers`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transom.checkpoint.families import family_of
from transom.checkpoint.load import Checkpoint
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError, NotYetError


@dataclass(frozen=True)
class Frame:
    """What stands around a text in a prompt, such as a chat template's own words."""

    before: str = ""
    after: str = ""

    def around(self, text: str) -> str:
        """The whole prompt."""
        return self.before + text + self.after


PLAIN = Frame()


@dataclass(frozen=True)
class Cut:
    """Ids of a prompt: what stands before a text, its own, and what stands after."""

    before: tuple[int, ...]
    inside: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All of them."""
        return (*self.before, *self.inside, *self.after)


def cut(tokenizer: TokenizerFiles, text: str, frame: Frame) -> Cut:
    """As the model reads it whole, without what ends a text that is finished, such as [SEP]; empty of an
    empty text."""
    found = tokenizer.tokenizer.encode(frame.around(text))
    first, last = len(frame.before), len(frame.before) + len(text)
    numbered = list(zip(found.ids, found.offsets, found.special_tokens_mask, strict=True))
    own = [
        place
        for place, (_, (start, end), special) in enumerate(numbered)
        if not special and end > first and start < last
    ]
    if not own:
        return Cut((), (), ())
    after = [one for one, _, special in numbered[own[-1] + 1 :] if not special]
    return Cut(tuple(found.ids[: own[0]]), tuple(found.ids[own[0] : own[-1] + 1]), tuple(after))


def is_causal(model: Any) -> bool:
    """Whether it reads at the last token. Raises NotYetError for an architecture that is not known."""
    family = family_of({"model_type": model.config.model_type})
    if family is None:
        raise NotYetError(f"the heads of a {model.config.model_type!r} model are not known")
    return family.causal


def generates(model: Any) -> bool:
    """Whether its answers are text."""
    return type(model).__name__.endswith("ForCausalLM")


def require_tokenizer(found: Checkpoint) -> TokenizerFiles:
    """Its tokenizer. Raises MisconfiguredError."""
    if found.tokenizer is None:
        raise MisconfiguredError(f"{found.source.path} has no tokenizer.json; give a folder that has one")
    return found.tokenizer
