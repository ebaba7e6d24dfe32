"""A prompt as an engine gets it, ids alone: which of its tokens make a word, and which are the frame's.

What is fitted and what is judged live is read by this one function, so both are measured alike. A word begins
where its piece of the vocabulary says so (a marked space, or no ##), and where letters and signs meet. The
frame is what stands around every prompt, as a chat template does; its words, special tokens and the first
token are left out. Earlier turns of a conversation are words of the prompt, with what the template puts
between them.
Threat model: who writes prompts may write them so that they are not read. Why one was not is told, and never
taken for innocence. Does not protect: the frame's last token and a text's first may be one; it is the text's.
Source: none.

Shapes: T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from transom.trust.backdoor.words import FEWEST_WORDS, Words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = tuple[int, ...]
MOST_TOKENS = 1024  # maps of heads grow with the square
SHORT, LONG, ELSEWHERE, NO_IDS, IN_PARTS = -1, -2, -3, -4, -5
UNREAD = {  # why a prompt was not measured
    SHORT: f"the prompt has fewer than {FEWEST_WORDS} words",
    LONG: f"the prompt has more than {MOST_TOKENS} tokens",
    ELSEWHERE: "the prompt is not in the frame that the detector was fitted in",
    NO_IDS: "the engine was sent embeddings and no ids",
    IN_PARTS: "the engine did not read the prompt in one pass",
}
_PROBES = ("one", "Two of them", "3", "(four)", "zürich.")
_BYTES = "ĠĊĉčċČ"  # spaces, as vocabularies of bytes write them
_PIECES = "▁"


@dataclass(frozen=True, eq=False)
class PromptReader:
    """Reads prompts of a causal model, each between `before` and `after`."""

    tokenizer: Tokenizer
    before: Ids = ()
    after: Ids = ()

    def read(self, ids: Sequence[int]) -> Words | int:
        """The words of a whole prompt, or which of `UNREAD` it is."""
        ids = tuple(ids)
        if len(ids) > MOST_TOKENS:
            return LONG
        first, last = self._text(ids)
        if first is None:
            return ELSEWHERE
        word_T, count, piece = [-1] * len(ids), 0, ""
        for place in range(max(first, 1), last):
            previous, piece = piece, self._piece(ids[place])
            if not piece:
                continue
            count += not previous or self._begins(piece, previous)
            word_T[place] = count - 1
        if count < FEWEST_WORDS:
            return SHORT
        return Words(ids, tuple(word_T), self._spelled(ids, word_T, count))

    def _text(self, ids: Ids) -> tuple[int | None, int]:
        """Where the text begins and ends; None outside the frame. Next to the text its tokens may differ."""
        first, last = len(self.before), len(ids) - len(self.after)
        head, tail = self.before[:-1], self.after[1:]
        if first > last or ids[: len(head)] != head or ids[len(ids) - len(tail) :] != tail:
            return None, last
        first -= bool(first) and ids[first - 1] != self.before[-1]
        last += bool(self.after) and ids[last] != self.after[0]
        return first, last

    def _piece(self, token: int) -> str:
        """As the vocabulary writes it; of a special token, or none, nothing."""
        return "" if token in self._special else self.tokenizer.id_to_token(token) or ""

    def _begins(self, piece: str, previous: str) -> bool:
        begun = piece[0] in self._marks if self._marks else not piece.startswith("##")
        if not begun and previous == self._marks[:1]:  # a space of its own is the next piece's
            return False
        return begun or _is_letter(piece.removeprefix("##")[:1]) != _is_letter(previous[-1])

    def _spelled(self, ids: Ids, word_T: Sequence[int], count: int) -> tuple[str, ...]:
        spelled: list[list[int]] = [[] for _ in range(count)]
        for token, word in zip(ids, word_T, strict=True):
            if word >= 0:
                spelled[word].append(token)
        return tuple(self.tokenizer.decode(one).strip() for one in spelled)

    @cached_property
    def _special(self) -> frozenset[int]:
        added = self.tokenizer.get_added_tokens_decoder().items()
        return frozenset(token for token, one in added if one.special)

    @cached_property
    def _marks(self) -> str:
        """How pieces begin that begin a word; empty where all do but those with ##."""
        vocabulary = self.tokenizer.get_vocab()
        counts = {one: sum(piece.startswith(one[0]) for piece in vocabulary) for one in (_BYTES, _PIECES)}
        most = max(counts, key=lambda one: counts[one])  # a letter of another language may look like a mark
        return most if counts[most] else ""


def frame_of(encode: Callable[[str], Ids]) -> tuple[Ids, Ids]:
    """The ids before and after any text, of what makes a prompt of one."""
    made = [encode(one) for one in _PROBES]
    before = _shared(made)
    after = _shared([one[len(before) :][::-1] for one in made])[::-1]
    return before, after


def _shared(many: Sequence[Ids]) -> Ids:
    """The longest beginning of all."""
    alike = 0
    while all(len(one) > alike and one[alike] == many[0][alike] for one in many):
        alike += 1
    return many[0][:alike]


def _is_letter(sign: str) -> bool:
    return sign.isalnum() or sign > "\x7f"
