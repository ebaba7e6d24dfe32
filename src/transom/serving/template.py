"""Chat templates over stand-ins: what transformers renders, with content put in afterwards.

A message is cut into what the template may see and what it may not. It sees whether a text is empty, the
white space at its ends if it asks for it, and, in messages of the system and the assistant, the words that
the template itself looks for (`</think>`, where it cuts thoughts from the history, or a switch in the system
prompt) and the length of what is shorter than it asks for. All else is a stand-in. What a template looks for
is learnt while it runs, so most see nothing.
Threat model: user text never steers a template. Where a user's message, or a control token in any message,
would make transformers render the rest another way, the conversation is refused; so is one whose content the
template drops or alters. Thoughts that end in a control token may be cut from an answer: what is rendered is
the answer without them. The template's own work is bounded (`sandbox`).
Does not protect: a template chooses the words around the content, and may ask which words a system prompt or
an earlier answer holds.
Source: transformers' `apply_chat_template`, whose rendering this is for every conversation that is accepted.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from threading import Lock

from jinja2 import nodes

from transom.errors import CheckpointError, RefusedError
from transom.serving.content import OpaqueError, Question, RejectedError, Run, WorkError, index_of, spelled
from transom.serving.sandbox import Sandbox

_RENDERINGS = 128  # kept, each of so many messages at most
_KEPT = 4096  # characters of a shape that is kept
_PARTS = 1 << 14  # of a conversation
_WORDS = 256  # that a template may look for in messages of a role
_ROUNDS = 16  # of learning them
_SOURCE = 1 << 16  # characters of a template
_ENDS = ""  # asked for among the words: white space at the ends of a text
_READABLE = ("system", "assistant")
_TRIMS: Sequence[str | None] = ("", "\n", None)  # what a template may strip from an answer without thoughts

Messages = Sequence[tuple[str, str]]
Part = str | int | None  # of a text: what the template sees, or the length of what it does not, if told
Shape = tuple[Part, ...]


@dataclass(frozen=True)
class Rendered:
    """The template's text and, in place of content, indices into `hidden`."""

    pieces: tuple[str | int, ...]
    hidden: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole rendering."""
        return "".join(self.hidden[part] if isinstance(part, int) else part for part in self.pieces)


@dataclass(frozen=True)
class _Outcome:
    """What one shape of conversation renders to; `lost` is the first message that is not in it."""

    pieces: tuple[str | int, ...]
    asked: frozenset[Question] = frozenset()
    times: tuple[tuple[str, str], ...] = ()
    lost: int | None = None
    error: RefusedError | None = None


@dataclass(frozen=True)
class _Cut:
    shape: Shape
    hidden: tuple[str, ...]
    words: bool = False  # whether the template sees any
    told: bool = False  # whether it sees any, or a length


class ChatTemplate:
    """A compiled template; `controls` are the texts of control tokens, which no content may put into it.

    Raises CheckpointError if it does not parse.
    """

    def __init__(self, source: str, specials: Mapping[str, str], controls: Collection[str] = ()) -> None:
        if len(source) > _SOURCE:
            raise CheckpointError(f"the chat template has {len(source)} characters; {_SOURCE} are read")
        self._environment = Sandbox()
        try:
            tree = self._environment.parse(source)
            written = [node.data for node in tree.find_all(nodes.TemplateData)]
            written += [node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)]
            self.literals = "\0".join(written)  # whatever they are used for
            self._template = self._environment.compiled(tree)
        except Exception as error:  # also recursion without end, and whatever a constant expression raises
            message = f"the chat template does not parse: {type(error).__name__}: {error}"
            raise CheckpointError(message[:300]) from error
        self._variables = {**specials, "tools": None, "documents": None, "add_generation_prompt": True}
        self._controls = tuple(controls)
        self._words: dict[str, frozenset[str | int]] = {}
        self._outcomes: dict[tuple[tuple[str, Shape], ...], _Outcome] = {}
        self._lock = Lock()

    def render(self, messages: Messages) -> Rendered:
        """What transformers renders. Raises RefusedError where that cannot be had safely."""
        outcome, cuts = self._settled(messages)
        if any(cut.told for cut in cuts):
            outcome, cuts = self._unsteered(messages, outcome, cuts)
        if outcome.lost is not None:
            raise RefusedError(
                _DROPS, param=f"messages[{outcome.lost}].content", code="template_alters_content"
            )
        return _rendered(outcome, cuts)

    def _unsteered(
        self, messages: Messages, outcome: _Outcome, seen: list[_Cut]
    ) -> tuple[_Outcome, list[_Cut]]:
        """The same text, rendered without what must not steer the template. Raises where that is not had."""
        safe = [self._cut(role, text, safe=True) for role, text in messages]
        if safe == seen:
            return outcome, seen
        roles = [role for role, _ in messages]
        wanted = _rendered(outcome, seen).text
        for cuts in (safe, *self._trimmed(roles, outcome, seen, safe)):
            other = self._outcome(roles, cuts)
            if not other.error and _rendered(other, cuts).text == wanted:
                return other, cuts
        steering = [i for i, (cut, other_cut) in enumerate(zip(seen, safe, strict=True)) if cut != other_cut]
        for i in steering[:_ROUNDS]:
            cuts = [*seen[:i], safe[i], *seen[i + 1 :]]
            other = self._outcome(roles, cuts)
            if other.error or _rendered(other, cuts).text != wanted:
                break
        else:
            i = steering[0]
        raise RefusedError(
            self._why(*messages[i]), param=f"messages[{i}].content", code="template_reads_content"
        )

    def _trimmed(
        self, roles: Sequence[str], outcome: _Outcome, seen: Sequence[_Cut], safe: Sequence[_Cut]
    ) -> Iterator[list[_Cut]]:
        """With what the template left of those answers whose control tokens it saw."""
        kept, first = {}, 0
        for i, cut in enumerate(seen):
            if roles[i] == "assistant" and cut != safe[i] and any(map(self._has_control, cut.shape)):
                kept[i] = self._kept(cut, {part for part in outcome.pieces if isinstance(part, int)}, first)
            first += len(cut.hidden)
        if not kept or None in kept.values():
            return
        for left in _TRIMS:
            for right in _TRIMS:
                texts = {i: str(text).lstrip(left).rstrip(right) for i, text in kept.items()}
                yield [
                    self._cut(roles[i], texts[i], safe=True) if i in texts else cut
                    for i, cut in enumerate(safe)
                ]

    def _kept(self, cut: _Cut, shown: Collection[int], number: int) -> str | None:
        """The one stretch between control tokens that is shown; None if there are several."""
        stretches, found = [""], set()
        hidden = iter(cut.hidden)
        for part in cut.shape:
            if self._has_control(part):
                stretches.append("")
            elif isinstance(part, str):
                stretches[-1] += part
            else:
                stretches[-1] += next(hidden)
                found |= {len(stretches) - 1} if number in shown else set()
                number += 1
        return None if len(found) > 1 else stretches[found.pop()] if found else ""

    def _has_control(self, part: Part) -> bool:
        return isinstance(part, str) and any(control in part for control in self._controls)

    def _why(self, role: str, text: str) -> str:
        words = [str(word) for word in self._words.get(role, ()) if isinstance(word, str) and word in text]
        named = sorted({repr(word) for word in words if word.strip() and word in self.literals})
        if named:
            return f"the chat template would read {', '.join(named)} in this message as its own; remove that"
        what = "what stands inside this message" if any(words) else "how short this message is"
        return f"the chat template would render the conversation by {what}; change that"

    def _settled(self, messages: Messages) -> tuple[_Outcome, list[_Cut]]:
        roles = [role for role, _ in messages]
        for _ in range(_ROUNDS):
            cuts = [self._cut(role, text) for role, text in messages]
            outcome = self._outcome(roles, cuts)
            new = self._learn(outcome.asked)
            if not any(role in new and _holds(text, new[role]) for role, text in messages):
                break
        else:
            outcome = _Outcome((), error=RefusedError(_TOO_MANY, param="messages"))
        if outcome.error:
            raise outcome.error
        return outcome, cuts

    def _learn(self, asked: frozenset[Question]) -> dict[str, set[str | int]]:
        new: dict[str, set[str | int]] = {}
        for role, word in asked:
            if word not in self._words.get(role, ()):
                new.setdefault(role, set()).add(word)
        if new:
            with self._lock:
                known = {role: self._words.get(role, frozenset()) | new[role] for role in new}
                self._words |= {role: words for role, words in known.items() if len(words) <= _WORDS}
        return new

    def _cut(self, role: str, text: str, *, safe: bool = False) -> _Cut:
        """A text as the template sees it; `safe`: without the words that it must not."""
        words = self._words.get(role)
        if not text or not words:
            return _Cut((None,), (text,)) if text else _Cut((), ())
        readable = not safe or role in _READABLE
        looked_for = [word for word in words if isinstance(word, str) and word and word in text]
        spans = _spans(text, looked_for) if looked_for and readable else []
        if safe and any(self._has_control(text[start:end]) for start, end in spans):
            spans = []
        short = max([word for word in words if isinstance(word, int)], default=0) if readable else 0
        return _cut_at(text, spans, _ENDS in words, short)

    def _outcome(self, roles: Sequence[str], cuts: Sequence[_Cut]) -> _Outcome:
        key = tuple([(role, cut.shape) for role, cut in zip(roles, cuts, strict=True)])
        known = self._outcomes.get(key)
        if known and all(datetime.now().strftime(form) == seen for form, seen in known.times):
            return known
        with self._lock:
            outcome = self._rendering(roles, cuts)
        seen_chars = sum(len(part) for cut in cuts for part in cut.shape if isinstance(part, str))
        if not outcome.error and len(roles) <= _RENDERINGS and seen_chars <= _KEPT:
            with self._lock:
                self._outcomes[key] = outcome
                while len(self._outcomes) > _RENDERINGS:
                    del self._outcomes[next(iter(self._outcomes))]
        return outcome

    def _rendering(self, roles: Sequence[str], cuts: Sequence[_Cut]) -> _Outcome:
        mark = "".join(chr(0x100000 + secrets.randbelow(0xFFF0)) for _ in range(8))
        hidden = [(i, part) for i, cut in enumerate(cuts) for part in cut.shape if not isinstance(part, str)]
        owners = [i for i, _ in hidden]
        if len(owners) > _PARTS:
            return _Outcome((), error=RefusedError(_TOO_MANY, param="messages"))
        numbers = iter(range(len(owners)))
        skeletons = [
            "".join(part if isinstance(part, str) else mark + spelled(next(numbers)) for part in cut.shape)
            for cut in cuts
        ]
        run = self._environment.run = Run(mark, roles, skeletons, owners, [length for _, length in hidden])
        fields = [
            {"role": role, "content": run.wrap(text)} for role, text in zip(roles, skeletons, strict=True)
        ]
        text, error = "", None
        try:
            text = str.__str__(self._template.render({**self._variables, "messages": fields}))
        except Exception as failure:  # a checkpoint's template may fail in any way it likes
            error = _reason(failure, run)
        if run.opaque is not None:  # also where the template went on
            error = _reason(OpaqueError(), run)
        pieces = _pieces(text, mark, len(owners))
        if pieces is None:
            error, pieces = error or _reason(OpaqueError(), run), ()
        there = {owners[piece] for piece in pieces if isinstance(piece, int)}
        missing = [i for i in owners if i not in there]  # an answer's thoughts are cut by design
        lost = [i for i in missing if not (cuts[i].words and roles[i] in _READABLE)]
        times = tuple(run.times.items())
        return _Outcome(pieces, frozenset(run.asked), times, min(lost, default=None), error)


_DROPS = "the chat template leaves this message's content out; nothing was sent"
_TOO_MANY = "the chat template looks for too many words in these messages; shorten the conversation"


def _reason(error: Exception, run: Run) -> RefusedError:
    if isinstance(error, OpaqueError):
        message = (
            f"the chat template uses {run.operation or 'a slice'} on this message's content, which it may "
            "not read for that; nothing was sent"
        )
        param = f"messages[{run.opaque or 0}].content"
        return RefusedError(message, param=param, code="template_alters_content")
    if isinstance(error, RejectedError):
        message = f"the chat template rejects this conversation: {error}"
    elif isinstance(error, WorkError):
        message = f"the chat template cannot be used for this conversation: {error}"
    else:
        message = f"the chat template fails on these roles ({type(error).__name__})"
    return RefusedError(message, param="messages")


def _rendered(outcome: _Outcome, cuts: Sequence[_Cut]) -> Rendered:
    return Rendered(outcome.pieces, tuple([part for cut in cuts for part in cut.hidden]))


def _holds(text: str, questions: Collection[str | int]) -> bool:
    """Whether an answer to one of these may be other than no; white space may stand beside any word."""
    return any(isinstance(one, int) or one in text for one in questions)


def _spans(text: str, words: Sequence[str]) -> list[tuple[int, int]]:
    """Where any of the words stands; spans that overlap or touch are one."""
    longest_first = sorted(words, key=len, reverse=True)
    pattern = re.compile(f"(?=({'|'.join(map(re.escape, longest_first))}))")
    spans: list[tuple[int, int]] = []
    for found in pattern.finditer(text):
        start, end = found.span(1)
        if spans and start <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((start, end))
    return spans


def _cut_at(text: str, spans: Sequence[tuple[int, int]], ends: bool, short: int) -> _Cut:
    """A text with the spans seen and, if its ends are asked for, the white space around what is hidden;
    of what is shorter than `short` the length is told.
    """
    seen: list[Part] = []
    hidden, at = [], 0
    for start, end in [*spans, (len(text), len(text))]:
        part = text[at:start]
        core = part.strip() if ends else part
        before, _, after = part.partition(core) if core else (part, "", "")
        told = len(core) if len(core) < short else None
        seen += [before, told, after, text[start:end]] if core else [before, text[start:end]]
        hidden += [core] if core else []
        at = end
    shape = tuple(part for part in seen if part != "")
    lengths = any(isinstance(part, int) for part in shape)
    return _Cut(shape, tuple(hidden), bool(spans), bool(spans) or lengths)


def _pieces(text: str, mark: str, count: int) -> tuple[str | int, ...] | None:
    """The rendering with numbers in place of stand-ins; None if one of them is broken."""
    first, *rest = text.split(mark)
    pieces: list[str | int] = [first]
    for part in rest:
        index = index_of(part[:2]) if len(part) >= 2 else count
        if index >= count or part[:2] != spelled(index):
            return None
        pieces += [index, part[2:]]
    broken = any(char in piece for piece in pieces[::2] for char in mark)  # type: ignore[operator]
    return None if broken else tuple(pieces)
