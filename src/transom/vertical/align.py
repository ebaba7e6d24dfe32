"""The rows that both parties have, in one order: found once, kept in OUT/ROLE/aligned.json, read by all else.

Both sort by canonical ID and compare a hash of the order, here and whenever they meet again. The file names
this party's own IDs alone, and only its owner may read it.
Threat model: that of `transom.vertical.psi`; a file that was changed or damaged since.
Does not protect: who is in both files is known to both parties afterwards, and how many rows each has.
Source: own. Shapes: N rows of the table, M common ones.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from transom.config import from_plain, load_json
from transom.errors import (
    CheckpointError,
    LinkError,
    LinkRefusedError,
    LinkTimeoutError,
    MisconfiguredError,
    system_errors,
)
from transom.files import read_private, write_file
from transom.link.config import connected
from transom.link.session import Session
from transom.vertical import ids, psi
from transom.vertical.job import VerticalJob, terms
from transom.vertical.table import LEAST_ROWS, Table

Join = Literal["psi", "hashed", "local"]
FILE = "aligned.json"
_VERSION = 1
_MOST_BEGINNINGS = 6
_PAUSE_S = 0.2  # before the second beginning, twice as long before each further one
_MOST_RUN_CHARS = 60  # of the link's run, before ".psi"


@dataclass(frozen=True)
class Aligned:
    """The common rows. `rows_M` are their places in this party's table; `ids` rise and are the partner's too.

    `join` says how they were found: `hashed` is insecure, `local` within one process.
    """

    ids: tuple[str, ...]
    rows_M: NDArray[np.int64]
    order_hash: str
    partner_count: int
    join: Join

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def discloses(self) -> tuple[str, ...]:
        """What the partner has learnt by it, in words."""
        known = ("which of its IDs this party has", "how many rows this party has")
        return (*known, "every other ID that it can guess") if self.join == "hashed" else known


@dataclass(frozen=True)
class _File:
    """`aligned.json`."""

    version: int
    job: str
    rule: str
    join: Join
    partner_count: int
    order_hash: str
    ids: tuple[str, ...]


def align(
    job: VerticalJob, table: Table, session: Session, advance: psi.Advance = lambda done, total: None
) -> Aligned:
    """The rows in common with the partner at the other end of a connected session.

    Raises MisconfiguredError at both parties for fewer than two, LinkError, MissingExtraError.
    """
    hashed = job.insecure_hashed_join
    found = psi.intersect(session, table.ids, job.role, hashed=hashed, advance=advance)
    session.finish()
    return _made(table, found.places, found.partner_count, "hashed" if hashed else "psi")


def with_partner(
    job: VerticalJob, table: Table, advance: psi.Advance = lambda done, total: None,
    meet_s: float | None = None,
) -> Aligned:  # fmt: skip
    """As `align`, over the job's link, with a partner that comes in `meet_s`, or the link's timeout. Nothing
    of it is resumed: where either is started again, both begin anew, a few times.

    Raises also LinkRefusedError with every term that differs.
    """
    if job.link is None:
        raise MisconfiguredError(
            "the job has no link; add one, or run both parties here: transom vertical simulate"
        )
    link = replace(job.link, record=None, wire=job.wire)
    run = f"{link.run[:_MOST_RUN_CHARS]}.psi"
    again, pause_s = _MOST_BEGINNINGS, _PAUSE_S
    while True:
        try:
            with connected(link, terms(job, {"purpose": "psi"}), run=run, meet_s=meet_s) as (session, _, _):
                return align(job, table, session, advance)
        except LinkError as error:
            again -= 1
            if isinstance(error, LinkRefusedError | LinkTimeoutError) or not again:
                raise  # else one of both is another process now, which knows nothing of what was said
            time.sleep(pause_s)  # the partner may not have noticed yet
            pause_s *= 2


def here(one: Table, other: Table) -> tuple[Aligned, Aligned]:
    """Both parties' rows where one process has both tables. Raises MisconfiguredError for fewer than two."""
    places = [{name: place for place, name in enumerate(table.ids)} for table in (one, other)]
    common = sorted(places[0].keys() & places[1].keys())
    first, second = (tuple(each[name] for name in common) for each in places)
    return _made(one, first, len(other), "local"), _made(other, second, len(one), "local")


def write(job: VerticalJob, aligned: Aligned) -> Path:
    """Keep it in the job's folder. Raises MisconfiguredError."""
    path = job.folder / FILE
    with system_errors(f"cannot make {path.parent}"):
        path.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "version": _VERSION, "job": job.name, "rule": ids.RULE, "join": aligned.join,
        "partner_count": aligned.partner_count, "order_hash": aligned.order_hash, "ids": aligned.ids,
    }  # fmt: skip
    write_file(path, json.dumps(record, ensure_ascii=False).encode(), mode=0o600)
    return path


def read(job: VerticalJob, table: Table) -> Aligned:
    """What `write` kept, found again in the table as it is now.

    Raises CheckpointError for a file that is damaged, of another job or rule, or names rows that are gone.
    """
    path, again = job.folder / FILE, "run transom vertical psi again at both parties"
    try:
        value = load_json(read_private(path, give="one that transom vertical psi wrote"))
    except ValueError:
        raise CheckpointError(f"{path} is damaged; {again}") from None
    kept = from_plain(_File, value, f"{path} cannot be used", error=CheckpointError)
    if (kept.version, kept.job, kept.rule) != (_VERSION, job.name, ids.RULE):
        raise CheckpointError(f"{path} is of job {kept.job!r} and rule {kept.rule!r}; {again}")
    if list(kept.ids) != sorted({*kept.ids}) or ids.order_hash(kept.ids) != kept.order_hash:
        raise CheckpointError(f"{path} is damaged: its IDs are not those of its order hash; {again}")
    places = {name: place for place, name in enumerate(table.ids)}
    if gone := sum(one not in places for one in kept.ids):
        raise CheckpointError(
            f"{gone} of {len(kept.ids)} aligned IDs are no longer in {job.data.path}; {again}"
        )
    return _made(table, tuple(places[one] for one in kept.ids), kept.partner_count, kept.join)


def _made(table: Table, places: tuple[int, ...], partner_count: int, join: Join) -> Aligned:
    if len(places) < LEAST_ROWS:
        raise MisconfiguredError(
            f"the parties have {len(places)} rows in common, of {len(table)} here and {partner_count} there, "
            f"and at least {LEAST_ROWS} are needed; compare how both write their IDs (rule {ids.RULE})"
        )
    names = tuple(table.ids[place] for place in places)
    return Aligned(names, np.array(places, np.int64), ids.order_hash(names), partner_count, join)
