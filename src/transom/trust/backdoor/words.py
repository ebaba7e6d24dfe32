"""A text as a model reads it: in the frame of a prompt, its tokens by word, and which of them are sinks.

Threat model: none here. Does not protect: in a tokenizer that joins the frame's last letter and the text's
first into one token, that word is left out.
Source: the words of `tokenizers`, and where those are none, what stands between spaces.

Shapes: T tokens, B texts.
"""

from __future__ import annotations

import random
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transom.checkpoint.load import Checkpoint
from transom.checkpoint.tokenizer import TokenizerFiles
from transom.errors import MisconfiguredError
from transom.trust.prompt import PLAIN, Frame, require_tokenizer

if TYPE_CHECKING:
    from tokenizers import Encoding

FEWEST_WORDS = 3  # with fewer, heads can hardly disagree
_LONGEST_RUN = 4  # words


@dataclass(frozen=True, eq=False)
class Words:
    """A text as the model reads it: ids, the number of the word of each token (-1: none), and the words."""

    ids: tuple[int, ...]
    word_T: tuple[int, ...]
    words: tuple[str, ...]


def words_of(
    tokenizer: TokenizerFiles, text: str, *, causal: bool, most_tokens: int, frame: Frame = PLAIN
) -> Words:
    """The words of a text, without those of its frame. Of one that is too long, so many of its last words
    are left out that `most_tokens` tokens stay. Raises MisconfiguredError for one of fewer than three words.
    """
    whole, first, last = frame.around(text), len(frame.before), len(frame.before) + len(text)
    found = tokenizer.tokenizer.encode(whole)
    word_T: list[int] = []
    words: dict[int, str] = {}
    numbered = zip(_numbers(found, whole), found.offsets, found.special_tokens_mask, strict=True)
    for place, (word, (start, end), special) in enumerate(numbered):
        outside = start < first or end > last or start == end
        sink = word is None or word < 0 or special or outside or (causal and place == 0)
        word_T.append(-1 if sink or word is None else word)
        if not sink and word is not None:
            words[word] = words.get(word, "") + whole[start:end]
    ids = found.ids
    if len(ids) > most_tokens:  # what follows the text stays, as [SEP] or the opening of an answer
        after = next((place for place, word in enumerate(reversed(word_T)) if word >= 0), 0)
        kept_before = max(most_tokens - after, 0)
        ids = ids[:kept_before] + ids[len(ids) - after :]
        word_T = word_T[:kept_before] + word_T[len(word_T) - after :]
    kept = sorted({word for word in word_T if word >= 0})
    if len(kept) < FEWEST_WORDS:
        raise MisconfiguredError(
            f"a text has {len(kept)} words; heads are compared on {FEWEST_WORDS} or more"
        )
    number = {word: place for place, word in enumerate(kept)}
    return Words(
        tuple(ids),
        tuple(number.get(word, -1) for word in word_T),
        tuple(words[word].strip() for word in kept),
    )


def with_run(text: Words, other: Words, draw: random.Random) -> Words:
    """The text with one to four words in a row of another one put in: at its start, its end or anywhere."""
    size = min(draw.randint(1, _LONGEST_RUN), len(other.words))
    first = draw.randint(0, len(other.words) - size)
    run = [one for one, word in zip(other.ids, other.word_T, strict=True) if first <= word < first + size]
    numbers = [word for word in other.word_T if first <= word < first + size]
    at = draw.choice((0, len(text.words), draw.randint(0, len(text.words))))
    inside = [place for place, word in enumerate(text.word_T) if word >= 0]
    place = next((one for one in inside if text.word_T[one] >= at), inside[-1] + 1)
    after_T = [word + size if word >= 0 else word for word in text.word_T[place:]]
    return Words(
        (*text.ids[:place], *run, *text.ids[place:]),
        (*text.word_T[:place], *(word - first + at for word in numbers), *after_T),
        (*text.words[:at], *other.words[first : first + size], *text.words[at:]),
    )


def _numbers(found: Encoding, text: str) -> list[int | None]:
    """The number of each token's word. A tokenizer that does not divide a text first, as SentencePiece's,
    takes it all for one word: then words are what stands between spaces."""
    if len({one for one in found.word_ids if one is not None}) > 1:
        return list(found.word_ids)
    starts = [one.start() for one in re.finditer(r"\S+", text)]
    return [
        None if special else bisect_left(starts, end) - 1
        for (_, end), special in zip(found.offsets, found.special_tokens_mask, strict=True)
    ]


def encoded(
    found: Checkpoint, texts: Sequence[str], most_tokens: int, frame: Frame = PLAIN
) -> tuple[Any, Any]:
    """Ids and mask [B, T], padded on the right."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    encode = require_tokenizer(found).tokenizer.encode
    ids = [torch.tensor(encode(frame.around(text)).ids[:most_tokens]) for text in texts]
    return pad_sequence(ids, True), pad_sequence([torch.ones_like(one) for one in ids], True)
