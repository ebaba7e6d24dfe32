"""Both parties find exactly the IDs that both have, say no more, and notice a partner that breaks rules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import private_set_intersection.python as library
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.errors import LinkError, LinkRefusedError
from transom.link import codec
from transom.link.memory import memory_pair
from transom.link.message import Step
from transom.link.session import Session
from transom.vertical import psi
from transom.vertical.ids import order_hash
from transom.vertical.psi import HASH_BYTES, NONCE_BYTES, Common, Curve, Hashed, intersect

from ..link.parties import Mortal, pair, together

IDS = st.lists(st.text("abé7 ", min_size=1, max_size=4), max_size=9, min_size=1, unique=True)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psi, "CHUNK", 3)


def found(one: Sequence[str], other: Sequence[str], *, hashed: bool = False, **more: Any) -> list[Any]:
    """What both parties find, or raise."""
    with pair(**more) as (a, b):
        results: list[Any] = together(
            lambda: intersect(a, one, "label", hashed=hashed),
            lambda: intersect(b, other, "feature", hashed=hashed),
        )
    return results


@settings(max_examples=25)
@given(IDS, IDS, st.booleans())
def test_it_is_the_intersection_for_both(one: list[str], other: list[str], hashed: bool) -> None:
    common = sorted({*one} & {*other})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psi, "CHUNK", 3)
        results = found(one, other, hashed=hashed)
    assert results == [
        Common(tuple(map(one.index, common)), len(other), order_hash(common)),
        Common(tuple(map(other.index, common)), len(one), order_hash(common)),
    ]


def test_it_finds_what_the_librarys_own_exchange_finds() -> None:
    one, other = [f"p{n}" for n in range(40)], [f"p{n}" for n in range(25, 70)]
    client, server = library.client.CreateWithNewKey(True), library.server.CreateWithNewKey(True)
    setup = server.CreateSetupMessage(1e-9, len(one), other, library.DataStructure.RAW)
    answer = server.ProcessRequest(client.CreateRequest(one))
    assert sorted(found(one, other)[0].places) == sorted(client.GetIntersection(setup, answer))


@given(IDS)
@settings(max_examples=20)
def test_two_secrets_give_one_value_in_either_order(ids: list[str]) -> None:
    one, other = Curve(), Curve()
    both = one.other(other.own(ids))
    assert both == other.other(one.own(ids))
    assert len({*both, *one.own(ids), *other.own(ids)}) == 3 * len(ids)


def test_progress_reaches_the_end() -> None:
    told: list[tuple[int, int]] = []
    with pair() as (a, b):
        together(
            lambda: intersect(a, list("abcdefg"), "label", advance=lambda *now: told.append(now)),
            lambda: intersect(b, list("xyz"), "feature"),
        )
    assert told == [(6, 12), (10, 12), (12, 12)]


def crossed(ids: list[str]) -> set[bytes]:
    """Every value of a run in which both have these IDs."""
    sent: list[bytes] = []
    one, other = memory_pair()
    results = found(ids, ids, brokers=(Mortal(one, sent), Mortal(other, sent)))
    assert [len(one.places) for one in results] == [len(ids)] * 2
    tensors = [codec.decode(one, codec.Limits())[1]["values"] for one in sent]
    rows = [bytes(row.tolist()) for tensor in tensors for row in tensor]
    assert len(rows) == 2 * (2 + 2 * (len(ids) + 1) + 1)
    return {*rows}


def test_what_crosses_is_new_in_every_run_and_no_function_of_an_id_alone() -> None:
    ids = [f"person-{n:03}" for n in range(30)]
    one, other = crossed(ids), crossed(ids)
    assert one & other == {len(ids).to_bytes(NONCE_BYTES, "big")}
    hashed = {hashlib.sha256(text.encode()).digest() for text in ids} | {bytes.fromhex(order_hash(ids))}
    assert not (one | other) & (hashed | {*Curve().own(ids)})


def test_the_order_in_which_ids_are_sent_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place of one ID in the message is uniform: chi-square over 120 runs, 4 IDs and a marker."""
    asked: list[list[str]] = []
    hashes = Hashed.own

    def own(self: Hashed, ids: Sequence[str]) -> list[bytes]:
        asked.append(list(ids))
        return hashes(self, ids)

    monkeypatch.setattr(psi, "CHUNK", 100)
    monkeypatch.setattr(Hashed, "own", own)
    for _ in range(60):
        found(list("abcd"), list("abcd"), hashed=True)
    counts = [[ids.index("a") for ids in asked].count(place) for place in range(5)]
    expected = len(asked) / 5
    assert len(asked) == 120
    assert sum((count - expected) ** 2 / expected for count in counts) < 23.5  # 1 in 10,000, 4 degrees


# A partner that breaks the rules


@dataclass
class Partner:
    """A feature party that keeps to the protocol but for what a test changes."""

    session: Session
    ids: Sequence[str] = ("a", "b")
    greet: Callable[[list[bytes]], list[bytes]] = lambda values: values
    own: Callable[[list[bytes]], list[bytes]] = lambda values: values
    back: Callable[[list[bytes]], list[bytes]] = lambda values: values
    size_bytes: int = psi.POINT_BYTES
    number: int = 0

    def run(self) -> None:
        nonce = b"n" * NONCE_BYTES
        count = len(self.ids).to_bytes(NONCE_BYTES, "big")
        got = self.swap("psi-greet", self.greet([count, nonce]), NONCE_BYTES)
        salt = hashlib.sha256(b"".join(sorted([nonce, got[1]]))).digest()
        curve = Curve()
        values = self.own(curve.own([*self.ids, f"RUN {salt.hex()}"]))
        got = self.swap("psi-own", values, self.size_bytes)
        self.swap("psi-back", self.back(curve.other(got)), self.size_bytes)
        order = hashlib.sha256(salt + bytes.fromhex(order_hash(["a", "b"]))).digest()
        self.swap("psi-order", [order], HASH_BYTES)

    def swap(self, topic: str, values: list[bytes], size: int) -> list[bytes]:
        data = torch.tensor([[*one] for one in values], dtype=torch.uint8).reshape(-1, size)
        self.session.send(Step(0, self.number, "forward", topic=topic), {"values": data})
        received = self.session.receive(topic)
        with self.session.commit():
            pass
        return [bytes(row.tolist()) for row in received.tensors["values"]]


def met(**changes: Any) -> Any:
    """What the label party, which has a and b too, finds or raises with this partner."""
    ends = memory_pair()
    with pair(ends) as (a, b):
        partner = Partner(b, **changes)

        def honest() -> Common:
            try:
                return intersect(a, ["a", "b"], "label")
            finally:
                ends[0].close()  # nobody waits for it

        return together(honest, partner.run)[0]


def test_the_partner_of_these_tests_can_keep_to_the_rules() -> None:
    assert met() == Common((0, 1), 2, order_hash(["a", "b"]))


STRANGE = b"\2" + b"\xff" * 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"own": lambda values: [*values[:-1], STRANGE]}, "no point of the curve"),
        ({"own": lambda values: [*values[:-1], bytes(33)]}, "no point of the curve"),
        ({"own": lambda values: [values[0], values[0], values[2]]}, "has an ID twice"),
        ({"own": lambda values: values[:-1]}, "with 3 values of 33 bytes was due"),
        ({"back": lambda values: [*values, values[0]]}, "with 3 values of 33 bytes was due"),
        ({"back": lambda values: [values[0]] * 3}, "has an ID twice"),
        ({"back": lambda values: Curve().other(values)}, "belong to another run"),
        ({"own": lambda values: Curve().other(values)}, "belong to another run"),
        ({"ids": ("a", "c")}, "found different common IDs"),
        ({"greet": lambda values: [bytes(NONCE_BYTES), values[1]]}, "and the feature party has 0"),
        ({"greet": lambda values: [b"\xff" * NONCE_BYTES, values[1]]}, "IDs are 1 to"),
        ({"greet": lambda values: values[:1]}, "with 2 values of 32 bytes was due"),
        ({"number": 7}, "the feature party sent psi-greet/0/7/forward/0"),
    ],
)  # fmt: skip
def test_a_partner_that_breaks_the_rules_is_noticed(changes: dict[str, Any], message: str) -> None:
    outcome = met(**changes)
    assert isinstance(outcome, LinkRefusedError)
    assert message in str(outcome)


def test_a_partner_that_sends_everything_back_is_noticed() -> None:
    with pair() as (a, b):

        def mirror() -> None:
            received = b.receive("psi-greet")
            with b.commit() as commit:
                commit.send(Step(0, 0, "forward", topic="psi-greet"), received.tensors)

        outcome, _ = together(lambda: intersect(a, ["a", "b"], "label"), mirror)
    assert isinstance(outcome, LinkRefusedError)
    assert "own number back" in str(outcome)


def test_a_list_in_which_an_id_stands_twice_is_noticed() -> None:
    outcomes = found(["a", "a"], ["a", "b"])
    assert any(isinstance(one, LinkRefusedError) and "twice" in str(one) for one in outcomes)


@pytest.mark.parametrize("dies_at", [4, 10, 16, 22])
def test_a_partner_that_dies_is_waited_for_no_longer_than_was_said(dies_at: int) -> None:
    one, other = memory_pair()
    mortal = Mortal(other, dies_at=None)
    with pair((one, mortal), a={"timeout_s": 1.0}, b={"timeout_s": 2.0}) as (a, b):
        mortal.left = dies_at  # calls of publish, before and after, status included
        outcome, _ = together(
            lambda: intersect(a, [f"p{n}" for n in range(20)], "label"),
            lambda: intersect(b, [f"p{n}" for n in range(20)], "feature"),
            timeout_s=20.0,
        )
    assert isinstance(outcome, LinkError)
