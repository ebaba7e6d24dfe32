"""What a party's run leaves behind, in `OUT/label` or `OUT/feature`: what it has learnt, and of which run.

`job.json` says the job, what its state is of, the steps done, and the mark that both parties' folders of one
run share; `state.safetensors` holds weights, buffers and moments; `report.json` how it went.
Threat model: another job's folder, half a file, halves of two runs. Does not protect: weights tell of the
rows that they were trained on, so the folder is its owner's to keep.
Source: own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from transom.config import read_config, to_plain
from transom.errors import CheckpointError, system_errors
from transom.files import write_file
from transom.vertical.half import Half
from transom.vertical.job import VerticalJob


@dataclass(frozen=True)
class Head:
    """`job.json`."""

    job: Any
    about: Mapping[str, str]
    steps: int
    run: str  # what both parties' folders of one run have alike
    importance: tuple[float, ...] = ()  # of the values of a row, as far as the tunnel learnt it


def mark_of(own: str, partners: str) -> str:
    """Of a run, out of the ids of both parties' records: the same at both."""
    return hashlib.sha256("/".join(sorted((own, partners))).encode()).hexdigest()[:16]


def leave(job: VerticalJob, half: Half, head: Head, report: Mapping[str, Any]) -> None:
    """Write what was learnt, and how it went. Raises MisconfiguredError."""
    write_file(job.folder / "state.safetensors", half.saved(), mode=0o600)
    write_file(job.folder / "report.json", _json(report))
    write_file(job.folder / "job.json", _json(to_plain(head)))


def take(job: VerticalJob, half: Half, about: Mapping[str, str], but: Collection[str] = ()) -> Head:
    """What `leave` wrote, into the half. Raises CheckpointError: absent, damaged, or of something else than
    `about`, `but` for these names (both told)."""
    path = job.folder / "job.json"
    if not path.exists():
        raise CheckpointError(f"{job.folder} holds no finished run; train first, or set `out` to its folder")
    head = read_config(Head, path, what="what a run left", error=CheckpointError)
    names = {*head.about, *about} - {*but}
    if other := sorted(name for name in names if head.about.get(name) != about.get(name)):
        told = "; ".join(
            f"{name} was {str(head.about.get(name))[:80]!r}, and is {about.get(name)!r}" for name in other
        )
        raise CheckpointError(f"{job.folder} is of another run: {told}. Restore that, or train again")
    with system_errors(
        f"cannot read the state in {job.folder}", "restore it, or train again", CheckpointError
    ):
        data = (job.folder / "state.safetensors").read_bytes()
    half.restore(data)
    return head


def _json(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()
