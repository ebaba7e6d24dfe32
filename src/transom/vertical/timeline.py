"""What a party was doing while it trained, second by second, in a bounded number of spans; for its report.

Of itself it knows what its process did and how long its workers computed. Of the partner it knows what
messages tell: whether the partner had something of this party's to work on, or it was on its way.
Threat model: none; the party's own clock. Does not protect anything. Source: own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

WAITING, SENDING, SAVING, COMPUTING, PARTNER = "waiting", "sending", "saving", "computing", "partner"
OF: Final = (COMPUTING, WAITING, SENDING, SAVING, PARTNER)
_MOST_SPANS = 120
_FIRST_S = 0.125  # of a span; it doubles where there are too many


@dataclass
class Timeline:
    """Seconds of each span, by what they were spent on; `workers` compute at once."""

    workers: int = 1
    span_s: float = _FIRST_S
    _spent: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in OF})
    _begun_s: float | None = None
    _last_s: float = 0.0
    _busy_s: float = 0.0

    def note(self, what: str, begun_s: float, ended_s: float, busy_s: float, *, partner: bool) -> None:
        """Something ended; till then workers were busy so long in all, and the partner had something or
        not."""
        if self._begun_s is None:
            self._begun_s = self._last_s = begun_s
            self._busy_s = busy_s
        self._add(what, begun_s, ended_s, ended_s - begun_s)
        self._add(COMPUTING, self._last_s, ended_s, busy_s - self._busy_s)
        self._add(PARTNER, self._last_s, ended_s, (ended_s - self._last_s) * partner)
        self._last_s, self._busy_s = ended_s, busy_s

    def report(self) -> dict[str, float | list[float]]:
        """Shares of each span, of which the last may be cut short; nothing where nothing was noted."""
        if self._begun_s is None:
            return {}
        whole_s = self._last_s - self._begun_s
        found: dict[str, float | list[float]] = {"span_s": self.span_s, "seconds": round(whole_s, 3)}
        for name, spent in self._spent.items():
            shares = []
            for at, seconds in enumerate(spent):
                within_s = min(self.span_s, whole_s - at * self.span_s)
                workers = self.workers if name == COMPUTING else 1
                shares.append(round(min(seconds / (within_s * workers), 1.0), 3) if within_s > 0 else 0.0)
            found[name] = shares
        return found

    def _add(self, what: str, begun_s: float, ended_s: float, seconds: float) -> None:
        """So many seconds, evenly between two times."""
        start_s, end_s = begun_s - (self._begun_s or 0.0), ended_s - (self._begun_s or 0.0)
        while end_s >= _MOST_SPANS * self.span_s:
            self._double()
        first, last = int(start_s / self.span_s), int(end_s / self.span_s)
        for spent in self._spent.values():
            spent += [0.0] * (last + 1 - len(spent))
        for at in range(first, last + 1):
            within_s = min(end_s, (at + 1) * self.span_s) - max(start_s, at * self.span_s)
            part = within_s / (end_s - start_s) if end_s > start_s else 1.0 / (last + 1 - first)
            self._spent[what][at] += seconds * part

    def _double(self) -> None:
        self.span_s *= 2
        for name, spent in self._spent.items():
            self._spent[name] = [sum(spent[at : at + 2]) for at in range(0, len(spent), 2)]
