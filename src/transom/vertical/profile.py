"""How long a party's work on a batch takes and what memory it needs, fitted to a few constants.

What was measured (`transom.vertical.measure`) stays with its party. The constants of `Fitted` cross, and
nothing else of a profile.
Threat model: a partner whose constants are none, or out of any range; refused. Does not protect: against
constants that are false, which make a slow plan; how fast a party's machines are, and what it offers of them,
is known to the partner.
Source: Liu et al., arXiv 2510.12494: t = lambda B^gamma and M0 + rho B^chi (chi is left at 1). Own: the time
of messages, and what a batch costs whatever its size, from four sizes on. B: rows of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from transom.config import Setting, from_plain, settings
from transom.errors import LinkRefusedError, MisconfiguredError

Floats = NDArray[np.float64]
MOST_ROWS = 2**20
_MOST_S = 1e5
_MOST_GAMMA = 3.0
_MOST_BYTES = 2.0**50
_LEAST_S = 1e-9
_SHARES = 1 - np.geomspace(1, 1e-4, 160)  # of the shortest time, tried as overhead; the first is 0
_SIZES_FOR_OVERHEAD = 4


@dataclass(frozen=True)
class Power:
    """overhead_s + lambda_s * B^gamma: seconds for a batch of B rows."""

    lambda_s: Annotated[float, Setting("Seconds of one row.", above=0, most=_MOST_S)]
    gamma: Annotated[float, Setting("Exponent of the rows.", least=0, most=_MOST_GAMMA)] = 1.0
    overhead_s: Annotated[float, Setting("Seconds of a batch of any size.", least=0, most=_MOST_S)] = 0.0

    def __call__(self, rows: float) -> float:
        """Seconds for so many rows, at least one."""
        return self.overhead_s + self.lambda_s * math.pow(max(rows, 1.0), self.gamma)


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """All that one party tells the other of its profile, and what it offers for the job."""

    forward: Annotated[Power, "A worker's time for a batch, forward."]
    backward: Annotated[Power, "The same, backward, with the step of its optimiser."]
    base_bytes: Annotated[float, Setting("Memory of a worker at rest.", least=0, most=_MOST_BYTES)] = 0.0
    row_bytes: Annotated[
        float, Setting("Memory that each row of its batch adds.", least=0, most=_MOST_BYTES)
    ] = 0.0
    message: Annotated[Power, "The party's own time for a message, with its part of the checkpoints."] = (
        field(default_factory=lambda: Power(_LEAST_S, 0.0))
    )
    average_s: Annotated[
        float, Setting("The server's time for a worker's weights.", least=0, most=_MOST_S)
    ] = 0.0
    checkpoint_steps: Annotated[int, Setting("Steps from checkpoint to checkpoint.", least=1, most=2**31)] = (
        2**31
    )
    most_rows: Annotated[int, Setting("The largest batch measured.", least=1, most=MOST_ROWS)] = MOST_ROWS
    cores: Annotated[int, Setting("Cores that it offers.", least=1, most=4096)] = 1
    memory_bytes: Annotated[float, Setting("Memory that it offers.", above=0, most=_MOST_BYTES)] = _MOST_BYTES

    def memory(self, workers: int, batches: int, batch_rows: int) -> float:
        """Bytes of so many workers that have so many batches, of so many rows, at once."""
        return workers * self.base_bytes + batches * self.row_bytes * batch_rows


@dataclass(frozen=True)
class Measured:
    """One run of a batch: seconds of a worker forward and backward, and its memory at the most if known."""

    rows: int
    forward_s: float
    backward_s: float
    memory_bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What a party has measured, with one worker on one core, and what it offers. It stays here.

    `messages`: rows, and this party's seconds for a message of them; `checkpoint_s` are those in which a
    checkpoint of `checkpoint_bytes` is made, before it is kept.
    """

    measured: tuple[Measured, ...]
    messages: tuple[tuple[int, float], ...] = ()
    average_s: float = 0.0
    checkpoint_s: float = 0.0
    checkpoint_bytes: int = 0
    checkpoint_steps: int = 2**31
    most_rows: int = MOST_ROWS
    cores: int = 1
    memory_bytes: float = _MOST_BYTES


def fit(profile: Profile) -> Fitted:
    """The constants of a profile.

    Raises MisconfiguredError for fewer than two sizes and for what cannot have been measured.
    """
    _check(profile.measured)
    rows_P = np.array([one.rows for one in profile.measured], dtype=np.float64)
    base_bytes, row_bytes = _memory(profile.measured)
    return Fitted(
        forward=fit_power(rows_P, [one.forward_s for one in profile.measured]),
        backward=fit_power(rows_P, [one.backward_s for one in profile.measured]),
        base_bytes=base_bytes,
        row_bytes=row_bytes,
        message=_message(profile.messages),
        average_s=profile.average_s,
        checkpoint_steps=profile.checkpoint_steps,
        most_rows=min(int(rows_P.max()), profile.most_rows),
        cores=profile.cores,
        memory_bytes=profile.memory_bytes,
    )


def fit_power(rows: Sequence[float] | Floats, seconds: Sequence[float]) -> Power:
    """Least squares of the logarithms, so that a factor counts alike at each size.

    An exponent outside 0 to 3 becomes the nearer end, and 0 if there is one size. With four sizes or more an
    overhead is sought as well.
    """
    rows_P, seconds_P = np.asarray(rows, np.float64), np.asarray(seconds, np.float64)
    several = len(np.unique(rows_P)) >= _SIZES_FOR_OVERHEAD
    if len(np.unique(rows_P)) == 1:
        return Power(float(seconds_P.mean()), 0.0)
    overheads = _SHARES * seconds_P.min() if several else np.zeros(1)
    found = [_at_overhead(rows_P, seconds_P, float(overhead_s)) for overhead_s in overheads]
    return min(found, key=lambda one: _misfit(one, rows_P, seconds_P))


def _message(measured: Sequence[tuple[int, float]]) -> Power:
    """Of what was measured, or next to nothing."""
    if not measured:
        return Power(_LEAST_S, 0.0)
    rows, seconds = zip(*measured, strict=True)
    return fit_power(rows, [max(one, _LEAST_S) for one in seconds])


def _at_overhead(rows_P: Floats, seconds_P: Floats, overhead_s: float) -> Power:
    logs_P, rest_P = np.log(rows_P), np.log(seconds_P - overhead_s)
    spread_P = logs_P - logs_P.mean()
    gamma = min(max(float(spread_P @ rest_P / (spread_P @ spread_P)), 0.0), _MOST_GAMMA)
    lambda_s = math.exp(float(rest_P.mean()) - gamma * float(logs_P.mean()))
    return Power(min(lambda_s, _MOST_S), gamma, overhead_s)


def _misfit(power: Power, rows_P: Floats, seconds_P: Floats) -> float:
    told_P = np.array([power(rows) for rows in rows_P])
    return float(np.square(np.log(told_P / seconds_P)).sum())


def worst_factor(power: Power, rows: Sequence[float], seconds: Sequence[float]) -> float:
    """By which factor the constants are furthest from what was measured; 1 is exact."""
    return max(math.exp(abs(math.log(power(b) / s))) for b, s in zip(rows, seconds, strict=True))


def _memory(measured: Sequence[Measured]) -> tuple[float, float]:
    """Bytes at rest and for each row, neither below 0; nothing where fewer than two sizes were measured."""
    known = [(one.rows, one.memory_bytes) for one in measured if one.memory_bytes is not None]
    if len({rows for rows, _ in known}) < 2:
        return max((memory for _, memory in known), default=0.0), 0.0
    rows_P, memory_P = np.array(known, dtype=np.float64).T
    spread_P = rows_P - rows_P.mean()
    row_bytes = max(float(spread_P @ memory_P / (spread_P @ spread_P)), 0.0)
    base_bytes = float(memory_P.mean() - row_bytes * rows_P.mean())
    if base_bytes >= 0:
        return base_bytes, row_bytes
    return 0.0, float(rows_P @ memory_P / (rows_P @ rows_P))


def _check(measured: Sequence[Measured]) -> None:
    sizes = {one.rows for one in measured}
    if len(sizes) < 2:
        raise MisconfiguredError(
            f"a profile needs at least two sizes of batches, got {len(sizes)}; measure one at 16 rows and "
            "one at the largest that you would train with"
        )
    for one in measured:
        times = (one.forward_s, one.backward_s)
        fits = 1 <= one.rows <= MOST_ROWS and all(_LEAST_S <= time_s <= _MOST_S for time_s in times)
        if not fits or not 0 <= (one.memory_bytes or 0) <= _MOST_BYTES:
            raise MisconfiguredError(
                f"a profile has {one.rows} rows in {one.forward_s:g} s and {one.backward_s:g} s, with "
                f"{one.memory_bytes or 0:g} bytes, which cannot have been measured; measure again"
            )


# What crosses to the partner


def received(value: Any) -> Fitted:
    """The partner's constants out of plain JSON. Raises LinkRefusedError with all that is wrong."""
    return from_plain(Fitted, value, "the partner's profile is refused", error=LinkRefusedError)


def disclosed() -> dict[str, str]:
    """What of a profile crosses to the partner, as the report lists it: names and what they are."""
    return {name: known.setting.help for name, known in settings(Fitted).items()}
