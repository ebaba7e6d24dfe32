"""Whose score is whose: log-probabilities of the host's tokens as entries of the text that is delivered.

Where the text of a token is delivered as it came, its entry stays. Tokens of which something else was made,
a placeholder whose value came back, become one entry: what was delivered in their place, with the sum of
their log-probabilities and no alternatives, as those are the host's. Behind a stop string there is nothing.
Threat model: none of its own; the scores are the host's word.
Does not protect: anything.
Source: OpenAI API reference (logprobs); own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from itertools import accumulate

from transom.serving.engines.base import TokenScore


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
    _host: str = ""  # their texts, those that are held back in front of the restorers left out
    _made: str = ""  # what was made of them
    _entries: deque[tuple[Entry, int]] = field(
        default_factory=deque
    )  # with where each ends in all that was made
    _end: int = 0  # of all that was made

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

    def _align(self, released: int) -> None:
        while self._tokens and self._made.startswith(self._tokens[0][1]) and self._fits(released):
            released -= len(self._tokens[0][1])
            self._give(1, len(self._tokens[0][1]), len(self._tokens[0][1]))
        if not self._tokens or self._host[:released] == self._made:
            return  # all that came out is a part of the next token
        suffix = _common_suffix(self._host[:released], self._made)
        ends = list(accumulate(len(text) for _, text in self._tokens))
        count = next((n for n, end in enumerate(ends, 1) if end >= released - suffix), 0)
        if count and ends[count - 1] <= released:  # else a token of it is held back still
            rest = released - ends[count - 1]
            self._give(count, ends[count - 1], len(self._made) - rest)
            self._align(rest)

    def _fits(self, released: int) -> bool:
        """Whether the next token's text is out."""
        return len(self._tokens[0][1]) <= min(released, len(self._made))

    def _give(self, count: int, host_chars: int, chars: int) -> None:
        """Make an entry of so many tokens, of which so many characters were made."""
        scores = [score for score, _ in (self._tokens.popleft() for _ in range(count)) if score is not None]
        host, self._host = self._host[:host_chars], self._host[host_chars:]
        text, self._made = self._made[:chars], self._made[chars:]
        self._end += chars
        if not scores:
            return
        same = count == 1 and host == text
        whole = scores[0] if same else TokenScore(text, sum(score.logprob for score in scores))
        self._entries.append((Entry(whole, chars), self._end))

    def deliver(self, chars: int, *, last: bool) -> list[Entry]:
        """The entries of which all is among the first `chars` of what was made and goes out now; with `last`
        also what is left of one that a stop string cut."""
        if last and chars > self._end and self._tokens:  # a stop string cut what was not aligned yet
            rest = chars - self._end
            one = self._tokens[0][1].startswith(self._made[:rest])
            self._give(1 if one else len(self._tokens), rest, rest)
        found = []
        while self._entries and self._entries[0][1] <= chars:
            found.append(self._entries.popleft()[0])
        if last and self._entries and (cut := self._entries[0][0].chars - self._entries[0][1] + chars) > 0:
            found.append(replace(self._entries[0][0], chars=cut))
        return found


def _common_suffix(first: str, second: str) -> int:
    most = min(len(first), len(second))
    return next((n for n in range(most) if first[-1 - n] != second[-1 - n]), most)
