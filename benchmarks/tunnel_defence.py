"""Tunnels under attack: accuracy against what property inference, reconstruction and hijacking read.

    FASHION_MNIST=DIR TRANSOM_DATA=DIR python benchmarks/tunnel_defence.py [--quick] [--json]
        [--task fashion credit minilm] [--tunnel none gaussian r3elu-dp-1 ...] [--seeds N]

`fashion` (FASHION_MNIST: the folder of Debian's dataset-fashion-mnist): is the image of one of five classes,
chosen so that both sides' mean images are alike, since whoever is told a label knows its mean image;
the property is a long garment (trousers, dresses), alike in both. `credit` (TRANSOM_DATA): is a loan not paid
back, from all columns at the feature party; the property is the client's sex. `minilm` (TRANSOM_DATA): does a
text of SST-2 praise, from its MiniLM embedding; the property is whether it is longer than half of those of
its class. Likeness is SSIM of images, else
the variance explained. One client in five does not pay, and to say so of none is right for four: `auc_loss`
says more of that task than `accuracy_loss`.
Every tunnel has the same bottom, bounded by tanh, and a clip of 1; strengths are epsilons of a whole run (of
r3elu the paper's claim). Rows are many and epochs few, since each epoch is a release. `r3elu-dp-k` lets k
values leave, each as one bit (the response has the whole budget); `-signed` with noise; `gaussian-1` is
Gaussian noise on an embedding of one value, which says what narrowness alone does.
`excess` of an attack is (attack - chance) / (undefended - chance), the mean of seeds, chance that of the mean
image or row, and `worst_excess` the largest of the three; `accuracy_loss` is against no tunnel.
`frontier_gain_low`: of the r3elu-dp point with the least excess among those that lose at most 0.02 of
accuracy (else among all), the accuracy over that of the best of Gaussian and Laplace noise at that excess
(linear between their settings), lower end of 95 % (accuracies' own standard errors); `gain_over_narrow`: over
`gaussian-1`. Finished points are kept in results/tunnel_defence_points.json; a run that was stopped goes on
from there, and all seeds that are kept count.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import RESULTS, parser, report
from transom.audit import tunnel_case
from transom.audit.attacks import tunnel_hijack, tunnel_read
from transom.audit.attacks.tunnel_view import SSIM
from transom.audit.attacks.vertical_inversion import VARIANCE
from transom.checkpoint.load import load
from transom.files import write_file
from transom.link.tunnels import TunnelSettings
from transom.vertical import run
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.part import Part

POINTS = RESULTS / "tunnel_defence_points.json"
LEVELS: Mapping[str, tuple[float | None, ...]] = {
    "none": (None,),
    "clipping": (None,),
    "gaussian": (300.0, 100.0, 40.0, 15.0),
    "laplace": (1000.0, 300.0, 100.0),
    "d_chi": (1000.0, 300.0),
    "r3elu": (1e5, 1e3),
    "r3elu-dp-1": (60.0, 30.0, 20.0),
    "r3elu-dp-1-signed": (30.0, 15.0),
    "r3elu-dp-2": (40.0, 20.0),
    "r3elu-dp-4": (80.0, 40.0),
    "gaussian-1": (100.0, 30.0, 15.0),
}
TASKS = ("fashion", "credit", "minilm")
WIDTH, BUDGET_S, MOST_EXCESS = 64, 300.0, 0.1
MOST_LOSS = 0.02 + 1e-9
ATTACKS = ("property", "reconstruction", "hijack")
SIDE_B, LONG = (1, 2, 5, 6, 8), (1, 3)  # classes of Fashion-MNIST: one side's; trousers and dresses


@dataclass(frozen=True, eq=False)
class Task:
    """Both parties' parts, whether rows of training have the property, and how images are shaped."""

    parts: tuple[Part, Part]
    property_N: np.ndarray
    property_is: str
    shape: tuple[int, int] | None
    epochs: int
    batch_rows: int
    known: int
    learning_rate: float = 1e-3


@cache
def fashion(quick: bool) -> Task:
    folder = Path(os.environ.get("FASHION_MNIST", ""))
    if not os.environ.get("FASHION_MNIST") or not (folder / "train-images-idx3-ubyte.gz").exists():
        sys.exit("set FASHION_MNIST to the folder of Debian's dataset-fashion-mnist")

    def read(name: str, start: int) -> np.ndarray:
        with gzip.open(folder / name) as file:
            return np.frombuffer(file.read(), np.uint8, offset=start)

    count, test = (3000, 1000) if quick else (54_000, 6_000)
    images = read("train-images-idx3-ubyte.gz", 16).reshape(-1, 784)[: count + test].astype(np.float32) / 255
    classes = read("train-labels-idx1-ubyte.gz", 8)[: count + test]
    parts = both(images, np.isin(classes, SIDE_B).astype(np.int64), count)
    long_N = np.isin(classes, LONG)[parts[1].train]
    return Task(parts, long_N, "trousers or a dress", (28, 28), 2, 128, 1000 if quick else 2000)


@cache
def credit(quick: bool) -> Task:
    data = Path(os.environ.get("TRANSOM_DATA", "")) / "vfl"
    files = [data / f"default_credit_hetero_{side}.csv" for side in ("guest", "host")]
    if not os.environ.get("TRANSOM_DATA") or not all(file.exists() for file in files):
        sys.exit("set TRANSOM_DATA to the folder that holds vfl/default_credit_hetero_*.csv")
    rows = []
    for file in files:
        with file.open(newline="") as opened:
            rows.append({line["id"]: line for line in csv.DictReader(opened)})
    label = next(iter(set(next(iter(rows[0].values()))) & {"y", "label"}))
    ids = sorted(rows[0].keys() & rows[1].keys())[: 6000 if quick else 30_000]
    names = [[name for name in next(iter(of.values())) if name not in ("id", label)] for of in rows]
    own, theirs = (
        np.array([[float(of[one][name]) for name in columns] for one in ids], np.float32)
        for of, columns in zip(rows, names, strict=True)
    )
    x_NF = np.concatenate([own, theirs], 1)  # all columns at the feature party: the label party has labels
    labels = np.array([int(float(rows[0][one][label])) for one in ids])
    parts = both(x_NF, labels, len(ids) * 3 // 4)
    sex_N = parts[1].rows(parts[1].train)[:, len(names[0]) + 1]  # the second column of UCI's order
    return Task(parts, sex_N > sex_N.mean(), "sex", None, 3, 64, 2000, 3e-3)


@cache
def minilm(quick: bool) -> Task:
    file = Path(os.environ.get("TRANSOM_DATA", "")) / "sst2" / "train.tsv"
    if not os.environ.get("TRANSOM_DATA") or not file.exists():
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/train.tsv")
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = rows[:: len(rows) // (3000 if quick else 16_000)][: 3000 if quick else 16_000]
    found = load("minilm")
    assert found.tokenizer is not None
    ids = [found.tokenizer.tokenizer.encode(row["sentence"]).ids for row in rows]
    means_ND = np.zeros((len(ids), found.model.config.hidden_size), np.float32)
    order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
    for start in range(0, len(order), 64):
        chosen = order[start : start + 64]
        ids_BT = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids[one]) for one in chosen], True)
        mask_BT = torch.nn.utils.rnn.pad_sequence([torch.ones(len(ids[one])) for one in chosen], True)
        with torch.no_grad():
            states_BTD = found.model(input_ids=ids_BT, attention_mask=mask_BT).last_hidden_state
        mean_BD = (states_BTD * mask_BT[..., None]).sum(1) / mask_BT.sum(1, keepdim=True)
        means_ND[chosen] = torch.nn.functional.normalize(mean_BD, dim=1).numpy()
    labels_N, lengths_N = np.array([int(row["label"]) for row in rows]), np.array([len(one) for one in ids])
    parts = both(means_ND, labels_N, len(rows) * 3 // 4)
    medians_2 = np.array([np.median(lengths_N[labels_N == label]) for label in (0, 1)])
    long_N = (lengths_N > medians_2[labels_N])[parts[1].train]
    return Task(parts, long_N, "length", None, 2, 64, 1000 if quick else 2000)


def both(x_NF: np.ndarray, labels_N: np.ndarray, count: int) -> tuple[Part, Part]:
    """The label party's and the feature party's; `count` rows are trained on."""
    order = np.random.default_rng(0).permutation(len(x_NF))
    train, test = np.sort(order[:count]), np.sort(order[count:])
    ids = tuple(map(str, range(len(x_NF))))

    def part(table_NF: np.ndarray, labels: np.ndarray | None) -> Part:
        names = tuple(f"column {number}" for number in range(table_NF.shape[1]))
        return Part(ids, table_NF, np.arange(len(ids)), labels, train, test, names, "order", "digest")

    return part(np.zeros((len(ids), 0), np.float32), labels_N), part(np.ascontiguousarray(x_NF), None)


def settings(tunnel: str, epsilon: float | None) -> TunnelSettings:
    if tunnel in ("none", "clipping"):
        return TunnelSettings(tunnel, None if tunnel == "none" else 1.0)  # type: ignore[arg-type]
    if tunnel.startswith("r3elu-dp"):
        noisy, keep = tunnel.endswith("-signed"), int(tunnel.split("-")[2])
        response = 0.4 if noisy else 1.0
        return TunnelSettings("r3elu-dp", 1.0, epsilon, keep=keep, response=response, signed=noisy, spare=0)
    kind = tunnel.removesuffix("-1")
    return TunnelSettings(kind, 1.0, epsilon, spare=0)  # type: ignore[arg-type]


def jobs_of(
    task: Task, tunnel: str, noise: TunnelSettings, seed: int, out: Path
) -> tuple[VerticalJob, VerticalJob]:
    """The label party's job and the feature party's."""
    train = Train(
        schedule="vfl", epochs=task.epochs, batch_rows=task.batch_rows, learning_rate=task.learning_rate,
        seed=seed, record_traffic_mb=8192, checkpoint_every_steps=1000,
    )  # fmt: skip
    base: dict[str, Any] = {"name": "bench", "task": "binary", "train": train, "out": out}
    base["width"] = 1 if tunnel.endswith("-1") and not tunnel.startswith("r3elu") else WIDTH
    data = Data(Path("labels.csv"), label_column="y")
    return (
        VerticalJob(**base, data=data, classes=("0", "1"), partner_noise=noise.kind),
        VerticalJob(**base, data=Data(Path("x.csv")), bottom=Net((256,), bounded=True), noise=noise),
    )


def measured(task: Task, tunnel: str, epsilon: float | None, seed: int, quick: bool) -> dict[str, float]:
    """Accuracy, and what each attack reaches beside its chance."""
    with tempfile.TemporaryDirectory() as folder:
        jobs = jobs_of(task, tunnel, settings(tunnel, epsilon), seed, Path(folder))
        side = run.simulate(jobs, task.parts, lambda told: None)
        seen = tunnel_case.seen_of(jobs[1], task.parts[1])
        made = tunnel_case.made(jobs[1], task.parts[1], *seen, task.known, "", task.shape)
        hidden = replace(made.data, property_N=task.property_N, property_is=task.property_is)
        made = replace(made, data=hidden, knowledge=replace(made.knowledge, seed=seed))
        last, count = side.now.history[-1], len(task.parts[0].test)
        accuracy = float(last.metrics["accuracy"])
        found = {"accuracy": accuracy, "error": math.sqrt(accuracy * (1 - accuracy) / count)}
        found["auc"] = float(last.metrics["auc"])
        metric = SSIM if task.shape else VARIANCE
        for one in (*tunnel_read.attacks(metric), *tunnel_hijack.attacks(metric)):
            finding = one.attack(made.target, made.knowledge, made.data, BUDGET_S)
            if finding.value is None or finding.baseline is None:
                sys.exit(f"{one.NAME} was not run: {finding.reason}")
            found |= {one.NAME: finding.value, f"{one.NAME} by chance": finding.baseline}
    return found


def points(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """All that were asked for, and of these tasks and tunnels all that are kept."""
    kept: dict[str, dict[str, Any]] = {}
    if POINTS.exists() and not args.quick:
        kept = json.loads(POINTS.read_text())
    for name in args.task:
        for tunnel in args.tunnel:
            for epsilon in LEVELS[tunnel][:1] if args.quick else LEVELS[tunnel]:
                for seed in range(1 if args.quick else args.seeds):
                    key = f"{name}/{tunnel}/{epsilon}/{seed}"
                    if key not in kept:
                        task = {"fashion": fashion, "credit": credit, "minilm": minilm}[name](args.quick)
                        kept[key] = measured(task, tunnel, epsilon, seed, args.quick)
                        print(f"{key}: {kept[key]}", file=sys.stderr, flush=True)
                        if not args.quick:
                            write_file(POINTS, (json.dumps(kept, indent=1) + "\n").encode(), mode=0o644)
    found = {}
    for key, point in kept.items():
        name, tunnel, level, _seed = key.split("/")
        epsilon = None if level == "None" else float(level)
        if name in args.task and tunnel in args.tunnel and epsilon in LEVELS[tunnel]:
            found[key] = {"task": name, "tunnel": tunnel, "epsilon": epsilon, **point}
    return found


def rows_of(chosen: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Means of seeds, with excesses."""
    groups: dict[tuple[str, str, Any], list[Mapping[str, Any]]] = {}
    for one in map(_with_better_hijack, chosen.values()):
        groups.setdefault((one["task"], one["tunnel"], one["epsilon"]), []).append(one)
    means = {
        group: {
            name: float(np.mean([one[name] for one in of]))
            for name in of[0]
            if name in of[0] and name not in ("task", "tunnel", "epsilon")
        }
        | {"seeds": len(of)}
        for group, of in groups.items()
    }
    rows = []
    for (task, tunnel, epsilon), mean in means.items():
        bare = means.get((task, "none", None))
        if bare is None:
            continue
        excess = {name: _excess(mean, bare, name) for name in ATTACKS}
        rows.append({
            "task": task, "tunnel": tunnel, "epsilon": epsilon, "seeds": mean["seeds"],
            "accuracy": mean["accuracy"], "accuracy_loss": bare["accuracy"] - mean["accuracy"],
            "auc": mean["auc"], "auc_loss": bare["auc"] - mean["auc"],
            "error": mean["error"],
            "property_auc": mean["property"], "reconstruction_ssim": mean["reconstruction"],
            "fsha_ssim": mean["hijack"], **{f"excess_{name}": one for name, one in excess.items()},
            "worst_excess": max(excess.values()),
        })  # fmt: skip
    return rows


def _with_better_hijack(point: Mapping[str, Any]) -> dict[str, Any]:
    """A hijacker tries both ways and takes the better one."""
    return {**point, "hijack": max(point["hijack"], point["hijack/space"])}


def _excess(mean: Mapping[str, float], bare: Mapping[str, float], name: str) -> float:
    chance = f"{name} by chance"
    return (mean[name] - mean[chance]) / max(bare[name] - bare[chance], 1e-9)


def gain(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """That of the best point of r3elu-dp over others' noise at its excess."""
    ours = [row for row in rows if row["tunnel"].startswith("r3elu-dp")]
    if not ours:
        return None
    within = [row for row in ours if row["accuracy_loss"] <= MOST_LOSS] or ours
    best = min(within, key=lambda row: row["worst_excess"])
    wide, narrow = _others(rows, best, ("gaussian", "laplace")), _others(rows, best, ("gaussian-1",))
    found = {name: best[name] for name in ("tunnel", "epsilon", "worst_excess", "accuracy_loss", "auc_loss")}
    if wide is None:
        return found | {"why": "no noise of others has so little excess; add weaker epsilons"}
    over = best["accuracy"] - wide
    found |= {"gain": over, "frontier_gain_low": over - 1.96 * math.sqrt(2) * best["error"]}
    return found | {"gain_over_narrow": None if narrow is None else best["accuracy"] - narrow}


def _others(
    rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any], tunnels: Sequence[str]
) -> float | None:
    """The best accuracy that these reach at the excess of `best`; None where none has so little."""
    found = []
    for tunnel in tunnels:
        line = sorted(
            (row for row in rows if row["tunnel"] in (tunnel, "none")), key=lambda row: row["worst_excess"]
        )
        at = [row["worst_excess"] for row in line]
        if at and at[0] <= best["worst_excess"]:
            found.append(float(np.interp(best["worst_excess"], at, [row["accuracy"] for row in line])))
    return max(found, default=None)


def plot(rows: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy over the worst excess, a panel a task."""
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, panels = plt.subplots(1, len(tasks), figsize=(6 * len(tasks), 4.2), squeeze=False)
    for panel, task in zip(panels[0], tasks, strict=True):
        for tunnel in dict.fromkeys(row["tunnel"] for row in rows):
            line = sorted(
                (row["worst_excess"], row["accuracy"])
                for row in rows
                if row["task"] == task and row["tunnel"] == tunnel
            )
            panel.plot(*zip(*line, strict=True), marker="o", markersize=4, label=tunnel) if line else None
        panel.axvline(MOST_EXCESS, color="grey", linewidth=0.8, linestyle=":")
        panel.set(title=task, xlabel="worst excess of an attack", ylabel="accuracy")
        panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(RESULTS / "tunnel_defence.png", dpi=120)


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--task", nargs="+", choices=TASKS, default=list(TASKS))
    flags.add_argument("--tunnel", nargs="+", choices=tuple(LEVELS), default=list(LEVELS))
    flags.add_argument("--seeds", type=int, default=3)
    args = flags.parse_args()
    torch.set_num_threads(1)
    if args.quick:
        args.task, args.tunnel = args.task[:1], [one for one in args.tunnel if one in ("none", "r3elu-dp-1")]
    rows = rows_of(points(args))
    record = {
        "points": rows,
        "gain": {task: gain([row for row in rows if row["task"] == task]) for task in args.task},
    }
    if not args.quick:
        plot(rows)
    shown = [
        {name: round(one, 3) if isinstance(one, float) else one for name, one in row.items()} for row in rows
    ]
    report("tunnel_defence", record, shown, args)


if __name__ == "__main__":
    main()
