"""Placeholders go out typed and numbered and come back exactly, whole or in any chunks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from transom.privacy import kinds
from transom.privacy.forms import PLACEHOLDER_LABELS
from transom.privacy.placeholders import LABEL_OF_KIND, Placeholders

KINDS = st.sampled_from(sorted(LABEL_OF_KIND))


def some() -> Placeholders:
    placeholders = Placeholders()
    for kind, value in [("name", "Ada"), ("identifier", "[NAME_1]"), ("rare", "zyzzyva"), ("name", "[ID_1]")]:
        placeholders.hide(kind, value)
    return placeholders


def test_equal_values_share_a_placeholder_and_numbers_follow_appearance() -> None:
    placeholders = Placeholders()
    hidden = [placeholders.hide("name", value) for value in ("Ada", "Bob", "Ada")]
    assert hidden == ["[NAME_1]", "[NAME_2]", "[NAME_1]"]
    assert placeholders.hide("number", "Ada") == "[NUMBER_1]"
    assert len(placeholders) == 3


def test_labels_are_the_stated_ones() -> None:
    labels = {kind: Placeholders().hide(kind, "x") for kind in LABEL_OF_KIND}
    assert set(labels) == {*kinds.KINDS, *kinds.SUBKINDS}
    assert {label[1:-3] for label in labels.values()} == set(PLACEHOLDER_LABELS) - {"QUOTE"}
    assert labels["rare"] == "[TERM_1]"
    assert labels["identifier"] == "[ID_1]"
    assert labels["foreign"] == "[TEXT_1]"
    assert labels["symbol"] == "[SYMBOL_1]"


def test_stop_and_content_words_share_numbers_without_clashing() -> None:
    placeholders = Placeholders()
    assert placeholders.hide("word", "cat") != placeholders.hide("stop", "the")
    assert placeholders.restore("[WORD_1] [WORD_2]") == "cat the"


def test_values_that_look_like_placeholders_are_restored_verbatim() -> None:
    assert some().restore("[ID_1] [NAME_1] [NAME_2] [NAME_3]") == "[NAME_1] Ada [ID_1] [NAME_3?]"


NAMES = st.lists(
    st.sampled_from(["Jane", "jane", "J.", "Miller", "MILLER", "Millers", "Bob", "A", "x,"]), max_size=4
)
VALUES = st.text(max_size=12) | st.text("1 2-+aA", max_size=6) | NAMES.map(" ".join)


@given(st.lists(st.tuples(KINDS | st.just("person"), VALUES), max_size=40))
def test_hide_then_restore_is_the_identity(values: list[tuple[str, str]]) -> None:
    placeholders = Placeholders()
    hidden = "|".join(placeholders.hide(kind, value) for kind, value in values)
    assert placeholders.restore(hidden) == "|".join(value for _, value in values)
    again = [placeholders.hide(kind, value) for kind, value in values]
    assert "|".join(again) == hidden


def test_plain_text_is_shown_at_once() -> None:
    restorer = some().restorer()
    assert restorer.feed("hello [1] [name,") == "hello [1] [name,"
    assert restorer.feed(" [NA") == " "
    assert restorer.feed("ME_1] and [NAME_1") == "Ada and "
    assert restorer.close() == "[Ada"


def test_repr_shows_no_value() -> None:
    assert "Ada" not in repr(some())
