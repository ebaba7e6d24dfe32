"""Runs of a small job of two parties that are disturbed on purpose, over TCP and over NATS.

    python benchmarks/link_faults.py [--runs 64] [--quick] [--json]

Each run has a seed that decides what goes wrong and when: kill -9 of either party and of the broker, cut and
altered connections, messages doubled, dropped, delayed, out of order and replayed, floods by a stranger, a
purge, a broker without space, a restart within the time in which the broker knows repeated messages.
`exact` counts the runs that ended like the undisturbed one, with every step applied once and each message
the same bytes however often it was sent; `late` those that passed their deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from _link_relay import Relay, relay
from _link_scene import Nats, free_port, main, make_keys, start
from _link_toy import Toy, party
from transom.link.config import LinkConfig
from transom.link.record import Record

STEPS = 24
DEADLINE_S = 60.0
MESSAGE_FAULTS = {
    "drop": 0.03,
    "double": 0.05,
    "reorder": 0.05,
    "delay_s": 0.02,
    "replay": 0.05,
    "truncate": 0.03,
    "corrupt": 0.03,
}


@dataclass
class Scene:
    """One run while it goes on."""

    folder: Path
    transport: str
    toys: dict[str, Toy]
    processes: dict[str, Any] = field(default_factory=dict)
    relay: Relay | None = None
    nats: Nats | None = None
    events: list[str] = field(default_factory=list)

    def start(self, name: str) -> None:
        self.processes[name] = start(lambda: party(self.toys[name]), self.folder / f"{name}.error")

    def kill(self, name: str) -> None:
        os.kill(self.processes[name].pid, signal.SIGKILL)
        self.processes[name].join()

    def at(self) -> int:
        """How far the party that is ahead is."""
        return max(self._at("alpha"), self._at("beta"))

    def _at(self, name: str) -> int:
        try:
            return int((self.folder / f"{name}.at").read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0


@contextmanager
def scene(folder: Path, transport: str, keys: Path, pick: random.Random, calm: bool) -> Iterator[Scene]:
    """Two parties that can be started, on their transport."""
    with ExitStack() as stack:
        port = free_port()
        way: dict[str, dict[str, str]]
        made = Scene(folder, transport, {})
        if transport == "nats":
            made.nats = Nats(folder / "nats", port)
            stack.callback(made.nats.kill)
            way = {name: {"nats": made.nats.url} for name in ("alpha", "beta")}
        else:
            made.relay = stack.enter_context(relay(("127.0.0.1", port), delay_s=pick.choice((0.0, 0.002))))
            way = {
                "alpha": {"connect": f"127.0.0.1:{made.relay.port}"},
                "beta": {"listen": f"127.0.0.1:{port}"},
            }
        noisy = not calm and pick.random() < 0.5
        every = pick.randint(1, 4)
        for name, other in (("alpha", "beta"), ("beta", "alpha")):
            link = LinkConfig(
                job="toy", run="r1", party=name, partner=other, identity=keys / name,
                partner_certificate=keys / other / "tls.pem", **way[name],
            )  # fmt: skip
            made.toys[name] = Toy(
                link=link, folder=folder, steps=STEPS, every=every, size=50_000, deadline_s=DEADLINE_S,
                faults=MESSAGE_FAULTS if noisy else None, pace_s=0.0 if calm else 0.03,
            )  # fmt: skip
        made.events.append(
            "messages doubled, dropped, delayed, reordered, replayed, cut, altered" if noisy else ""
        )
        yield made
        for process in made.processes.values():
            process.kill()
            process.join()


def plan(transport: str, pick: random.Random) -> list[tuple[int, str]]:
    """What goes wrong, and after which step."""
    kinds = ["kill alpha", "kill beta", "kill alpha", "kill beta", "kill both"]
    if transport == "nats":
        kinds += [
            "kill broker",
            "kill broker",
            "restart broker",
            "purge",
            "flood",
            "no space",
            "replay",
            "replay",
        ]
    else:
        kinds += ["cut", "flip", "cut", "flip", "stranger", "flood"]
    return sorted((pick.randrange(1, STEPS - 1), pick.choice(kinds)) for _ in range(pick.randint(2, 4)))


def disturb(now: Scene, kind: str, pick: random.Random) -> None:
    """Do what is planned, and mend what a watchful operator would: start again what is dead."""
    if kind.startswith("kill ") and kind != "kill broker":
        names = ["alpha", "beta"] if kind == "kill both" else [kind.split()[1]]
        names = [name for name in names if now.processes[name].is_alive()]
        for name in names:
            now.kill(name)
        time.sleep(pick.choice((0.0, 0.0, 0.3)))
        for name in names:
            now.start(name)
    elif kind in ("kill broker", "restart broker") and now.nats:
        now.nats.kill()
        time.sleep(0.0 if kind == "restart broker" else pick.uniform(0.1, 0.8))
        now.nats.start()
    elif kind in ("purge", "flood", "no space", "replay") and now.nats:
        if not now.nats.do(globals()[f"_{kind.replace(' ', '_')}"]):
            now.events[-1] += " (not done)"
    elif kind == "cut" and now.relay:
        now.relay.cut()
    elif kind == "flip" and now.relay:
        now.relay.flip()
    elif now.relay:
        _strangers(now.relay.port, 200 if kind == "flood" else 3)


async def _streams(js: Any) -> list[Any]:
    return list(await js.streams_info())


async def _purge(connection: Any, js: Any) -> None:
    for stream in await _streams(js):
        await js.purge_stream(stream.config.name)


async def _flood(connection: Any, js: Any) -> None:
    """Garbage where the parties read, and copies of a message that one of them sent."""
    for name in ("alpha", "beta"):
        for count in range(100):
            await connection.publish(f"transom.toy.r1.{name}", os.urandom(count * 100))


async def _replay(connection: Any, js: Any) -> None:
    """What passes in a third of a second: once more and backwards, cut short, with a bit flipped."""
    seen: list[Any] = []

    async def see(message: Any) -> None:
        seen.append((message.subject, message.data))

    await connection.subscribe("transom.>", cb=see)
    await asyncio.sleep(0.3)
    for subject, data in reversed(seen[-100:]):
        cut = data[: len(data) // 2]
        flipped = bytes([*data[:-1], data[-1] ^ 1])
        for copy in (data, cut, flipped, data):
            await connection.publish(subject, copy)
    await connection.flush()


async def _no_space(connection: Any, js: Any) -> None:
    """For a second the streams take nothing more."""
    for stream in await _streams(js):
        await js.update_stream(replace(stream.config, max_bytes=1024))
    await asyncio.sleep(1.0)
    for stream in await _streams(js):
        await js.update_stream(replace(stream.config, max_bytes=2**28))


def _strangers(port: int, count: int) -> None:
    for number in range(count):
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
                sock.sendall((b"GET / HTTP/1.1\r\n\r\n", os.urandom(500), b"")[number % 3])
        except OSError:
            continue


def run(folder: Path, transport: str, keys: Path, seed: int, *, calm: bool = False) -> dict[str, Any]:
    """One run, from its start to its end or its deadline."""
    folder.mkdir(parents=True)
    pick = random.Random(seed)
    with scene(folder, transport, keys, pick, calm) as now:
        events = [] if calm else plan(transport, pick)
        for name in ("alpha", "beta"):
            now.start(name)
        start_s = time.monotonic()
        while time.monotonic() < start_s + DEADLINE_S:
            while events and now.at() >= events[0][0]:
                step, kind = events.pop(0)
                now.events.append(f"{kind} at {step}")
                disturb(now, kind, pick)
            if not any(process.is_alive() for process in now.processes.values()):
                break
            time.sleep(0.005)
        late = any(process.is_alive() for process in now.processes.values())
        wrong = [path.read_text() for path in sorted(folder.glob("*.error"))]
        took_s = time.monotonic() - start_s
    ends = tuple(_read(folder / f"{name}.end") for name in ("alpha", "beta"))
    return {
        "seed": seed, "transport": transport, "events": "; ".join(filter(None, now.events)), "late": late,
        "took_s": round(took_s, 2), "ends": ends, "problems": wrong + differing(folder) + applied(folder),
    }  # fmt: skip


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def differing(folder: Path) -> list[str]:
    """Messages that were not the same bytes each time."""
    problems = []
    for path in sorted(folder.glob("*.published")):
        seen: dict[int, dict[str, Any]] = {}
        for line in path.read_text().splitlines():
            if not line.endswith("}"):
                continue  # a kill cut it
            note = json.loads(line)
            if seen.setdefault(note["number"], note) != note:
                problems.append(f"{path.stem} sent message {note['number']} as two")
    return problems


def applied(folder: Path) -> list[str]:
    """What the records say was applied, where that is not every message once."""
    problems = []
    wanted = {"alpha": STEPS, "beta": STEPS + len(range(0, STEPS, 3))}
    for name, other in (("alpha", "beta"), ("beta", "alpha")):
        path = folder / f"{name}.sqlite"
        with Record(path, job="toy", run="r1", party=name, partner=other) as record:  # reads all of it
            applied = len(record.applied)
        with contextlib.closing(sqlite3.connect(path)) as connection:
            query = "SELECT count(*), count(DISTINCT step) FROM history WHERE kind = 'applied'"
            found = connection.execute(query).fetchone()
        if {applied, *found} != {wanted[name]}:
            problems.append(f"{name} applied {found[0]} messages of {found[1]} steps, not {wanted[name]}")
    return problems


def judged(found: dict[str, Any], calm: dict[str, Any]) -> dict[str, Any]:
    return {**found, "exact": not found["late"] and not found["problems"] and found["ends"] == calm["ends"]}


def all_runs(root: Path, seeds: list[int]) -> Iterator[dict[str, Any]]:
    """The runs, by turns over TCP and NATS, each judged by the undisturbed one."""
    make_keys(root / "keys", ("alpha", "beta"))
    calm = run(root / "calm", "tcp", root / "keys", 0, calm=True)
    assert all(calm["ends"]), calm["problems"]
    for seed in seeds:
        transport = ("tcp", "nats")[seed % 2]
        yield judged(run(root / f"run{seed}", transport, root / "keys", seed), calm)


if __name__ == "__main__":
    main("link_faults", __doc__, all_runs, ("seed", "transport", "events", "took_s", "exact"), runs=(64, 6))
