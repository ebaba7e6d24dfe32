"""The two parties of a split tuning over a link: for `split_faults.py` and `split_speed.py`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from transom.link.config import LinkConfig
from transom.link.told import Listener
from transom.split import party, run
from transom.split.job import SplitJob

ROLES = ("vendor", "customer")


def linked(job: SplitJob, role: str, keys: Path, where: dict[str, str], timeout_s: float) -> SplitJob:
    """The party's own job, with its end of the link."""
    other = ROLES[1 - ROLES.index(role)]
    link = LinkConfig(
        job=job.name, run="r1", party=role, partner=other, identity=keys / role,
        partner_certificate=keys / other / "tls.pem", timeout_s=timeout_s, **where,  # type: ignore[arg-type]
    )  # fmt: skip
    return replace(job, link=link)


def work(job: SplitJob, role: str, tell: Listener, heartbeat_s: float = 1.0) -> None:
    """One party, from wherever its record stands to the end."""
    make: Any = party.vendor if role == "vendor" else party.customer
    with run.way(job) as broker, closing(make(job, tell)) as made:
        run.tune(made, broker, heartbeat_s)
