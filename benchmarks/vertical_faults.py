"""Vertical trainings that are disturbed on purpose, over TCP and over NATS, of all five schedules.

    python benchmarks/vertical_faults.py [--runs 5] [--quick] [--json]

So many runs of each schedule over each transport. Each has a seed that decides what goes wrong, and after how
many steps: kill -9 of a worker, of either party (its process is the parameter server, whose workers end with
it), of both, of the NATS server; connections cut or altered; messages doubled, dropped, delayed, reordered,
replayed, cut short, altered. What is dead is started again, but for workers, which the party replaces; so is
a party that ended because its handshake was altered, which it takes for a stranger's (exit code 15).
`exact`: a synchronous run (vfl, vfl-ps) left the very bytes of an undisturbed one within one process; an
asynchronous one has an AUC within one standard error (DeLong, over the rows of test) of the mean of
undisturbed ones. And in each the records hold every message applied once, and the feature party has learnt of
every batch once. `late` counts runs that passed their deadline.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from _link_relay import Relay, relay
from _link_scene import FORK, Nats, free_port, main, make_keys, start
from transom.link import state
from transom.link.config import LinkConfig
from transom.link.faults import FaultyBroker
from transom.link.record import Record
from transom.link.told import Told
from transom.vertical import run
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.part import Part
from transom.vertical.party import make_party
from transom.vertical.schedule import Units

DEADLINE_S = 240.0
AT_ONCE = 3  # runs, which wait more than they work
HEARTBEAT_S = 0.2
ROLES = ("label", "feature")
SCHEDULES = ("vfl", "vfl-ps", "avfl", "avfl-ps", "pubsub")
SYNCHRONOUS = ("vfl", "vfl-ps")
ROWS, EPOCHS, BATCH_ROWS = 480, 4, 32
CALM_RUNS = 3  # undisturbed runs of an asynchronous schedule, whose mean the others are held against
MESSAGE_FAULTS = {
    "drop": 0.03, "double": 0.05, "reorder": 0.05, "delay_s": 0.02, "replay": 0.05, "truncate": 0.03,
    "corrupt": 0.03,
}  # fmt: skip
Jobs = dict[str, VerticalJob]


def make_parts(seed: int = 5) -> dict[str, Part]:
    """Both parties' columns of made-up people; 70 % of the rows are trained on."""
    draw = np.random.default_rng(seed)
    x_NF = draw.normal(size=(ROWS, 8)).astype(np.float32)
    labels_N = (x_NF @ draw.normal(size=8) + draw.normal(size=ROWS) > 0).astype(np.int64)
    order = draw.permutation(ROWS)
    train, test = np.sort(order[: ROWS * 7 // 10]), np.sort(order[ROWS * 7 // 10 :])
    ids, places = tuple(f"person {number:04d}" for number in range(ROWS)), np.arange(ROWS)
    names = tuple("abcd")
    return {
        "label": Part(ids, x_NF[:, :4].copy(), places, labels_N, train, test, names, "order", "digest"),
        "feature": Part(ids, x_NF[:, 4:].copy(), places, None, train, test, names, "order", "digest"),
    }


def make_jobs(schedule: str, out: Path, every: int = 5) -> Jobs:
    """Small models; `every` so many steps a checkpoint."""
    train = Train(
        schedule, EPOCHS, BATCH_ROWS, learning_rate=1e-2, seed=3, workers=2, deadline_s=10.0,  # type: ignore[arg-type]
        aggregate_epochs=2, checkpoint_every_steps=every,
    )  # fmt: skip
    feature = VerticalJob(
        "faults", "binary", Data(Path("none")), width=8, bottom=Net((16,)), train=train, out=out
    )
    label = replace(feature, data=Data(Path("none"), label_column="y"), classes=("no", "yes"))
    return {"label": label, "feature": feature}


@dataclass
class World:
    """Rows and keys that all runs share, and how undisturbed runs ended."""

    root: Path
    parts: dict[str, Part] = field(default_factory=make_parts)
    ends: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make_keys(self.root / "keys", ROLES)

    def end(self, schedule: str) -> Any:
        """The bytes that both parties left, the mean AUC and its standard error."""
        if schedule not in self.ends:
            count = 1 if schedule in SYNCHRONOUS else CALM_RUNS
            every = [self._calm(schedule, number) for number in range(count)]
            scores = [score(jobs) for jobs in every]
            error = (scores[0]["high"] - scores[0]["low"]) / (2 * 1.96)
            apart = left(every[0]), mean(one["value"] for one in scores), error
            self.ends[schedule] = apart
        return self.ends[schedule]

    def _calm(self, schedule: str, number: int) -> Jobs:
        jobs = make_jobs(schedule, self.root / f"calm-{schedule}{number}")
        both = tuple(jobs[role] for role in ROLES), tuple(self.parts[role] for role in ROLES)
        work = start(
            lambda: run.simulate(*both, lambda told: None, workers="threads"), jobs["label"].out / "error"
        )  # type: ignore[arg-type]
        work.join(DEADLINE_S)
        return jobs


def left(jobs: Jobs) -> dict[str, bytes]:
    """What both parties have learnt."""
    return {role: (job.folder / "state.safetensors").read_bytes() for role, job in jobs.items()}


def score(jobs: Jobs) -> Any:
    return json.loads((jobs["label"].folder / "report.json").read_text())["score"]


@dataclass
class Scene:
    """A run while it goes on."""

    world: World
    jobs: Jobs
    folder: Path
    noisy: bool
    processes: tuple[str, ...]  # the parties whose workers are processes; others' are threads
    alive: dict[str, Any] = field(default_factory=dict)
    relay: Relay | None = None
    nats: Nats | None = None

    def start(self, role: str) -> None:
        self.alive[role] = start(lambda: self._work(role), self.folder / role / "error")

    def _work(self, role: str) -> None:
        """One party, from wherever its record stands to the end."""
        workers: Any = "processes" if role in self.processes else "threads"
        with run.way(self.jobs[role]) as inner:
            broker: Any = FaultyBroker(inner, os.getpid(), **MESSAGE_FAULTS) if self.noisy else inner
            made = make_party(self.jobs[role], self.world.parts[role], self._tell, workers=workers)
            with closing(made) as party:
                run.train(party, broker, HEARTBEAT_S)

    def _tell(self, told: Told) -> None:
        if told.kind == "step":
            with (self.folder / "told").open("ab") as file:
                file.write(b".")

    @property
    def told(self) -> int:
        """Steps that the parties were told of, also again after a restart."""
        path = self.folder / "told"
        return path.stat().st_size if path.exists() else 0

    def disturb(self, victim: str, pick: random.Random) -> None:
        """Do what is planned, and what an operator does then."""
        role, _, worker = victim.partition(" ")
        if victim == "broker" and self.nats:
            self.nats.kill()
            time.sleep(pick.choice((0.0, 0.3)))
            self.nats.start()
        elif victim == "cut" and self.relay:
            self.relay.cut()
        elif victim == "flip" and self.relay:
            self.relay.flip()
        elif worker:
            for pid in pick.sample(found := children(self.alive[role].pid), min(1, len(found))):
                os.kill(pid, signal.SIGKILL)
        else:
            names = [name for name in (ROLES if role == "both" else (role,)) if self.alive[name].is_alive()]
            for name in names:
                os.kill(self.alive[name].pid, signal.SIGKILL)
                self.alive[name].join()
            for name in names:
                self.start(name)


def children(parent: int) -> list[int]:
    """The processes that a process has started: a party's workers."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


def linked(jobs: Jobs, keys: Path, ways: dict[str, dict[str, str]]) -> Jobs:
    """Each with its end of the link."""
    found = {}
    for role, other in zip(ROLES, reversed(ROLES), strict=True):
        link = LinkConfig(
            job="faults", run="r1", party=role, partner=other, identity=keys / role, timeout_s=DEADLINE_S,
            partner_certificate=keys / other / "tls.pem", **ways[role],  # type: ignore[arg-type]
        )  # fmt: skip
        found[role] = replace(jobs[role], link=link)
    return found


def once(world: World, schedule: str, transport: str, seed: int, kills: int = 2) -> dict[str, Any]:
    """One disturbed run, held against undisturbed ones."""
    pick = random.Random(f"vertical {schedule} {transport} {seed}")
    folder, port = world.root / f"{schedule}-{transport}-{seed}", free_port()
    folder.mkdir()
    jobs = make_jobs(schedule, folder, every=pick.randint(2, 8))
    units = Units.of(jobs["label"], len(world.parts["label"].train))
    steps = units.total // units.shares
    victims = [*ROLES, "both", *([] if schedule == "vfl" else ["label worker", "feature worker"])]
    victims += ["broker", "broker"] if transport == "nats" else ["cut", "flip"]
    plan = sorted((pick.randrange(1, 2 * steps - 8), pick.choice(victims)) for _ in range(kills))
    noisy, wanted, done = pick.random() < 0.4, world.end(schedule), []
    with ExitStack() as stack:
        processes = tuple(role for role in ROLES if any(f"{role} worker" == victim for _, victim in plan))
        now = Scene(world, jobs, folder, noisy, processes)
        if transport == "nats":
            now.nats = Nats(folder / "nats", port)
            stack.callback(now.nats.kill)
            ways = {role: {"nats": now.nats.url} for role in ROLES}
        else:
            now.relay = stack.enter_context(relay(("127.0.0.1", port), delay_s=pick.choice((0.0, 0.002))))
            ways = {"label": {"listen": f"127.0.0.1:{port}"}}
            ways["feature"] = {"connect": f"127.0.0.1:{now.relay.port}"}
        now.jobs = linked(jobs, world.root / "keys", ways)
        stack.callback(lambda: [process.kill() for process in now.alive.values()])
        for role in ROLES:
            now.start(role)
        took_s = watch(now, plan, done, pick)
        problems = [path.read_text() for path in folder.glob("*/error")]
        late = not problems and any(process.is_alive() for process in now.alive.values())
    off = None
    if not late and not problems:
        problems += applied(now.jobs, steps)
        off = score(jobs)["value"] - wanted[1]
        if schedule in SYNCHRONOUS and left(jobs) != wanted[0]:
            problems.append("the parties left other bytes")
        if abs(off) > wanted[2]:
            problems.append(f"the AUC is {off:+.4f} off, and the standard error is {wanted[2]:.4f}")
    return {
        "seed": seed, "schedule": schedule, "transport": transport,
        "faults": "; ".join(done + (["messages altered, doubled, lost, late"] if noisy else [])),
        "took_s": round(took_s, 1), "auc_off": off, "late": late, "problems": problems,
        "exact": not late and not problems,
    }  # fmt: skip


def watch(now: Scene, plan: list[tuple[int, str]], done: list[str], pick: random.Random) -> float:
    """Disturb the run as planned until it ends or its deadline passes; how long it took."""
    start_s = time.monotonic()
    while (
        any(process.is_alive() for process in now.alive.values()) and time.monotonic() < start_s + DEADLINE_S
    ):
        for path in now.folder.glob("*/error"):
            if "no TLS with" not in path.read_text() or not any("flip" in one for one in done):
                return time.monotonic() - start_s  # nobody comes again
            path.unlink()
            done.append(f"{path.parent.name} started again")
            now.start(path.parent.name)
        if plan and now.told >= plan[0][0]:
            at, victim = plan.pop(0)
            time.sleep(pick.uniform(0, 0.05))
            done.append(f"{victim} at {at}")
            now.disturb(victim, pick)
        time.sleep(0.005)
    return time.monotonic() - start_s


def applied(jobs: Jobs, wanted: int) -> list[str]:
    """What the records and what was learnt say, where it is not: each message once, each batch once."""
    problems = []
    for (role, job), other in zip(jobs.items(), reversed(ROLES), strict=True):
        path = job.folder / "record" / f"r1-{role}.sqlite"
        with Record(path, job="faults", run="r1", party=role, partner=other):  # reads and checks all of it
            pass
        with contextlib.closing(sqlite3.connect(path)) as connection:
            counts = "count(*), count(DISTINCT step), count(DISTINCT number)"
            query = f"SELECT {counts} FROM history WHERE kind = 'applied'"  # noqa: S608
            found = connection.execute(query).fetchone()
        if len({*found}) != 1:
            problems.append(f"{role} applied {found[0]} messages of {found[1]} steps")
    job = jobs["feature"]
    steps = json.loads((job.folder / "report.json").read_text())["steps"]
    learnt = state.read((job.folder / "state.safetensors").read_bytes(), {}).steps
    if steps != wanted or learnt > steps:
        problems.append(f"the feature party counts {steps} steps and has made {learnt}, of {wanted}")
    return problems


def all_runs(root: Path, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Each seed of each schedule over both transports, several at once."""
    world = World(root)
    for schedule in SCHEDULES:
        world.end(schedule)
    runs = [(schedule, way, seed) for seed in seeds for schedule in SCHEDULES for way in ("tcp", "nats")]
    with ProcessPoolExecutor(AT_ONCE, mp_context=FORK) as pool:
        yield from pool.map(once, *zip(*[(world, *one) for one in runs], strict=True))


if __name__ == "__main__":
    columns = ("seed", "schedule", "transport", "faults", "took_s", "auc_off", "exact")
    main("vertical_faults", __doc__, all_runs, columns, runs=(5, 1))  # of each schedule over each transport
