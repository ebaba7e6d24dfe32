"""A vendor's server takes what is due and nothing else, and goes on after whatever it is sent."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from transom.checkpoint.tiny import tiny_llama
from transom.link.codec import Wire, decode, encode
from transom.serving.split_wire import STATES, answer_limits, header

from .split_parties import Parties, parties

NAME = "ab" * 16
OTHER = "cd" * 16


@dataclass
class Asking:
    """A customer that says anything."""

    both: Parties
    connection: http.client.HTTPConnection

    def send(self, method: str, session: str, body: bytes = b"", kind: str = "") -> tuple[int, bytes]:
        kind = kind or ("application/octet-stream" if method == "POST" else "application/json")
        self.connection.request(method, f"/v1/split/{session}", body, {"Content-Type": kind})
        answer = self.connection.getresponse()
        return answer.status, answer.read()

    def begin(self, session: str = NAME, tokens: Any = 20, **more: Any) -> int:
        asked = {"tokens": tokens, "terms": self.both.server.terms.digest} | more
        return self.send("PUT", session, json.dumps(asked).encode())[0]

    def message(self, number: int, states_TD: Tensor, session: str = NAME, wire: Wire = "fp32") -> bytes:
        return encode(header(self.both.server.terms, session, "customer", number), {STATES: states_TD}, wire)

    def top(self, number: int, states_TD: Tensor) -> Tensor:
        status, data = self.send("POST", NAME, self.message(number, states_TD))
        assert status == 200, data
        got, tensors = decode(data, answer_limits(self.both.server.terms))
        assert got == header(self.both.server.terms, NAME, "vendor", number)
        return tensors["top"]


@contextmanager
def asking(folder: Path, **options: Any) -> Iterator[Asking]:
    with parties(folder, **options) as both:
        connection = http.client.HTTPConnection(both.url.removeprefix("http://"), timeout=30)
        try:
            yield Asking(both, connection)
        finally:
            connection.close()


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def customer(llama: Path) -> Iterator[Asking]:
    with asking(llama) as found:
        yield found


def states(tokens: int, seed: int = 0) -> Tensor:
    return torch.randn(tokens, 32, generator=torch.Generator().manual_seed(seed))


def test_a_message_that_comes_twice_is_applied_once(llama: Path) -> None:
    with asking(llama) as one:
        assert one.begin() == 200
        assert one.begin() == 200
        first = one.top(0, states(4))
        assert torch.equal(one.top(0, states(4)), first)
        second = one.top(4, states(2, 1))
        assert torch.equal(one.top(4, states(2, 1)), second)
        assert [len(seen) for seen in one.both.seen] == [4, 2]
        assert one.send("POST", NAME, one.message(0, states(4)))[0] == 409  # long ago
        assert one.begin() == 409  # it is under way
        middle = one.both.server._middle
        whole_TD = torch.cat([states(4), states(2, 1)])
        assert torch.allclose(middle(whole_TD[None])[0, -1:], second, atol=1e-5)


@pytest.mark.parametrize(
    ("status", "changed"),
    [
        (403, {"states_TD": torch.zeros(3, 31)}),
        (403, {"states_TD": torch.zeros(32)}),
        (403, {"wire": "bf16"}),
        (400, {"states_TD": torch.zeros(0, 32)}),
        (400, {"states_TD": torch.zeros(21, 32)}),
        (409, {"number": 1}),
        (409, {"session": OTHER}),
    ],
)
def test_states_that_do_not_fit(customer: Asking, status: int, changed: dict[str, Any]) -> None:
    assert customer.begin() == 200
    asked = {"number": 0, "states_TD": torch.zeros(3, 32)} | changed
    assert customer.send("POST", NAME, customer.message(**asked))[0] == status
    assert customer.top(0, states(2)).shape == (1, 32)  # all is as it was
    assert customer.send("DELETE", NAME)[0] == 200
    assert customer.send("DELETE", NAME)[0] == 200
    assert customer.send("POST", NAME, customer.message(2, states(1)))[0] == 404


def test_states_that_are_none(customer: Asking) -> None:
    assert customer.begin() == 200
    message = customer.message(0, torch.ones(3, 32))
    for value in (torch.nan, torch.inf):
        spoilt = message[:-4] + torch.tensor([value]).numpy().tobytes()
        assert customer.send("POST", NAME, spoilt)[0] == 403
    integers = encode(
        header(customer.both.server.terms, NAME, "customer", 0), {STATES: torch.ones(3, 32).long()}
    )
    assert customer.send("POST", NAME, integers)[0] == 403
    assert customer.send("POST", NAME, message + bytes(2**20))[0] == 413
    assert customer.send("POST", NAME, message, "application/json")[0] == 415
    assert customer.send("POST", NAME, message, "text/plain")[0] == 415
    assert customer.send("DELETE", NAME)[0] == 200


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_messages_change_nothing(customer: Asking, data: st.DataObject) -> None:
    assert customer.begin(OTHER) == 200
    message = customer.message(0, states(2), OTHER)
    if data.draw(st.booleans()):
        sent = data.draw(st.binary(max_size=200))
    else:  # one byte of the header
        place = data.draw(st.integers(0, len(message) - 2 * 32 * 4 - 1))
        sent = message[:place] + bytes([data.draw(st.integers(0, 255))]) + message[place + 1 :]
    status, _ = customer.send("POST", OTHER, sent)
    assert status in (200, 400, 403, 409)
    assert customer.both.server._sessions[OTHER].length == (2 if status == 200 else 0)
    assert customer.send("DELETE", OTHER)[0] == 200


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, b""), (400, b"[]"), (400, b"{"), (400, b'{"tokens": 5}'), (413, b" " * 2000),
        (400, b'{"tokens": true, "terms": ""}'),
        (400, b'{"tokens": 5, "terms": "", "more": 1}'), (409, b'{"tokens": 5, "terms": "x"}'),
        (400, b'{"tokens": 5, "tokens": 6, "terms": ""}'),
    ],
)  # fmt: skip
def test_beginnings_that_are_none(customer: Asking, status: int, body: bytes) -> None:
    assert customer.send("PUT", NAME, body)[0] == status
    for session in ("", "x", "AB" * 16, "ab" * 17):
        assert customer.begin(session) in (400, 404)
    for tokens in (0, -1, 257, 2**70):
        assert customer.begin(tokens=tokens) == 400
    assert customer.send("PUT", NAME, b"{}", "text/plain")[0] == 415
    assert len(customer.both.server) == 0


def test_idle_sessions_go_and_others_stay(llama: Path) -> None:
    now_s = [0.0]
    with asking(llama, bounds={"sessions": 2, "idle_s": 10.0}, clock=lambda: now_s[0]) as one:
        assert one.begin() == one.begin(OTHER) == 200
        assert one.begin("ef" * 16) == 429
        now_s[0] = 8.0
        one.top(0, states(1))
        now_s[0] = 12.0
        assert one.begin("ef" * 16) == 200
        assert one.send("POST", OTHER, one.message(0, states(1), OTHER))[0] == 404
        one.top(1, states(1))


def test_a_model_that_fails_ends_its_session(llama: Path) -> None:
    def fails(states_TD: Tensor) -> None:
        if bool((states_TD == 5).all()):
            raise ZeroDivisionError

    with asking(llama, on_states=fails) as one:
        assert one.begin() == 200
        assert one.send("POST", NAME, one.message(0, torch.full((2, 32), 5.0)))[0] == 502
        assert one.send("POST", NAME, one.message(0, states(2)))[0] == 404
        assert one.begin() == 200
        one.top(0, states(2))


def test_a_session_works_at_one_message(llama: Path) -> None:
    with asking(llama) as one:
        assert one.begin() == 200
        session = one.both.server._sessions[NAME]
        session.busy = True
        assert one.send("POST", NAME, one.message(0, states(2)))[0] == 409
        session.busy = False
        one.top(0, states(2))


def test_terms_are_compared_before_states_leave(llama: Path) -> None:
    with asking(llama) as one:
        other = replace(one.both.server.terms, tuning="t2")
        assert one.begin(terms=other.digest) == 409
        assert one.send("GET", NAME)[0] == 405
