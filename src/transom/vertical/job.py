"""What a vertical training is to do: one YAML file a party, each with its own data and link.

What both must have alike is `terms`; the link compares them before anything is trained.
Threat model: a mistake in a file; every problem is told at once, before a row is read.
Does not protect: a party that says one thing and does another.
Source: own; the defaults of the schedule: Liu et al., arXiv 2510.12494, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from transom.config import Setting, read_config, to_plain
from transom.link.config import LinkConfig, Wire
from transom.link.mechanisms import Mechanism
from transom.link.tunnels import Name as TunnelName
from transom.link.tunnels import TunnelSettings
from transom.vertical import ids

Task = Literal["binary", "multiclass", "regression", "counts"]
Role = Literal["label", "feature"]
Schedule = Literal["vfl", "vfl-ps", "avfl", "avfl-ps", "pubsub"]
VERSION = "1"  # of what the parties say to each other
PREDICTED = 1  # releases of a row by all runs of `predict` together: they carry one noise
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_CALLABLE = r"([A-Za-z_][\w.]*:[A-Za-z_]\w*)?"
_OWN = (  # of each party
    "learning_rate", "weight_decay", "workers", "cluster", "patience", "worker_deadline_s",
    "checkpoint_every_steps",
    "record_traffic_mb",
)  # fmt: skip


@dataclass(frozen=True)
class Data:
    """A party's file: CSV, TSV, JSON lines or Parquet with a row an ID, or an .npy array of numbers.

    Who names a label column is the label party. `features` none named: all other columns. Rows of an .npy
    have the IDs 0, 1, 2 ...; its columns are named by their number.
    """

    path: Path
    id_column: Annotated[str, Setting(filled=True)] = "id"
    label_column: Annotated[str | None, Setting("Of the label party alone.", filled=True)] = None
    features: tuple[str, ...] = ()
    test_share: Annotated[float, Setting("Share of the rows that are not trained on.", above=0, most=0.9)] = (
        0.3
    )

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        if len(set(self.features)) < len(self.features):
            yield "features: a column stands there twice"
        for name, column in (("id_column", self.id_column), ("label_column", self.label_column)):
            if column in self.features:
                yield f"features: {column!r} is the {name}"
        if self.label_column == self.id_column:
            yield f"label_column and id_column are one, {self.id_column!r}"


@dataclass(frozen=True)
class Net:
    """A model's hidden layers by width, with ReLU; none: a linear map. Or `module`, "package.module:name":
    what is called with the numbers of inputs and outputs and gives a torch.nn.Module."""

    hidden: tuple[Annotated[int, Setting("Width.", least=1, most=2**16)], ...] = (64,)
    module: Annotated[str, Setting(pattern=_CALLABLE)] = ""
    bounded: Annotated[bool, "Outputs go through tanh, so that a tunnel with clip 1 cuts none."] = False


@dataclass(frozen=True)
class Train:
    """AdamW. `vfl` is lock-step, `avfl` has several batches under way, `-ps` adds a parameter server in each
    party; `pubsub` lets any worker take any batch. `workers` and their deadline, learning rate, decay,
    patience, checkpoints and what is recorded are each party's own.

    Of batches that are under way at most `embeddings` and `gradients` wait, the oldest is dropped; a batch
    that waits longer than `deadline_s` is given to others. Workers' models are averaged every 1 to
    `aggregate_epochs` epochs. A gradient that is older than `staleness` steps is not applied.
    """

    schedule: Schedule = "pubsub"
    epochs: Annotated[int, Setting(least=1, most=10_000)] = 10
    batch_rows: Annotated[int, Setting(least=1, most=2**20, unit="rows")] = 256
    learning_rate: Annotated[float, Setting(above=0, most=1)] = 1e-3
    weight_decay: Annotated[float, Setting(least=0, most=1)] = 0.0
    seed: Annotated[int, Setting("Of order and initial weights, not of noise.", least=0, most=2**31)] = 0
    workers: Annotated[int, Setting("Of this party.", least=1, most=1024)] = 1
    bundle: Annotated[int, Setting("Batches of a message.", least=1, most=1024)] = 1
    cluster: Annotated[
        str, Setting("Address of a Ray cluster ('auto') that has the workers; of this party.")
    ] = ""
    embeddings: Annotated[int, Setting("Embeddings that may wait.", least=1, most=1024)] = 5
    gradients: Annotated[int, Setting("Gradients that may wait.", least=1, most=1024)] = 5
    deadline_s: Annotated[float, Setting("How long a batch may wait.", above=0, most=1e6)] = 10.0
    worker_deadline_s: Annotated[
        float, Setting("How long a task of a worker may take.", above=0, most=1e6)
    ] = 30.0
    aggregate_epochs: Annotated[int, Setting("Most epochs between averages.", least=1, most=10_000)] = 5
    staleness: Annotated[int, Setting("Most steps that a gradient may be old.", least=0, most=10_000)] = 8
    patience: Annotated[int | None, Setting("Epochs without a lower loss before the end.", least=1)] = None
    checkpoint_every_steps: Annotated[int, Setting("What a kill costs.", least=1, unit="steps")] = 10
    record_traffic_mb: Annotated[
        int, Setting("Of what is sent and received, kept for an audit at most.", least=0, most=2**20)
    ] = 0

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        if self.bundle > self.staleness + 1:
            yield f"bundle is {self.bundle}, and staleness {self.staleness}; it is at least bundle - 1"


@dataclass(frozen=True)
class VerticalJob:
    """A party's side of a vertical training. Who has `data.label_column` is the label party.

    `width` is the embedding's; `bottom` is the party's own, `top` and `classes` (as the label column spells
    them, in their order) the label party's. `noise` is what a party's rows pass before they are sent: the
    feature party's embeddings, the label party's gradients, which are of a batch's mean loss, so that they
    are about 1 / batch_rows of a row's. `watch` ends a training whose gradients look like those of a
    partner that hijacks the bottom. Without a `link` both parties are one process; a link's own
    `wire` is not read. `insecure_hashed_join` joins IDs by their hashes, which the partner can undo by
    trying.
    """

    name: Annotated[str, Setting(pattern=_NAME)]
    task: Task
    data: Data
    classes: tuple[str, ...] = ()
    width: Annotated[int, Setting("Numbers of an embedding.", least=1, most=2**16)] = 32
    bottom: Net = field(default_factory=lambda: Net((64, 64)))
    top: Net = field(default_factory=Net)
    train: Train = field(default_factory=Train)
    noise: TunnelSettings = field(default_factory=TunnelSettings)
    partner_noise: Annotated[TunnelName, "What kind the partner's noise is; both must say the same."] = "none"
    watch: Annotated[bool, "Look for hijacking in the gradients; of the feature party."] = False
    insecure_hashed_join: bool = False
    wire: Wire = "fp32"
    link: LinkConfig | None = None
    out: Path = Path("vertical")
    device: Annotated[str, Setting(filled=True)] = "cpu"

    @property
    def role(self) -> Role:
        """Whether this is the label party or the feature party."""
        return "feature" if self.data.label_column is None else "label"

    @property
    def folder(self) -> Path:
        """Where this party's run is kept."""
        return self.out / self.role

    @property
    def planned_releases(self) -> int:
        """Of a row: once an epoch, and an embedding once more for all predictions."""
        return self.train.epochs + (PREDICTED if self.role == "feature" else 0)

    @property
    def noise_told(self) -> str:
        """The settings of the noise, and the strength that was found for them: other versions of the software
        may find another, and two strengths of one noise tell a row."""
        return f"{self.mechanism} of {to_plain(self.noise)}"

    @property
    def mechanism(self) -> Mechanism:
        """What this party's rows pass. Raises MisconfiguredError for an epsilon that no strength has."""
        return self.noise.mechanism(self.planned_releases, signed=self.role == "label")

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        yield from self._class_problems()
        if self.noise.kind == "r3elu-dp" and self.noise.keep > self.width:
            yield f"noise.keep is {self.noise.keep}, and a row has {self.width} values"
        if self.noise.kind == "d_chi" and self.width < 2:
            yield f"noise: d_chi is for rows of two values and more, and width is {self.width}"
        if self.role == "label" and self.noise.response == 1:
            yield "noise.response: a gradient needs noise, which tells its sign; lower it"
        if self.watch and self.partner_noise != "none":
            yield "watch: gradients with noise look like a hijacker's; leave out partner_noise, or watch"
        if self.role == "label" and self.watch:
            yield "watch is the feature party's, which gets gradients; leave it out here"
        if self.link is not None and self.link.wire not in ("fp32", self.wire):
            yield f"wire is {self.wire}, and link says {self.link.wire}; say it once, outside link"

    def _class_problems(self) -> Iterator[str]:
        if self.role == "feature" or self.task in ("regression", "counts"):
            if self.classes:
                yield f"classes: leave them out for the {self.role} party of a {self.task} task"
        elif self.task == "binary" and len(self.classes) != 2:
            yield f"classes: binary wants 2, got {len(self.classes)}"
        elif len(self.classes) < 2:
            yield f"classes: multiclass wants at least 2, got {len(self.classes)}"
        if len(set(self.classes)) < len(self.classes):
            yield "classes: one stands there twice"


def read_job(path: str | Path) -> VerticalJob:
    """The job in a YAML file; paths begin at its folder. Raises MisconfiguredError with every problem."""
    return read_config(VerticalJob, path, what="the job")


def terms(job: VerticalJob, facts: Mapping[str, str]) -> dict[str, str]:
    """What both parties must have alike, as text by name: of the job, and `facts` (hash of the IDs' order,
    counts of rows) that the parties find themselves. Two label parties name each other, and so two feature
    parties."""
    alike: dict[str, Any] = {name: getattr(job, name) for name in ("name", "task", "width", "wire")}
    alike |= {f"train.{name}": one for name, one in to_plain(job.train).items() if name not in _OWN}
    alike |= {"data.test_share": job.data.test_share, "label party": _label_party(job)}
    own, partners = job.noise.kind, job.partner_noise
    kinds = (own, partners) if job.role == "feature" else (partners, own)
    alike |= {"noise of embeddings": kinds[0], "noise of gradients": kinds[1]}
    alike |= {"insecure_hashed_join": job.insecure_hashed_join, "IDs": ids.RULE, "version": VERSION}
    return {name: str(value) for name, value in alike.items()} | dict(facts)


def _label_party(job: VerticalJob) -> str:
    """Its name in the link. Without a link parties have the names of their roles."""
    if job.link is None:
        return "label"
    return job.link.party if job.role == "label" else job.link.partner
