"""How soon a vertical training reaches a target, by schedule, over a far link with one party slow.

    TRANSOM_DATA=DIR python benchmarks/vertical_speed.py [--nvflare-python PYTHON] [--quick] [--json]

The credit table (30,000 rows, 13 + 10 columns, 30 % of test). Each party has a bottom of 10 linear layers of
256, so that computing and not messages is the work, the label party a top of 2; AdamW at 0.00015. All
schedules have the same initial weights, code and link, and each runs to the target AUC at several batch sizes
and other settings of its own (`TRIED`); its soonest run counts, and one that takes longer is given up. Both
parties are processes over TCP with TLS, through a relay on loopback that delays each way by 25 ms, so that a
round trip takes 50 ms, and passes 100 Mbit/s each way. The label party has one core and the feature party a
third of one, by quotas (`slowed`).

`time_to_target_s`: from the first step to where the line between two evaluations crosses the target; what
comes before the first step is left out. The rest is from the first step to the evaluation that is over it.
`cpu_use`: processor time of forward, backward and optimiser over wall time and cores given. `wait_s`: the
party had nothing to do. `bytes`: of both parties' messages. `auc_difference`: to lock-step, at the end of
each run, with the 95 % interval of a paired bootstrap over the rows of test. `vfl-ps` with one worker is
`vfl`: where two workers take longer, `speedup_vs_vfl_ps` is that of `vfl`.
`speedup_vs_nvflare`: pubsub against NVFlare's collab split with the same model, batches and initial weights,
both without relay and quota, in an environment of its own (see `_vertical_nvflare.py`). There
pubsub is the soonest of several settings (`NEAR`).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import _bench
from _link_relay import relay
from _link_scene import free_port, make_keys
from _slowed import share_of_core
from transom.config import to_plain
from transom.link.config import LinkConfig
from transom.report.statistics import auc
from transom.vertical.half import make_half
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.model import standardise
from transom.vertical.part import load_here
from transom.vertical.schedule import Units

ROLES = ("label", "feature")
FILES = ("default_credit_hetero_guest.csv", "default_credit_hetero_host.csv")
DELAY_S, BYTES_S = 0.025, 100e6 / 8
CORES = {"label": 1.0, "feature": 1 / 3}
TARGET, EPOCHS, RATE, SHIFTS = 0.76, 12, 1.5e-4, 300
HIDDEN, EMBEDDED = 256, 32
LIMIT_S, NVFLARE_S = 90.0, 200.0
SHOWN = (
    "schedule", "batch_rows", "bundle", "time_to_target_s", "auc", "steps", "staleness", "cpu_use_label",
    "cpu_use_feature", "wait_s_feature", "bytes",
)  # fmt: skip
Settings = Mapping[str, Any]
TRIED: Mapping[str, Sequence[Settings]] = {  # the most promising first
    "vfl": [{"batch_rows": rows} for rows in (256, 512, 128)],
    "vfl-ps": [{"batch_rows": rows, "workers": 2} for rows in (512, 256)],
    "avfl": [{"batch_rows": 128, "bundle": 6, "workers": 2}, {"batch_rows": 256, "workers": 3}],
    "avfl-ps": [{"batch_rows": 128, "bundle": 6, "workers": 2}, {"batch_rows": 256, "workers": 2}],
    "pubsub": [
        {"batch_rows": 128, "bundle": bundle, "embeddings": under_way}
        for bundle, under_way in ((6, 2), (8, 2), (7, 2))
    ],
}
NEAR: Sequence[Settings] = [  # where no way is long, and gradients can be younger
    {"bundle": bundle, "embeddings": under_way} for bundle, under_way in ((2, 3), (2, 2), (4, 2))
]
Jobs = tuple[VerticalJob, VerticalJob]
Line = dict[str, Any]


@dataclass
class Run:
    """What both parties told, by role, until the target or the end."""

    lines: dict[str, list[Line]] = field(default_factory=lambda: {role: [] for role in ROLES})
    reached: bool = False
    slowed: str = ""

    @property
    def time_to_target_s(self) -> float:
        """The moment on the line between two evaluations; of a run without a target its length."""
        first, *points = self.lines["label"]
        last = points[-1]
        if not self.reached:
            return float(last["at_s"] - first["at_s"])
        before = points[-2] if len(points) > 1 else {**first, "auc": 0.5}
        part = (TARGET - before["auc"]) / (last["auc"] - before["auc"])
        return float(before["at_s"] + part * (last["at_s"] - before["at_s"]) - first["at_s"])

    def spent(self, role: str, what: str) -> float:
        """From the first step to the last evaluation."""
        return float(self.lines[role][-1][what] - self.lines[role][0][what])

    def cpu_use(self, role: str) -> float:
        return self.spent(role, "busy_s") / self.spent(role, "at_s") / CORES[role]


def jobs_of(out: Path, quick: bool, **train: Any) -> Jobs:
    """Both parties' jobs."""
    source = Path(os.environ["TRANSOM_DATA"]) / "vfl"
    of = Train(
        learning_rate=RATE, epochs=1 if quick else EPOCHS, staleness=24, checkpoint_every_steps=512, **train
    )
    bottom = Net((64 if quick else HIDDEN,) * 9)
    label = VerticalJob(
        "credit", "binary", Data(source / FILES[0], "id", "y"), ("0", "1"), width=EMBEDDED, bottom=bottom,
        top=Net((64,)), train=of, out=out,
    )  # fmt: skip
    return label, replace(label, data=Data(source / FILES[1], "id"), classes=())


def run(folder: Path, jobs: Jobs, *, far: bool = True, target: float, limit_s: float) -> Run:
    """Both parties as processes, until the target, the end or a limit from the first step on."""
    folder.mkdir()
    make_keys(folder, ROLES)
    told: queue.Queue[tuple[str, Line]] = queue.Queue()
    found = Run()
    with ExitStack() as stack:
        paths, processes = _linked(stack, folder, jobs, far), {}
        for role in ROLES:
            command = [sys.executable, str(Path(__file__).with_name("_vertical_party.py")), *paths, role]
            processes[role] = stack.enter_context(_process(command))
            threading.Thread(target=_listen, args=(role, processes[role], told), daemon=True).start()
        for _ in ROLES:
            _next(told, 120.0)
        for role, process in processes.items():
            if far:
                share = stack.enter_context(share_of_core(CORES[role], role))
                share.give(process.pid)
                found.slowed = share.how
            process.stdin.write("\n")
            process.stdin.flush()
        _follow(found, told, target, jobs[0].train.epochs, limit_s)
        for process in processes.values():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return found


def _linked(stack: ExitStack, folder: Path, jobs: Jobs, far: bool) -> list[str]:
    """Files of the jobs, with their ends of the link."""
    port = meet = free_port()
    if far:
        between = relay(("127.0.0.1", port), delay_s=DELAY_S, bytes_per_s=BYTES_S)
        meet = stack.enter_context(between).port
    where = {"label": {"listen": f"127.0.0.1:{port}"}, "feature": {"connect": f"127.0.0.1:{meet}"}}
    paths = []
    for role, other, job in zip(ROLES, reversed(ROLES), jobs, strict=True):
        link = LinkConfig(
            job="credit", run="r1", party=role, partner=other, identity=folder / role,
            partner_certificate=folder / other / "tls.pem", window=1024, **where[role],  # type: ignore[arg-type]
        )  # fmt: skip
        paths.append(folder / f"{role}.json")
        paths[-1].write_text(json.dumps(to_plain(replace(job, link=link))))
    return [str(path) for path in paths]


def _process(command: Sequence[str]) -> Any:
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def _listen(role: str, process: Any, told: queue.Queue[tuple[str, Line]]) -> None:
    for line in process.stdout:
        told.put((role, json.loads(line)))
    told.put((role, {"kind": "ended"}))


def _next(told: queue.Queue[tuple[str, Line]], timeout_s: float) -> tuple[str, Line]:
    role, line = told.get(timeout=timeout_s)
    if line["kind"] == "ended":
        sys.exit(f"the {role} party ended; see what it wrote above")
    return role, line


def _follow(
    found: Run, told: queue.Queue[tuple[str, Line]], target: float, epochs: int, limit_s: float
) -> None:
    """Until both have told of the evaluation that ends the run."""
    ends_s = time.monotonic() + 60.0
    while not (found.reached or len(found.lines["label"]) > epochs) or len(found.lines["feature"]) < len(
        found.lines["label"]
    ):
        try:
            role, line = _next(told, max(0.0, ends_s - time.monotonic()))
        except queue.Empty:
            return
        if not found.lines["label"] and role == "label":
            ends_s = line["at_s"] + limit_s
        if not (found.reached and role == "label"):
            found.lines[role].append(line)
        found.reached = found.reached or (line["auc"] or 0.0) >= target


# The figures


@dataclass
class Best:
    """The soonest run of a schedule, its settings and folder, and how long each setting took (None: it was
    given up)."""

    run: Run
    settings: Settings
    folder: Path
    tried: list[dict[str, Any]]


def best_of(folder: Path, schedule: str, quick: bool) -> Best:
    best: Best | None = None
    tried: list[dict[str, Any]] = []
    for number, settings in enumerate(TRIED[schedule][:1] if quick else TRIED[schedule]):
        place = folder / f"{schedule}-{number}"
        jobs = jobs_of(place / "out", quick, schedule=schedule, **settings)
        limit_s = 1.05 * best.run.time_to_target_s if best else LIMIT_S
        one = run(place, jobs, target=2.0 if quick else TARGET, limit_s=limit_s)
        ended = one.reached or quick
        tried.append({**settings, "time_to_target_s": one.time_to_target_s if ended else None})
        print(schedule, tried[-1], file=sys.stderr)
        if ended and (best is None or one.time_to_target_s < best.run.time_to_target_s):
            best = Best(one, settings, place, tried)
    if best is None:
        sys.exit(f"{schedule} did not reach the target: {tried}")
    return best


def row_of(schedule: str, best: Best) -> dict[str, Any]:
    one, last = best.run, best.run.lines["label"][-1]
    found = {
        "schedule": schedule, **best.settings, "time_to_target_s": one.time_to_target_s, "auc": last["auc"],
        "steps": last["steps"], "wall_s": one.spent("label", "at_s"),
        "bytes": sum(one.spent(role, "bytes") for role in ROLES),
        "staleness": one.lines["feature"][-1]["staleness"],
        "given_out_again": one.lines["feature"][-1]["given_out_again"],
    }  # fmt: skip
    for role in ROLES:
        found[f"cpu_use_{role}"] = one.cpu_use(role)
        found |= {f"{name}_{role}": one.spent(role, name) for name in ("wait_s", "busy_s", "cpu_s")}
    return found | {"tried": best.tried}


def differences(bests: Mapping[str, Best]) -> dict[str, dict[str, float]]:
    """Of each schedule's AUC to that of lock-step, and within which it lies."""
    part = load_here(jobs_of(Path(), quick=True))[0]
    labels_N = part.labels(part.test)
    scores = {
        name: np.load(best.folder / f"scores{len(best.run.lines['label']) - 1}.npy")
        for name, best in bests.items()
    }
    draw = np.random.default_rng(0)
    picks = [draw.integers(len(labels_N), size=len(labels_N)) for _ in range(SHIFTS)]
    found = {}
    for name, its in scores.items():
        shifts = [auc(its[pick], labels_N[pick]) - auc(scores["vfl"][pick], labels_N[pick]) for pick in picks]
        low, high = np.quantile(shifts, (0.025, 0.975))
        mean = auc(its, labels_N) - auc(scores["vfl"], labels_N)
        found[name] = {"auc_difference": mean, "auc_low": float(low), "auc_high": float(high)}
    return found


def nvflare(folder: Path, python: Path, batch_rows: int, quick: bool) -> dict[str, float]:
    """Both without relay and quota, at one batch size."""
    target, near = 2.0 if quick else TARGET, []
    for number, settings in enumerate(NEAR[:1] if quick else NEAR):
        place = folder / f"near{number}"
        jobs = jobs_of(place / "out", quick, schedule="pubsub", batch_rows=batch_rows, **settings)
        near.append(run(place, jobs, far=False, target=target, limit_s=LIMIT_S))
    own = min((one for one in near if one.reached or quick), key=lambda one: one.time_to_target_s)
    left = folder / "nvflare"
    left.mkdir()
    _leave(left, jobs, target)
    script = Path(__file__).with_name("_vertical_nvflare.py")
    done = subprocess.run(
        [python, script, left], capture_output=True, text=True, timeout=NVFLARE_S, cwd=left,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""},
    )  # fmt: skip
    if done.returncode or not (left / "nvflare.jsonl").exists():
        sys.exit(f"NVFlare ended with {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in (left / "nvflare.jsonl").read_text().splitlines()]
    peer = Run({"label": lines, "feature": []}, lines[-1]["auc"] >= target)
    own_s, peer_s = own.time_to_target_s, peer.time_to_target_s
    steps_s = [one.spent("label", "at_s") / one.spent("label", "steps") for one in (own, peer)]
    return {
        "speedup_vs_nvflare": peer_s / own_s, "near_time_to_target_s": own_s,
        "nvflare_time_to_target_s": peer_s, "near_step_s": steps_s[0], "nvflare_step_s": steps_s[1],
        "nvflare_auc": lines[-1]["auc"],
    }  # fmt: skip


def _leave(folder: Path, jobs: Jobs, target: float) -> None:
    """What NVFlare's parties read: rows, order, initial weights, and the plan."""
    parts = load_here(jobs)
    units = replace(Units.of(jobs[0], len(parts[0].train)), bundle=1)
    order = {
        f"epoch{epoch}": parts[0].train[
            np.concatenate([units.rows(epoch * units.per_epoch + unit) for unit in range(units.per_epoch)])
        ]
        for epoch in range(units.epochs)
    }
    np.savez(folder / "order.npz", test=parts[0].test, **order)  # type: ignore[arg-type]
    train, nets = jobs[0].train, {}
    for role, job, part in zip(ROLES, jobs, parts, strict=True):
        half = make_half(job, part.width, local=True)
        bottom, top = half.bottom, half.top
        if bottom is None:
            raise SystemExit("both parties have columns here")
        standardise(bottom, part)
        x_NF = part.rows(np.arange(len(part)))
        arrays: dict[str, Any] = {"x": (x_NF - bottom.mean_F.numpy()) / bottom.deviation_F.numpy()}
        nets[role] = {"bottom": [part.width, *job.bottom.hidden, job.width]}
        modules = {"bottom": bottom.net}
        if top is not None:
            arrays["y"] = part.labels(np.arange(len(part)))
            modules["top"], nets[role]["top"] = top.net, [2 * job.width, *job.top.hidden, 1]
        for name, module in modules.items():
            arrays |= {f"{name}/{key}": value.numpy() for key, value in module.state_dict().items()}
        np.savez(folder / f"{role}.npz", **arrays)
    plan = {
        "nets": nets, "batch_rows": train.batch_rows, "learning_rate": train.learning_rate,
        "epochs": train.epochs, "target": target,
    }  # fmt: skip
    (folder / "plan.json").write_text(json.dumps(plan))


def main() -> None:
    flags = _bench.parser(__doc__)
    flags.add_argument("--schedules", nargs="+", choices=TRIED, default=list(TRIED))
    flags.add_argument("--nvflare-python", type=Path, help="an interpreter that has NVFlare 2.9.0 and torch")
    args = flags.parse_args()
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds vfl/")
    names = ["vfl", "pubsub"] if args.quick else args.schedules
    record: dict[str, Any] = {"target": TARGET, "delay_each_way_s": DELAY_S, "bytes_per_s": BYTES_S}
    with tempfile.TemporaryDirectory() as scratch:
        bests = {name: best_of(Path(scratch), name, args.quick) for name in names}
        rows = {name: row_of(name, best) for name, best in bests.items()}
        if "vfl" in rows:
            for name, found in differences(bests).items():
                rows[name] |= found
        if "pubsub" in rows:
            record |= speedups(rows) | {"cpu_use": rows["pubsub"]["cpu_use_feature"]}
            if args.nvflare_python:
                size = int(bests["pubsub"].settings["batch_rows"])
                record |= nvflare(Path(scratch), args.nvflare_python, size, args.quick)
        record["slowed"] = bests[names[0]].run.slowed
    record["load_average"] = os.getloadavg()[0]
    shown = [{name: row.get(name) for name in SHOWN} for row in rows.values()]
    shown += [{"schedule": name, "figure": one} for name, one in record.items() if name.startswith("speedup")]
    _bench.report("vertical_speed", {**record, "schedules": list(rows.values())}, shown, args)


def speedups(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Of pubsub against each other schedule."""
    times_s = {name: row["time_to_target_s"] for name, row in rows.items()}
    if "vfl" in times_s and "vfl-ps" in times_s:
        times_s["vfl-ps"] = min(times_s["vfl"], times_s["vfl-ps"])
    own_s = times_s.pop("pubsub")
    return {f"speedup_vs_{name.replace('-', '_')}": time_s / own_s for name, time_s in times_s.items()}


if __name__ == "__main__":
    main()
