"""A partner that answers wrongly, or not at all, is refused; nothing that it said is learnt."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link import session as link
from transom.link.broker import Broker
from transom.link.message import Step
from transom.link.record import Record
from transom.split import messages, run
from transom.split.job import SplitJob
from transom.split.messages import reply, request
from transom.split.metrics import Tally
from transom.split.party import customer, vendor

from .runs import Heard, run_job

WIDTH = 32
Play = Callable[[link.Session], None]


def play(job: SplitJob, role: str, act: Play) -> Heard:
    """One party of the job against a partner that acts as it likes, on the same terms."""
    heard = Heard()
    make: Any = customer if role == "customer" else vendor
    with closing(make(job, heard)) as party:
        other = party.record.partner
        record = Record(None, job=party.record.job, run=party.record.run, party=other, partner=role)

        def partner(broker: Broker) -> None:
            with closing(record), link.Session(broker, record, party.terms, timeout_s=5) as session:
                session.connect()
                act(session)

        def own(broker: Broker) -> None:
            with run._met(party, broker, 0.1) as (session, talk):
                session._timeout_s = 1.0
                party.side.run(talk)

        run.together(partner, own)
    return heard


def answering(tensors: Any, topic: str = "train", **changes: Any) -> Play:
    """A vendor that answers the first batch so."""

    def act(session: link.Session) -> None:
        session.receive(("begin",))
        step = session.receive(("train",)).header.step
        session.send(replace(step, direction="backward", topic=topic, **changes), tensors)
        with session.commit():
            pass
        while True:
            session.receive(("train", "gradient"))

    return act


@pytest.mark.parametrize(
    ("layout", "tensors", "told"),
    [
        ("vendor", reply(WIDTH), "tallies"),
        ("vendor", reply(WIDTH, tallies=(Tally(), Tally())), "tallies"),
        ("vendor", reply(WIDTH, tallies=(Tally(float("nan"), 0, 1),)), "tallies"),
        ("vendor", reply(WIDTH + 1), "shape"),
        ("vendor", {"rows": torch.zeros(0, WIDTH)}, "tensors"),
        ("customer", reply(WIDTH), "top states"),
        ("customer", reply(WIDTH, torch.zeros(3, WIDTH)), "top states"),
    ],
)
def test_a_vendor_that_answers_wrongly_is_refused(
    bert: Path, tmp_path: Path, layout: Any, tensors: Any, told: str
) -> None:
    job = run_job(bert, "classification", tmp_path, layout=layout)
    with pytest.raises(LinkRefusedError, match=told):
        play(job, "customer", answering(tensors))


def test_an_answer_to_something_else_is_refused(bert: Path, tmp_path: Path) -> None:
    job = run_job(bert, "classification", tmp_path)
    with pytest.raises(LinkRefusedError, match="where train/0/0"):
        play(job, "customer", answering(reply(WIDTH, tallies=(Tally(),)), batch=3))


def test_values_that_are_none_do_not_leave(bert: Path, tmp_path: Path) -> None:
    job = run_job(bert, "classification", tmp_path, layout="customer")
    with pytest.raises(LinkRefusedError, match="finite"):
        play(job, "customer", answering(reply(WIDTH, torch.full((3, WIDTH), float("nan")))))


@pytest.mark.parametrize("role", ["customer", "vendor"])
def test_a_silent_partner_is_told_after_the_deadline(bert: Path, tmp_path: Path, role: str) -> None:
    def silent(session: link.Session) -> None:
        session.receive(("nothing",), timeout_s=10)

    job = run_job(bert, "classification", tmp_path)
    with pytest.raises(LinkTimeoutError, match="no message of"):
        play(job, role, silent)


STATES = torch.zeros(5, WIDTH), torch.tensor([2, 3])


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ([("train", request(*STATES, torch.tensor([0, 1]), (2, 1)))], "before it began"),
        ([("begin", request(torch.zeros(0, WIDTH)))], "0 rows"),
        ([("begin", "rows"), ("train", request(*STATES, torch.tensor([0, 3]), (2, 1)))], "labels"),
        ([("begin", "rows"), ("train", request(*STATES, torch.tensor([0, 1]), (2, 9)))], "cannot be"),
        ([("begin", "rows"), ("evaluate", request(*STATES, torch.tensor([0]), (2, 1)))], "1 labels"),
        ([("begin", "rows"), ("train", request(STATES[0][:, 1:], STATES[1]))], "shape"),
        (
            [("begin", "rows"), ("train", request(*STATES, torch.tensor([0, 1]), (2, 2)))] * 2,
            "answered|second",
        ),
    ],
)
def test_a_customer_that_asks_wrongly_is_refused(
    bert: Path, tmp_path: Path, sent: list[tuple[str, Any]], told: str
) -> None:
    def act(session: link.Session) -> None:
        for number, (topic, tensors) in enumerate(sent):
            if tensors == "rows":
                tensors = request(torch.zeros(0, WIDTH), counts=(9, 0))
            session.send(Step(0, 5 * number, "forward", topic=topic), tensors)
        session.receive(("nothing",), timeout_s=10)

    job = run_job(bert, "classification", tmp_path, train={"micro_batches": 2})
    with pytest.raises(LinkRefusedError, match=told):
        play(job, "vendor", act)


def test_a_vendor_that_answers_predictions_is_not_trained(bert: Path, tmp_path: Path) -> None:
    job = run_job(bert, "classification", tmp_path)
    run.simulate(job, Heard())
    with closing(vendor(job, Heard(), messages.PREDICT)) as made:
        assert set(made.side.takes) == {messages.PREDICT, messages.END}
    with (
        closing(customer(job, Heard(), messages.PREDICT)) as asks,
        closing(vendor(job, Heard())) as trains,
        pytest.raises(LinkError, match="purpose"),
    ):
        run.together(lambda one: run.tune(trains, one, 0.1), lambda one: run.predict(asks, one, None))
