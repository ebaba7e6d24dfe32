"""What is known of the partner's session: which life of it is current, and what it says it has.

A frame counts when it has heard of this session and is younger than the last one. A new life (a higher boot)
takes the place of the one before. An earlier life that has heard what was said after its successor was met is
no delayed frame: the partner's record was restored from a backup, or is open twice.
Threat model: the partner may lie; whoever carries frames sends old ones again.
Does not protect: a lie that contradicts nothing known.
Source: own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from transom.errors import LinkError, LinkRefusedError
from transom.link.control import KNOWN_INSTANCES, Origin, Status
from transom.link.numbers import Numbers

Standing = Literal["unmet", "stale", "new", "known"]
_REMEMBERED = 256  # frames of ours of which what they said is kept


class Peer:
    """The partner as the session of `instance` knows it. `applied` are ours that it is known to have applied.

    `have` is what its current life has of ours, None until it says so; `echo` the last count of ours that it
    had heard then; `next_number` and `done` as in `Status`.
    """

    def __init__(self, name: str, instance: str, applied: Numbers) -> None:
        self.name, self._instance, self.applied = name, instance, applied
        self.origin: Origin | None = None
        self.have: Numbers | None = None
        self.echo = self.next_number = self.done = 0
        self._since = 0  # our count when its current life was met
        self._heard: dict[str, int] = {}
        self._told: dict[int, int] = {}  # our count: how many of its messages were known then

    @property
    def heard(self) -> Mapping[str, int]:
        """The last count heard of each of its lives that spoke lately."""
        return dict(self._heard)

    def tell(self, count: int, applied_end: int) -> None:
        """A frame of ours goes out."""
        self._told[count] = applied_end
        self._told.pop(count - _REMEMBERED, None)

    def meet(self, origin: Origin, count: int) -> Standing:
        """What a frame of the partner is to a session that has sent `count`.

        Raises LinkError for a life that a later one had replaced.
        """
        last = max(origin.count, self._heard.pop(origin.instance, 0))
        self._heard[origin.instance] = last  # the youngest stands last
        if len(self._heard) > KNOWN_INSTANCES:
            del self._heard[next(iter(self._heard))]
        echo = origin.heard.get(self._instance)
        if echo is None:
            return "unmet"
        if echo > count:
            raise LinkRefusedError(f"{self.name} has heard frame {echo} of {count} that were sent")
        known = self.origin
        if known is not None and origin.instance == known.instance:
            if origin.count <= known.count:
                return "stale"
            self.origin, self.echo = origin, max(self.echo, echo)
            return "known"
        if known is None or origin.boot > known.boot:
            self.origin, self.echo, self._since = origin, echo, count
            self.have, self.done = None, 0
            return "new"
        if echo > self._since:
            raise LinkError(
                f"{self.name} went back to boot {origin.boot} after boot {known.boot}: its record was "
                "restored from a backup or is open twice; go on with the record that is newest"
            )
        return "stale"

    def update(self, status: Status, sent: int, applied: Numbers) -> None:
        """Take over a status of the current life, held against what was sent and applied here.

        Raises LinkError where a record is older than it was, or a partner lies.
        """
        have, theirs = status.numbers()
        end = max(have.end, theirs.end)
        if end > sent:
            raise LinkError(
                f"{self.name} says it has message {end - 1}, but {sent} were sent: this party's record is "
                "older than what it sent, or the partner is wrong; restore the newest record"
            )
        lost = self.applied.missing_from(theirs)
        if lost is not None:
            raise LinkError(
                f"{self.name} has no longer applied message {lost}, which it had: its record is older than "
                "what it acknowledged; restore its newest record or begin a new run"
            )
        if status.held_from > applied.watermark:
            raise LinkError(
                f"{self.name} no longer holds message {applied.watermark}, which is not applied here: this "
                "party's record is older than what it acknowledged; restore the newest or begin a new run"
            )
        known = self._told.get(self.echo, 0)
        if status.next_number < known:
            raise LinkError(
                f"{self.name} begins again at message {status.next_number}, but {known - 1} was applied "
                "here: its record is older than what it sent; restore its newest record or begin a new run"
            )
        self.have, self.applied = have, theirs
        self.next_number, self.done = status.next_number, status.done

    def described(self) -> str:
        """What was last heard, without when."""
        if self.origin is None:
            return "it has not answered"
        return f"boot {self.origin.boot}, {len(self.applied)} messages applied, {self.next_number} sent"
