"""What stays readable and what changes, counted and placed by hand; and where tokens stand in a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.audit.listed_policy import listed_policy

from transom.audit.choice import Exposure, expose, unknown_share
from transom.audit.choice_table import compare
from transom.audit.exposure import NAMESAKE, Opinion, Word
from transom.audit.places import places
from transom.privacy.characters import normalise
from transom.privacy.claims import Claims
from transom.privacy.kinds import KINDS, SUBKINDS, Span
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, load_policy
from transom.privacy.presets import with_preset
from transom.privacy.sanitize import Piece, Sanitizer
from transom.privacy.text import lex

TEXT = "Rose red, the flu; a cat owes 40 to Jane Kowalski.\u00a0 My parochial  cat, zyxq."


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return listed_policy(tmp_path_factory.mktemp("listed"))


class Finder:
    """A recogniser of one word."""

    def __init__(self, word: str, kind: str) -> None:
        self.word, self.kind = word, kind

    def find(self, text: str) -> list[Span]:
        at = text.find(self.word)
        return [] if at < 0 else [Span(at, at + len(self.word), self.kind)]


def exposed(policy: Policy, *texts: str, claims: Claims | None = None) -> Exposure:
    return expose("a preset", Sanitizer(policy), texts, Opinion(policy, claims or Claims()))


def by_source(one: Exposure) -> dict[str, Word]:
    return {word.source: word for word in one.words}


def all_rules(policy: Policy, rule: str) -> Policy:
    """Every kind by one rule."""
    return policy.with_rules(dict.fromkeys((*KINDS, *SUBKINDS), rule))


def test_entities_leaves_the_illness_readable_and_a_namesake_in_doubt(policy: Policy) -> None:
    one = exposed(with_preset(policy, "entities"), TEXT)
    found = by_source(one)
    assert found["flu"].readable
    assert found["flu"].private == "health"
    assert dict(one.readable) == {"health": 1}
    assert found["Rose"].private == NAMESAKE
    assert one.namesakes == (1, 1)
    for hidden in ("40", "Kowalski", "zyxq"):
        (word,) = (word for word in one.words if word.source.endswith(hidden))
        assert word.private
        assert not word.readable
    assert one.count(lambda word: word.changed) == 0
    assert [one.rare_passing, found["parochial"].ordinary, found["cat"].ordinary] == [1, True, True]


@pytest.mark.parametrize("greeting", ["Dear", "Hi", "Hello"])
def test_what_opens_a_letter_is_nobodys_name(greeting: str) -> None:
    one = exposed(with_preset(load_policy(), "entities"), f"{greeting} Jane,\nthe bill is paid.")
    assert one.namesakes[0] == 0
    assert not by_source(one)[greeting].private


def test_a_name_of_the_text_is_one_wherever_its_capital_stands(policy: Policy) -> None:
    """Pieces by hand, whatever a reader would see: a pass word and a rose in lower case are none."""
    way = [("person", "placeholder", "Rose The"), ("space", "pass", " "), ("word", "pass", "Rose")]
    way += [("space", "pass", " "), ("stop", "pass", "The"), ("space", "pass", " "), ("word", "pass", "rose")]
    pieces = [Piece(kind, action, source, source) for kind, action, source in way]
    found = Opinion(policy).words("Rose The Rose The rose", pieces)
    assert [word.private for word in found] == ["person", "person", "", ""]
    alone = Opinion(policy).words("Rose The rose", pieces[2:])
    assert [word.private for word in alone] == [NAMESAKE, "", ""]


def test_what_hides_everything_leaves_nothing_and_what_passes_everything_all(policy: Policy) -> None:
    hidden = exposed(all_rules(policy, "placeholder"), TEXT)
    assert hidden.readable.total() == 0
    assert hidden.namesakes == (0, 1)
    assert hidden.count(lambda word: word.changed) == hidden.count(lambda word: word.ordinary) > 0
    shown = exposed(all_rules(policy, "pass"), TEXT)
    assert shown.readable == shown.private
    assert shown.readable.total() == hidden.private.total() == 4  # the flu, 40, one name, zyxq
    assert shown.count(lambda word: word.changed) == 0


def test_a_capital_alone_changes_an_ordinary_word_without_need(policy: Policy) -> None:
    one = exposed(with_preset(policy, "entities"), "My cat and the Horse")
    word = by_source(one)["Horse"]
    assert (word.action, word.changed, word.private) == ("placeholder", True, "")


def test_a_drawn_word_that_looks_as_before_is_not_changed() -> None:
    word = Word(0, 3, "word", "draw", "Cat", "Cat", "", False, True)
    assert not word.changed
    assert word._replace(output="Dog").changed
    assert not word._replace(private="health").readable


def test_lists_and_recognisers_are_a_second_opinion(policy: Policy) -> None:
    entities = with_preset(policy, "entities")
    claimed = exposed(entities, TEXT, claims=Claims(recognisers={"mine": Finder("parochial", "person")}))
    found = by_source(claimed)["parochial"]
    assert (found.private, found.claimed, found.readable) == ("person", True, True)
    assert not by_source(exposed(entities, TEXT))["parochial"].private


def test_the_table_names_places_with_the_spelling_of_the_file(policy: Policy) -> None:
    one = exposed(with_preset(policy, "entities"), TEXT, "The cat has a rash")
    found = compare([one], [("7", TEXT), ("9", "The cat has a rash")])
    (column,) = found.columns
    spots = [(spot.where, spot.text, spot.kind) for spot in column.readable]
    assert spots == [("7:1", "Rose", "namesake"), ("7:15", "flu", "health"), ("9:15", "rash", "health")]
    rows = {row.measure: row for row in found.rows}
    assert rows["private, still readable"].cells == ("2 of 5 (40.0 %)",)
    assert rows["health"].values == (1.0,)
    assert rows["health"].part
    marked = {where: "".join(mark.text for mark in marks) for where, marks in column.texts}
    assert marked == {"7": TEXT, "9": "The cat has a rash"}


def test_a_whole_file_is_placed_by_its_lines(policy: Policy) -> None:
    text = "The cat\nand the flu\n"
    one = exposed(with_preset(policy, "entities"), text)
    (column,) = compare([one], [("", text)]).columns
    assert [spot.where for spot in column.readable] == ["2:9"]


def test_another_language_is_noticed(policy: Policy) -> None:
    german = "leider kann ich die rechnung nicht bezahlen weil das geld fehlt"
    english = "the cat is red and the dog is blue and the cow has a cold and the cat has a cough"
    entities = with_preset(policy, "entities")
    assert unknown_share(exposed(entities, german).texts) > 0.9
    assert unknown_share(exposed(entities, english).texts) == 0
    assert unknown_share(exposed(entities, "zyxq").texts) == 0  # too little to tell
    table = compare([exposed(entities, german)], [("1", german)])
    assert "another language" in table.notes[0]


@pytest.mark.parametrize(
    ("raw", "token", "spelled"),
    [
        ("It’s  40  apples", "40", "40"),
        ("a\t\tZo\u0065\u0308 b", "Zo\u00eb", "Zo\u0065\u0308"),
        ("the \ufb01le \u201ccat\u201d", "cat", "cat"),
        ("x\u200by and cat", "cat", "cat"),
        ("two  hundred cats", "two hundred", "two  hundred"),
    ],
)
def test_places_of_a_normalised_reading_are_those_of_the_text_as_typed(
    raw: str, token: str, spelled: str
) -> None:
    tokens = [one.text for one in lex(raw)]
    start, end = dict(zip(tokens, places(raw, tokens), strict=True))[token]
    assert raw[start:end] == spelled


@pytest.mark.parametrize("preset", ["entities", "words"])
def test_every_word_is_where_it_says(policy: Policy, preset: str) -> None:
    text = "The cat’s \u201cflu\u201d\u2014 Zoe\u0308\t owes\u00a0 40"
    for claims in (Claims(), Claims(recognisers={"mine": Finder("flu", "health")})):
        sanitizer = Sanitizer(with_preset(policy, preset), claims=claims)
        pieces = sanitizer.sanitize(text, placeholders=Placeholders()).pieces
        for word in Opinion(policy).words(text, pieces):
            assert normalise(text[word.start : word.end]).strip() == normalise(word.source).strip()


@given(st.text(max_size=60))
def test_places_are_in_order_inside_the_text(raw: str) -> None:
    tokens = [token.text for token in lex(raw)]
    found = list(places(raw, tokens))
    edges = [edge for place in found for edge in place]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(raw) for edge in edges)
