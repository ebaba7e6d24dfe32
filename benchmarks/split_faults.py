"""Split tunings whose parties and broker are killed at random steps, over TCP and over NATS.

    python benchmarks/split_faults.py [--runs 20] [--quick] [--json]

So many runs over each transport. Each has a seed that decides model, layout, cut and noise, whom kill -9
meets (the vendor, the customer, both, or the NATS server) and after how many of their messages; what is dead
is started again. `exact` counts the runs that left, in both parties' folders, the very bytes of an
undisturbed run within one process.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from _link_scene import Nats, free_port, main, make_keys, start
from _split_scene import ROLES, linked, work
from transom.checkpoint.tiny import tiny_bert, tiny_llama
from transom.link.told import Told
from transom.split import run
from transom.split.job import Adapter, Data, Noise, SplitJob, Train

DEADLINE_S = 120.0
HEARTBEAT_S = 0.2
LABELS = ("bad", "so", "good")
WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")
EVENTS = 2 * 10 + 2  # told in an undisturbed run: each party's steps, and the evaluations


def write_rows(path: Path, count: int, seed: int) -> Path:
    """A CSV of random texts and labels."""
    pick = random.Random(seed)
    rows = [
        f"{' '.join(pick.choices(WORDS, k=pick.randint(2, 9)))},{pick.choice(LABELS)}" for _ in range(count)
    ]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


@dataclass
class World:
    """Models, rows and keys that all runs share, and what undisturbed runs left."""

    root: Path
    ends: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        tiny_bert(self.root / "bert")
        tiny_llama(self.root / "llama")
        write_rows(self.root / "train.csv", 22, 1)
        write_rows(self.root / "dev.csv", 8, 2)
        make_keys(self.root / "keys", ROLES)

    def job(self, pick: random.Random, out: Path) -> SplitJob:
        """One of the kinds of jobs: ten steps, two evaluations."""
        model, task = pick.choice(
            (("bert", "classification"), ("llama", "classification"), ("llama", "causal"))
        )
        back = pick.random() < 0.5
        return SplitJob(
            name="faults", model=str(self.root / model), task=task,  # type: ignore[arg-type]
            labels=LABELS if task == "classification" else (), labels_in_the_clear=True,
            after_block=1 if back else pick.choice((0, 2)), return_gradient=back,
            layout=pick.choice(("vendor", "customer")), adapter=Adapter(r=4, alpha=8),
            noise=Noise(), data=Data(self.root / "train.csv", self.root / "dev.csv", max_tokens=32), out=out,
            train=Train(
                epochs=2, batch_rows=5, micro_batches=pick.choice((1, 2)), learning_rate=1e-2,
                checkpoint_every_steps=pick.randint(1, 4),
            ),
        )  # fmt: skip

    def end(self, job: SplitJob) -> dict[str, bytes]:
        """What the undisturbed run of a job leaves."""
        kind = str(replace(job, out=Path()))
        if kind not in self.ends:
            calm = replace(job, out=self.root / f"calm{len(self.ends)}")
            _finish(start(lambda: run.simulate(calm, lambda told: None), calm.out / "error"))
            self.ends[kind] = left(calm)
        return self.ends[kind]


def left(job: SplitJob) -> dict[str, bytes]:
    """The states that both parties' folders hold."""
    return {path.parent.name: path.read_bytes() for path in sorted(job.out.glob("*/state.safetensors"))}


def _finish(process: Any) -> None:
    process.join(DEADLINE_S)
    process.kill()
    process.join()


def noting(folder: Path) -> Callable[[Told], None]:
    """A listener that notes each thing that it is told."""

    def tell(told: Told) -> None:
        with (folder / "told").open("ab") as file:
            file.write(b".")

    return tell


def once(world: World, transport: str, seed: int, kills: int) -> dict[str, Any]:
    """One run over a transport with so many kills, compared with the undisturbed one."""
    pick, folder = random.Random(f"split {seed}"), world.root / f"{transport}{seed}"
    job = world.job(pick, folder)
    wanted, port = world.end(job), free_port()
    folder.mkdir()
    victims = [*ROLES, "both", *(["broker"] if transport == "nats" else [])]
    plan = sorted((pick.randrange(EVENTS), pick.choice(victims)) for _ in range(kills))
    with ExitStack() as stack:
        nats = Nats(folder / "nats", port) if transport == "nats" else None
        ways: dict[str, dict[str, str]] = {
            "vendor": {"listen": f"127.0.0.1:{port}"}, "customer": {"connect": f"127.0.0.1:{port}"},
        }  # fmt: skip
        if nats is not None:
            stack.callback(nats.kill)
            ways = {role: {"nats": nats.url} for role in ROLES}
        jobs = {role: linked(job, role, world.root / "keys", ways[role], DEADLINE_S) for role in ROLES}

        def begin(role: str) -> Any:
            return start(lambda: work(jobs[role], role, noting(folder), HEARTBEAT_S), folder / role / "error")

        alive = {role: begin(role) for role in ROLES}
        stack.callback(lambda: [process.kill() for process in alive.values()])
        start_s, done = time.monotonic(), []
        while (
            any(process.is_alive() for process in alive.values()) and time.monotonic() < start_s + DEADLINE_S
        ):
            if plan and told(folder) >= plan[0][0]:
                at, victim = plan.pop(0)
                time.sleep(pick.uniform(0, 0.05))
                done.append(f"{victim} at {at}")
                kill(victim, alive, begin, nats)
            time.sleep(0.005)
        late = any(process.is_alive() for process in alive.values())
    problems = [path.read_text() for path in folder.glob("*/error")]
    return {
        "seed": seed, "transport": transport, "task": f"{Path(job.model).name}, {job.task}, {job.layout}",
        "kills": "; ".join(done), "took_s": round(time.monotonic() - start_s, 1), "late": late,
        "problems": problems, "exact": not late and not problems and left(job) == wanted,
    }  # fmt: skip


def told(folder: Path) -> int:
    """How much the parties were told so far."""
    path = folder / "told"
    return path.stat().st_size if path.exists() else 0


def kill(victim: str, alive: dict[str, Any], begin: Callable[[str], Any], nats: Nats | None) -> None:
    """kill -9, and what an operator does then."""
    if victim == "broker" and nats is not None:
        nats.kill()
        nats.start()
        return
    names = [name for name in (ROLES if victim == "both" else (victim,)) if alive[name].is_alive()]
    for name in names:
        os.kill(alive[name].pid, signal.SIGKILL)
        alive[name].join()
    for name in names:
        alive[name] = begin(name)


def all_runs(root: Path, seeds: list[int], kills: int = 1) -> Iterator[dict[str, Any]]:
    """Each seed over both transports."""
    world = World(root)
    for seed in seeds:
        for transport in ("tcp", "nats"):
            yield once(world, transport, seed, kills)


if __name__ == "__main__":
    columns = ("seed", "transport", "task", "kills", "took_s", "exact")
    main("split_faults", __doc__, all_runs, columns, runs=(20, 3))  # over each transport
