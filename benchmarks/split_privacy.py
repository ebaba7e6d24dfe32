"""Split tuning on SST-2: accuracy against what the strongest attacker reads of the noised states.

    TRANSOM_DATA=DIR python benchmarks/split_privacy.py [--quick] [--json] [--model minilm smollm2]
        [--method none sap sap-without-cti shaped gaussian] [--level 30 50 ...] [--after-block K ...]
        [--seeds N]

`level` is eta times the distance between nearest tokens (after a block: states). `sap` is d_chi that spares
contributing tokens, `sap-without-cti` plain d_chi; `shaped` has a quarter of its strength in 32 directions
that the public model uses, `task` 0.03 of it in 16 that tell the labels of public texts; `gaussian` clips
rows and adds N(0, sigma^2), as DP-Forward does at the embedding, of the mean length of plain d_chi.
`-denoised`: the customer sends expected rows; `task-cti` spares a fifth of the vocabulary nearly wholly and
the rest in 4 of the task's directions. `pooled` sends one row a text, the mean of its states, without noise
(`pooled-noise`: with d_chi, in `pooled-task` with 0.03 of it in 64 directions of the task); try it with
--after-block. `narrow` sends of that row its part in 4 directions of the task alone, `narrow-16` in 16,
`narrow-own` in 2 that the customer's own labels tell, `narrow-gaussian` with the Gaussian there, whose clip
is half the median length (its guarantee is of a whole text: sigma is `level` times the clip). One row costs a
seventh of a text's, so pooled methods have three times the epochs; `none-longer` has as many, and the better
of it and `none` is what gains are over. The dev set gets noise of its own, as in use.
The front is frozen and noise is drawn once a text, so states are computed once and trained on in each epoch
by `split.parts`, without a link: the same numbers, faster.

`ep_*` is the share that an attack does not name: tokens by the nearest row (`ep_nn`), a trained inverter
(`ep_inverter`), BiSR (`ep_gradient`; layout customer, first step); of pooled rows, wherever they stand in
their text, by a learnt bag of words (`ep_bag`) and a search from there (`ep_search`), which are told how many
there are; contributing tokens by the nearest row (`ep_contributing`, the same tokens for every method);
sentiment by the best of three (`ep_aia`). `ep` is the least over all tokens, of those that ran. Attacks know
the law and own other labelled sentences of the corpus; they run for the first seed. `gain_at_1pct`: points of
`ep` over no noise at the same cut for at most one point of accuracy; the lower of the models; `gains` says
the same for each attack.
Finished points are kept in results/split_privacy_points.json; a run that was stopped goes on from there.
`santext+` (cut at the embedding) and `opacus-lora` are others' ways, `level` their epsilon: see
`_split_rivals`. The first is attacked by the likeliest token alone (`ep_nn`); the second, with batches of 256
and three times the epochs, hides no text from who trains.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import RESULTS, parser, report
from _split_rivals import Santext, dp_sgd
from transom.audit.attacks import split_attribute, split_gradient, split_inverter, split_nearest, split_pooled
from transom.audit.attacks.split_inverter import side_by_side
from transom.audit.attacks.split_view import Private, Public, but
from transom.audit.split_case import seen
from transom.checkpoint.cut import Front, three
from transom.errors import MisconfiguredError
from transom.files import write_file
from transom.privacy.contributing import by_class
from transom.privacy.guarantee import price
from transom.report.finding import Attack
from transom.report.runner import run
from transom.split.denoised import Denoiser
from transom.split.job import Data, Noise, SplitJob, Train
from transom.split.learner import schedule
from transom.split.parts import Vendor, load_model, make_vendor
from transom.split.privatise import Privatiser, Topic
from transom.split.rows import Rows, batches, pad_id_of, padded, read_rows
from transom.split.settle import settle

CONTRIBUTING, SPARE, DELTA = 0.05, 2.0, 1e-5
TOKEN_ATTACKS: Mapping[str, Attack] = {
    "ep_nn": split_nearest, "ep_inverter": split_inverter, "ep_gradient": split_gradient,
    **dict(zip(("ep_bag", "ep_search"), split_pooled.attacks(), strict=True)),
}  # fmt: skip
SHOWN = ("model", "method", "level", "seed", "accuracy", "ep", *TOKEN_ATTACKS, "ep_contributing", "ep_aia")
POINTS = RESULTS / "split_privacy_points.json"


@dataclass(frozen=True)
class Sizes:
    """Rows of each kind, epochs, and the seconds of each attack."""

    train: int = 4000
    dev: int = 872
    public: int = 4000
    audited: int = 200
    epochs: int = 2
    attack_s: float = 75.0  # of each attack on tokens; a third of it of each on attributes


FULL = {"minilm": Sizes(), "smollm2": Sizes(train=1000, public=2000, audited=100, epochs=2)}
QUICK = Sizes(train=64, dev=40, public=64, audited=8, epochs=1, attack_s=2.0)


@dataclass(frozen=True)
class Point:
    """One setting; `level` is None without noise."""

    model: str
    after_block: int
    method: str
    level: float | None
    seed: int

    def key(self, sizes: Sizes) -> str:
        """Its name in the file of points, by all that it is made of."""
        of = repr((METHODS[self.method], train_of(self, sizes)))
        digest = hashlib.sha256(of.encode()).hexdigest()[:8]
        return "/".join(map(str, (*vars(self).values(), *vars(sizes).values(), digest)))


@dataclass(frozen=True)
class Corpus:
    """Rows that are trained on, of the dev set, and the attacker's; the ids of contributing tokens."""

    train: Rows
    dev: Rows
    public: Rows
    contributing: tuple[int, ...]


_SAP = Noise("d_chi", eta=1.0, contributing=CONTRIBUTING, spare=SPARE, public=Path("public"))
_PLAIN = Noise("d_chi", eta=1.0, public=Path("public"))
_TASK = replace(_PLAIN, inside=0.03, directions=16, directions_of="task")
_NARROW = Noise(pool=True, narrow=True, directions=4, directions_of="task", public=Path("public"))
METHODS: Mapping[str, Noise] = {
    "none": Noise(),
    "sap": _SAP,
    "sap-denoised": replace(_SAP, denoise=True),
    "sap-without-cti": _PLAIN,
    "sap-without-cti-denoised": replace(_PLAIN, denoise=True),
    "shaped": replace(_PLAIN, inside=0.25),
    "shaped-denoised": replace(_PLAIN, inside=0.25, denoise=True),
    "task": _TASK,
    "task-denoised": replace(_TASK, denoise=True),
    "task-cti-denoised": replace(_TASK, directions=4, contributing=0.2, spare=20.0, denoise=True),
    "gaussian": Noise("gaussian", clip=1.0, sigma=1.0),
    "pooled": Noise(pool=True),
    "pooled-noise": replace(_PLAIN, pool=True),
    "pooled-task": replace(_TASK, directions=64, pool=True),
    "narrow": _NARROW,
    "narrow-16": replace(_NARROW, directions=16),
    "narrow-own": Noise(pool=True, narrow=True, directions=2, directions_of="own"),
    "narrow-gaussian": replace(_NARROW, kind="gaussian", clip=1.0, sigma=1.0),
    "none-longer": Noise(),
    "santext+": Noise(),
    "opacus-lora": Noise(),
}
RIVALS = ("santext+", "opacus-lora")
BARE = ("none", "none-longer", "pooled", "narrow", "narrow-16", "narrow-own")
LEVELS = {name: (15.0, 25.0, 40.0) if "task" in name else (60.0, 80.0, 110.0) for name in METHODS}
LEVELS |= {"pooled-noise": (800.0, 400.0, 200.0), "pooled-task": (400.0, 150.0, 50.0)}
LEVELS |= {"narrow-gaussian": (0.25, 0.5, 1.0), "santext+": (16.0, 20.0, 24.0), "opacus-lora": (8.0, 3.0)}


def train_of(point: Point, sizes: Sizes) -> Train:
    of = Train(epochs=sizes.epochs, seed=point.seed)
    if point.method == "opacus-lora":
        return replace(of, batch_rows=256, epochs=3 * sizes.epochs, learning_rate=3e-3)
    longer = METHODS[point.method].pool or point.method == "none-longer"
    return replace(of, epochs=3 * sizes.epochs) if longer else of


def job_of(point: Point, sizes: Sizes) -> SplitJob:
    folder = Path(os.environ["TRANSOM_DATA"]) / "sst2"
    data = Data(folder / "train.tsv", folder / "dev.tsv", "sentence", "label", max_tokens=64)
    return SplitJob(
        name="sst2", model=point.model, task="classification", labels=("0", "1"), layout="customer",
        after_block=point.after_block, noise=METHODS[point.method], data=data,
        train=train_of(point, sizes),
    )  # fmt: skip


@cache
def corpus_of(model: str, sizes: Sizes) -> Corpus:
    job = job_of(Point(model, 0, "none", None, 0), sizes)
    found = load_model(job)
    every, dev = (
        read_rows(job.data, which, job.labels, job.task, found.tokenizer) for which in ("train", "evaluate")
    )
    order = np.random.default_rng(0).permutation(len(every)).tolist()
    train, public = chosen(every, order[: sizes.train]), chosen(every, order[-sizes.public :])
    vocabulary = found.model.get_input_embeddings().num_embeddings
    needed = by_class(train.ids, train.labels, vocabulary, CONTRIBUTING, never=train.specials)
    return Corpus(train, chosen(dev, range(min(sizes.dev, len(dev)))), public, needed.ids)


class Remembered:
    """A front that keeps what came of each batch, for the next points."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._kept: dict[bytes, torch.Tensor] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._front, name)

    def __call__(self, ids_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
        key = ids_BT.numpy().tobytes()
        if key not in self._kept:
            self._kept[key] = self._front(ids_BT, mask_BT).detach()
        return self._kept[key]


@cache
def front_of(model: str, after_block: int) -> Any:
    job = job_of(Point(model, after_block, "none", None, 0), FULL[model])
    return Remembered(three(load_model(job).model, after_block)[0])


def chosen(rows: Rows, numbers: Sequence[int]) -> Rows:
    ids, labels = (tuple(of[number] for number in numbers) for of in (rows.ids, rows.labels))
    return replace(rows, ids=ids, labels=labels)


def privatiser(job: SplitJob, front: Front, corpus: Corpus, level: float | None) -> Privatiser:
    """Noise of this level; its secret comes from the seed, which is for benchmarks only."""
    secret = job.train.seed.to_bytes(32, "big")
    if job.noise.kind == "gaussian" and not job.noise.narrow:
        table_VD = front.parts.embedding.weight.detach().float()
        job = replace(job, noise=replace(job.noise, clip=float(table_VD.norm(dim=1).quantile(0.9))))
    settled = settle(job, front, corpus.train, secret, "bench", corpus.public)
    if level is not None:
        eta = level / settled.nearest
        noise = settled.noise
        if noise.narrow:
            clip = median(front, corpus, Privatiser(settled, secret, "bench")) / 2
            settled = replace(settled, noise=replace(noise, clip=clip, sigma=level * clip))
        elif noise.kind == "gaussian":
            settled = replace(settled, noise=replace(noise, sigma=math.sqrt(front.parts.width) / eta))
        else:
            settled = replace(settled, eta=eta)
    return Privatiser(settled, secret, "bench")


def median(front: Front, corpus: Corpus, privatise: Privatiser) -> float:
    """The length of a narrow row of some public texts, without noise."""
    noise = replace(privatise.settled.noise, kind="none", clip=None, sigma=None)
    bare = replace(privatise, settled=replace(privatise.settled, noise=noise))
    some = chosen(corpus.public, range(min(256, len(corpus.public))))
    narrow = bare.settled.narrow
    assert narrow is not None
    return float(
        np.median(
            [np.linalg.norm(narrow.coordinates(one.numpy())) for one in sent(front, some, bare, "train")]
        )
    )


def sent(front: Front, rows: Rows, privatise: Privatiser, topic: Topic) -> list[torch.Tensor]:
    """What leaves of each row [T, D], once and for all epochs."""
    states = []
    denoise = Denoiser.of(privatise.settled, front) if privatise.settled.noise.denoise else None
    with torch.no_grad():
        for numbers in batches(rows, Train(batch_rows=32)):
            ids_BT, mask_BT, _labels = padded(rows, numbers, 0)
            sent_BTD = privatise(front(ids_BT, mask_BT), ids_BT, mask_BT, numbers, 0, topic)
            if denoise is not None:
                sent_BTD = denoise(sent_BTD, ids_BT, mask_BT)
            states += [
                sent_TD[: len(rows.ids[n])].clone() for n, sent_TD in zip(numbers, sent_BTD, strict=True)
            ]
    return states


def accuracy(job: SplitJob, corpus: Corpus, privatise: Privatiser, device: str) -> float:
    """Of the dev set, after training on what left."""
    job = replace(job, layout="vendor", device=device)  # who has the head changes no number
    front = front_of(job.model, job.after_block)
    train, dev = (
        sent(front, rows, privatise, topic)
        for rows, topic in ((corpus.train, "train"), (corpus.dev, "evaluate"))
    )  # type: ignore[arg-type]
    vendor = make_vendor(load_model(job).model, job, schedule(job.train, len(corpus.train)))
    assert vendor.head is not None
    for epoch in range(job.train.epochs):
        for states_BTD, mask_BT, labels_B in loaded(corpus.train, train, job.train, epoch, device):
            risen = vendor.rise(states_BTD, mask_BT)
            vendor.sink(
                risen, vendor.head.grade(risen.top_BTD, mask_BT, labels_B, len(labels_B)).gradient_BTD
            )
            vendor.learner.step()
    return _evaluated(vendor, loaded(corpus.dev, dev, replace(job.train, batch_rows=64), None, device))


def _evaluated(vendor: Vendor, parts: Iterator[tuple[torch.Tensor, ...]]) -> float:
    assert vendor.head is not None
    tallies = [vendor.head.evaluate(vendor.top(states, mask), mask, labels) for states, mask, labels in parts]
    return sum(one.right for one in tallies) / sum(one.count for one in tallies)


def loaded(
    rows: Rows, states: Sequence[torch.Tensor], train: Train, epoch: int | None, device: str
) -> Iterator[tuple[torch.Tensor, ...]]:
    """States [B, T, D], mask [B, T] and labels [B], batch by batch."""
    for numbers in batches(rows, train, epoch):
        states_BTD, real_BT = side_by_side([states[number] for number in numbers])
        labels_B = torch.tensor([rows.labels[number] for number in numbers])
        yield states_BTD.to(device), real_BT.long().to(device), labels_B.to(device)


def privacy(job: SplitJob, corpus: Corpus, privatise: Privatiser, sizes: Sizes) -> dict[str, float | None]:
    """What each attack does not name."""
    found = load_model(job)
    found.model.requires_grad_(False)
    rows = chosen(corpus.train, range(sizes.audited))
    target = seen(job, found.model, rows, privatise, pad_id_of(found.tokenizer))
    frame = rows.frame if job.noise.pool else None
    knowledge = Public(found.model, job.after_block, corpus.public.ids, corpus.public.labels, frame=frame)
    data = Private(rows.ids, rows.labels, but(rows.ids, rows.specials))
    if job.after_block and not frame:
        knowledge.around  # noqa: B018 (made once, out of the attacks' time)
    needed = set(corpus.contributing)
    apart = replace(data, counted=tuple(tuple(token in needed for token in text) for text in rows.ids))

    def hidden(attacks: Sequence[Attack], truth: Private, budget_s: float) -> list[float | None]:
        findings = run(attacks, target, knowledge, truth, budget_s=budget_s * len(attacks), progress=False)
        for one in findings:
            if one.value is None:
                print(f"{one.name} not run: {one.reason}", file=sys.stderr)
        return [None if one.value is None else 1 - one.value for one in findings]

    names = [name for name in TOKEN_ATTACKS if (name in ("ep_bag", "ep_search")) == (frame is not None)]
    figures: dict[str, float | None] = dict.fromkeys(TOKEN_ATTACKS)
    figures |= zip(names, hidden([TOKEN_ATTACKS[name] for name in names], data, sizes.attack_s), strict=True)
    figures["ep_contributing"] = None if frame else least(hidden([split_nearest], apart, sizes.attack_s))
    figures["ep_aia"] = least(hidden(split_attribute.attacks(), data, sizes.attack_s / 3))
    return figures


def least(values: Any) -> float | None:
    """Of those that there are."""
    return min((value for value in values if value is not None), default=None)


def measured(point: Point, sizes: Sizes, device: str) -> dict[str, Any]:
    """One point of the frontier."""
    job = job_of(point, sizes)
    corpus = corpus_of(point.model, sizes)
    if point.method in RIVALS:
        return {**vars(point), **rivals(point, job, corpus, sizes, device)}
    privatise = privatiser(job, front_of(point.model, point.after_block), corpus, point.level)
    row: dict[str, Any] = {**vars(point), "eta": privatise.settled.eta}
    if privatise.guarantee.kind == "approximate-dp":
        row["epsilon"] = price(privatise.guarantee, DELTA)
    row["accuracy"] = accuracy(job, corpus, privatise, device)
    attacked = point.seed == 0 and point.method != "none-longer"  # what leaves is the same as with `none`
    return row | (privacy(job, corpus, privatise, sizes) if attacked else {})


def rivals(point: Point, job: SplitJob, corpus: Corpus, sizes: Sizes, device: str) -> dict[str, float | None]:
    """Of others' ways: accuracy, and what of the tokens is hidden."""
    assert point.level is not None
    if point.method == "opacus-lora":
        model = load_model(job).model
        vendor = make_vendor(model, replace(job, layout="vendor"), schedule(job.train, len(corpus.train)))
        trained = list(vendor.learner.parameters.values())
        found = dp_sgd(model, trained, corpus.train, corpus.dev, job.train, point.level)
        return {"accuracy": found, "ep_nn": 0.0}
    front = front_of(point.model, point.after_block)
    way = Santext(front.parts.embedding.weight.detach().float(), corpus.public, point.level)
    train, dev = way.changed(corpus.train, point.seed), way.changed(corpus.dev, point.seed + 1000)
    some = range(sizes.audited)
    hidden = way.hidden(chosen(corpus.train, some), chosen(train, some))
    changed = replace(corpus, train=train, dev=dev)
    bare = privatiser(job, front, changed, None)
    return {"accuracy": accuracy(job, changed, bare, device), "ep_nn": hidden}


def gains(rows: Sequence[Mapping[str, Any]], loss: float = 0.01) -> dict[str, float]:
    """For `ep` and each attack: the most points gained over no noise, for at most this loss of accuracy."""
    means: dict[tuple[Any, ...], dict[str, float]] = {}
    for of in {(row["method"], row["level"]) for row in rows if row["method"] not in RIVALS}:
        alike = [row for row in rows if (row["method"], row["level"]) == of]
        told = next((row for row in alike if row["seed"] == 0), {})
        means[of] = {**told, "accuracy": float(np.mean([row["accuracy"] for row in alike]))}
    bare = means.get(("none", None))
    if bare is None:
        return {}
    longer = means.get(("none-longer", None), bare)
    bare["accuracy"] = max(bare["accuracy"], longer["accuracy"])
    near = [one for one in means.values() if one["accuracy"] >= bare["accuracy"] - loss - 1e-9]
    names = [name for name in SHOWN if name.startswith("ep") and bare.get(name) is not None]
    return {
        name: 100 * max(one[name] - bare[name] for one in near if one.get(name) is not None) for name in names
    }


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A line for each model and method: what is hidden of all tokens, and accuracy."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for model, method in dict.fromkeys((row["model"], row["method"]) for row in rows):
        line = [
            row
            for row in rows
            if (row["model"], row["method"]) == (model, method) and row.get("ep") is not None
        ]
        line.sort(key=lambda row: row["ep"])
        axes.plot(
            [row["ep"] for row in line], [row["accuracy"] for row in line], "o-", label=f"{model}, {method}"
        )
    axes.set(xlabel="tokens hidden from the strongest attack", ylabel="accuracy on SST-2")
    axes.legend()
    figure.savefig(path)


def points(args: argparse.Namespace) -> Iterator[Point]:
    for model, after_block in zip(args.model, args.after_block, strict=True):
        for method in args.method or METHODS:
            for level in [None] if method in BARE else args.level or LEVELS[method]:
                for seed in range(args.seeds):
                    yield Point(model, after_block, method, level, seed)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--model", nargs="+", default=["minilm"], choices=tuple(FULL))
    flags.add_argument("--method", nargs="+", choices=tuple(METHODS))
    flags.add_argument("--level", nargs="+", type=float)
    flags.add_argument("--after-block", nargs="+", type=int, default=[0], help="of each model, or of all")
    flags.add_argument("--seeds", type=int, default=1)
    args = flags.parse_args()
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/train.tsv and sst2/dev.tsv")
    args.after_block = args.after_block * (len(args.model) if len(args.after_block) == 1 else 1)
    if len(args.after_block) != len(args.model):
        sys.exit(f"--after-block has {len(args.after_block)} blocks for {len(args.model)} models")
    if any(args.after_block) and set(RIVALS) & set(args.method or METHODS):
        sys.exit(f"{' and '.join(RIVALS)} are not cut after a block; name other methods")
    if args.quick:
        args.method, args.level = args.method or ["none", "sap"], args.level or [50.0]
    kept: dict[str, Any] = json.loads(POINTS.read_text()) if POINTS.exists() and not args.quick else {}
    rows = []
    for point in points(args):
        sizes = QUICK if args.quick else FULL[point.model]
        if (key := point.key(sizes)) not in kept:
            try:
                kept[key] = measured(point, sizes, args.device)
            except MisconfiguredError as error:  # such as own directions of too few rows
                print(f"{key} is refused: {error}", file=sys.stderr)
                continue
            print(f"{key}: accuracy {kept[key]['accuracy']:.3f}", file=sys.stderr)
            if not args.quick:
                RESULTS.mkdir(exist_ok=True)
                write_file(POINTS, (json.dumps(kept, indent=1) + "\n").encode())
        rows.append({**kept[key], "ep": least(kept[key].get(name) for name in TOKEN_ATTACKS)})
    gained = {model: gains([row for row in rows if row["model"] == model]) for model in args.model}
    at_1pct = least(one.get("ep") for one in gained.values())
    if not args.quick:
        plot(rows, RESULTS / "split_privacy.svg")
    record = {"gain_at_1pct": at_1pct, "gains": gained, "points": rows}
    report("split_privacy", record, [{name: row.get(name) for name in SHOWN} for row in rows], args)


if __name__ == "__main__":
    main()
