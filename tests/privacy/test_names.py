"""Names under the shipped policy: sentences with what must go, and sentences that name nobody."""

from __future__ import annotations

import re
from collections.abc import Sequence
from time import process_time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.privacy.names_sentences import HARMLESS, NAMED

from transom.privacy.names import NAMES
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.reader import Reader
from transom.privacy.sanitize import Piece, Sanitizer
from transom.privacy.text import case_of, normalise, with_case

_MARKED = re.compile(r"\{([plon]):([^}]*)\}")
_TYPES = {"p": "person", "l": "place", "o": "organisation"}


@pytest.fixture(scope="module")
def sanitizer() -> Sanitizer:
    return Sanitizer(with_preset(load_policy(), "entities"))


def sanitized(sanitizer: Sanitizer, text: str) -> Sequence[Piece]:
    return sanitizer.sanitize(text, placeholders=Placeholders()).pieces


def named(sanitizer: Sanitizer, text: str) -> list[tuple[str, str]]:
    """The stretches of a text that are names, with their types."""
    return [(piece.kind, piece.source) for piece in sanitized(sanitizer, text) if piece.kind in NAMES]


def written(lines: list[str]) -> list[str]:
    return [line.replace("\\n", "\n") for line in lines]


@pytest.mark.parametrize("sentence", written(NAMED))
def test_a_name_is_one_token_of_its_type_and_nothing_else_is_hidden(
    sanitizer: Sanitizer, sentence: str
) -> None:
    text = _MARKED.sub(r"\2", sentence)
    hidden = [piece for piece in sanitized(sanitizer, text) if piece.action != "pass"]
    wanted = [(match[2], _TYPES.get(match[1], "")) for match in _MARKED.finditer(sentence)]
    assert [piece.source for piece in hidden] == [source for source, _ in wanted]
    typed = [(piece.kind, kind) for piece, (_, kind) in zip(hidden, wanted, strict=True) if kind]
    assert all(found == kind for found, kind in typed)


@pytest.mark.parametrize("sentence", written(HARMLESS))
def test_a_sentence_that_names_nobody_passes(sanitizer: Sanitizer, sentence: str) -> None:
    assert [piece for piece in sanitized(sanitizer, sentence) if piece.action != "pass"] == []


def test_a_name_is_one_at_its_other_capitals_and_an_unknown_one_in_lower_case(sanitizer: Sanitizer) -> None:
    text = "I met Steel. Steel sings.\nSTEEL IS HERE AND SO IS THE MAN.\nThe steel is cold."
    assert [source for _, source in named(sanitizer, text)] == ["Steel", "Steel", "STEEL"]
    assert [source for _, source in named(sanitizer, "I met Zyzzyv. then zyzzyv left")] == [
        "Zyzzyv",
        "zyzzyv",
    ]


def test_an_address_and_a_signature_may_hold_ordinary_words(sanitizer: Sanitizer) -> None:
    text = "Lantern\n5 Long Acre\nPinnacle\n\nI was cold.\n\nKind regards,\nCopper Kettle\n"
    assert [source for _, source in named(sanitizer, text)] == [
        "Lantern",
        "5 Long Acre",
        "Pinnacle",
        "Copper Kettle",
    ]


_SLOTS = """
Rose ROSE rose Mark Baker Long STEEL Jane jane Leith Motors MOTORS Table TABLE table Quokka Zyzzyva zyzzyva
Street STREET J 14 Dr Mr said SAID and by BY of the Dear Regards Status in is IS Monday PDF Catholic bank Bank
church cancer Unter den Via dei van de boulevard Voltaire Road gate & 3rd April
"""
SLOTS = _SLOTS.split()
BETWEEN = [" ", " ", " ", "\n", "\n\n", ", ", ". ", ": ", " | ", "'s ", "-", " & ", "; "]


@pytest.fixture(scope="module")
def presets() -> dict[str, Sanitizer]:
    return {preset: Sanitizer(with_preset(load_policy(), preset)) for preset in PRESETS}


@given(
    st.sampled_from(PRESETS),
    st.lists(st.tuples(st.sampled_from(SLOTS), st.sampled_from(BETWEEN)), min_size=1, max_size=9),
    st.data(),
)
@settings(max_examples=300, deadline=None)
def test_exchanging_a_drawn_word_changes_no_other_reading(
    presets: dict[str, Sanitizer], preset: str, slots: list[tuple[str, str]], data: st.DataObject
) -> None:
    """Whichever word of the group stands there, if the same rule draws it, all else reads the same."""
    one = presets[preset]
    policy = one.policy
    pieces = sanitized(one, "".join(word + gap for word, gap in slots))
    for index, piece in enumerate(pieces):
        if piece.source_id < 0:
            continue
        group = int(policy.partition.group_V[piece.source_id])
        start, end = policy.partition.starts_G1[group : group + 2]
        other = policy.words[data.draw(st.integers(int(start), int(end) - 1))]
        sources = [one.source for one in pieces]
        sources[index] = with_case(other, case_of(piece.source))
        again = sanitized(one, "".join(sources))
        at = next((i for i, made in enumerate(again) if made.source_id == policy.word_ids[other]), None)
        if at is None or len(again) != len(pieces) or again[index].kind != piece.kind:
            continue  # the other word is read by another rule at this place
        before = [(p.kind, p.action, p.source) for i, p in enumerate(pieces) if i != index]
        assert [(p.kind, p.action, p.source) for i, p in enumerate(again) if i != index] == before


@given(st.lists(st.tuples(st.sampled_from(SLOTS), st.sampled_from(BETWEEN)), max_size=12))
def test_tokens_are_the_text(presets: dict[str, Sanitizer], slots: list[tuple[str, str]]) -> None:
    text = "".join(word + gap for word, gap in slots)
    for one in presets.values():
        assert "".join(piece.source for piece in sanitized(one, text)) == normalise(text)


PARTS = ["Rose ", "Rose\n", "Rose, ", "J. ", "ROSE BAKER ", "rose miller ", "de la ", "Rose & ", "14 Rose ",
         "Best,\nRose\n", "| Rose ", "St Mary's ", "and Jane ", "|-", "J. de "]  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_time_is_linear(sanitizer: Sanitizer, part: str) -> None:
    reader = Reader(sanitizer.policy)

    def took_s(times: int) -> float:
        start_s = process_time()
        reader.read(part * times)
        return process_time() - start_s

    short_s, long_s = (min(took_s(times) for _ in range(3)) for times in (4000, 32_000))
    assert long_s < 40 * short_s  # linear is 8, quadratic 64
