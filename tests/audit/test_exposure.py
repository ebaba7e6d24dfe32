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
from transom.privacy.claims import Claims
from transom.privacy.kinds import KINDS, SUBKINDS, Span
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy
from transom.privacy.presets import with_preset
from transom.privacy.sanitize import Sanitizer

TEXT = "Rose has the flu and owes 40 to Jane Kowalski.\u00a0 My parochial  cat, zyxq."


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
        assert found[hidden].private
        assert not found[hidden].readable
    assert one.count(lambda word: word.changed) == 0
    assert [one.rare_passing, found["parochial"].ordinary, found["cat"].ordinary] == [1, True, True]


def test_a_name_of_the_text_is_one_where_its_capital_says_nothing(policy: Policy) -> None:
    """The same text hides `Rose` where a capital says name; a pass word and a lower-case rose are none."""
    one = exposed(with_preset(policy, "entities"), "Rose is red. my Rose and the rose")
    found = [
        (word.source, word.private, word.readable) for word in one.words if word.source.lower() == "rose"
    ]
    assert found == [("Rose", "name", True), ("Rose", "name", False), ("rose", "", False)]
    assert exposed(with_preset(policy, "entities"), "Rose is red").namesakes == (1, 1)


def test_what_hides_everything_leaves_nothing_and_what_passes_everything_all(policy: Policy) -> None:
    hidden = exposed(all_rules(policy, "placeholder"), TEXT)
    assert hidden.readable.total() == 0
    assert hidden.namesakes == (0, 1)
    assert hidden.count(lambda word: word.changed) == hidden.count(lambda word: word.ordinary) > 0
    shown = exposed(all_rules(policy, "pass"), TEXT)
    assert shown.readable == shown.private
    assert shown.readable.total() == hidden.private.total() == 5  # flu 40 Jane Kowalski zyxq
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
    claimed = exposed(entities, TEXT, claims=Claims(recognisers={"mine": Finder("cat", "person")}))
    found = by_source(claimed)["cat"]
    assert (found.private, found.claimed, found.readable) == ("person", True, True)
    assert not by_source(exposed(entities, TEXT))["cat"].private


def test_the_table_names_places_with_the_spelling_of_the_file(policy: Policy) -> None:
    one = exposed(with_preset(policy, "entities"), TEXT, "The cat has a rash")
    found = compare([one], [("7", TEXT), ("9", "The cat has a rash")])
    (column,) = found.columns
    spots = [(spot.where, spot.text, spot.kind) for spot in column.readable]
    assert spots == [("7:1", "Rose", "namesake"), ("7:14", "flu", "health"), ("9:15", "rash", "health")]
    rows = {row.measure: row for row in found.rows}
    assert rows["private, still readable"].cells == ("2 of 6 (33.3 %)",)
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
def test_places_are_those_of_the_text_as_typed(policy: Policy, raw: str, token: str, spelled: str) -> None:
    pieces = Sanitizer(all_rules(policy, "pass")).sanitize(raw, placeholders=Placeholders()).pieces
    sources = [piece.source for piece in pieces]
    at = dict(zip(sources, places(raw, sources), strict=True))
    start, end = at[token]
    assert raw[start:end] == spelled


@given(st.text(max_size=60))
def test_places_are_in_order_inside_the_text(raw: str) -> None:
    from transom.privacy.text import lex

    tokens = [token.text for token in lex(raw)]
    found = list(places(raw, tokens))
    edges = [edge for place in found for edge in place]
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(raw) for edge in edges)
