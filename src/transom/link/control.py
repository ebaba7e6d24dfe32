"""What two sessions tell each other beside their messages: who they are, and what they have.

A control frame is `TRC1` and JSON, at most 64 KiB; a message of the codec cannot begin so. Its origin says
who sends it: `boot` is how many sessions began on its record, `instance` is drawn at random for each session,
`count` numbers its frames, and `heard` gives the last count that it heard of each instance it knows. So a
frame that has heard of us is younger than the frame of ours that it names, and a replay is told from news.
Threat model: the partner writes any frame; whoever carries it sends old ones again.
Does not protect: that what a frame says is true; `peer` holds it against what is known.
Source: own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn

from transom.config import Setting, from_plain, listed, load_json, to_plain
from transom.errors import LinkRefusedError
from transom.link.message import LARGEST, NAME, NO_RECORD
from transom.link.numbers import Numbers

MAGIC = b"TRC1"
MAX_CONTROL_BYTES = 64 * 1024
PROTOCOL = 1
KNOWN_INSTANCES = 8
_MAX_TOLD_CHARS = 80

Name = Annotated[str, Setting(pattern=NAME.pattern)]
Instance = Annotated[str, Setting(pattern=r"[0-9a-f]{16}")]
Count = Annotated[int, Setting(least=0, most=LARGEST)]


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose frame it is, of which life of theirs, and with which record."""

    job: Name
    run: Name
    sender: Name
    boot: Annotated[int, Setting(least=1, most=LARGEST)]
    instance: Instance
    count: Count
    heard: Mapping[str, int]
    record: Instance = NO_RECORD

    def problems(self) -> Iterator[str]:
        if len(self.heard) > KNOWN_INSTANCES:
            yield f"heard names {len(self.heard)} instances, at most {KNOWN_INSTANCES}"


@dataclass(frozen=True, slots=True)
class Hello:
    """What must be equal (`terms`), and what each side bounds. `answer` asks for a hello in return."""

    partner: Name
    terms: Mapping[str, str]
    window: Annotated[int, Setting(least=1, most=LARGEST)]
    window_bytes: Annotated[int, Setting(least=1, most=LARGEST)]
    max_bytes: Annotated[int, Setting(least=1, most=LARGEST)]
    clock_s: float
    answer: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Of the other's messages: those it has (`have`) and has applied, as `Numbers.to_plain`. Of its own: the
    next number, and the lowest that it still holds. `done`: 1 when all is applied both ways and it has no
    more to send, 2 when it knows that the other says so too."""

    have: tuple[int, ...]
    applied: tuple[int, ...]
    next_number: Count
    held_from: Count
    done: Annotated[int, Setting(least=0, most=2)]

    def numbers(self) -> tuple[Numbers, Numbers]:
        """What it has and has applied. Raises LinkRefusedError."""
        return Numbers.from_plain(list(self.have)), Numbers.from_plain(list(self.applied))


@dataclass(frozen=True, slots=True)
class Frame:
    """A control frame; `protocol`, `kind` and `origin` are those of every version."""

    protocol: Count
    kind: Literal["hello", "status"]
    origin: Origin
    body: Mapping[str, Any]

    def read(self) -> Hello | Status:
        """Its body. Raises LinkRefusedError; it is of another protocol's form where `protocol` differs."""
        head = f"the partner's {self.kind} is malformed"
        if self.kind == "hello":
            return from_plain(Hello, self.body, head, error=LinkRefusedError)
        return from_plain(Status, self.body, head, error=LinkRefusedError)


def is_control(data: bytes) -> bool:
    return data.startswith(MAGIC)


def write(origin: Origin, body: Hello | Status) -> bytes:
    """The frame's bytes. Raises LinkRefusedError for one that is too large."""
    kind: Literal["hello", "status"] = "hello" if isinstance(body, Hello) else "status"
    data = MAGIC + json.dumps(to_plain(Frame(PROTOCOL, kind, origin, to_plain(body)))).encode()
    if len(data) > MAX_CONTROL_BYTES:
        raise LinkRefusedError(
            f"a {kind} has {len(data)} bytes, at most {MAX_CONTROL_BYTES}; shorten the terms"
        )
    return data


def read(data: bytes) -> Frame:
    """The frame of bytes that `is_control`. Raises LinkRefusedError."""
    if len(data) > MAX_CONTROL_BYTES:
        raise LinkRefusedError(f"a control frame has {len(data)} bytes, at most {MAX_CONTROL_BYTES}")
    try:
        plain = load_json(data[len(MAGIC) :].decode(), parse_constant=_refuse)
    except ValueError:
        raise LinkRefusedError(f"a control frame of {len(data)} bytes is no JSON") from None
    return from_plain(Frame, plain, "a control frame is malformed", error=LinkRefusedError)


def differences(frame: Frame, own: Origin, ours: Hello) -> list[str]:
    """Every name in which a hello is not what is agreed, with both sides' values, shortened.

    Raises LinkRefusedError for a malformed hello.
    """
    if frame.protocol != PROTOCOL:
        return [_told("protocol", str(PROTOCOL), str(frame.protocol))]
    theirs = frame.read()
    if not isinstance(theirs, Hello):
        raise LinkRefusedError("the partner's hello is a status")
    fixed = {
        "job": (own.job, frame.origin.job),
        "run": (own.run, frame.origin.run),
        "the partner": (ours.partner, frame.origin.sender),
        "this party": (own.sender, theirs.partner),
    }
    names = sorted({*ours.terms, *theirs.terms})
    terms = {f"terms.{name}": (ours.terms.get(name), theirs.terms.get(name)) for name in names}
    return [_told(name, *values) for name, values in {**fixed, **terms}.items() if values[0] != values[1]]


def refusal(partner: str, differ: list[str]) -> LinkRefusedError:
    """What is said of differences."""
    return LinkRefusedError(
        listed(f"{partner} and this party do not agree", differ) + ". Use one plan on both sides"
    )


def _told(name: str, ours: str | None, theirs: str | None) -> str:
    return f"{_short(name)} is {_short(ours)} here and {_short(theirs)} there"


def _short(value: str | None) -> str:
    if value is None:
        return "nothing"
    text = value[: _MAX_TOLD_CHARS + 1].encode("ascii", "backslashreplace").decode()
    printable = "".join(one if one.isprintable() else "?" for one in text)
    return printable if len(printable) <= _MAX_TOLD_CHARS else printable[:_MAX_TOLD_CHARS] + "..."


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
