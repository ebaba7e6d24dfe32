"""Stop strings against an oracle, whatever the chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transom.privacy.placeholders import Placeholders
from transom.serving.engines.base import Delta
from transom.serving.gateway.answer import Choice, StopFilter

AB = st.text(st.sampled_from("ab"), max_size=12)
STOPS = st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=4), max_size=3)


@given(st.lists(AB, max_size=8), STOPS)
def test_chunked_stop_strings_cut_like_one_text(chunks: list[str], stops: list[str]) -> None:
    text = "".join(chunks)
    stop_filter, shown, met = StopFilter(stops), "", False
    for chunk in chunks:
        piece, met = stop_filter.feed(chunk)
        shown += piece
        if met:
            break
    if not met:
        shown += stop_filter.close()
    # The earliest to be complete wins; a stream cannot wait for one that began earlier and ends later.
    ends = [(text.find(stop) + len(stop), stop) for stop in stops if stop in text]
    assert met == bool(ends)
    if not ends:
        assert shown == text
    else:
        assert text.startswith(shown)
        assert not any(stop in shown for stop in stops)
        assert any(text[len(shown) :].startswith(stop) for stop in stops)


@given(st.text(max_size=30), STOPS)
def test_at_most_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    stop_filter = StopFilter(stops)
    shown, met = stop_filter.feed(text)
    if not met:
        assert len(text) - len(shown) <= max((len(stop) - 1 for stop in stops), default=0)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=20))
def test_placeholders_split_over_chunks_are_restored_and_meet_private_stops(sizes: list[int]) -> None:
    placeholders = Placeholders()
    name = placeholders.hide("name", "Zyxwora")
    host = f"Dear {name}, yours, {name}"
    cuts, at = [], 0
    for size in sizes:
        cuts.append(host[at : at + size])
        at += size
    cuts.append(host[at:])
    whole = Choice(0, None, placeholders)
    stopped = Choice(0, None, placeholders, ["xwora, y"])
    for i, cut in enumerate(cuts):
        delta = Delta(0, text=cut, finish_reason="stop" if i == len(cuts) - 1 else None)
        whole.feed(delta)
        if not stopped.cut:
            stopped.feed(delta)
    assert whole.text == "Dear Zyxwora, yours, Zyxwora"
    assert whole.host_text == host
    assert (stopped.text, stopped.finish_reason) == ("Dear Zy", "stop")
