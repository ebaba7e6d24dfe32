"""What the two sides of private inference say to each other: terms, headers and sizes.

    PUT    /v1/split/SESSION    {"tokens": 40, "terms": DIGEST}: begins a session of up to so many tokens
    POST   /v1/split/SESSION    states of new tokens; answered with the top state, or the logits, of the last
    DELETE /v1/split/SESSION    ends it

A session's name is 32 hex digits that the customer draws, so it can end one of which it was not told yet.
States and answers are messages of `link.codec`. A message's number is how many tokens of its session went
before, and its job is the digest of the terms: one that is late, repeated or of another tuning is refused.
Threat model: each side writes any bytes; names, shapes and sizes are checked before anything is allocated.
Does not protect: numbers that are finite and of the right shape may still be lies.
Source: own.

Shapes: T new tokens, D width, V vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from typing import Literal

from transom.errors import MisconfiguredError
from transom.link.codec import MAX_HEADER_BYTES, Limits, Wire
from transom.link.message import Header, Step

PATH = "/v1/split"
MESSAGE = "application/octet-stream"  # of which browsers ask first
SESSION = re.compile(r"[0-9a-f]{32}")
OWNER = "transom-split"
CHUNK_TOKENS = 512  # of one message; longer prompts go in several
STATES = "states"


@dataclass(frozen=True, kw_only=True)
class SplitTerms:
    """What both sides must have alike. `tuning` says which tuning it is: a digest of its terms.

    `layout` says who has the head: the vendor, which then answers logits, or the customer.
    """

    model: str
    tuning: str
    after_block: int
    layout: Literal["vendor", "customer"]
    width: int
    vocabulary: int
    wire: Wire = "fp32"

    @property
    def digest(self) -> str:
        """The terms as a name."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:32]

    @property
    def answer(self) -> tuple[str, int]:
        """What the vendor's answer holds, and how many numbers."""
        return ("logits", self.vocabulary) if self.layout == "vendor" else ("top", self.width)

    def check(self, theirs: object) -> None:
        """Raises MisconfiguredError, naming both values, unless a partner's terms are these."""
        given = theirs if isinstance(theirs, dict) else {}
        differing = [
            f"{name}: {str(given.get(name))[:80]!r} there, {ours!r} here"
            for name, ours in asdict(self).items()
            if given.get(name) != ours
        ]
        if differing:
            raise MisconfiguredError(
                f"the vendor serves another split tuning: {'; '.join(differing)}. Nothing was sent"
            )


def header(terms: SplitTerms, session: str, sender: Literal["customer", "vendor"], number: int) -> Header:
    """The header of a message, and of the answer to it."""
    return Header(terms.digest, session, sender, number, Step(0, 0, "forward", topic="serve"))


def states_limits(terms: SplitTerms) -> Limits:
    """What a vendor takes: states [T, D]."""
    size = message_bytes(CHUNK_TOKENS, terms.width)
    return Limits(max_bytes=size, tensors={STATES: (None, terms.width)}, wire=terms.wire)


def answer_limits(terms: SplitTerms) -> Limits:
    """What a customer takes: one row."""
    name, numbers = terms.answer
    return Limits(max_bytes=message_bytes(1, numbers), tensors={name: (1, numbers)}, wire=terms.wire)


def message_bytes(rows: int, width: int) -> int:
    """No message with so many rows is longer."""
    return 8 + MAX_HEADER_BYTES + 4 * rows * (width + 1)
