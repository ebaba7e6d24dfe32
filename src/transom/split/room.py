"""Whether a run's batches fit the link: told before the first step, since it would stop in the middle.

A message must not be larger than the link's `message_mb`. Of the window's bytes up to a quarter wait for the
partner's next checkpoint (`talk.Talk`); beside them are on their way a batch's states, the gradients for its
top states, which are as many, and the next batch's states, or four batches of an evaluation. So each may have
a quarter of `window_mb`.
Threat model: a mistake in two settings. Does not protect: the vendor, who does not know the rows, hears
nothing of it and waits until its time is up.
Source: own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from transom.errors import MisconfiguredError
from transom.link.codec import HEADER_BYTES, row_bytes
from transom.link.exchange import Agreement
from transom.split.job import SplitJob
from transom.split.rows import Rows

AHEAD = 4  # batches of an evaluation that are on their way at once, and quarters of the window
_INT_BYTES = 8
_INTS_OF_TEXT = 3  # its length and its label, or its tally


@dataclass(frozen=True)
class Needs:
    """The most that batches of so many texts take, the longest of which has so many tokens: bytes of a
    message, and of what is on its way at once."""

    texts: int
    tokens: int
    message_bytes: int
    window_bytes: int


def needs(job: SplitJob, width: int, rows: Rows, parts: int = 1) -> Needs:
    """Of these rows, in so many micro-batches, whatever order brings the longest together."""
    each = (1 if job.noise.pool else len(ids) for ids in rows.ids)
    lengths = sorted(each, reverse=True)[: job.train.batch_rows] or [0]
    parts = min(parts, len(lengths))
    message = _bytes(job, width, lengths[: math.ceil(len(lengths) / parts)])
    batch = _bytes(job, width, lengths) + (parts - 1) * HEADER_BYTES
    return Needs(len(lengths), lengths[0], message, AHEAD * batch)


def require_room(job: SplitJob, width: int, agreement: Agreement, rows: Rows, parts: int = 1) -> None:
    """The batches fit. Raises MisconfiguredError with what they need, what the link takes, what to change."""
    found, problems, wanted = needs(job, width, rows, parts), [], []
    for what, setting, size, most in (
        ("a message", "message_mb", found.message_bytes, agreement.max_bytes),
        (f"{AHEAD} batches, the most on their way,", "window_mb", found.window_bytes, agreement.window.bytes),
    ):
        if size > most:
            problems.append(f"{what} may have {size} bytes, and {most} fit")
            wanted.append(f"link.{setting} to {math.ceil(size / 2**20)}")
    if problems:
        server = ", as well as the NATS server's max_payload" if job.link and job.link.nats else ""
        raising = f", or raise {' and '.join(wanted)} for both parties{server}" if job.link else ""
        raise MisconfiguredError(
            f"{found.texts} texts a batch, of up to {found.tokens} tokens of {width} numbers ({job.wire}), "
            f"do not fit the link: {'; '.join(problems)}. Lower train.batch_rows or data.max_tokens{raising}"
        )


def _bytes(job: SplitJob, width: int, lengths: list[int]) -> int:
    """The most that a message of texts of these lengths has, to the vendor or back."""
    ids_go = job.task == "causal" and job.layout == "vendor"
    of_token = row_bytes(width, job.wire) + (_INT_BYTES if ids_go else 0)
    return sum(lengths) * of_token + len(lengths) * _INTS_OF_TEXT * _INT_BYTES + HEADER_BYTES
