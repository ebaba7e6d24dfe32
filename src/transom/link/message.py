"""What a message between two parties is about: the step, and the header that names it.

A step is one release of one batch in one direction. `attempt` counts reassignments of a batch: each is a
release of its own, with a noise label and a charge of its own. A message that is sent again is no attempt:
it is the same bytes under the same number.
Threat model: the partner writes any header; every field is checked when it is made.
Does not protect: that a header is true; the session compares it with what was agreed.
Source: own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields

from transom.errors import LinkRefusedError
from transom.privacy.stream import Direction

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RECORD = re.compile("[0-9a-f]{16}")
NO_RECORD = "0" * 16
LARGEST = 2**53 - 1  # of a number that every reader of JSON holds exactly
_DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True, order=True, slots=True)
class Step:
    """Which release. Raises LinkRefusedError for what no step has.

    `topic` separates uses of one batch number (`train`, `evaluate`, `predict`); it is part of the noise's
    label. Counts begin at 0.
    """

    epoch: int
    batch: int
    direction: Direction
    attempt: int = 0
    topic: str = "train"

    def __post_init__(self) -> None:
        for count in (self.epoch, self.batch, self.attempt):
            if type(count) is not int or not 0 <= count <= LARGEST:
                raise LinkRefusedError("a step's epoch, batch and attempt are whole numbers from 0")
        if self.direction not in _DIRECTIONS:
            raise LinkRefusedError("a step goes forward or backward")
        require_name(self.topic, "a topic")

    @classmethod
    def read(cls, text: str) -> Step:
        """The reverse of `str`."""
        topic, epoch, batch, direction, attempt = text.split("/")
        way: Direction = "forward" if direction == "forward" else "backward"
        return cls(int(epoch), int(batch), way, int(attempt), topic)

    def __str__(self) -> str:
        return f"{self.topic}/{self.epoch}/{self.batch}/{self.direction}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Header:
    """A step, whose it is, and the number of the message among its sender's of the run.

    `record` is the id of the sender's record: a run that is begun again under its old name has another, so
    messages of before are not taken for new ones. Raises LinkRefusedError for what no header has.
    """

    job: str
    run: str
    sender: str
    number: int
    step: Step
    record: str = NO_RECORD

    def __post_init__(self) -> None:
        for field in ("job", "run", "sender"):
            require_name(getattr(self, field), f"a {field}")
        if type(self.number) is not int or not 0 <= self.number <= LARGEST:
            raise LinkRefusedError("a message's number is a whole number from 0")
        if not isinstance(self.record, str) or not RECORD.fullmatch(self.record):
            raise LinkRefusedError("a record's id is 16 hexadecimal digits")


HEADER_FIELDS = (
    *(field.name for field in fields(Header) if field.name != "step"),
    *(field.name for field in fields(Step)),
)


def require_name(name: object, what: str) -> str:
    """A name of 1 to 64 letters, digits, dots and dashes. Raises LinkRefusedError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        size = f"{len(name)} characters" if isinstance(name, str) else type(name).__name__
        raise LinkRefusedError(
            f"{what} is 1 to 64 letters, digits, dots and dashes, the first a letter or digit; got {size}"
        )
    return name
