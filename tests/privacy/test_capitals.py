"""One rule for capitals, and what is a number or an identifier in several tokens, under a policy's kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.privacy.conftest import TinyArguments

from transom.privacy.closed import MONTHS, NUMBER_WORDS
from transom.privacy.kinds import base_of
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import Policy, write_policy
from transom.privacy.sanitize import Piece, Sanitizer
from transom.privacy.text import CLITICS, CLOSED_FORMS, lex, with_case

DRAWN = (
    "long", "winter", "minister", "resigned", "film", "great", "effect", "rain", "harvests", "cv", "dollars",
    "euros", "write", "essay", "summarize", "third", "baker", "said", "end", "rose",
)  # fmt: skip
PASSING = (
    "the", "a", "an", "and", "of", "on", "in", "to", "is", "was", "it", "us", "who", "or", "i", "you", "he",
    "me", "don", "per", "won",
    "not", "no", "will", "may", "can", "do", "this", "at", "from", "you", "what", "until",
)  # fmt: skip


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory, tiny_arguments: TinyArguments) -> Policy:
    changes: dict[str, Any] = {
        "words": DRAWN,
        "starts_G1": np.array([0, len(DRAWN)], np.int32),
        "scores_S": np.full(len(DRAWN) ** 2, 9, np.uint8),
        "prior_V": np.ones(len(DRAWN), np.float32),
        "pass_words": frozenset(PASSING),
    }
    return write_policy(tmp_path_factory.mktemp("policy") / "rule.safetensors", **tiny_arguments(**changes))


@pytest.fixture(scope="module")
def sanitizer(policy: Policy) -> Sanitizer:
    return Sanitizer(policy)


def pieces(sanitizer: Sanitizer, text: str) -> list[Piece]:
    made = sanitizer.sanitize(text, placeholders=Placeholders()).pieces
    return [piece for piece in made if piece.kind not in ("space", "punct")]


def kinds(sanitizer: Sanitizer, text: str) -> str:
    """The kinds, one letter each: (s)top, (w)ord, (n)ame, (r)are, number (#), (i)dentifier."""
    letters = {"number": "#"}
    bases = [base_of(piece.kind) for piece in pieces(sanitizer, text)]
    return "".join(letters.get(base, base[0]) for base in bases)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A capital where none is asked for says name: of the first letter, or of the whole word.
        ("it was Winter", "ssn"), ("Jean LONG and Pierre WINTER", "nsn"), ("LONG resigned.", "nw"),
        ("it is GREAT", "ssn"), ("RAIN", "n"), ("the WINTER", "sn"),
        # A pass word keeps its kind, unless it may be an acronym or a name.
        ("you and THE minister", "sssw"), ("at The Baker", "ssn"), ("it is NOT this", "ssss"),
        ("the US and IT or WHO", "snsnsn"), ("let us do it", "rsss"), ("it was Will and Can", "ssnsn"),
        ("I said I may", "swss"), ("DON'T you", "sss"),
        # Will and May are names everywhere but before a pronoun or article.
        ("Will resigned.", "nw"), ("May was great.", "nsw"), ("Will you resigned", "ssw"), ("May I?", "ss"),
        ("Will Baker said", "nw"), ("you may and it will", "sssss"),
        # So may a few others be names, and an initial is no article.
        ("you met Don and DON", "srnsn"), ("it was Per Baker", "ssn"), ("Rose A. Winter", "wn"),
        ("Summarise the Effect of Rain", "wswsw"), ("the SuMmarize Effect of Rain", "snsn"),
        ("it was Capt. Long", "sssn"),
        # Sentence, list item and quotation ask for a capital.
        ("Winter was. Rain! Great? Long", "wswww"), ("- The film\n* Rain is\n• It", "swwss"),
        ("1. Rain was\n2) Long was\n(a) The\na. Rain", "#ws#wssssw"), ("# The film", "sw"),
        ('he said "The film" and \'Rain is\'', "swswsws"), ("A. Baker", "sn"), ("Dr. Long", "sn"),
        # After colon, dash and opening bracket the next word tells.
        ("Summarise: The minister resigned.", "wsww"), ("Film: Write an essay", "wwsw"),
        ("Minister: Winter", "wn"),
        ("Minister: Rose Winter", "wn"), ("it is - Rain is great", "sswsw"), ("it is — The film", "sssw"),
        ("it is (The film) [Rain is]", "ssswws"), ("Film: The Zyzzyva", "wsn"), ("Film -- It is", "wss"),
        # A heading, when all its words are known.
        ("The Effect of Rain on Harvests", "swswsw"), ("# The Effect of Rain", "swsw"),
        ("it was The Effect of Rain on Harvests", "sssnsnsn"),
        ("The Effect of Zyzzyva on Harvests", "snsnsn"),
        ("Rose Long and Winter Baker", "wnsn"), ("The Effect of Rain.", "snsn"),
        # A line in capitals asks for them all.
        ("THE FILM WAS GREAT", "swsw"), ("THE ZYZZYVA WAS IN US", "srsss"),
        ("said\nTHE FILM IS GREAT\nRain", "wswsww"),
        # An unknown word with a capital is a name even where one is asked for: it stays protected.
        ("Zyzzyva said", "nw"), ("zyzzyva said", "rw"), ("summarised", "r"), ("summarise Summarise", "wn"),
    ],
)  # fmt: skip
def test_the_rule_for_capitals(sanitizer: Sanitizer, text: str, expected: str) -> None:
    assert kinds(sanitizer, text) == expected


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("8th of may 1995", "number"), ("8 may 1995", "number"), ("8th of May, 1995", "number"),
        ("may 8th, 1995", "number"),
        ("May 8", "number"), ("march the 3rd", "number"), ("8-mar-95", "number"), ("Jan. 5, 2020", "number"),
        ("january", "number"), ("December 1999", "number"), ("5 MAY 1995", "number"), ("may, 1995", "number"),
        ("two", "number"), ("twenty-five thousand", "number"), ("Two Hundred and fifty", "number"),
        ("5 million", "number"), ("$2.5 billion", "number"), ("£5m", "number"), ("2.5bn", "number"),
        ("10k", "number"),
        ("52 CV 9323", "number"), ("AB 123 CD", "number"), ("AB-123-CD", "number"),
        ("SW1A 1AA", "name"), ("AF 1234", "number"), ("52-CV-9323", "number"),
        ("linkedin.com/in/will-baker", "identifier"), ("example.co.uk", "identifier"),
        ("EXAMPLE.COM", "identifier"),
        ("Example.com:80/The", "identifier"), ("will.txt", "identifier"), ("a-b.c_d.ef", "identifier"),
        ("/home/will/essay", "identifier"), ("~/will/rain.txt", "identifier"), ("../the/rain", "identifier"),
        (r"C:\the\rain", "identifier"), ("bücher.de/will", "identifier"),
    ],
)  # fmt: skip
def test_one_value_in_several_pieces_is_one_token(sanitizer: Sanitizer, text: str, whole: str) -> None:
    for before, after in (
        ("", ""),
        ("it was ", " and"),
        ("(", ")"),
        ("'", "'"),
        ('"', '"'),
        ("the film, ", "."),
    ):
        made = [(base_of(piece.kind), piece.source) for piece in pieces(sanitizer, before + text + after)]
        assert [piece for piece in made if piece[1] not in ("it", "was", "and", "the", "film")] == [
            (whole, text)
        ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("In 2019 US", "s#n"), ("the end.The minister", "swsw"), ("Rain.Long is", "wws"),
        ("in 2019 The film", "s#sw"),
        ("and/or/not", "sss"), ("you may resigned", "ssw"), ("what may I", "sss"), ("in may the", "s#s"),
        ("the third of may", "sws#"), ("until March is", "s#s"), ("two hundred euros", "#w"),
        ("one film", "#w"),
        ("two and the", "#ss"), ("he resigned ... the", "sws"), ("2019 2020", "##"), ("long-winter", "ww"),
    ],
)  # fmt: skip
def test_what_is_none(sanitizer: Sanitizer, text: str, expected: str) -> None:
    assert kinds(sanitizer, text) == expected


LOWER = st.sampled_from([*DRAWN, "and", "zyzzyva"])


@given(st.lists(LOWER, min_size=1, max_size=4), st.sampled_from(DRAWN), st.sampled_from(["title", "upper"]))
def test_a_capital_amid_a_sentence_is_a_name(
    sanitizer: Sanitizer, words: list[str], name: str, case: Any
) -> None:
    text = " ".join([*words, with_case(name, case), *words])
    assert [piece.kind for piece in pieces(sanitizer, text) if piece.source.lower() != piece.source] == [
        "name"
    ]


@given(st.data())
def test_dates_leave_neither_day_nor_month(sanitizer: Sanitizer, data: st.DataObject) -> None:
    case = data.draw(st.sampled_from([str.lower, str.title, str.upper]))
    month, day = (
        case(data.draw(st.sampled_from(sorted(MONTHS)))),
        data.draw(st.sampled_from(["8", "3rd", "21"])),
    )
    form = data.draw(
        st.sampled_from(
            ["{d} of {m}", "{d} {m}", "{m} {d}", "{m} the {d}", "{d}-{m}", "{m} 1995", "{m}, 1995"]
        )
    )
    date = form.format(d=day, m=month) + data.draw(st.sampled_from(["", " 1995", ", 1995"]))
    before, after = data.draw(st.sampled_from([("", ""), ("it was ", " and"), ("On the ", "."), ("(", ")")]))
    for piece in pieces(sanitizer, before + date + after):
        assert base_of(piece.kind) == "number" or piece.source not in date or piece.source.lower() == "the"


@given(
    st.lists(
        st.sampled_from([*sorted(NUMBER_WORDS), "and", "-", " ", "5", "euros", "The", ". "]), max_size=12
    )
)
def test_no_number_word_passes_or_is_drawn(sanitizer: Sanitizer, parts: list[str]) -> None:
    for piece in pieces(sanitizer, " ".join(parts)):
        if NUMBER_WORDS & set(piece.source.lower().replace("-", " ").split()):
            assert (base_of(piece.kind), piece.action) == ("number", "placeholder")


LABEL = st.from_regex(r"[a-z][a-z0-9-]{0,6}[a-z0-9]", fullmatch=True)


@given(
    st.lists(LABEL, min_size=1, max_size=3), st.sampled_from(["com", "co.uk", "de", "will"]),
    st.lists(LABEL, max_size=3),
    st.sampled_from([("", ""), ("the ", " and"), ("(", ")"), ("'", "'"), ("<", ">"), ("at ", ". The film")]),
)  # fmt: skip
def test_a_host_without_scheme_is_one_identifier(
    sanitizer: Sanitizer, labels: list[str], end: str, path: list[str], around: tuple[str, str]
) -> None:
    host = ".".join([*labels, end]) + "".join(f"/{part}" for part in path)
    made = pieces(sanitizer, around[0] + host + around[1])
    assert ("identifier", host) in [(base_of(piece.kind), piece.source) for piece in made]


@given(st.text(alphabet="aA1 .'-/:@é_\n", max_size=40))
def test_a_word_in_the_vocabulary_is_never_closed(sanitizer: Sanitizer, text: str) -> None:
    for piece in pieces(sanitizer, text):
        assert piece.source_id < 0 or sanitizer.policy.words[piece.source_id] not in CLOSED_FORMS


def test_the_lexer_keeps_no_private_word(sanitizer: Sanitizer) -> None:
    pieces(sanitizer, "the Minister of zyzzyva MacWinter")
    kept = {token.text.lower() for reading in sanitizer._reader._words.values() for token in reading[0]}
    marks = {text for text in kept if not text.strip(".,:;!?'\"()- \n")}
    assert kept - marks <= {*DRAWN, *PASSING, *CLITICS}
    assert {text.lower() for text, _ in sanitizer._reader._words._capitals} <= {*DRAWN, *PASSING}


def test_without_known_words_there_is_no_heading() -> None:
    assert [token.text for token in lex("The Effect of Rain") if token.marked] == ["Effect", "Rain"]
