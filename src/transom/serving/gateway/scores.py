"""Whose score is whose: log-probabilities of the host's tokens as entries of the text that is delivered.

Where the text of a token is delivered as it came, its entry stays. Tokens of which something else was made,
a placeholder whose value came back, become one entry: what was delivered in their place, with the sum of
their log-probabilities and no alternatives, as those are the host's. Behind a stop string there is nothing.
Threat model: a host that sends tokens of any text and number; the work for each is bounded. The scores are
the host's word.
Does not protect: anything.
Source: OpenAI API reference (logprobs); own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, islice

from transom.serving.engines.base import TokenScore

_MOST = 256  # tokens that wait, and characters that are compared
_LEAST = -1e300  # a sum of scores must be a number of JSON's


@dataclass(frozen=True, slots=True)
class Entry:
    """A score, and how many characters were delivered for it."""

    score: TokenScore
    chars: int


@dataclass
class Alignment:
    """Of one answer. `take` is given each token with its text and what became of the text so far, `deliver`
    says how much of that has gone out."""

    _tokens: deque[tuple[TokenScore | None, str]] = field(default_factory=deque)  # not aligned yet
    _host: str = ""  # their texts
    _made: str = ""  # what was made of those that are not held back
    _stuck: tuple[int, int] = (-1, -1)  # lengths of both with which nothing could be aligned
    _entries: deque[tuple[Entry, int, str]] = field(
        default_factory=deque
    )  # with its end in all, and its text
    _end: int = 0  # of all that was made and aligned

    def take(self, score: TokenScore | None, host: str, made: str, held_chars: int) -> None:
        """A token that says `host`, after which `made` came out and `held_chars` of the host's text have not.

        Text that comes with no score is the last token's, or has no entry.
        """
        if score is None and self._tokens:
            score, before = self._tokens.pop()
            self._tokens.append((score, before + host))
        elif score is not None or host:
            self._tokens.append((score, host))
        self._host, self._made = self._host + host, self._made + made
        self._align(len(self._host) - held_chars)

    def deliver(self, chars: int, *, last: bool) -> list[Entry]:
        """The entries of which all is among the first `chars` of what was made and goes out now; with `last`
        also what is left of one that a stop string cut."""
        if last and chars > self._end and self._tokens:  # it cut what was not aligned yet
            rest = chars - self._end
            one = self._tokens[0][1].startswith(self._made[:rest])
            self._give(1 if one else len(self._tokens), rest, rest)
        found = []
        while self._entries and self._entries[0][1] <= chars:
            found.append(self._entries.popleft()[0])
        if last and self._entries:
            entry, end, text = self._entries[0]
            if (cut := entry.chars - end + chars) > 0:
                found.append(Entry(TokenScore(text[:cut], entry.score.logprob), cut))
        return found

    def _align(self, released: int) -> None:
        """`released`: how much of the host's text is not held back."""
        while self._tokens and self._begins(self._tokens[0][1], released):
            released -= len(self._tokens[0][1])
            self._give(1, len(self._tokens[0][1]), len(self._tokens[0][1]))
        if (released, len(self._made)) == self._stuck and len(self._tokens) < _MOST:
            return
        self._stuck = (released, len(self._made))
        if not self._tokens or self._host[:released] == self._made:
            return  # all that came out is a part of the next token
        suffix = _common_suffix(self._host[:released], self._made)
        ends = list(accumulate(len(text) for _, text in islice(self._tokens, 2 * _MOST)))
        if len(ends) >= _MOST:  # no more tokens wait
            count = sum(end <= released for end in ends)
        else:
            count = next((n for n, end in enumerate(ends, 1) if end >= released - suffix), 0)
        if count and (end := ends[count - 1]) <= released:  # else a token of it is held back still
            self._give(count, end, max(0, len(self._made) - (released - end)))
            self._align(released - end)

    def _begins(self, text: str, released: int) -> bool:
        """Whether what was made begins with a token's text, which is out."""
        return len(text) <= min(released, len(self._made)) and self._made.startswith(text)

    def _give(self, count: int, host_chars: int, chars: int) -> None:
        """Make an entry of so many tokens, of which so many characters were made."""
        tokens = [self._tokens.popleft() for _ in range(count)]
        text, self._made, self._host = self._made[:chars], self._made[chars:], self._host[host_chars:]
        self._end += chars
        if scores := [score for score, _ in tokens if score is not None]:
            same = count == 1 and tokens[0][1] == text
            self._entries.append((Entry(scores[0] if same else merged(text, scores), chars), self._end, text))


def merged(text: str, scores: Sequence[TokenScore]) -> TokenScore:
    """One score of several tokens, for what they became."""
    return TokenScore(text, max(sum(score.logprob for score in scores), _LEAST))


def _common_suffix(first: str, second: str) -> int:
    most = min(len(first), len(second), _MOST)
    return next((n for n in range(most) if first[-1 - n] != second[-1 - n]), most)
