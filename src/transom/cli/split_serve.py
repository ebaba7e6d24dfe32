"""`transom split serve`: the vendor's side of private inference; and the customer's, for `transom gateway`.

Both read what a run has left: `job.json` with the job, what its state is of and the steps done, and
`state.safetensors` with what the party trained, if it trained anything; the customer's also `noise.json`.
Threat model: another job's folder, half a file. The server has no authentication, and TLS only with a
certificate, so it binds to loopback unless told otherwise.
Does not protect: see `transom.serving.split_server`.
Source: own.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from transom.cli.app import ConfigFile
from transom.cli.options import CERTIFICATE, CERTIFICATE_KEY, Bind, tls_of
from transom.cli.output import progress
from transom.config import Setting, from_plain, load_json
from transom.errors import CheckpointError, NotYetError, system_errors
from transom.files import read_private, write_once
from transom.net.listen import listen, url_of
from transom.net.listen import serve as serve_app
from transom.privacy.stream import SECRET_BYTES
from transom.split.job import SplitJob

if TYPE_CHECKING:
    from transom.checkpoint.cut import Front
    from transom.privacy.guarantee import Guarantee
    from transom.privacy.nearest import Ints
    from transom.privacy.releases import Noising, Rows
    from transom.serving.engines.split import SplitCustomer
    from transom.serving.split_server import SplitServer
    from transom.serving.split_wire import SplitTerms

BIND = Bind(port=8002)


@dataclass(frozen=True)
class Run:
    """What a run left: its job, what the party's state is of, and after how many steps."""

    folder: Path
    job: SplitJob
    about: Mapping[str, str]
    steps: int
    trains: bool

    @property
    def tuning(self) -> str:
        """The same digest for both parties of a run, and no other."""
        alike = {name: value for name, value in self.about.items() if name != "party"}
        return hashlib.sha256(json.dumps([alike, self.steps], sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Room:
    """How much a vendor serves at once."""

    context: Annotated[int, Setting("Tokens of prompt and answer (0: the model's).", least=0)] = 0
    sessions: Annotated[int, Setting("Answers under way at once.", least=1)] = 32
    tokens: Annotated[int, Setting("Tokens of all of them, which keep their states.", least=1)] = 65_536
    idle_s: Annotated[float, Setting("Seconds after which a silent answer is dropped.", above=0)] = 120.0


def serve(
    config: ConfigFile = None,
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="The vendor's folder of a finished run.")
    ] = Path("split/vendor"),
    *,
    bind: Bind = BIND,
    room: Room,
    tls_cert: Annotated[Path | None, CERTIFICATE] = None,
    tls_key: Annotated[Path | None, CERTIFICATE_KEY] = None,
) -> None:
    """Serve a tuned model's blocks to its customer, whose gateway has the first ones."""
    from transom.serving.split_server import create_split_app

    bind.check()
    tls = tls_of(tls_cert, tls_key)
    with listen(bind.host, bind.port) as sock:
        run = run_in(folder)
        with progress(f"loading {run.job.model}"):
            server = vendor_in(run, room)
        wire = "plain text" if tls is None else "TLS"
        said = f"serving {run.job.name}, tuned for {run.steps} steps, at {url_of(sock, tls)}"
        typer.echo(f"{said} ({wire}, no authentication); stop with Ctrl-C", err=True)
        serve_app(create_split_app(server), sock, tls)


def run_in(folder: Path) -> Run:
    """The run that a folder is of. Raises CheckpointError, and NotYetError for a classifier's."""
    with system_errors(f"{folder} holds no finished run", "train first, or give its folder", CheckpointError):
        try:
            head = load_json((folder / "job.json").read_bytes())
            steps, about, trains = int(head["steps"]), dict(head["about"]), bool(head["trains"])
        except (ValueError, KeyError, TypeError):
            raise CheckpointError(f"{folder / 'job.json'} is damaged; restore it, or train again") from None
    job = from_plain(SplitJob, head["job"], f"the job of {folder}", error=CheckpointError)
    if job.task != "causal":
        raise NotYetError(f"{folder} is of a classifier, which does not chat; see transom split predict")
    return Run(folder, job, about, steps, trains)


def vendor_in(run: Run, room: Room) -> SplitServer:
    """The vendor's server of a run. Raises CheckpointError for a customer's folder, or another model's."""
    from transom.serving.split_server import Bounds, SplitServer
    from transom.split.learner import schedule
    from transom.split.parts import load_model, make_vendor

    model: Any = load_model(run.job).model
    part = make_vendor(model, run.job, schedule(run.job.train, 1))
    _learnt(run, "vendor", part.learner)
    context = room.context or _context(model)
    bounds = Bounds(
        context_tokens=context, sessions=room.sessions, tokens=max(room.tokens, context), idle_s=room.idle_s
    )
    tail = None if part.head is None else part.head.tail
    return SplitServer(_terms(run, model), part.middle, tail, bounds)


def customer_in(folder: Path) -> SplitCustomer:
    """The customer's part of the run in a folder. Raises as `vendor_in`."""
    from transom.privacy.releases import Releases
    from transom.serving.engines.embedded import eos_ids_of
    from transom.serving.engines.split import SplitCustomer
    from transom.split.learner import schedule
    from transom.split.parts import load_model, make_customer

    run = run_in(folder)
    found = load_model(run.job)
    model: Any = found.model
    part = make_customer(model, run.job, schedule(run.job.train, 1))
    _learnt(run, "customer", part.learner)
    noising, promise = _noise(run, part.front, _context(model))
    lasts = noising is not None and run.job.after_block == 0  # see `privacy.releases`
    return SplitCustomer(
        terms=_terms(run, model),
        front=part.front,
        tail=None if part.head is None else part.head.tail,
        releases=Releases(noising, secret=_secret(run) if lasts else None),
        promise=promise,
        eos_ids=eos_ids_of(found),
        context_tokens=_context(model),
    )


def _terms(run: Run, model: Any) -> SplitTerms:
    from transom.serving.split_wire import SplitTerms

    job, config = run.job, model.config
    return SplitTerms(
        model=job.name,
        tuning=run.tuning,
        after_block=job.after_block,
        layout=job.layout,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        wire=job.wire,
    )


def _context(model: Any) -> int:
    return int(model.config.max_position_embeddings)


def _learnt(run: Run, party: str, learner: Any) -> None:
    """Put what was trained in its place."""
    from transom.link import state

    if run.about.get("party") != party or run.trains != (learner is not None):
        raise CheckpointError(
            f"{run.folder} is the folder of the {str(run.about.get('party'))[:20]}, not one of a {party} who "
            "trains what the job says; give that of this party"
        )
    if learner is None:
        return
    with system_errors(f"{run.folder} lacks its state", "restore it, or train again", CheckpointError):
        data = (run.folder / "state.safetensors").read_bytes()
    state.put_weights(learner, state.read(data, run.about))


def _secret(run: Run) -> bytes:
    """Of this tuning under this noise, made by these versions; from what was drawn once for the folder."""
    path = run.folder / "serve.secret"
    write_once(path, os.urandom(SECRET_BYTES), mode=0o600)
    made_by = [version(name) for name in ("transom", "numpy", "scipy")]
    use = json.dumps([run.tuning, (run.folder / "noise.json").read_text("utf-8"), made_by])
    return hmac.digest(read_private(path), use.encode(), "sha256")


def _noise(run: Run, front: Front, context_tokens: int) -> tuple[Noising | None, Guarantee]:
    """What the customer makes of a state, as in training, and what that promises of one release. A token that
    comes alone has no place in its text, so the tokenizer's own are denoised as all others are."""
    import numpy as np

    from transom.privacy.stream import Stream
    from transom.split.denoised import Denoiser
    from transom.split.folder import kept_noise
    from transom.split.privatise import guarantee

    settled = kept_noise(run.folder, run.job).settled
    promise = guarantee(replace(settled, releases=1, longest=context_tokens))
    if settled.noise.kind == settled.tunnel.kind == "none":
        return None, promise
    denoise = Denoiser.of(settled, front) if settled.noise.denoise else None

    def noising(stream: Stream, ids_N: Ints, rows_ND: Rows) -> Rows:
        noisy_ND = np.asarray(settled.noisy(rows_ND, ids_N, stream), np.float32)
        return noisy_ND if denoise is None else denoise.expected(noisy_ND)

    return noising, promise
