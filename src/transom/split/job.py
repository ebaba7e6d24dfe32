"""What a split tuning is to do: one YAML file, which both parties have, each with its own data and link.

What both must have alike is `terms`; the link compares them before anything is trained.
Threat model: a mistake in a file; every problem is told at once, before a model is read.
Does not protect: a party that says one thing and does another.
Source: own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from transom.config import Setting, read_config, to_plain
from transom.link.config import LinkConfig, Wire
from transom.link.tunnels import TunnelSettings

Task = Literal["classification", "causal"]
Layout = Literal["vendor", "customer"]
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass(frozen=True)
class Adapter:
    """LoRA: rank, scale (`alpha / r`), and the layers by the end of their name; none: query and value."""

    r: Annotated[int, Setting("Rank.", least=1, most=1024)] = 8
    alpha: Annotated[int, Setting("The update is scaled by alpha / r.", least=1, most=2**16)] = 16
    targets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Noise:
    """What the customer adds to each token's state, or with `pool` to each text's, before it is sent.

    `d_chi`: of density exp(-eta |n|); eta is given, or found for an empirical privacy (share of tokens that
    the nearest neighbour gets wrong). `gaussian`: states clipped to length `clip`, N(0, sigma^2) added.
    """

    kind: Literal["none", "d_chi", "gaussian"] = "none"
    eta: Annotated[float | None, Setting("Of d_chi, per unit of length.", above=0)] = None
    target_privacy: Annotated[float | None, Setting("Find eta for this.", above=0, most=1)] = None
    clip: Annotated[float | None, Setting("Of gaussian: longest state.", above=0)] = None
    sigma: Annotated[float | None, Setting("Of gaussian: deviation of each number.", above=0)] = None
    inside: Annotated[
        float, Setting("Strength in directions that the model uses; 1: all alike.", above=0, most=1)
    ] = 1.0
    directions: Annotated[int, Setting("How many the model uses.", least=1, most=2**16)] = 32
    directions_of: Annotated[
        Literal["model", "task", "own"],
        "Of what the model reads, or of what tells the labels of public rows, or of the own ones.",
    ] = "model"
    public: Annotated[Path | None, "Public texts: for the directions, and to find eta on."] = None
    contributing: Annotated[
        float, Setting("Share of the vocabulary that the task needs most.", least=0, most=1)
    ] = 0.0
    spare: Annotated[float, Setting("Contributing tokens get eta times this.", least=1)] = 1.0
    denoise: Annotated[bool, "Send the rows that the noisy ones let expect; the vendor learns from them."] = (
        False
    )
    pool: Annotated[bool, "Send one row a text: its states' mean, of a causal model the last one."] = False
    narrow: Annotated[bool, "Of a text's one row send the part in the directions alone."] = False

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        ways = (self.eta is not None) + (self.target_privacy is not None)
        if self.kind == "d_chi" and ways != 1:
            yield "d_chi wants one of eta and target_privacy"
        if self.kind == "gaussian" and (self.clip is None or self.sigma is None):
            yield "gaussian wants clip and sigma"
        own = ways or self.contributing or self.inside != 1 or self.spare != 1 or self.denoise
        if self.kind != "d_chi" and own:
            yield (
                "eta, target_privacy, inside, contributing, spare and denoise are of d_chi, not of "
                f"{self.kind}"
            )
        own_rows = self.narrow and self.directions_of == "own"
        if (self.inside != 1 or self.narrow) and self.public is None and not own_rows:
            yield "inside and narrow want public texts, which the directions are found on"
        if self.inside == 1 and not self.narrow and self.directions_of != "model":
            yield "directions_of is of shaped noise and of narrow; set inside below 1, or narrow"
        if self.narrow and (not self.pool or self.inside != 1):
            yield "narrow is of pool, and leaves nothing outside to be shaped; set pool, leave inside out"
        if self.narrow and self.kind == "d_chi" and self.directions < 2:
            yield "d_chi wants two directions or more"
        if self.kind != "gaussian" and (self.clip is not None or self.sigma is not None):
            yield f"clip and sigma are of gaussian, not of {self.kind}"
        if bool(self.contributing) != (self.spare != 1):
            yield "contributing and spare go together: a share above 0, and a factor above 1"
        if self.pool and (self.contributing or self.denoise or self.target_privacy is not None):
            yield "contributing, denoise and target_privacy are of tokens, whose rows do not go with pool"
        if self.pool and (self.inside != 1 or self.narrow) and self.directions_of == "model":
            yield "pool has the task's directions alone; set directions_of: task"
        if self.directions_of == "own" and (not self.narrow or self.kind != "none"):
            yield (
                "directions_of: own is of narrow rows without noise, whose promise would not cover "
                "directions that the own texts were asked for; set directions_of: task"
            )


@dataclass(frozen=True)
class Data:
    """The customer's rows: files that `transom` reads elsewhere, too. `label_column` is of classification."""

    train: Path
    evaluate: Path | None = None
    text_column: Annotated[str, Setting(filled=True)] = "text"
    label_column: Annotated[str, Setting(filled=True)] = "label"
    max_tokens: Annotated[int, Setting("Longer texts are cut.", least=2, most=2**17, unit="tokens")] = 128


@dataclass(frozen=True)
class Train:
    """AdamW with a linear warm-up and decay. A batch goes through in `micro_batches` parts, which changes
    nothing but time. Without `evaluate_every_steps` it is evaluated after each epoch."""

    epochs: Annotated[int, Setting(least=1, most=10_000)] = 3
    batch_rows: Annotated[int, Setting(least=1, most=2**16, unit="rows")] = 16
    micro_batches: Annotated[int, Setting(least=1, most=2**10)] = 1
    learning_rate: Annotated[float, Setting(above=0, most=1)] = 1e-3
    weight_decay: Annotated[float, Setting(least=0, most=1)] = 0.01
    warmup_share: Annotated[float, Setting("Of all steps.", least=0, most=1)] = 0.1
    evaluate_every_steps: Annotated[int | None, Setting(least=1, unit="steps")] = None
    patience: Annotated[int | None, Setting("Evaluations without a lower loss before the end.", least=1)] = (
        None
    )
    checkpoint_every_steps: Annotated[int, Setting("What a kill costs.", least=1, unit="steps")] = 10
    seed: Annotated[int, Setting("Of order and initial weights, not of noise.", least=0, most=2**31)] = 0

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        if self.micro_batches > self.batch_rows:
            yield f"micro_batches ({self.micro_batches}) is more than batch_rows ({self.batch_rows})"


@dataclass(frozen=True)
class SplitJob:
    """A whole split tuning. `labels` are a classifier's, as the label column spells them, in their order.

    `layout`: who has the head, the labels and the loss. `return_gradient` trains an adapter in the customer's
    blocks as well, and sends the gradient back for it, which is a leak of its own. `tunnel` is what rows pass
    in the place of `noise`; `gradient_tunnel` what the U-shape's gradients do, whose clip is of the gradient
    of one target's loss. Without a `link` both
    parties are one process; a link's own `wire` is not read.
    """

    name: Annotated[str, Setting(pattern=_NAME)]
    model: Annotated[str, Setting("A folder, a packaged model or a hub name.", filled=True)]
    task: Task
    labels: tuple[str, ...] = ()
    after_block: Annotated[int, Setting("0 cuts at the word embedding.", least=0)] = 0
    layout: Layout = "vendor"
    labels_in_the_clear: bool = False
    return_gradient: bool = False
    adapter: Adapter = field(default_factory=Adapter)
    noise: Noise = field(default_factory=Noise)
    tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    gradient_tunnel: TunnelSettings = field(default_factory=TunnelSettings)
    data: Data | None = None
    train: Train = field(default_factory=Train)
    wire: Wire = "fp32"
    link: LinkConfig | None = None
    out: Path = Path("split")
    device: Annotated[str, Setting(filled=True)] = "cpu"

    def problems(self) -> Iterator[str]:
        """What is wrong with the fields together."""
        if self.task == "classification" and len(self.labels) < 2:
            yield f"labels: classification wants at least 2, got {len(self.labels)}"
        if self.task == "causal" and self.labels:
            yield "labels: a causal model's are its texts; leave them out"
        if len(set(self.labels)) < len(self.labels):
            yield "labels: one stands there twice"
        if self.task == "causal" and self.layout == "vendor" and not self.labels_in_the_clear:
            yield (
                "layout vendor sends the vendor a causal model's labels, which are the text itself: take "
                "layout customer, or say labels_in_the_clear: true"
            )
        if self.noise.directions_of == "task" and self.task != "classification":
            yield "noise.directions_of: task wants classes; a causal model's directions are the model's"
        if self.noise.denoise and self.after_block:
            yield f"noise.denoise expects rows of the embedding, not states after block {self.after_block}"
        if self.noise.pool and self.task != "classification":
            yield "noise.pool sends one row a text, which names its class; a causal model needs its tokens"
        if self.noise.pool and self.return_gradient:
            yield "noise.pool brings no gradient back to a text's tokens; leave return_gradient out"
        if self.tunnel.kind != "none" and self.noise.kind != "none":
            yield f"rows pass a tunnel ({self.tunnel.kind}) or noise ({self.noise.kind}); leave one out"
        if self.tunnel.kind != "none" and self.noise.directions_of == "own":
            yield "a tunnel's promise would not cover directions that the own texts were asked for"
        if self.gradient_tunnel.kind != "none" and self.layout != "customer":
            yield "gradient_tunnel is of layout customer, where gradients leave it"
        if self.tunnel.learns or self.gradient_tunnel.learns:
            yield "learns is of vertical training; here rows leave once, before anything answers"
        if self.return_gradient and self.after_block == 0:
            yield "return_gradient trains an adapter in the customer's blocks, and after_block 0 leaves none"
        if self.link is not None and self.link.wire not in ("fp32", self.wire):
            yield f"wire is {self.wire}, and link says {self.link.wire}; say it once, outside link"


def read_job(path: str | Path) -> SplitJob:
    """The job in a YAML file; paths begin at its folder. Raises MisconfiguredError with every problem."""
    job = read_config(SplitJob, path, what="the job")
    beside = Path(path).parent / job.model  # a folder beside the file, before a name
    return replace(job, model=str(beside)) if beside.exists() else job


def terms(job: SplitJob, facts: Mapping[str, str]) -> dict[str, str]:
    """What both parties must have alike, as text by name: of the job, and `facts` (digests of model and
    tokenizer, hidden size) that the parties find themselves."""
    alike: dict[str, Any] = to_plain(
        {name: getattr(job, name) for name in ("name", "task", "after_block", "layout", "return_gradient")}
    )
    alike |= {f"label {number}": label for number, label in enumerate(job.labels)}
    alike |= {f"adapter.{name}": value for name, value in to_plain(job.adapter).items()}
    alike |= {f"train.{name}": value for name, value in to_plain(job.train).items()}
    return {name: str(value) for name, value in alike.items()} | {"wire": job.wire} | dict(facts)
