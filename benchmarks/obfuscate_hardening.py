"""Which hardening measure moves the frontier of worst-case recovery against accuracy, and by how much.

    TRANSOM_DATA=DIR python benchmarks/obfuscate_hardening.py [--quick] [--model M] [--measures M ...]

Each point is one variant of the model: what it is still worth (KL, agreement, next-token accuracy, SST-2 by
likelihood, its shortest sentences) and what a host with the public base model reads from it, 2,000 sampled
ids named among the whole vocabulary, with exact 95 % intervals. `recovery` is the worst case over the attacks
mounted. Points are stored one by one under work/hardening, so that an interrupted run resumes and several
processes share the work; a run without --measures ends with the table, the record and the plot, and --report
does only that. Memory: 2 GB for SmolLM2, 6 GB for a model of half a billion weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import _hardening_noise as noise
import _hardening_points as points
from _bench import RESULTS, parser, report
from _hardening_study import WORK, Study, channels

FIDELITY = ("kl", "top1_agreement", "next_token_accuracy", "sst2_accuracy")
Points = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def isotropic(study: Study) -> Points:
    """The method's own noise, at the paper's ratios and balanced between the tables."""
    into, out = study.metrics
    pairs = [(0.25, 0.1), (0.5, 0.2), (1, 0.2), (2, 2), (4, 4), (8, 8)]
    for alpha_e, alpha_h in pairs:
        yield (
            f"alpha_e {alpha_e}, alpha_h {alpha_h}",
            lambda a=alpha_e, b=alpha_h: channels(
                study,
                noise.isotropic(study.embedding_VD, into, a),
                noise.isotropic(study.head_VD, out, b),
                looks=b == 0.2 and study.texts >= 4,
            ),
        )


def shaped(study: Study) -> Points:
    """Noise of least harm on the head, where alone shaping helps; isotropic on the embedding."""
    for alpha_e, scale in ((0.25, 0.003), (0.5, 0.01), (1, 0.03), (2, 0.1), (8, 2)):
        yield (
            f"alpha_e {alpha_e}, head scale {scale}",
            lambda a=alpha_e, s=scale: channels(
                study,
                noise.isotropic(study.embedding_VD, study.metrics[0], a),
                noise.least_harm(study.head_VD, study.metrics[1], s),
            ),
        )


def posterior_mean(study: Study) -> Points:
    """Reverse water-filling on both tables: what the noise leaves of each row, and nothing else."""
    for rate in (1000, 300, 100, 30):
        yield f"rate {rate}", lambda rate=rate: _water_filled(study, rate)


def _water_filled(study: Study, rate: float) -> dict[str, Any]:
    into, out = study.metrics
    theta = noise.theta_at(study.embedding_VD, (into, out), rate)
    return channels(
        study,
        noise.water_filled(study.embedding_VD, into, theta),
        noise.water_filled(study.head_VD, out, theta),
    )


MEASURES: dict[str, Callable[[Study], Points]] = {
    "isotropic": isotropic,
    "shaped": shaped,
    "posterior mean": posterior_mean,
    "re-grown layers": points.regrown,
    "all layers re-grown": points.tables_only,
    "changed weights": points.changed,
    "words": points.words,
    "rotation": points.rotation,
}


def point(folder: Path, measure: str, name: str, compute: Callable[[], dict[str, Any]]) -> None:
    """Compute a point that is not there yet and store it at once."""
    digest = hashlib.sha256(f"{measure}/{name}".encode()).hexdigest()[:16]
    path = folder / f"{digest}.json"
    if path.exists():
        return
    started = time.monotonic()
    found = compute()
    worst = max((finding["recovery"] for finding in found.get("attacks", {}).values()), default=None)
    done = {"measure": measure, "point": name, "recovery": worst, **found}
    done["seconds"] = round(time.monotonic() - started, 1)
    path.write_text(json.dumps(done), encoding="utf-8")
    print(done, file=sys.stderr, flush=True)


def main() -> None:
    """Measure what is missing; without --measures, tell and store everything."""
    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2", help="a directory, a .gguf file, a hub name or smollm2")
    flags.add_argument("--measures", nargs="+", choices=list(MEASURES))
    flags.add_argument("--texts", type=int, default=4, help="documents for KL (default: 4)")
    flags.add_argument("--sentences", type=int, default=300, help="sentences of SST-2 (default: 300)")
    flags.add_argument("--points", nargs="+", help="only points whose name contains one of these")
    flags.add_argument("--report", action="store_true", help="compute nothing, tell what is stored")
    args = flags.parse_args()
    folder = WORK / ("quick" if args.quick else Path(args.model).stem)
    if not args.report:
        measure_points(folder, args)
    if args.measures is None:
        names = (
            [folder.name] if args.quick else [each.name for each in sorted(WORK.iterdir()) if each.is_dir()]
        )
        models = {name: stored(WORK / name) for name in names if args.quick or name != "quick"}
        if not args.quick:
            plot(models["smollm2"], RESULTS / "obfuscate_hardening.svg")
        report("obfuscate_hardening", {"models": models}, rows(models), args)


def measure_points(folder: Path, args: argparse.Namespace) -> None:
    """Compute and store the points asked for that are not there yet; a quick run takes one of each kind."""
    import torch

    torch.set_num_threads(1)
    if args.quick:
        shutil.rmtree(folder, ignore_errors=True)
    study = Study(args.model, *((1, 20, 100) if args.quick else (args.texts, args.sentences, 2000)))
    folder.mkdir(parents=True, exist_ok=True)
    _ = study.yardstick  # taken before any table is changed
    point(folder, "plain", "", lambda: dict(study.plain))
    for measure in args.measures or (["isotropic"] if args.quick else list(MEASURES)):
        for name, compute in MEASURES[measure](study):
            if not args.points or any(part in name for part in args.points):
                point(folder, measure, name, compute)
            if args.quick:
                break


def stored(folder: Path) -> list[dict[str, Any]]:
    """All points of a model, by measure and as they were made."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    order = ["plain", *MEASURES]
    like = {done["point"]: done for done in found if done["measure"] in ("isotropic", "shaped")}
    for done in found:
        if done["measure"] == "all layers re-grown":
            done |= {name: value for name, value in like.get(done["point"], {}).items() if name in FIDELITY}
    return sorted(found, key=lambda done: order.index(done["measure"]))


def rows(models: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The table: one row a point."""
    columns = ("measure", "point", "recovery", *FIDELITY)
    return [
        {"model": model} | {column: done.get(column) for column in columns}
        for model, found in models.items()
        for done in found
    ]


def plot(found: list[dict[str, Any]], path: Path) -> None:
    """Worst-case recovery over accuracy lost (SST-2) and over KL, one line a measure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    plain = next(done for done in found if done["measure"] == "plain")["sst2_accuracy"]
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), sharey=True)
    for measure in MEASURES:
        mine = [done for done in found if done["measure"] == measure]
        lost = sorted(
            (100 * (plain - d["sst2_accuracy"]), d["recovery"]) for d in mine if "sst2_accuracy" in d
        )
        harm = sorted((max(d["kl"], 1e-3), d["recovery"]) for d in mine if "kl" in d)
        for axis, line, style in zip(axes, (lost, harm), ("none", "-"), strict=True):
            if line:  # at chance accuracy the order of points means nothing, so no line is drawn there
                axis.plot(*zip(*line, strict=True), marker="o", linestyle=style, label=measure)
    axes[0].set(xlabel="SST-2 accuracy lost (points)", ylabel="worst-case recovery", ylim=(-0.02, 1.02))
    axes[1].set(xlabel="KL to the plain model (nats)", xscale="log")
    axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
