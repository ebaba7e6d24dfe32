"""The session in use: bounds against a flood, order, topics, deadlines, the end, and partners that lie."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link import control
from transom.link.faults import FaultyBroker
from transom.link.memory import memory_pair
from transom.link.message import Step
from transom.link.session import Session

from .parties import QUICK, ByHand, Mortal, pair, record, step, together, value

SECRET = 1234.5678
By = tuple[Session, ByHand]


@pytest.fixture
def by_hand() -> Iterator[By]:
    """A session of party a, connected to a partner whose frames the test writes; a window of 8."""
    a, b = memory_pair()
    with record("a") as held, Session(a, held, window=8, window_bytes=20_000, **QUICK) as session:
        partner = ByHand(b)
        agreed = partner.connect(session)
        assert agreed.partner == "b"
        yield session, partner


def numbers(session: Session, count: int, **how: Any) -> list[int]:
    return [session.receive(**how).header.number for _ in range(count)]


def apply(session: Session) -> None:
    with session.commit():
        pass


def settled(session: Session, **wanted: int) -> None:
    """Wait until counts are so."""
    exchange = session._exchange
    exchange.wait(lambda: all(exchange.counts[name] == of for name, of in wanted.items()), 10, f"{wanted}")


def test_messages_arrive_with_their_values_and_count(by_hand: By) -> None:
    with pair() as (a, b):
        a.send(step(0), {"x": torch.tensor([[SECRET, 2.0]]), "ids": torch.tensor([1, 2])})
        received = b.receive()
        assert received.header.step == step(0)
        assert torch.equal(received.tensors["x"], torch.tensor([[SECRET, 2.0]]))
        assert torch.equal(received.tensors["ids"], torch.tensor([1, 2]))
        assert "1234" not in repr(received)
        apply(b)
        a.send(step(0), value(9))  # was sent
        a.send(step(1), value(1))
        assert numbers(b, 1) == [1]
        apply(b)
        assert together(a.finish, b.finish) == [None, None]
        assert (a.counts["sent"], b.counts["received"]) == (2, 2)
        assert a.counts["bytes"] > 0
        assert b.counts["refused"] == 0


def test_the_window_holds_back_an_honest_sender() -> None:
    a, b = memory_pair()
    carried: list[bytes] = []
    with pair((Mortal(a, carried), b), a={"window": 3}) as (one, two):
        for batch in range(3):
            one.send(step(batch), value(batch))
        with pytest.raises(
            LinkTimeoutError, match=r"b applied too little to send more within 0\.0\d s; b was last"
        ):
            one.send(step(3), value(3), timeout_s=0.05)
        assert len(carried) == 3
        numbers(two, 3)
        with pytest.raises(LinkTimeoutError):  # handing out is not applying
            one.send(step(3), value(3), timeout_s=0.05)
        apply(two)
        one.send(step(3), value(3))
        numbers(two, 1)
        apply(two)
        with pytest.raises(LinkRefusedError, match="more than the window"), one.commit() as commit:  # noqa: PT012
            for batch in range(4, 8):
                commit.send(step(batch), value(batch))
        assert one._record.next_number == 4


def test_bytes_hold_back_an_honest_sender_too() -> None:
    kilobyte = {"x": torch.zeros(256)}
    with pair(b={"window_bytes": 3000}) as (a, b):
        a.send(step(0), kilobyte)
        a.send(step(1), kilobyte)
        with pytest.raises(LinkTimeoutError):
            a.send(step(2), kilobyte, timeout_s=0.05)
        with pytest.raises(LinkRefusedError, match=r"has 4\d\d\d bytes, the link takes 3000"):
            a.send(step(3), {"x": torch.zeros(1024)})
        numbers(b, 2)
        apply(b)
        a.send(step(2), kilobyte)


def test_a_flood_is_refused_counted_and_changes_nothing(by_hand: By) -> None:
    session, partner = by_hand
    for number in range(8, 40):
        partner.message(number)
    settled(session, refused=32)
    partner.message(0, run="other")
    partner.message(0, sender="a")
    partner.message(0, record="f" * 16)  # of a run of this name that was begun before
    settled(session, refused=35)
    for number in range(8):
        partner.message(number)
        partner.message(number)
    settled(session, duplicates=8)
    assert numbers(session, 8) == list(range(8))
    with pytest.raises(LinkTimeoutError):
        session.receive(timeout_s=0.05)


def test_a_flood_of_bytes_is_refused() -> None:
    a, b = memory_pair()
    with record("a") as held, Session(a, held, window_bytes=1000, **QUICK) as session:
        partner = ByHand(b)
        partner.connect(session)
        for number in range(40):
            partner.message(number)
        exchange = session._exchange
        exchange.wait(lambda: sum(exchange.counts[name] for name in ("new", "refused")) == 40, 10, "all")
        assert exchange.counts["new"] < 10
        assert exchange.inbox.bytes <= 1000


def test_unordered_hands_out_what_came_early(by_hand: By) -> None:
    session, partner = by_hand
    partner.message(2)
    assert numbers(session, 1, ordered=False) == [2]
    partner.message(1)
    settled(session, new=2)
    with pytest.raises(LinkTimeoutError):
        session.receive(timeout_s=0.05)  # 0 is missing
    apply(session)
    assert session._record.applied.to_plain() == [0, 2]
    partner.message(0)
    assert numbers(session, 2) == [0, 1]
    apply(session)
    assert session._record.applied.to_plain() == [3]


def test_topics_do_not_wait_for_each_other(by_hand: By) -> None:
    session, partner = by_hand
    partner.message(0, step=step(0, "evaluate"))
    partner.message(1)
    assert numbers(session, 1) == [1]
    apply(session)
    assert numbers(session, 1, topic="evaluate") == [0]
    partner.message(3)
    partner.message(2, step=step(2, "predict"))
    assert numbers(session, 2, topic=("train", "predict")) == [2, 3]


def test_a_commit_that_fails_can_be_made_again(by_hand: By) -> None:
    session, partner = by_hand
    partner.message(0)
    session.receive()
    with pytest.raises(ZeroDivisionError), session.commit() as commit:  # noqa: PT012
        commit.checkpoint(b"never")
        commit.send(step(0), value(0))
        raise ZeroDivisionError
    with pytest.raises(LinkRefusedError, match="finite"), session.commit() as commit:
        commit.send(step(0), value(float("nan")))
    with session.commit() as commit:
        commit.checkpoint(b"state")
        commit.send(step(1), value(1))
        commit.send(step(1), value(2))
    assert session._record.checkpoint == b"state"
    assert session._record.applied.to_plain() == [1]
    assert session._record.next_number == 1


def test_a_step_under_a_second_number_is_not_applied(by_hand: By) -> None:
    session, partner = by_hand
    partner.message(0, batch=5)
    partner.message(1, batch=5)
    numbers(session, 2)
    with pytest.raises(LinkRefusedError, match="train/0/5/forward/0, message 1, comes a second time"):
        apply(session)


def test_finish_wants_all_committed_and_says_what_is_missing(by_hand: By) -> None:
    session, partner = by_hand
    session.send(step(0), value(0))
    partner.message(0)
    session.receive()
    with pytest.raises(LinkError, match="1 messages were received; commit them first"):
        session.finish()
    apply(session)
    partner.message(1)
    settled(session, new=2)
    with pytest.raises(LinkTimeoutError, match="1 messages are not applied there, 1 not here"):
        session.finish(timeout_s=0.05)


class Deaf(Mortal):
    """Its frames no longer arrive once `deaf`."""

    deaf = False

    def publish(self, data: bytes, *, timeout_s: float) -> None:
        if not self.deaf:
            super().publish(data, timeout_s=timeout_s)


@pytest.mark.parametrize("seed", range(4))
def test_both_end_also_when_the_last_words_are_lost(seed: int) -> None:
    a, b = memory_pair()
    with pair((FaultyBroker(a, seed, drop=0.4), FaultyBroker(b, -1 - seed, drop=0.4))) as (one, two):
        one.send(step(0), value(0))
        numbers(two, 1)
        apply(two)
        assert together(one.finish, two.finish) == [None, None]


def test_finish_answers_until_the_partner_knows(by_hand: By) -> None:
    session, partner = by_hand
    ending = threading.Thread(target=session.finish)
    ending.start()
    while partner.hear("status").body["done"] == 0:
        partner.say(partner.status())
    assert partner.last is not None
    assert partner.last.body["done"] == 1
    for _ in range(30):  # longer than silence would be waited for
        partner.hear("status")
        partner.say(partner.status(done=1))
        assert ending.is_alive()
    last = partner.hear("status").read()
    assert isinstance(last, control.Status)
    assert last.done == 2
    partner.say(partner.status(done=2))
    ending.join(10)
    assert not ending.is_alive()


def test_a_partner_that_has_all_and_leaves_ends_the_run(by_hand: By) -> None:
    session, partner = by_hand
    session.send(step(0), value(0))
    partner.hear("status")
    partner.say(partner.status(have=(1,), applied=(1,), done=1))
    assert together(session.finish, timeout_s=20) == [None]  # not another word
    assert session._record.held == {}


def test_a_partner_that_falls_silent_is_told_of_in_time(by_hand: By) -> None:
    session, partner = by_hand
    partner.say(partner.status())
    told = r"no message of train came within 0.1 s; b was last heard \d+.\d s ago \(boot 1,"
    with pytest.raises(LinkTimeoutError, match=told):
        session.receive(timeout_s=0.1)


@pytest.mark.parametrize(
    ("lie", "told"),
    [
        ({"applied": (1,), "have": (1,)}, "says it has message 0, but 0 were sent"),
        ({"have": (0, 5)}, "says it has message 5"),
        ({"have": (0, *range(2, 1100))}, "numbers are a list"),
        ({"have": (0, 3, 2)}, "numbers beyond a watermark rise"),
        ({"held_from": 1, "next_number": 3}, "no longer holds message 0"),
    ],
)
def test_a_status_that_cannot_be_is_refused(by_hand: By, lie: dict[str, Any], told: str) -> None:
    session, partner = by_hand
    partner.say(partner.status(**lie))
    for _ in range(2):
        with pytest.raises(LinkError, match=told):
            session.receive()


def test_a_partner_that_takes_back_what_it_said_is_refused(by_hand: By) -> None:
    session, partner = by_hand
    session.send(step(0), value(0))
    partner.hear("status")
    partner.say(partner.status(have=(1,), applied=(1,)))
    partner.say(partner.status(have=(1,), applied=(0,)))
    with pytest.raises(LinkError, match="no longer applied message 0"):
        session.receive()


def test_a_partner_that_begins_its_messages_again_is_refused(by_hand: By) -> None:
    session, partner = by_hand
    partner.message(0)
    session.receive()
    early = partner.status()
    partner.say(early)  # written before the message, arrives after it: no offence
    apply(session)
    while partner.hear("status").body["applied"] != [1]:
        pass
    partner.say(early)
    with pytest.raises(LinkError, match="begins again at message 0, but 0 was applied here"):
        session.receive()


@pytest.mark.parametrize(
    "data", [b"", b"\0" * 8, b"\xff" * 100, control.MAGIC, control.MAGIC + b'{"protocol": 1}']
)
def test_malformed_is_refused_at_the_next_call(by_hand: By, data: bytes) -> None:
    session, partner = by_hand
    partner.broker.publish(data, timeout_s=5)
    with pytest.raises(LinkRefusedError):
        session.receive()
    with pytest.raises(LinkRefusedError):
        session.send(step(0), value(0))
    with pytest.raises(LinkRefusedError):
        session.finish()


def test_values_that_are_malformed_are_refused_and_not_applied(by_hand: By) -> None:
    session, partner = by_hand
    partner.message(0)
    settled(session, new=1)
    header, data = session._exchange.inbox._waiting[0]
    session._exchange.inbox._waiting[0] = header, data[:-4] + b"\xff\xff\xff\xff"  # NaN
    for _ in range(2):
        with pytest.raises(LinkRefusedError):
            session.receive()
    with pytest.raises(LinkRefusedError):
        apply(session)
    assert session._record.applied.to_plain() == [0]


def test_what_is_lost_goes_again_and_what_is_on_its_way_does_not() -> None:
    a, b = memory_pair()
    end = Deaf(a)
    with pair((end, b)) as (one, two):
        end.deaf = True
        one.send(step(0), value(0))
        end.deaf = False
        assert numbers(two, 1) == [0]
        apply(two)
        assert one.counts["resent"] >= 1


def test_a_broker_that_breaks_is_told_at_the_next_call() -> None:
    a, b = memory_pair()
    end = Mortal(a)
    with pair((end, b)) as (one, _):
        end.close()
        with pytest.raises(LinkError, match=r"service ended \(Killed\)"):
            one.receive()


@pytest.mark.parametrize("timeout_s", [math.nan, math.inf, 1e12])
def test_a_wait_has_an_end(by_hand: By, timeout_s: float) -> None:
    session, _ = by_hand
    for wait in (session.receive, session.finish, session.connect):
        with pytest.raises(LinkRefusedError, match="a timeout is at most"):
            wait(timeout_s=timeout_s)  # type: ignore[operator]
    with pytest.raises(LinkRefusedError, match="a timeout is at most"), session.commit(timeout_s):
        pass


def test_another_session_goes_on_with_the_record(by_hand: By) -> None:
    """Its life is a later one, though the record stayed open."""
    a, b = memory_pair()
    with record("a") as mine, pair((a, b), records=(mine, record("b"))) as (one, two):
        one.send(step(0), value(0))
        numbers(two, 1)
        one.close()
        with Session(a, mine, **QUICK) as again:
            again.connect()
            apply(two)
            again.send(step(1), value(1))
            assert numbers(two, 1) == [1]
            apply(two)
            assert together(again.finish, two.finish) == [None, None]


def test_what_the_broker_does_not_take_is_durable_and_goes_later() -> None:
    a, b = memory_pair(capacity=2)
    with record("a") as held, Session(a, held, **{**QUICK, "heartbeat_s": 0.05}) as session:
        partner = ByHand(b)
        partner.connect(session)
        for batch in range(3):  # the partner takes none: statuses fill the queue too
            session.send(step(batch), value(batch), timeout_s=0.05)
        assert len(held.held) == 3
        with pytest.raises(LinkTimeoutError, match="within a commit send with the commit"), session.commit():
            session.send(step(4), value(4), timeout_s=0.05)
        a.close()
        with pytest.raises(LinkError, match="broker is closed"):
            session.receive()


@pytest.mark.parametrize("smaller", ["a", "b"])
def test_what_was_sent_under_a_larger_window_still_arrives(tmp_path: Path, smaller: str) -> None:
    large = {"x": torch.zeros(1000)}
    for life in range(2):
        records = record("a", tmp_path / "a"), record("b", tmp_path / "b")
        now: dict[str, Any] = {smaller: {"window_bytes": 2000}} if life else {}
        with pair(records=records, **now) as (a, b):
            if not life:
                a.send(step(0), large)
                a.send(step(1), large)
                continue
            for number in (0, 1):
                assert numbers(b, 1) == [number]
                apply(b)
            assert together(a.finish, b.finish) == [None, None]


def test_a_closed_session_says_so_and_lets_go(by_hand: By) -> None:
    session, _ = by_hand
    waiting = threading.Thread(target=lambda: together(session.receive))
    waiting.start()
    session.close()
    session.close()
    waiting.join(5)
    assert not waiting.is_alive()
    assert not any(thread.name == "transom-link" for thread in threading.enumerate())
    with pytest.raises(LinkError, match="session is closed"):
        session.connect()


def test_two_sessions_that_fill_every_queue_still_move() -> None:
    """One place each way for frames and messages together."""
    with pair(memory_pair(capacity=1)) as (a, b):

        def work(session: Session) -> None:
            for batch in range(10):
                session.send(Step(0, batch, "forward"), value(batch))
            for batch in range(10):
                assert session.receive().header.number == batch
                apply(session)
            session.finish()

        assert together(lambda: work(a), lambda: work(b)) == [None, None]


def test_what_else_is_ready_ends_a_wait_and_comes_first() -> None:
    with pair() as (one, other):
        ready = threading.Event()

        def set_soon() -> None:
            ready.set()
            one.wake()

        def receive() -> Any:
            return one.receive_or(("train",), ready.is_set, 20.0)

        assert one.receive_or(("train",), lambda: False, 0.05) is None  # its time is over
        assert together(receive, set_soon) == [None, None]
        other.send(step(0), value(1))
        assert receive() is None  # a message may be there, and what is ready comes first
        ready.clear()
        found = receive()
        assert found.header.step == step(0)
        with one.commit():
            pass
        assert one.partner_record != other.partner_record
