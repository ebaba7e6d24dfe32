"""What a split tuning costs beside the centralised one: processor time, bytes, and waiting for a far link.

    TRANSOM_DATA=DIR python benchmarks/split_speed.py [--parts PART ...] [--quick] [--json]

MiniLM, batches of 16 texts of 64 tokens, cut at the embedding, one thread a party. Parts:

`steps`: `step_ratio` is the processor time of both parties, in one process, over that of LoRA by peft on the
whole model, the larger of both layouts, with d_chi noise. A centralised step is made after each step of the
run, so both meet the same machine. `nats_step_ratio`: the same with the parties in two processes over NATS on
loopback; the server's own time stands beside it.
`wires`: `bytes_per_step`, both ways, of each type on the wire in the U-shape, and the accuracy on SST-2 that
one learns with it (the same rows, order and start).
`wan`: two processes over a relay that takes 25 ms and passes 100 Mbit/s each way, U-shape. `waiting_s` is
what a step would wait for its three messages (states, top states, gradients) if nothing overlapped.
`wan_overlap` is the share of it that the vendor, who has nearly all the work, does not wait in a step of four
micro-batches. `difference` is the largest between its losses and those without micro-batches. `step_s` is
wall time, and so depends on who else uses the machine, as the vendor's waiting hardly does.
"""

from __future__ import annotations

import csv
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import _bench
from _link_relay import relay
from _link_scene import free_port, make_keys, start
from _split_scene import ROLES, linked, work
from transom.link.nats_server import local_server
from transom.link.session import Received
from transom.link.talk import Talk
from transom.link.told import Told
from transom.split import run
from transom.split.job import Data, Noise, SplitJob, Train
from transom.split.party import customer, vendor

ROWS, TOKENS, WIDTH = 16, 64, 384
WARM = 3  # steps that are not counted: memory is got, and outputs are checked
DELAY_S, BYTES_S = 0.025, 100e6 / 8
TIMEOUT_S = 300.0
WORDS = ("the", "cat", "sat", "on", "a", "mat", "with", "one", "good", "dog", "and", "bad", "rain", "so")
WIRES = ("fp32", "bf16", "fp8", "int8")


def write_rows(path: Path, texts: list[tuple[str, str]]) -> Path:
    """A CSV of labels and texts."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("label", "text"), *texts])
    return path


def full_rows(folder: Path, steps: int) -> Path:
    """Texts that fill every batch of so many steps to its last token."""
    pick = random.Random(1)
    texts = [(str(row % 2), " ".join(pick.choices(WORDS, k=TOKENS + 8))) for row in range(ROWS * steps)]
    return write_rows(folder / f"full{steps}.csv", texts)


def make_job(out: Path, train: Path, evaluate: Path | None = None, **changes: Any) -> SplitJob:
    job = SplitJob(
        name="speed", model="minilm", task="classification", labels=("0", "1"), layout="customer", out=out,
        data=Data(train, evaluate, max_tokens=TOKENS), train=Train(epochs=1, batch_rows=ROWS),
    )  # fmt: skip
    return replace(job, **changes)


class Central:
    """LoRA by peft on the whole model, on batches of the same size."""

    def __init__(self, job: SplitJob) -> None:
        import peft
        import torch

        from transom.checkpoint.load import load

        lora = peft.LoraConfig(
            task_type="SEQ_CLS", r=job.adapter.r, lora_alpha=job.adapter.alpha, lora_dropout=0.0,
            target_modules=["query", "value"],
        )  # fmt: skip
        self._model: Any = peft.get_peft_model(
            load(job.model, task="sequence-classification", num_labels=len(job.labels)).model, lora
        ).eval()
        trained = [one for one in self._model.parameters() if one.requires_grad]
        self._optimiser = torch.optim.AdamW(trained, lr=job.train.learning_rate, foreach=True)
        ids_BT = torch.randint(1000, 20_000, (ROWS, TOKENS))
        self._batch = {"input_ids": ids_BT, "attention_mask": torch.ones_like(ids_BT)}
        self._labels = torch.arange(ROWS) % 2

    def step(self) -> None:
        self._model(**self._batch, labels=self._labels).loss.backward()
        self._optimiser.step()
        self._optimiser.zero_grad()


@dataclass
class Clock:
    """Listens to a run; at each step it notes losses and times, and lets `central` make a step."""

    central: Central | None = None
    losses: list[float] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    own_s: list[float] = field(default_factory=list)  # this process's, without the centralised steps
    central_s: list[float] = field(default_factory=list)
    at_s: list[float] = field(default_factory=list)
    waited_s: list[float] = field(default_factory=list)  # for messages, until each step
    waits_s: float = 0.0

    def __call__(self, told: Told) -> None:
        if told.kind == "evaluated":
            self.metrics = dict(told.found)
        if told.kind != "step":
            return
        self.losses.append(told.found.get("loss", 0.0))
        self.at_s.append(time.perf_counter())
        self.waited_s.append(self.waits_s)
        self.own_s.append(time.process_time() - sum(self.central_s))
        before_s = time.thread_time()
        if self.central is not None:
            self.central.step()
        self.central_s.append(time.thread_time() - before_s)

    def own(self) -> float:
        """Processor time of all steps that count."""
        return self.own_s[-1] - self.own_s[WARM - 1]

    def beside(self) -> float:
        """That of the centralised ones."""
        return sum(self.central_s[WARM - 1 : -1])

    def step_s(self) -> float:
        """How long a step takes."""
        return statistics.median(b - a for a, b in zip(self.at_s[WARM - 1 :], self.at_s[WARM:], strict=False))

    def wait_s(self) -> float:
        """How long a step waits for messages, on average."""
        return (self.waited_s[-1] - self.waited_s[WARM - 1]) / (len(self.waited_s) - WARM)

    def watch(self) -> None:
        """Time how long this process waits for messages; it is one party's, and stays so."""
        plain = Talk.receive

        def receive(talk: Talk, *topics: str) -> Received:
            start_s = time.perf_counter()
            found = plain(talk, *topics)
            self.waits_s += time.perf_counter() - start_s
            return found

        Talk.receive = receive  # type: ignore[method-assign]


class Counted:
    """A broker that counts the bytes of what it publishes."""

    def __init__(self, inner: Any) -> None:
        self._inner, self.max_bytes, self.bytes = inner, inner.max_bytes, 0

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        self.bytes += len(data)
        self._inner.publish(data, timeout_s=timeout_s)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def here(job: SplitJob, clock: Clock) -> int:
    """Both parties in this process; the bytes that they sent each other."""
    ways: list[Counted] = []

    def tuned(party: Any, broker: Any) -> None:
        ways.append(Counted(broker))
        run.tune(party, ways[-1])  # type: ignore[arg-type]

    with closing(vendor(job, lambda told: None)) as seller, closing(customer(job, clock)) as buyer:
        run.together(lambda broker: tuned(seller, broker), lambda broker: tuned(buyer, broker))
    return sum(way.bytes for way in ways)


def apart(job: SplitJob, keys: Path, where: dict[str, dict[str, str]], beside: bool) -> dict[str, Clock]:
    """Each party in a process of its own; what each one's clock says."""
    job.out.mkdir(parents=True)

    def party(role: str) -> None:
        clock = Clock(Central(job) if beside and role == "customer" else None)
        clock.watch()
        work(linked(job, role, keys, where[role], TIMEOUT_S), role, clock)
        clock.central = None
        (job.out / f"{role}.json").write_text(json.dumps(vars(clock)))

    processes = [start(lambda role=role: party(role), job.out / role / "error") for role in ROLES]  # type: ignore[misc]
    for process in processes:
        process.join()
    if problems := [path.read_text() for path in job.out.glob("*/error")]:
        sys.exit("\n".join(problems))
    return {role: Clock(**json.loads((job.out / f"{role}.json").read_text())) for role in ROLES}


# The parts


def steps(folder: Path, quick: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Processor time, in one process and over NATS."""
    count = WARM + (10 if quick else 60)
    job = make_job(folder / "out", full_rows(folder, count), noise=Noise(kind="d_chi", eta=56.0))
    rows, ratios = [], []
    for layout in ("customer",) if quick else ("customer", "vendor"):
        clock = Clock(Central(job))
        here(replace(job, layout=layout, out=folder / layout), clock)  # type: ignore[arg-type]
        ratios.append(clock.own() / clock.beside())
        rows.append({"what": f"one process, head at the {layout}", "ratio": ratios[-1]})
    with local_server(folder / "nats") as server:
        before_s = _processor_s(server.pid)
        where = {role: {"nats": server.url} for role in ROLES}
        clocks = apart(replace(job, out=folder / "nats-run"), folder, where, beside=True)
        server_s = (_processor_s(server.pid) - before_s) / count
    beside_s = clocks["customer"].beside()
    nats_ratio = sum(clock.own() for clock in clocks.values()) / beside_s
    server_ratio = server_s / (beside_s / (count - WARM))
    rows += [
        {"what": "two processes over NATS", "ratio": nats_ratio},
        {"what": "the NATS server", "ratio": server_ratio},
    ]
    return {"step_ratio": max(ratios), "nats_step_ratio": nats_ratio, "nats_server_ratio": server_ratio}, rows


def _processor_s(pid: int) -> float:
    """User and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wires(folder: Path, quick: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Bytes of each type on the wire, and what one learns with it."""
    count = 4
    train, dev = (
        sst2(folder, which, size)
        for which, size in (("train", 128 if quick else 1500), ("dev", 64 if quick else 872))
    )
    full, rows = full_rows(folder, count), []
    for wire in WIRES:
        bytes_ = here(make_job(folder / f"bytes-{wire}", full, wire=wire), Clock()) / count  # type: ignore[arg-type]
        clock = Clock()
        job = make_job(folder / f"learns-{wire}", train, dev, wire=wire)  # type: ignore[arg-type]
        here(replace(job, train=replace(job.train, epochs=1 if quick else 2)), clock)
        rows.append({"wire": wire, "bytes_per_step": round(bytes_), **clock.metrics})
    for row in rows:
        row["accuracy_cost"] = rows[0]["accuracy"] - row["accuracy"]
    return {"bytes_per_step": rows}, rows


def sst2(folder: Path, which: str, count: int) -> Path:
    """The first so many rows of SST-2."""
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/, or leave out the part wires")
    with (Path(os.environ["TRANSOM_DATA"]) / "sst2" / f"{which}.tsv").open(encoding="utf-8") as file:
        found = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[:count]
    return write_rows(folder / f"{which}.csv", [(row["label"], row["sentence"]) for row in found])


def wan(folder: Path, quick: bool) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How much of the waiting for a far link is hidden."""
    count, rounds = (WARM + 6, 1) if quick else (WARM + 20, 3)
    train = full_rows(folder, count)
    runs: dict[tuple[str, int], list[dict[str, Clock]]] = {}
    for turn in range(rounds):
        for place, parts in (("near", 4), ("far", 4), ("far", 1)):
            job = make_job(folder / f"{place}{parts}-{turn}", train)
            job = replace(job, train=replace(job.train, micro_batches=parts))
            with ways(far=place == "far") as where:
                runs.setdefault((place, parts), []).append(apart(job, folder, where, beside=False))
    waiting_s = 3 * (DELAY_S + ROWS * TOKENS * WIDTH * 4 / BYTES_S)
    rows = []
    for (place, parts), clocks in runs.items():
        wait_s = statistics.median(clock["vendor"].wait_s() for clock in clocks)
        step_s = statistics.median(clock["customer"].step_s() for clock in clocks)
        shown = {"place": place, "micro_batches": parts, "step_s": step_s, "vendor_waits_s": wait_s}
        rows.append({**shown, "hidden": 1 - wait_s / waiting_s})
    losses = [runs["far", parts][0]["customer"].losses for parts in (1, 4)]
    difference = max(abs(one - other) for one, other in zip(*losses, strict=True))
    found = {"wan_overlap": rows[1]["hidden"], "without_micro_batches": rows[2]["hidden"]}
    return {**found, "difference": difference, "waiting_s": waiting_s}, rows


@contextmanager
def ways(far: bool) -> Iterator[dict[str, dict[str, str]]]:
    """Where the parties meet, on loopback or over the relay."""
    port = free_port()
    where = {"vendor": {"listen": f"127.0.0.1:{port}"}, "customer": {"connect": f"127.0.0.1:{port}"}}
    if not far:
        yield where
        return
    with relay(("127.0.0.1", port), delay_s=DELAY_S, bytes_per_s=BYTES_S) as between:
        yield {**where, "customer": {"connect": f"127.0.0.1:{between.port}"}}


PARTS = {"steps": steps, "wires": wires, "wan": wan}


def main() -> None:
    import torch

    flags = _bench.parser(__doc__)
    flags.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    args = flags.parse_args()
    torch.set_num_threads(1)
    kept = _bench.RESULTS / "split_speed.json"  # the parts that are left out keep their figures
    record: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() and not args.quick else {}
    record["load_average"] = os.getloadavg()[0]
    rows = []
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            make_keys(Path(folder), ROLES)
            found, shown = PARTS[part](Path(folder), args.quick)
        record |= found
        rows += shown
    _bench.report("split_speed", record, rows, args)


if __name__ == "__main__":
    main()
