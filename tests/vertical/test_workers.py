"""Workers as processes: they do what a worker here does, and one that is killed is replaced."""

from __future__ import annotations

import io
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.config import to_plain
from transom.errors import LinkError, MisconfiguredError
from transom.link.told import Told
from transom.vertical import run
from transom.vertical.half import EMBEDDING, ROWS, Done, Task, make_half
from transom.vertical.job import Net, VerticalJob
from transom.vertical.party import make_party
from transom.vertical.pool import Pool, mean_into
from transom.vertical.worker import Child, read, serve, write

from .scene import Heard, Joint, at, make_jobs, make_parts, states_of, weights_of


@given(st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)), st.integers(0, 5), st.integers(0, 200))
def test_a_frame_comes_back_or_is_none_where_the_stream_ends(
    head: dict[str, int], rows: int, cut: int
) -> None:
    stream, tensors = io.BytesIO(), {"x": torch.ones(rows, 2)} if rows else {}
    write(stream, head, tensors)
    data = stream.getvalue()
    found = read(io.BytesIO(data + b"more"))
    assert found is not None
    assert found[0] == head
    assert found[1].keys() == tensors.keys()
    assert all(torch.equal(one, tensors[name]) for name, one in found[1].items())
    assert read(io.BytesIO(data[: min(cut, len(data) - 1)])) is None


def child_pool(job: VerticalJob, count: int) -> Pool:
    half = make_half(job, 4, local=True)
    return Pool(half, count, lambda number, tell: Child(job, 4, tell, local=True))


def taken(pool: Pool) -> Any:
    """The next that is done."""
    while (done := pool.take()) is None:
        pool._sort(pool._events.get(timeout=60))
    return done


def test_a_child_does_what_the_server_would_and_one_that_is_killed_or_stopped_is_replaced(
    tmp_path: Path,
) -> None:
    job = make_jobs("binary", tmp_path)[1]
    pool, rows_BF = child_pool(job, 1), torch.randn(20_000, 4)  # more than a pipe holds
    try:
        pool.start()
        assert pool.give(Task("forward", 0, {ROWS: rows_BF}, 6)) == 0
        done = taken(pool)
        assert torch.equal(done.tensors[EMBEDDING], pool.half.embed(rows_BF))
        assert done.busy_s > 0
        worker = pool._workers[0]
        assert isinstance(worker, Child)
        os.kill(worker.pid, signal.SIGKILL)
        assert pool.give(Task("forward", 1, {ROWS: rows_BF}, 6)) == 0
        assert taken(pool).unit == 1
        assert pool.restarts
        stopped = pool._workers[0]
        assert isinstance(stopped, Child)
        os.kill(stopped.pid, signal.SIGSTOP)
        assert pool.give(Task("forward", 2, {ROWS: 2 * rows_BF}, 6)) == 0
        pool._deadline_s = 0.0
        pool.replace_stuck()
        pool._deadline_s = math.inf
        stopped._tell(Done("forward", 2, {}))  # too late
        assert torch.equal(taken(pool).tensors[EMBEDDING], pool.half.embed(2 * rows_BF))
    finally:
        pool.close()


def test_what_a_child_cannot_do_is_told(tmp_path: Path) -> None:
    job = make_jobs("binary", tmp_path)[0]
    pool = Pool(make_half(job, 3, local=True), 1, lambda number, tell: Child(job, 3, tell, local=True))
    try:
        pool.start()
        tensors = {EMBEDDING: torch.full((2, 5), torch.inf), ROWS: torch.ones(2, 3), "labels": torch.ones(2)}
        pool.give(Task("train", 0, tensors, 2))
        with pytest.raises(MisconfiguredError, match=r"finite|diverges"):
            taken(pool)
    finally:
        pool.close()


@settings(max_examples=10)
@given(st.integers(0, 5), st.integers(1, 5))
def test_a_mean_is_by_the_steps_that_each_has_made(first: int, second: int) -> None:
    from transom.link import state

    job = make_jobs("binary", Path())[1]
    halves = [make_half(job, 4, local=True) for _ in range(2)]
    for half, steps, seed in zip(halves, (first, second), (1, 2), strict=True):
        torch.manual_seed(seed)
        for unit in range(steps):
            half.do(Task("forward", unit, {ROWS: torch.randn(3, 4)}, 3))
            half.do(Task("backward", unit, {ROWS: torch.randn(3, 4), "gradient": torch.randn(3, 5)}, 3))
    shares = [first / (first + second), second / (first + second)]
    server = make_half(job, 4, local=True)
    mean_into(server, [state.read(half.saved(), {}) for half in halves], shares)
    for name, value in server.learner.parameters.items():
        wanted = sum(
            share * half.learner.parameters[name] for share, half in zip(shares, halves, strict=True)
        )
        torch.testing.assert_close(value, wanted)
    assert server.learner.steps == max(first, second)
    server.restore(server.saved())  # it is a state like any other


class Killer:
    """Listens, and kills a worker of the label party at some steps."""

    def __init__(self, steps: tuple[int, ...]) -> None:
        self.steps, self.pools, self.heard = steps, list[Pool](), Heard()

    def __call__(self, told: Told) -> None:
        self.heard(told)
        if told.kind == "step" and told.step in self.steps and "loss" in told.found:
            for pool in self.pools:
                worker = pool._workers[told.step % len(pool._workers)]
                assert isinstance(worker, Child)
                os.kill(worker.pid, signal.SIGKILL)


@pytest.mark.parametrize("schedule", ["vfl-ps", "pubsub"])
def test_workers_of_both_parties_are_killed_and_the_run_ends_as_if_they_were_not(
    tmp_path: Path, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = 2 if schedule == "vfl-ps" else 15  # what a killed worker had learnt alone is lost
    jobs = make_jobs("binary", tmp_path / "a", schedule=schedule, workers=2, epochs=epochs)
    parts, killer = make_parts("binary"), Killer((2,))

    def watched(*args: Any, **more: Any) -> Any:
        one = make_party(*args, **more)
        killer.pools.append(one.side.pool)
        return one

    monkeypatch.setattr(run, "make_party", watched)
    end = run.simulate(jobs, parts, killer, workers="processes")
    assert end.done.to_plain() == [end.units.total]
    assert sum(pool.restarts for pool in killer.pools) > 0
    if schedule == "vfl-ps":
        joint = Joint(jobs, parts)
        assert killer.heard.losses == pytest.approx(joint.run().losses, abs=1e-6)
        for name, value in joint.weights().items():
            torch.testing.assert_close(weights_of(jobs)[name], value, rtol=0, atol=1e-6)
        calm = at(jobs, tmp_path / "calm")
        run.simulate(calm, parts, Heard())
        assert states_of(calm) == states_of(jobs)
    else:
        assert end.now.history[-1].metrics["auc"] > 0.8


class Stuck:
    """A worker that never ends what it was given."""

    def give(self, task: Task) -> None: ...

    def close(self) -> None: ...


def test_a_worker_that_is_stuck_is_given_up_and_so_is_the_run_if_all_are(tmp_path: Path) -> None:
    job = make_jobs("binary", tmp_path)[1]
    pool = Pool(make_half(job, 4, local=True), 2, lambda number, tell: Stuck(), deadline_s=0.05)
    pool.starting_s = 0.0
    pool.start()
    with pytest.raises(LinkError, match=r"died 4 times .* or took longer than 0.05 s"):
        pool.average()
    assert pool.restarts > 3
    assert [pool.give(Task("forward", unit)) for unit in range(3)] == [0, 1, None]


class Dying:
    """A worker that dies of what it is given."""

    def __init__(self, tell: Any) -> None:
        self.tell = tell

    def give(self, task: Task) -> None:
        if task.kind != "put":
            self.tell(None)

    def close(self) -> None: ...


def test_a_worker_that_dies_of_each_task_ends_the_run(tmp_path: Path) -> None:
    job = make_jobs("binary", tmp_path)[1]
    pool = Pool(make_half(job, 4, local=True), 1, lambda number, tell: Dying(tell))
    pool.start()
    pool.give(Task("forward", 0))
    with pytest.raises(LinkError, match="died 4 times without ending a task"):
        taken(pool)


def test_a_module_that_a_child_cannot_load_is_told(tmp_path: Path) -> None:
    job = make_jobs("binary", tmp_path, bottom=Net(module="no.such.package:Net"))[1]
    sink = io.BytesIO()
    source = io.BytesIO()
    write(source, {"job": to_plain(job), "features": 4, "local": True, "threads": 1}, {})
    source.seek(0)
    serve(source, sink)
    sink.seek(0)
    found = read(sink)
    assert found is not None
    assert found[0]["error"] == "MisconfiguredError"
    assert "no.such.package" in found[0]["message"]
