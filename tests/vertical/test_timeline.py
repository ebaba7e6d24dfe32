"""A time line's spans hold all the time that was noted, however long a run is, and are few."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.vertical.timeline import COMPUTING, OF, PARTNER, SENDING, WAITING, Timeline


def test_seconds_go_to_the_spans_in_which_they_were_spent() -> None:
    line = Timeline(workers=2, span_s=1.0)
    line.note(WAITING, 10.0, 11.5, 0.0, partner=True)
    line.note(SENDING, 12.0, 12.25, 1.0, partner=False)
    line.note(WAITING, 13.0, 14.0, 3.5, partner=True)
    assert line.report() == {
        "span_s": 1.0,
        "seconds": 4.0,
        WAITING: [1.0, 0.5, 0.0, 1.0, 0.0],
        SENDING: [0.0, 0.0, 0.25, 0.0, 0.0],
        "saving": [0.0] * 5,
        COMPUTING: [0.0, 0.333, 0.702, 0.714, 0.0],
        PARTNER: [1.0, 0.5, 0.75, 1.0, 0.0],
    }


def test_nothing_noted_is_nothing_told() -> None:
    assert Timeline().report() == {}


@given(
    st.lists(st.tuples(st.sampled_from([WAITING, SENDING]), st.floats(0, 50), st.floats(0, 50)), min_size=1)
)
def test_no_second_is_lost_and_spans_are_few(notes: list[tuple[str, float, float]]) -> None:
    line, now_s = Timeline(), 5.0
    wanted = {WAITING: 0.0, SENDING: 0.0}
    for what, before_s, took_s in notes:
        line.note(what, now_s + before_s, now_s + before_s + took_s, 0.0, partner=True)
        wanted[what] += took_s
        now_s += before_s + took_s
    for name, seconds in wanted.items():
        assert sum(line._spent[name]) == pytest.approx(seconds, abs=1e-6)
    found = line.report()
    for name in OF:
        shares = found[name]
        assert isinstance(shares, list)
        assert len(shares) <= 120
        assert all(0 <= one <= 1 for one in shares)
