"""Who wins where claims overlap, and what a recogniser may say."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import MisconfiguredError, RefusedError
from transom.privacy.claims import CLAIMABLE, Claims, asked, resolve
from transom.privacy.kinds import Span

TEXT = "Theresa May met Dr May at smith@example.org, room 12,345 (Miller)."


def span(text: str, part: str, kind: str, nth: int = 0) -> Span:
    start = -1
    for _ in range(nth + 1):
        start = text.index(part, start + 1)
    return Span(start, start + len(part), kind)


def shown(text: str, spans: Iterable[Span]) -> list[tuple[str, str]]:
    return [(text[start:end], kind) for start, end, kind in spans]


def test_the_longer_entry_of_the_lists_wins_and_an_allowed_one_among_equals() -> None:
    own = [
        span(TEXT, "Theresa May", "person"),
        span(TEXT, "May", "allowed"),
        span(TEXT, "May", "allowed", 1),
        span(TEXT, "May", "date", 1),
    ]
    assert shown(TEXT, resolve(TEXT, own)) == [("Theresa May", "person"), ("May", "allowed")]


def test_lists_win_over_recognisers_and_what_is_left_of_these_stays_hidden() -> None:
    own, others = [span(TEXT, "May", "allowed", 1)], [span(TEXT, "Dr May at", "person")]
    assert shown(TEXT, resolve(TEXT, own, others)) == [("Dr", "person"), ("May", "allowed"), ("at", "person")]
    first, second = [span(TEXT, "Theresa", "place")], [span(TEXT, "Theresa May", "person")]
    assert shown(TEXT, resolve(TEXT, [], first, second)) == [("Theresa", "place"), ("May", "person")]


def test_public_text_wins_over_all() -> None:
    public = span(TEXT, "met Dr May", "public")
    own = [span(TEXT, "Theresa May met Dr May", "person"), public]
    assert shown(TEXT, resolve(TEXT, own)) == [("Theresa May", "person"), ("met Dr May", "public")]


@pytest.mark.parametrize(
    ("part", "whole"),
    [("smith", "smith@example.org"), ("example", "smith@example.org"), ("345", "12,345"), ("ill", "Miller")],
)
def test_what_hides_hides_the_whole_word_and_address(part: str, whole: str) -> None:
    assert shown(TEXT, resolve(TEXT, [span(TEXT, part, "rare")])) == [(whole, "rare")]
    assert resolve(TEXT, [span(TEXT, part, "allowed")]) == ()
    assert shown(TEXT, resolve(TEXT, [span(TEXT, whole, "allowed")])) == [(whole, "allowed")]


@pytest.mark.parametrize("text", ["Miller-Lee", "Miller's", "(Miller)", "**Miller**", "Miller.", "'Miller'"])
def test_a_sign_beside_a_word_is_no_part_of_it(text: str) -> None:
    for kind in ("person", "allowed"):
        assert shown(text, resolve(text, [span(text, "Miller", kind)])) == [("Miller", kind)]


def test_scripts_without_blanks_are_not_widened() -> None:
    text = "田中さんです"
    assert shown(text, resolve(text, [Span(0, 2, "person")])) == [("田中", "person")]


@st.composite
def claimed(draw: st.DrawFn) -> tuple[str, list[list[Span]]]:
    text = draw(st.text("ab. @,5é\n", max_size=30))
    place = st.integers(0, len(text))
    one = st.tuples(place, place, st.sampled_from(["person", "rare", "allowed", "public"]))
    layers = draw(st.lists(st.lists(one, max_size=4), min_size=1, max_size=3))
    return text, [
        [Span(min(a, b), max(a, b), kind) for a, b, kind in layer if not number or kind in CLAIMABLE]
        for number, layer in enumerate(layers)
    ]


@given(claimed())
def test_the_result_is_in_order_apart_and_shows_nothing_that_was_to_hide(
    case: tuple[str, list[list[Span]]],
) -> None:
    text, layers = case
    result = resolve(text, *layers)
    ends = [0, *(one.end for one in result)]
    assert all(end <= one.start < one.end for end, one in zip(ends, result, strict=False))
    assert all(one.end <= len(text) for one in result)
    covered = {place for one in result for place in range(one.start, one.end)}
    given_all = [one for layer in layers for one in layer]
    for one in given_all:
        if one.kind in CLAIMABLE:
            missing = set(range(one.start, one.end)) - covered
            assert not any(text[place].isalnum() for place in missing)
    passing = [one for one in result if one.kind not in CLAIMABLE]
    assert set(passing) <= set(given_all)


class Found:
    """A recogniser that finds what it is told."""

    def __init__(self, *found: object) -> None:
        self.found = found

    def find(self, text: str) -> Iterable[Span]:
        return self.found  # type: ignore[return-value]


class Broken:
    """A recogniser that fails and repeats the text."""

    def __init__(self, error: type[Exception]) -> None:
        self.error = error

    def find(self, text: str) -> Iterable[Span]:
        raise self.error(text)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Span(0, 67, "person"), "outside"),
        (Span(-1, 3, "person"), "outside"),
        (Span(3, 1, "person"), "outside"),
        (Span(0, 1.0, "person"), "outside"),  # type: ignore[arg-type]
        (Span(0, 1, "persn"), "did you mean 'person'"),
        (Span(0, 1, "public"), "unknown kind"),
        (Span(0, 1, "allowed"), "unknown kind"),
        (Span(0, 1, "stop"), "unknown kind"),
        ((0, 1), "Span"),
        (None, "NoneType"),
    ],
)
def test_a_recogniser_that_is_wrong_ends_the_request(found: object, said: str) -> None:
    with pytest.raises(MisconfiguredError, match=said) as caught:
        asked(Found(found), "mine", TEXT)
    assert "mine" in str(caught.value)


def test_what_a_recogniser_raises_is_not_repeated() -> None:
    with pytest.raises(MisconfiguredError, match="mine raised ValueError") as caught:
        asked(Broken(ValueError), "mine", TEXT)
    assert "Theresa" not in str(caught.value)
    with pytest.raises(RefusedError):
        asked(Broken(RefusedError), "mine", TEXT)


def test_claims_of_several_recognisers() -> None:
    claims = Claims(recognisers={"one": Found((0, 7, "place")), "two": Found(Span(0, 11, "person"))})
    assert shown(TEXT, claims.find(TEXT)) == [("Theresa", "place"), ("May", "person")]
    assert [line for line in claims.disclosed() if "one" in line]
    assert Claims().find(TEXT) == () == Claims().disclosed()
