"""Stop strings against an oracle, whatever the chunks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

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
    assert (shown, stop_filter.met) == cut_whole(text, stops)


def cut_whole(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The oracle: the first place of the whole text at which any stop string stands."""
    starts = [text.find(stop) for stop in stops if stop in text]
    return text[: min(starts, default=len(text))], bool(starts)


def test_every_chunking_cuts_where_the_whole_text_is_cut() -> None:
    """All texts of six letters, all chunkings, stop strings that overlap, contain and begin one another."""
    sets = [("abb", "b"), ("aab", "ab", "b"), ("aba", "bab"), ("abab", "ba", "aa"), ("bbb", "abbba")]
    texts = ["".join(letters) for letters in product("ab", repeat=6)]
    for stops, text, cuts in product(sets, texts, range(2**5)):
        stop_filter, shown, chunk, met = StopFilter(stops), "", "", False
        for at, letter in enumerate(text):
            chunk += letter
            if cuts >> at & 1 or at == 5:
                piece, met = stop_filter.feed(chunk)
                shown, chunk = shown + piece, ""
                if met:
                    break
        if not met:
            shown += stop_filter.close()
        assert (shown, stop_filter.met) == cut_whole(text, stops), (stops, text, cuts)


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
