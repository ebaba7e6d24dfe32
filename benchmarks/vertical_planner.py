"""Whether the planner's batch size and workers are near the best that there are.

    TRANSOM_DATA=DIR python benchmarks/vertical_planner.py [--quick] [--json] [--scenes SCENE ...]

Per scene both parties, as processes behind a relay that emulates a link's latency and bandwidth, one of them
stopped for two thirds of the time where the scene says so, make a plan as `transom vertical plan` does. Then
each point of a small grid is measured, the plan's own too. What is compared is the planner's objective, the
time to a quality: seconds of an epoch, times the epochs until the AUC on rows that were not trained on is
0.76 (straight between two epochs, mean of the seeds). There the curves are steep; they end at 0.776, and a
target close to that is reached by chance.
Both factors are measured apart, which is cheaper and less noisy than whole runs: seconds over the relay, in
a few epochs with their evaluations, once workers have begun; epochs in one process, with the same modules,
optimisers, batches, averages, and gradients as old as the schedule makes them, without a link between.
`regret` is the plan's time over the grid's least, less 1; `model_error` by which factor a predicted epoch is
off at the worst; `regret_of_largest` that of the largest batch with one worker each. Credit data, one thread
a worker.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from _bench import parser, report
from _link_relay import relay
from _link_scene import free_port, start
from _vertical_epochs import MOST_EPOCHS, Run, epochs_to
from transom.config import from_plain, load_json, to_plain
from transom.link.config import LinkConfig, opened
from transom.link.told import Told
from transom.vertical import run
from transom.vertical.epoch import Given, epoch_time_s
from transom.vertical.part import load_here
from transom.vertical.party import make_party
from transom.vertical.plan import Limits, with_partner
from vertical_accuracy import SETS, Jobs, Parts, jobs_of

TARGET = 0.76
TICK_S = 0.012  # a slowed party runs for a third of it
LONG_S = 240.0  # of one measurement, after which it has failed


@dataclass(frozen=True)
class Scene:
    """A link, one way, how many times a party is slowed, and what is tried: batch sizes, and workers of the
    label and the feature party (in `avfl`, the latter are batches under way)."""

    schedule: str
    latency_s: float
    bytes_per_s: float
    slowed: dict[str, float]
    cores: tuple[int, int]
    sizes: tuple[int, ...]
    workers: tuple[tuple[int, int], ...]


SCENES = {
    "far, slow feature party": Scene(
        "pubsub", 0.05, 12.5e6, {"feature": 3}, (1, 2), (128, 256, 512, 1024, 2048), ((1, 1), (1, 2))
    ),
    "near, alike": Scene("pubsub", 0.002, 125e6, {}, (1, 1), (128, 256, 512, 1024, 2048), ((1, 1),)),
    "near, slow label party": Scene(
        "avfl", 0.01, 25e6, {"label": 3}, (1, 1), (128, 256, 512, 1024), ((1, 1), (1, 2), (1, 4))
    ),
}  # fmt: skip
Point = tuple[int, int, int]  # rows of a batch, workers of the label and of the feature party


# Over the relay


def together(
    scene: Scene, jobs: Jobs, folder: Path, work: Any, name: str, cores: Sequence[int] = (1, 1)
) -> dict[str, Any]:
    """What `work(job, number, file)` of each party, in a process of its own behind the relay, has written."""
    listen, folder = free_port(), folder / name
    folder.mkdir(parents=True)
    with relay(("127.0.0.1", listen), delay_s=scene.latency_s, bytes_per_s=scene.bytes_per_s) as between:
        processes = []
        for number, job in enumerate(jobs):
            other = jobs[1 - number].role
            way = (
                {"listen": f"127.0.0.1:{listen}"} if number == 0 else {"connect": f"127.0.0.1:{between.port}"}
            )
            link = LinkConfig(job=job.name, run="r", party=job.role, partner=other, timeout_s=120, **way)
            one = replace(job, out=folder, link=link)
            file, failed = folder / f"{job.role}.json", folder / f"{job.role}.error"
            process = start(lambda one=one, number=number, file=file: work(one, number, file), failed)  # type: ignore[misc]
            processes.append((job.role, process, file, failed))
        with slowed({process.pid: scene.slowed.get(role, 1) for role, process, _, _ in processes}):
            end_s = time.monotonic() + LONG_S
            for _, process, _, _ in processes:
                process.join(max(0.0, end_s - time.monotonic()))
        for role, process, _, failed in processes:
            if process.exitcode != 0:
                process.kill()
                sys.exit(
                    f"{name}, {role} party: {failed.read_text() if failed.exists() else 'took too long'}"
                )
    return {role: load_json(file.read_text()) for role, _, file, _ in processes}


@contextlib.contextmanager
def slowed(times: dict[int, float]) -> Iterator[None]:
    """Stop these processes and their children for all but one part in so many of the time."""
    done = threading.Event()
    several = {pid: factor for pid, factor in times.items() if factor > 1}

    def tick() -> None:
        while not done.is_set():
            for name in (signal.SIGCONT, signal.SIGSTOP):
                for pid in several:
                    for each in (pid, *children(pid)):
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(each, name)
                share = 1 / max(several.values())
                done.wait(TICK_S * (share if name == signal.SIGCONT else 1 - share))
        for pid in several:
            for each in (pid, *children(pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGCONT)

    thread = threading.Thread(target=tick)
    if several:
        thread.start()
    try:
        yield
    finally:
        done.set()
        if several:
            thread.join()


def children(pid: int) -> list[int]:
    """Processes that a process has started."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def planned(scene: Scene, jobs: Jobs, parts: Parts, folder: Path) -> tuple[Point, Given]:
    """Both parties plan; what they chose, alike, and what it was made of."""

    def work(job: Any, number: int, file: Path) -> None:
        made = with_partner(job, parts[number], Limits(scene.cores[number]), lambda done: None)
        file.write_text(json.dumps({"chosen": to_plain(made.plan.chosen), "given": to_plain(made.given)}))

    found = together(scene, jobs, folder, work, "plan")
    chosen = found["label"]["chosen"]
    if found["label"] != found["feature"]:
        sys.exit(f"the parties planned differently: {found}")
    given = from_plain(Given, found["label"]["given"], "the plan")
    return (chosen["batch_rows"], chosen["label_workers"], chosen["feature_workers"]), given


def epoch_s(scene: Scene, jobs: Jobs, parts: Parts, point: Point, folder: Path) -> float:
    """Seconds of an epoch, its evaluation included. Workers that are processes begin in the first, which
    does not count; where it would take long all from the first step on counts."""
    batches = -(-len(parts[0].train) // point[0])
    epochs = 2 if batches > 100 else 4

    def work(job: Any, number: int, file: Path) -> None:
        stepped: list[float] = []
        evaluated: list[float] = []

        def tell(told: Told) -> None:
            if told.kind in ("step", "evaluated"):
                (stepped if told.kind == "step" else evaluated).append(time.monotonic())

        many = job.train.workers > 1 and scene.schedule != "avfl"
        with (
            opened(job.link) as broker,
            closing(make_party(job, parts[number], tell, workers="processes" if many else "here")) as party,
        ):
            run.train(party, broker)
        seconds = (evaluated[-1] - evaluated[0]) / (epochs - 1)
        if batches > 100:
            seconds = (evaluated[-1] - stepped[0]) / (epochs - 1 / batches)
        file.write_text(json.dumps({"epoch_s": seconds}))

    at = at_point(jobs, point, epochs)
    found = together(scene, at, folder, work, "-".join(map(str, point)))
    return float(found["feature"]["epoch_s"])


def at_point(jobs: Jobs, point: Point, epochs: int, seed: int = 0) -> Jobs:
    """The jobs with a plan's settings."""
    rows, *workers = point
    if jobs[0].train.schedule == "avfl":
        workers = [point[2]] * 2
    one, other = (
        replace(job, train=replace(job.train, batch_rows=rows, workers=count, epochs=epochs, seed=seed))
        for job, count in zip(jobs, workers, strict=True)
    )
    return one, other


# Both


_KNOWN: dict[Any, float] = {}  # epochs, which no link changes


def needed(jobs: Jobs, parts: Parts, points: Sequence[Point], seeds: int) -> dict[Point, float]:
    """Epochs to the target, means over seeds."""
    train = jobs[0].train
    avfl = train.schedule == "avfl"
    ways = {
        point: (point[0], (1, 1), point[2])
        if avfl
        else (point[0], point[1:], min(train.embeddings, train.staleness + 1))
        for point in points
    }
    new = {way: point for point, way in ways.items() if way not in _KNOWN}
    runs = [
        Run(at_point(jobs, point, MOST_EPOCHS, seed), way[1], way[2])
        for way, point in new.items()
        for seed in range(seeds)
    ]
    found = epochs_to(TARGET, runs, parts)
    _KNOWN.update((way, mean(found[at * seeds : (at + 1) * seeds])) for at, way in enumerate(new))
    return {point: _KNOWN[way] for point, way in ways.items()}


def measured(name: str, scene: Scene, jobs: Jobs, parts: Parts, folder: Path, seeds: int) -> dict[str, Any]:
    """A row of the table, with each point of the grid."""
    chosen, given = planned(scene, jobs, parts, folder)
    grid = [(rows, *workers) for rows in scene.sizes for workers in scene.workers]
    points = list(dict.fromkeys([*grid, chosen]))
    epochs = needed(jobs, parts, points, seeds)
    told = []
    for point in points:
        seconds, predicted_s = epoch_s(scene, jobs, parts, point, folder), epoch_time_s(given, *point)
        told.append({
            "point": point, "epoch_s": seconds, "predicted_epoch_s": predicted_s, "epochs": epochs[point],
            "to_target_s": seconds * epochs[point],
        })  # fmt: skip
        print(name, told[-1], file=sys.stderr)
    times = {one["point"]: one["to_target_s"] for one in told if one["epochs"] == one["epochs"]}
    best = min(times, key=lambda point: times[point])
    largest = (scene.sizes[-1], 1, 1)
    return {
        "scene": name, "schedule": scene.schedule, "chosen": chosen, "best": best,
        "chosen_s": times[chosen], "best_s": times[best], "regret": times[chosen] / times[best] - 1,
        "regret_of_largest": times[largest] / times[best] - 1 if largest in times else None,
        "model_error": max(abs_factor(one["predicted_epoch_s"] / one["epoch_s"]) for one in told),
        "points": told, "given": to_plain(given),
    }  # fmt: skip


def abs_factor(ratio: float) -> float:
    return max(ratio, 1 / ratio)


def main() -> None:
    """Measure the scenes, and print and store."""
    flags = parser(__doc__)
    flags.add_argument("--scenes", nargs="+", choices=SCENES, default=list(SCENES))
    args = flags.parse_args()
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds vfl/")
    torch.set_num_threads(1)
    rows, begun_s = [], time.monotonic()
    with tempfile.TemporaryDirectory() as kept:
        folder = Path(kept)
        base = jobs_of("credit", SETS["credit"], folder, "pubsub", 10, 256)
        parts = load_here(base)
        for name in args.scenes[:1] if args.quick else args.scenes:
            scene = SCENES[name]
            if args.quick:
                scene = replace(scene, sizes=scene.sizes[1:3], workers=scene.workers[:1])
            one, other = (replace(job, train=replace(job.train, schedule=scene.schedule)) for job in base)
            place = folder / str(len(rows))
            rows.append(measured(name, scene, (one, other), parts, place, 1 if args.quick else 3))
    record = {
        "target_auc": TARGET, "regret": max(row["regret"] for row in rows), "scenes": rows,
        "took_s": time.monotonic() - begun_s, "torch": torch.__version__,
    }  # fmt: skip
    report("vertical_planner", record, [{key: row[key] for key in SHOWN} for row in rows], args)


SHOWN = (
    "scene",
    "schedule",
    "chosen",
    "best",
    "chosen_s",
    "best_s",
    "regret",
    "regret_of_largest",
    "model_error",
)

if __name__ == "__main__":
    main()
