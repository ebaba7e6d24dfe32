"""Both parties plan alike, hostile offers are refused, and a plan of another job is not used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import strategies as st

from transom.config import to_plain
from transom.errors import CheckpointError, LinkRefusedError, MisconfiguredError
from transom.link.broker import Broker
from transom.link.memory import together
from transom.link.message import Step
from transom.link.record import Record
from transom.link.session import Session
from transom.link.tunnels import TunnelSettings
from transom.vertical import plan_link, run
from transom.vertical.epoch import Wire
from transom.vertical.job import Net
from transom.vertical.measure import measure, sizes_of
from transom.vertical.part import Part
from transom.vertical.plan import FILE, Limits, Made, here, planned_job, workers, write
from transom.vertical.plan_link import Offer, disclosed, read_offer
from transom.vertical.profile import Fitted, Measured, Power, Profile, fit

from .scene import TASKS, Heard, Jobs, Parts, make_jobs, make_parts

GOOD = Offer(
    fitted=Fitted(forward=Power(1e-5), backward=Power(2e-5), cores=2, memory_bytes=1e9),
    small_s=0.1,
    large_s=0.2,
)
PROFILE = Profile(measured=(Measured(16, 1e-3, 2e-3, 1e6), Measured(63, 2e-3, 4e-3, 2e6)), cores=2)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """How exact times are is nothing to these tests."""
    monkeypatch.setattr("transom.vertical.measure._SIZE_S", 0.01)


def planned(jobs: Jobs, parts: Parts, wire: Wire | None = None) -> Made:
    return here(jobs, parts, (Limits(1), Limits(2)), wire, lambda done: None)


# Measured


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("own", [0, 3])
def test_either_party_measures_any_task_and_leaves_torch_alone(tmp_path: Path, task: str, own: int) -> None:
    net = Net(module="tests.vertical.scene:Dropping")
    label, feature = make_jobs(task, tmp_path, bottom=net)
    jobs, parts = (
        (
            replace(label, partner_noise="gaussian"),
            replace(feature, noise=TunnelSettings("gaussian", clip=1.0, sigma=1.0)),
        ),
        make_parts(task, own=own),
    )
    before = torch.get_num_threads(), torch.random.get_rng_state()
    shares: list[float] = []
    for job, part in zip(jobs, parts, strict=True):
        found = measure(job, part, shares.append, cores=3, memory_bytes=1e9)
        assert [one.rows for one in found.measured] == [16, 63]
        assert (found.cores, found.memory_bytes, found.checkpoint_steps) == (3, 1e9, 3)
        assert found.checkpoint_bytes > 100
        assert fit(found).row_bytes > 0
    assert shares == [0.5, 1.0] * 2
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])


def test_the_memory_of_a_row_is_what_its_way_back_keeps(tmp_path: Path) -> None:
    """Of the feature party's net, 4 columns to 6 to 5: the standardised row, what ReLU gave; as float32."""
    _, feature = make_jobs("binary", tmp_path)
    found = measure(feature, make_parts("binary")[1], cores=1, memory_bytes=1e9)
    assert fit(found).row_bytes == pytest.approx(4 * (4 + 6))


@drawn(st.integers(2, 10**7))
def test_sizes_rise_from_few_rows_to_all_that_are_measured(count: int) -> None:
    sizes = sizes_of(count)
    assert len(sizes) >= 1 + (count > 16)
    assert list(sizes) == sorted(set(sizes))
    assert sizes[-1] == count
    assert sizes[0] == min(16, count)


# Planned


def test_both_parties_choose_alike_and_tell_no_more_than_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What crosses is zeros, an offer of the listed names, and what was chosen."""
    sent: list[tuple[str, Any]] = []
    send = Session.send

    def noted(self: Session, step: Step, tensors: Any, timeout_s: float | None = None) -> None:
        sent.append((step.topic, tensors))
        send(self, step, tensors, timeout_s)

    monkeypatch.setattr(Session, "send", noted)
    jobs, parts = make_jobs("binary", tmp_path, schedule="pubsub"), make_parts("binary")
    made = planned(jobs, parts)
    files = [json.loads(write(job, part, made).read_text()) for job, part in zip(jobs, parts, strict=True)]
    assert files[0]["plan"] == files[1]["plan"]
    assert files[0]["given"] == files[1]["given"]
    assert [one["workers"] for one in files] == [
        made.plan.chosen.label_workers,
        made.plan.chosen.feature_workers,
    ]
    assert (made.given.label.cores, made.given.feature.cores) == (1, 2)
    assert {topic for topic, _ in sent} == {"plan-echo", "plan-offer", "plan-choice"}
    names = set()
    for topic, tensors in sent:
        if topic == "plan-echo":
            assert not tensors["rows"].any()
        elif topic == "plan-offer":
            told = json.loads(bytes(tensors["offer"].tolist()))
            names |= {*told.pop("fitted"), *told}
        else:
            assert tensors["choice"].tolist() == [
                made.plan.chosen.batch_rows, made.plan.chosen.label_workers, made.plan.chosen.feature_workers
            ]  # fmt: skip
    assert names == set(disclosed()) == set(files[0]["disclosed"])
    assert all(disclosed().values())


def test_a_link_that_is_named_is_planned_for(tmp_path: Path) -> None:
    jobs, parts = make_jobs("binary", tmp_path), make_parts("binary")
    made = planned(jobs, parts, Wire(10.0, 1e6))
    assert made.given.wire == Wire(10.0, 1e6)
    assert made.plan.chosen.bound == "latency of the link"
    assert (made.given.rows, made.given.tested_rows, made.given.width) == (63, 27, 5)


def test_parties_whose_jobs_differ_are_told_before_anything_is_timed(tmp_path: Path) -> None:
    (label, feature), parts = make_jobs("binary", tmp_path), make_parts("binary")
    with pytest.raises(LinkRefusedError, match=r"epochs is (2 here and 3|3 here and 2) there"):
        planned((label, replace(feature, train=replace(feature.train, epochs=3))), parts)


def test_what_is_offered_and_does_not_suffice_is_told_at_both(tmp_path: Path) -> None:
    jobs, parts = make_jobs("binary", tmp_path), make_parts("binary")
    with pytest.raises(MisconfiguredError, match="no plan fits in memory"):
        here(jobs, parts, (Limits(1, 1e9), Limits(1, 1000.0)), None, lambda done: None)


# A partner that is hostile


def met(jobs: Jobs, part: Part, partner: Callable[[Session], object], lead: bool) -> None:
    """This party's timing and offer, against a session that does as it likes."""

    def session(broker: Broker, number: int) -> Session:
        roles = [jobs[number].role, jobs[1 - number].role]
        record = Record(None, job="j", run="plan", party=roles[0], partner=roles[1])
        return Session(broker, record, {})

    def theirs(broker: Broker) -> None:
        with session(broker, 0 if lead else 1) as one:
            one.connect()
            partner(one)

    def own(broker: Broker) -> None:
        number = 1 if lead else 0
        with session(broker, number) as one:
            plan_link.given(jobs[number], part, PROFILE, one, one.connect())

    together(theirs, own)


def say(topic: str, number: int, **tensors: torch.Tensor) -> Callable[[Session], None]:
    return lambda session: session.send(Step(0, number, "forward", topic=topic), tensors)


@pytest.mark.parametrize(
    ("hostile", "said"),
    [
        (say("plan-echo", 1, rows=torch.zeros(16, 5)), "was due"),
        (say("plan-echo", 0, rows=torch.zeros(17, 5)), "was due"),
        (say("plan-echo", 0, rows=torch.zeros(16, 6)), "was due"),
        (say("plan-echo", 0, other=torch.zeros(16, 5)), "was due"),
        (say("plan-offer", 0, offer=torch.zeros(4, dtype=torch.uint8)), "was due"),
    ],
)
def test_a_partner_that_sends_other_sizes_is_refused(
    tmp_path: Path, hostile: Callable[[Session], None], said: str
) -> None:
    with pytest.raises(LinkRefusedError, match=said):
        met(make_jobs("binary", tmp_path), make_parts("binary")[0], hostile, lead=False)


def test_an_answer_of_another_size_is_refused(tmp_path: Path) -> None:
    def short(session: Session) -> None:
        got = session.receive("plan-echo").header.step
        session.send(replace(got, direction="backward"), {"rows": torch.zeros(15, 5)})

    with pytest.raises(LinkRefusedError, match="with 16 rows was due"):
        met(make_jobs("binary", tmp_path), make_parts("binary")[1], short, lead=True)


def as_bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


def changed(**fields: Any) -> str:
    return json.dumps(to_plain(GOOD) | fields)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({}, "none"),
        ({"offer": torch.zeros(8)}, "none"),
        ({"offer": torch.zeros(2, 2, dtype=torch.uint8)}, "none"),
        ({"offer": torch.zeros(5000, dtype=torch.uint8)}, "none"),
        ({"offer": as_bytes("{")}, "no JSON"),
        ({"offer": as_bytes("[" * 2000)}, "no JSON"),
        ({"offer": as_bytes('{"small_s": 1, "small_s": 2}')}, "no JSON"),
        ({"offer": as_bytes("[]")}, "refused"),
        ({"offer": as_bytes(changed(small_s=-1.0))}, "small_s"),
        ({"offer": as_bytes(changed(large_s=math.nan))}, "large_s"),
        ({"offer": as_bytes(changed(more=1))}, "more"),
        ({"offer": as_bytes(changed(fitted={}))}, "fitted"),
    ],
)
def test_an_offer_that_is_none_is_refused(tensors: dict[str, torch.Tensor], said: str) -> None:
    with pytest.raises(LinkRefusedError, match=said):
        read_offer(tensors)


def test_an_offer_goes_through_its_bytes() -> None:
    assert read_offer({"offer": as_bytes(changed())}) == GOOD


def test_a_partner_that_chose_otherwise_is_refused(tmp_path: Path) -> None:
    jobs, parts = make_jobs("binary", tmp_path), make_parts("binary")
    made = planned(jobs, parts)
    other = replace(made.plan, chosen=replace(made.plan.chosen, batch_rows=7))

    def agree(number: int, plan: Any) -> Callable[[Broker], None]:
        def work(broker: Broker) -> None:
            record = Record(None, job="j", run="r", party=jobs[number].role, partner=jobs[1 - number].role)
            with closing(record), Session(broker, record, {}) as session:
                session.connect()
                plan_link.agree(jobs[number], session, plan)

        return work

    with pytest.raises(LinkRefusedError, match="the partner another plan"):
        together(agree(1, other), agree(0, made.plan))


# A plan that is kept


def test_a_plan_is_taken_by_the_job_that_it_is_of_and_by_no_other(tmp_path: Path) -> None:
    jobs, parts = make_jobs("binary", tmp_path, schedule="pubsub"), make_parts("binary")
    with pytest.raises(CheckpointError, match=r"plan\.json does not exist"):
        planned_job(jobs[0], parts[0])
    made = planned(jobs, parts)
    for job, part in zip(jobs, parts, strict=True):
        write(job, part, made)
        otherwise = replace(job, train=replace(job.train, batch_rows=9, workers=7, learning_rate=0.5))
        found = planned_job(otherwise, part).train
        assert (found.batch_rows, found.workers) == (made.plan.chosen.batch_rows, workers(job, made.plan))
        assert found.learning_rate == 0.5
    taken = tuple(planned_job(job, part) for job, part in zip(jobs, parts, strict=True))
    end = run.simulate(taken, parts, Heard(), workers="threads")  # type: ignore[arg-type]
    assert end.steps == 2 * math.ceil(63 / made.plan.chosen.batch_rows)
    wider, shorter = replace(jobs[1], width=6), replace(parts[1], order_hash="other")
    vfl = replace(jobs[1], train=replace(jobs[1].train, schedule="vfl"))
    for job, part, told in (
        (wider, parts[1], "width was '5', and is '6'"),
        (jobs[1], shorter, "order of the IDs was 'hash', and is 'other'"),
        (replace(jobs[1], bottom=Net((64,))), parts[1], "bottom was"),
        (vfl, parts[1], r"train\.schedule was 'pubsub', and is 'vfl'"),
    ):
        with pytest.raises(CheckpointError, match=told):
            planned_job(job, part)
    (jobs[1].folder / FILE).write_text("{}")
    with pytest.raises(CheckpointError, match="the plan"):
        planned_job(jobs[1], parts[1])
