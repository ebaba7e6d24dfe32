"""What a party's run leaves behind, in `OUT/vendor` or `OUT/customer`: what it has learnt, and of which job.

`job.json` says the job, its terms and the steps done; `state.safetensors` holds weights and moments of what
the party trains, and is absent where that is nothing. The customer's are `report.json` (metrics, noise,
bytes) and `noise.json`, with the secret of the noise.
Threat model: another job's folder, half a file. Does not protect: states were trained on the texts and may
tell of them; whoever may read a customer's folder can take the noise off what was sent.
Source: own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transom.config import read_config, to_plain
from transom.errors import CheckpointError, system_errors
from transom.files import write_file
from transom.link import state
from transom.link.learner import Learner
from transom.privacy.stream import SECRET_BYTES
from transom.split.job import SplitJob
from transom.split.privatise import Privatiser
from transom.split.settled import Settled, settled_from

if TYPE_CHECKING:
    from torch import Tensor

Role = Literal["vendor", "customer"]


@dataclass(frozen=True)
class _Head:
    """`job.json`."""

    job: Any
    about: Mapping[str, str]
    steps: int
    trains: bool


@dataclass(frozen=True)
class _KeptNoise:
    """`noise.json`: what the customer's noise is made of."""

    run: str
    secret: str  # hexadecimal
    settled: Settled


@dataclass(frozen=True)
class Left:
    """What a run left: after how many steps, and what it had learnt (None: nothing)."""

    steps: int
    state: state.State | None


def folder_of(job: SplitJob, role: Role) -> Path:
    """Where the party's part of the job goes."""
    return job.out / role


def leave(job: SplitJob, role: Role, about: Mapping[str, str], steps: int, learner: Learner | None) -> Path:
    """Write what was learnt; returns the folder. Raises MisconfiguredError."""
    folder = folder_of(job, role)
    if learner is not None:
        write_file(folder / "state.safetensors", state.save(learner, about), mode=0o600)
    head = _Head(to_plain(job), about, steps, learner is not None)
    write_file(folder / "job.json", _json(to_plain(head)))
    return folder


def write_report(folder: Path, report: Mapping[str, Any]) -> None:
    """Raises MisconfiguredError."""
    write_file(folder / "report.json", _json(report))


def keep_noise(folder: Path, privatise: Privatiser) -> None:
    """So that what is asked later has the noise of the run. Raises MisconfiguredError."""
    kept = _KeptNoise(privatise.run, privatise.secret.hex(), privatise.settled)
    write_file(folder / "noise.json", json.dumps(to_plain(kept)).encode(), mode=0o600)  # it may be long


def kept_noise(folder: Path, job: SplitJob) -> Privatiser:
    """The reverse of `keep_noise`. Raises CheckpointError where there is none, or another job's."""
    what = "the noise kept of the run"
    kept = read_config(_KeptNoise, folder / "noise.json", what=what, error=CheckpointError)
    settled = settled_from(kept.settled.to_bytes(), job)
    if not re.fullmatch(f"[0-9a-f]{{{2 * SECRET_BYTES}}}", kept.secret):
        raise CheckpointError(f"{what} has no whole secret; restore {folder / 'noise.json'}")
    return Privatiser(settled, bytes.fromhex(kept.secret), kept.run)


def left(folder: Path, about: Mapping[str, str]) -> Left:
    """What `leave` wrote. Raises CheckpointError: absent, damaged, or of another job (both told)."""
    head = _head(folder)
    if not head.trains:
        return Left(head.steps, None)
    with system_errors(f"cannot read the state in {folder}", "restore it, or train again", CheckpointError):
        data = (folder / "state.safetensors").read_bytes()
    return Left(head.steps, state.read(data, about))


def weights_left(folder: Path) -> Mapping[str, Tensor]:
    """The weights that a run left, by name; none where the party trained nothing. Raises CheckpointError."""
    found = left(folder, _head(folder).about).state
    return {} if found is None else found.weights


def _head(folder: Path) -> _Head:
    path = folder / "job.json"
    if not path.exists():
        raise CheckpointError(f"{folder} holds no finished run; train first, or give its folder")
    return read_config(_Head, path, what="what a run left", error=CheckpointError)


def _json(plain: Mapping[str, Any]) -> bytes:
    return (json.dumps(plain, indent=2, sort_keys=True) + "\n").encode()
