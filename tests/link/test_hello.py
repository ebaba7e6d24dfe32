"""Meeting: terms that differ are told to both, old frames are no news, records that went back are found."""

from __future__ import annotations

import logging
import math
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from transom.errors import LinkError, LinkRefusedError, LinkTimeoutError
from transom.link import control
from transom.link.control import Hello, Origin, Status
from transom.link.exchange import Agreement
from transom.link.memory import memory_pair
from transom.link.numbers import MAX_EXTRAS, Numbers
from transom.link.session import Session
from transom.link.window import Window

from .parties import QUICK, ByHand, Mortal, meet, pair, record, step, together, value

ORIGIN = Origin("job", "run", "b", 1, "b" * 16, 1, {"a" * 16: 3})
STATUS = Status((2, 4), (1,), 5, 1, 0)
HELLO = Hello("a", {"wire": "fp32"}, 8, 1 << 20, 1 << 20, 1e9, True)


@pytest.mark.parametrize("body", [STATUS, HELLO])
def test_a_frame_reads_as_it_was_written(body: Status | Hello) -> None:
    data = control.write(ORIGIN, body)
    assert control.is_control(data)
    frame = control.read(data)
    assert (frame.protocol, frame.origin, frame.read()) == (control.PROTOCOL, ORIGIN, body)


def test_the_longest_status_fits() -> None:
    many = (2**52, *range(2**52 + 2, 2**52 + 2 + MAX_EXTRAS))
    heard = {f"{number:016x}": 2**52 for number in range(control.KNOWN_INSTANCES)}
    names = ("n" * 64, "n" * 64, "n" * 64, 2**52, "a" * 16, 2**52, heard)
    data = control.write(Origin(*names), Status(many, many, 2**52, 2**52, 2))
    assert control.read(data).read().numbers()[0] == Numbers.from_plain(list(many))  # type: ignore[union-attr]


def test_a_frame_that_none_writes_is_refused_and_nothing_else_is_raised() -> None:
    drawn = random.Random(3)
    good = control.write(ORIGIN, HELLO)
    bad = [
        control.MAGIC,
        control.MAGIC + b"{}",
        control.MAGIC + b"[" * 50_000,
        control.MAGIC + b"\xff",
        good.replace(b"1000000000.0", b"NaN"),
        good.replace(b"1000000000.0", b"1e999"),
        good.replace(b'"count": 1', b'"count": 1, "count": 2'),
        good.replace(b'"boot": 1', b'"boot": true'),
        good.replace(b'"job"', b'"job\\u0000"'),
        good.replace(b'"hello"', b'"goodbye"'),
        good + b" " * control.MAX_CONTROL_BYTES,
    ]
    assert len(set(bad)) == len(bad)
    for data in bad:
        with pytest.raises(LinkRefusedError):
            control.read(data).read()
    for _ in range(2000):
        altered = bytearray(good)
        altered[drawn.randrange(4, len(good))] = drawn.randrange(256)
        try:
            control.read(bytes(altered)).read()
        except LinkRefusedError:
            continue
    with pytest.raises(LinkRefusedError, match="shorten the terms"):
        control.write(ORIGIN, Hello("a", {"long": "x" * 70_000}, 8, 1, 1, 0.0, True))


def refused(a: dict[str, Any], b: dict[str, Any], terms: Any = ({}, {})) -> list[str]:
    """What both sides are told."""
    records = record(a.pop("party", "a"), **a), record(b.pop("party", "b"), **b)
    with pair(records=records, a={"terms": terms[0]}, b={"terms": terms[1]}, connect=False) as sessions:
        outcomes = meet(*sessions)
        assert all(type(outcome) is LinkRefusedError for outcome in outcomes), outcomes
        for session in sessions:  # and it stays so
            with pytest.raises(LinkRefusedError, match="do not agree"):
                session.receive(timeout_s=0)
    return [str(outcome) for outcome in outcomes]


def test_terms_that_differ_are_told_on_both_sides_with_both_values() -> None:
    mine = {"wire": "fp32", "model": "sha-1", "seed": "1", "same": "x"}
    yours = {"wire": "bf16", "model": "sha-2", "rows": "9", "same": "x"}
    a, b = refused({}, {}, terms=(mine, yours))
    assert "terms.model is sha-1 here and sha-2 there; terms.rows is nothing here and 9 there" in a
    assert "terms.seed is 1 here and nothing there; terms.wire is fp32 here and bf16 there" in a
    assert "terms.model is sha-2 here and sha-1 there; terms.rows is 9 here and nothing there" in b
    assert "same" not in a + b


def test_job_run_and_parties_that_differ_are_told_too() -> None:
    a, b = refused({"job": "j1", "run": "r1"}, {"job": "j2", "run": "r2", "party": "c", "partner": "a"})
    assert "job is j1 here and j2 there; run is r1 here and r2 there; the partner is b here and c there" in a
    assert "this party is c here and b there" in b


def test_what_is_told_is_bounded_and_printable() -> None:
    a, _ = refused({}, {}, terms=({}, {f"\x1b[2J{number}": "\n\u202e" * 200 for number in range(40)}))
    assert len(a) < 20 * 150
    assert a.isprintable()
    assert "and 20 more" in a


def test_another_protocol_is_told() -> None:
    a, b = memory_pair()
    with pair((a, b), connect=False) as (session, _):
        partner = ByHand(b)
        outcome = together(lambda: session.connect(10), lambda: future(partner))[0]
    assert type(outcome) is LinkRefusedError
    assert "protocol is 1 here and 2 there" in str(outcome)


def future(partner: ByHand) -> None:
    """A hello of a version to come."""
    partner.hear("hello")
    data = control.write(Origin("job", "run", "b", 1, "b" * 16, 1, partner.heard), partner.hello())
    data = data.replace(b'"protocol": 1', b'"protocol": 2').replace(b'"window"', b'"later"')
    partner.broker.publish(data, timeout_s=5)


def test_the_smaller_bounds_hold_for_both() -> None:
    with pair(a={"window": 9, "window_bytes": 5000}, b={"window": 4}, connect=False) as sessions:
        for agreed in meet(*sessions):
            assert agreed.window == Window(4, 5000)
            assert agreed.max_bytes == 5000
            assert abs(agreed.clock_skew_s) < 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"window": MAX_EXTRAS + 1},
        {"heartbeat_s": 0},
        {"resend_after_s": math.nan},
        {"terms": {"x": 1}},
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with record("a") as held, pytest.raises(LinkRefusedError):
        Session(memory_pair()[0], held, **wrong)


def test_a_clock_a_year_off_is_told_and_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    a, b = memory_pair()
    year_s = 365 * 86_400.0
    with record("a") as held, Session(a, held, **QUICK) as session, caplog.at_level(logging.WARNING):
        partner = ByHand(b)
        agreed = partner.connect(session, clock_s=time.time() - year_s)
        assert agreed.clock_skew_s == pytest.approx(-year_s, abs=60)
        assert "clock of b is -315" in caplog.text
        partner.message(0)
        assert session.receive().header.number == 0


def test_who_is_alone_is_told_so_in_time() -> None:
    with pair(connect=False) as (session, _):
        with pytest.raises(LinkError, match="call connect first"):
            session.send(step(0), value(0))
        with pytest.raises(LinkTimeoutError, match=r"no partner came within 0.1 s; nothing was heard of b"):
            session.connect(0.1)


def test_a_replayed_hello_neither_connects_nor_refuses() -> None:
    """Of old terms, from before this session: at the deadline it is told, until then the partner may come."""
    a, b = memory_pair()
    with record("a") as held, Session(a, held, {"model": "new"}, **QUICK) as session:
        old = ByHand(b, instance="c" * 16)
        old.say(old.hello(terms={"model": "old"}))
        with pytest.raises(LinkRefusedError, match=r"terms.model is new here and old there"):
            session.connect(0.1)
        partner = ByHand(b, boot=2)
        assert partner.connect(session, terms={"model": "new"}).boot == 2
        replay = control.write(
            Origin("job", "run", "b", 1, "c" * 16, 9, {}), old.hello(terms={"model": "old"})
        )
        b.publish(replay, timeout_s=5)
        partner.message(0)
        assert session.receive().header.number == 0


def test_a_partner_of_another_run_is_waited_for() -> None:
    """Its run before this one may not have ended, or this one is the older; even if it knows us well."""
    a, b = memory_pair()
    with record("a") as held, Session(a, held, **QUICK) as session:
        for heard in ({}, {session._exchange._instance: 0}):
            other = ByHand(b, instance="c" * 16)
            b.publish(
                control.write(Origin("job", "before", "b", 7, "c" * 16, 1, heard), other.hello()), timeout_s=5
            )
            with pytest.raises(LinkRefusedError, match=r"run is run here and before there"):
                session.connect(0.1)
        partner = ByHand(b)
        partner.connect(session)
        b.publish(
            control.write(Origin("job", "before", "b", 7, "c" * 16, 2, {}), partner.hello()), timeout_s=5
        )
        partner.message(0)
        assert session.receive().header.number == 0


def test_statuses_of_the_past_are_not_news() -> None:
    a, b = memory_pair()
    with record("a") as held, Session(a, held, **QUICK) as session:
        partner = ByHand(b)
        partner.connect(session)
        session.send(step(0), value(0))
        first = partner.say(partner.status())
        partner.hear("status")
        partner.say(partner.status(have=(1,), applied=(1,)))
        with session.commit():  # a receipt is taken over with the next transaction
            pass
        before = control.Origin("job", "run", "b", 1, "d" * 16, 99, {})
        for data in (first, control.write(before, partner.status(have=(77,), applied=(77,)))):
            b.publish(data, timeout_s=5)
        partner.message(0)
        assert session.receive().header.number == 0  # neither "no longer applied" nor "77 were sent"


def worked(folder: Path) -> None:
    """Two messages each way, in two halves; `a-old` and `b-old` are the records between them."""
    for half in range(2):
        for party in "ab":
            if half:
                shutil.copytree(folder / party, folder / f"{party}-old")
        records = record("a", folder / "a" / "r"), record("b", folder / "b" / "r")
        with pair(records=records) as (a, b):
            a.send(step(half), value(half))
            b.receive()
            with b.commit() as commit:
                commit.send(step(half), value(half))
            a.receive()
            with a.commit():
                pass
            outcomes = together(a.finish, b.finish)
            assert outcomes == [None, None]


@pytest.mark.parametrize("older", ["a", "b"])
def test_a_record_that_went_back_is_found_on_both_sides(tmp_path: Path, older: str) -> None:
    worked(tmp_path)
    paths = {party: tmp_path / (f"{party}-old" if party == older else party) / "r" for party in "ab"}
    with pair(records=(record("a", paths["a"]), record("b", paths["b"])), connect=False) as sessions:
        outcomes = together(
            *(lambda one=one: (one.connect(20), one.receive(timeout_s=20)) for one in sessions)
        )  # type: ignore[misc]
    for outcome in outcomes:
        assert isinstance(outcome, LinkError), outcome
        assert not isinstance(outcome, LinkTimeoutError), outcome
        assert "message 1" in str(outcome)


def test_a_record_that_went_back_sends_nothing_before_it_is_found() -> None:
    """A step that left before it went back would leave again, of another input under the same noise."""
    a, b = memory_pair()
    carried: list[bytes] = []
    with record("a") as held, Session(Mortal(a, carried), held, **QUICK) as session:
        partner = ByHand(b)
        assert isinstance(together(lambda: session.connect(10), partner.greet)[0], Agreement)
        with pytest.raises(LinkTimeoutError):
            session.send(step(0), value(0), timeout_s=0.05)
        partner.say(partner.status(have=(1,), applied=(1,)))
        with pytest.raises(LinkError, match="has message 0, but 0 were sent: this party's record is older"):
            session.send(step(0), value(0))
    assert carried == []


def test_a_partner_that_went_back_while_this_one_lives_is_found(tmp_path: Path) -> None:
    """Its boot is lower, but it has heard what was said since; a delayed frame of that boot has not."""
    a, b = memory_pair()
    with record("a") as held, Session(a, held, **QUICK) as session:
        delayed = ByHand(b, boot=3, instance="3" * 16)
        delayed.connect(session)
        partner = ByHand(b, boot=5)
        partner.hear("status")
        partner.say(partner.hello())
        partner.hear("status")
        partner.hear("status")
        delayed.say(delayed.hello(terms={"other": "terms"}))  # heard only what its own life did
        partner.message(0)
        assert session.receive().header.number == 0
        restored = ByHand(b, boot=4, instance="4" * 16)
        restored.hear("status")
        restored.say(restored.hello())
        with pytest.raises(LinkError, match="back to boot 4 after boot 5"):
            session.receive()
