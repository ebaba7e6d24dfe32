"""Every spelling that is restored is closed to the user's own text, bounded, and the same in any chunking."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from transom.errors import EngineGarbageError
from transom.privacy.forms import (
    FORM,
    LOOK_BEHIND_CHARS,
    PLACEHOLDER_LABELS,
    SUFFIXES,
    find,
    is_form,
    parse,
    units,
)
from transom.privacy.kinds import KINDS, Span
from transom.privacy.memo import may_collide
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy
from transom.privacy.sanitize import Sanitizer
from transom.privacy.text import lex, normalise

LABELS = st.sampled_from(PLACEHOLDER_LABELS)
CASES = st.sampled_from([str.upper, str.lower, str.title])
NUMBERS = st.integers(0, 12).map(str) | st.sampled_from(["01", "123456789012"])
ENDINGS = st.sampled_from(["", "", "s", "'s", "’s"])


@st.composite
def forms(draw: st.DrawFn) -> str:
    """A placeholder in any spelling that is read as one, whether it was sent or not."""
    mark = draw(st.sampled_from(["_", "\\_"]))
    label, number, suffix = draw(LABELS), draw(NUMBERS), draw(st.sampled_from(["", "", *SUFFIXES]))
    if draw(st.booleans()):  # bare
        return f"{label}{mark}{number}{suffix.replace('_', mark)}"
    case, ending = draw(CASES), draw(ENDINGS)
    opening, closing = draw(
        st.sampled_from([("[", "]"), ("\\[", "\\]"), ("<", ">"), ("{", "}"), ("&lt;", "&gt;")])
    )
    first = draw(st.sampled_from([mark, " ", "-", ""])) if closing.endswith("]") else mark
    second = draw(st.sampled_from([mark, " ", "-"])) if closing.endswith("]") else mark
    body = f"{case(label)}{first}{number}{case(suffix).replace('_', second)}"
    return f"{opening}{body}{ending}{closing}"


FRAGMENTS = forms() | st.sampled_from(
    ["[PERSON_", "[", "\\[", "]", "\\]", "\\", "1", "[[PERSON_1]]", "PERSON_1", "ID_1s", "x", "_", " a ",
     "&l", "&lt;", "[PERSON_1", "PERSON", "(PERSON_1)", "'s", "s", "P", "<", "{", "}", ">", "&gt;", "Ü", "ſ",
     "[PERSON_1_FIRST]"]
)  # fmt: skip
TEXTS = st.lists(FRAGMENTS | st.text(max_size=3), max_size=10).map("".join)
VALUES = st.dictionaries(
    st.sampled_from(["[PERSON_1]", "[PERSON_1_LAST]", "[PERSON_2]", "[ID_1]", "[TIME_12]"]),
    st.text("ab [s'1?_", max_size=4) | st.just("Ann Lee"),
    min_size=1,
)


def sent() -> Placeholders:
    placeholders = Placeholders()
    for kind, value in [
        ("person", "Jane Miller"),
        ("identifier", "[PERSON_1]"),
        ("person", "Zoe"),
        ("rare", "qi"),
    ]:
        placeholders.hide(kind, value)
    return placeholders


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("[Person_1]", "Jane Miller"), ("[person_1]", "Jane Miller"), ("[PERSON 1]", "Jane Miller"),
        ("[PERSON-1]", "Jane Miller"), ("[PERSON1]", "Jane Miller"), ("[PERSON_01]", "Jane Miller"),
        (r"\[PERSON\_1\]", "Jane Miller"), (r"[PERSON\_1]", "Jane Miller"), (r"PERSON\_1", "Jane Miller"),
        ("**[PERSON_1]**", "**Jane Miller**"), ("[PERSON_1]'s", "Jane Miller's"),
        ("_[PERSON_1]_", "_Jane Miller_"),
        ("[PERSON_1's]", "Jane Miller's"), ("[PERSON_1]s", "Jane Millers"), ("PERSON_1s", "Jane Millers"),
        ("<PERSON_1>", "Jane Miller"), ("{person_1}", "Jane Miller"), ("&lt;PERSON_1&gt;", "Jane Miller"),
        ("her (PERSON_1) own", "her (Jane Miller) own"), ("PERSON_1.", "Jane Miller."),
        ("[PERSON_1_FIRST], [PERSON_1_LAST]", "Jane, Miller"), ("[PERSON_2_FIRST]", "[PERSON_2_FIRST?]"),
        ("[ID_1] [PERSON_1]", "[PERSON_1] Jane Miller"),  # a value is never looked at again
        ("[PERSON_7]", "[PERSON_7?]"), (r"\[PERSON\_7\]", r"\[PERSON\_7?\]"), ("[CARD_1_B]", "[CARD_1_B?]"),
        # ordinary text, perhaps
        ("[person_7] PERSON_7 <ID_7> [time 7]", "[person_7] PERSON_7 <ID_7> [time 7]"),
        ("Person_1 person_1 PERSON 1", "Person_1 person_1 PERSON 1"),
        ("XPERSON_1 PERSON_1x PERSON_12 PERSON_1_2", "XPERSON_1 PERSON_1x PERSON_12 PERSON_1_2"),
        (r"\[PERSON_1] [PERSON_1\]", r"\Jane Miller [Jane Miller\]"),
        ("[PERSON_1234567890123] [ORGAN_1]", "[PERSON_1234567890123] [ORGAN_1]"),
    ],
)  # fmt: skip
def test_what_models_make_of_a_placeholder_comes_back(host: str, shown: str) -> None:
    assert sent().restore(host) == shown
    restorer = sent().restorer()
    assert "".join(map(restorer.feed, host)) + restorer.close() == shown


@given(forms())
def test_each_spelling_is_one_form_and_says_what_it_stands_for(form: str) -> None:
    assert is_form(form)
    said = parse(form)
    assert said.label in PLACEHOLDER_LABELS
    assert said.suffix in ("", *SUFFIXES)
    assert is_form(said.placeholder)
    assert list(units(form)) == [form] == find(form)


@given(TEXTS)
def test_units_are_the_text(text: str) -> None:
    assert "".join(units(text)) == text
    assert [unit for unit in units(text) if len(unit) > 1] == [match[0] for match in FORM.finditer(text)]
    assert find(text) == [match[0] for match in FORM.finditer(text)]


@given(TEXTS, st.data())
def test_any_chunking_restores_like_the_whole(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    restorer, shown = sent().restorer(), ""
    for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown += restorer.feed(text[a:b])
        assert len(restorer._held) <= LOOK_BEHIND_CHARS
    assert shown + restorer.close() == sent().restore(text)
    assert len(sent().restore(text)) == sent().restored_chars(text)


@given(TEXTS, st.integers(0, 60))
def test_a_stream_ends_where_it_would_grow_too_long(text: str, limit: int) -> None:
    whole = sent().restore(text)
    restorer, shown = sent().restorer(limit), ""
    try:
        for character in text:
            shown += restorer.feed(character)
        shown += restorer.close()
    except EngineGarbageError:
        assert len(whole) > limit
    else:
        assert shown == whole
    assert len(shown) <= limit


@given(TEXTS, TEXTS, VALUES, st.integers(0, 30))
def test_whatever_is_delivered_alike_was_seen_to_be_able_to(
    one: str, other: str, values: dict[str, str], cut: int
) -> None:
    assume(one != other)
    delivered = Placeholders.of(values).restore
    if delivered(one) == delivered(other) or delivered(one)[:cut] == delivered(other):
        assert may_collide(one, other)


@given(forms(), VALUES)
def test_a_value_or_a_mark_written_out_collides_with_its_placeholder(
    form: str, values: dict[str, str]
) -> None:
    shown = Placeholders.of(values).restore(form)
    assert shown == form or may_collide(form, shown)


@given(TEXTS)
def test_what_a_user_writes_is_never_taken_for_a_placeholder(text: str) -> None:
    clean = normalise(text)
    tokens = lex(text)
    assert "".join(token.text for token in tokens) == clean
    written = [token for token in tokens if is_form(token.text)]
    assert [token.text for token in written] == find(clean)
    assert {token.kind for token in written} <= {"identifier"}


@given(TEXTS.flatmap(lambda text: st.sampled_from([text, f"http://a.b/{text}", f"a@b.de{text}", f"#{text}"])))
def test_a_lenient_policy_sends_no_form_of_the_users_own(text: str) -> None:
    placeholders = Placeholders()
    made = "".join(
        placeholders.hide(token.kind, token.text)
        if is_form(token.text) or token.kind == "number"
        else token.text
        for token in lex(text)
    )
    assert set(find(made)) <= set(placeholders.values)
    assert placeholders.restore(made) == normalise(text)


@pytest.fixture(scope="module")
def lenient(tiny_policy: Policy) -> Sanitizer:
    passing = {kind: "pass" for kind in KINDS if kind != "word"}
    return Sanitizer(tiny_policy.with_rules({**passing, "word": "placeholder"}))


@given(TEXTS, st.lists(st.integers(0, 40), max_size=6, unique=True).map(sorted))
def test_the_sanitiser_sends_no_form_of_the_users_own(lenient: Sanitizer, text: str, cuts: list[int]) -> None:
    """Not even one that is put together from stretches that a list of the user's lets pass."""
    text = normalise(text)
    spans = [Span(a, b, "allowed") for a, b in zip(cuts[::2], cuts[1::2], strict=False) if b <= len(text)]
    placeholders = Placeholders()
    made = lenient.sanitize(text, placeholders=placeholders, spans=spans)
    assert set(find(made.text)) <= set(placeholders.values)
    assert placeholders.restore(made.text) == "".join(piece.source for piece in made.pieces)


def test_public_text_passes_as_it_is(lenient: Sanitizer) -> None:
    text = "Keep [NAME_1] as it is, not [NAME_1]."
    made = lenient.sanitize(text, placeholders=Placeholders(), spans=[Span(0, 22, "public")])
    assert made.text == "Keep [NAME_1] as it is, not [ID_1]."


@pytest.mark.parametrize("make", [lambda n: "[PERSON_" * n, lambda n: "\\" * n, lambda n: "PERSON_1" * n])
def test_crafted_text_is_read_in_one_pass(make: Callable[[int], str]) -> None:
    text = make(20_000)
    assert sent().restore(text) == text
    assert "".join(units(text)) == text
