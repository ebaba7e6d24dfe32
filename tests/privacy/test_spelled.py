"""What is spelled out letter by letter is hidden, and so is a letter that is a word in its script."""

from __future__ import annotations

import sys
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer

SANITIZERS = {preset: Sanitizer(with_preset(load_policy(), preset)) for preset in PRESETS}
NAMES = ("miller", "okafor", "zyzzq", "ada", "kim", "rose", "swordfish")


def shown(preset: str, text: str) -> str:
    placeholders = Placeholders()
    sent = SANITIZERS[preset].sanitize(text, placeholders=placeholders).text
    if preset == "entities":
        assert placeholders.restore(sent) == text
    return sent


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("sign", ["-", " ", ".", ". ", ", ", ",", "/", "*", "|", "+"])
def test_a_word_that_is_spelled_out_is_one_placeholder(preset: str, sign: str) -> None:
    for name in NAMES:
        if len(name) > 3 or sign in "- ":
            for letters in (name, name.upper()):
                spelled = sign.join(letters)
                sent = shown(preset, f"the name is, and in full: {spelled}\nand the")
                hidden = sent.partition("\n")[0].rsplit(" ", 1)[-1]
                assert hidden.rstrip(".") == "[ID_1]"


@settings(max_examples=200, deadline=None)
@given(st.text("qzjxvkbw", min_size=3, max_size=12), st.sampled_from(["-", " "]), st.sampled_from(PRESETS))
def test_letters_of_any_word_are_hidden_unless_they_count_up(word: str, sign: str, preset: str) -> None:
    sent = shown(preset, f"it is ({sign.join(word)})")
    assert sent == "it is ([ID_1])" if preset != "words" else sent.endswith("([ID_1])")


@pytest.mark.parametrize(
    "text",
    [
        "Which of A, B, C, D?",
        "x-y-z",
        "a b c",
        "the U.S.A. and the U.K.",
        "plan A or B",
        "I, I and I",
    ],
)
def test_what_counts_up_or_is_short_passes(text: str) -> None:
    assert shown("entities", text) == text


def test_no_single_letter_beyond_ascii_passes() -> None:
    """In many scripts a letter is a word, or cannot be seen."""
    letters = [
        chr(code) for code in range(128, sys.maxunicode + 1) if unicodedata.category(chr(code))[0] == "L"
    ]
    plain = [one for one in letters if unicodedata.normalize("NFKC", one) == one]
    for preset, sanitizer in SANITIZERS.items():
        for start in range(0, len(plain), 5000):
            some = plain[start : start + 5000]
            done = sanitizer.sanitize(" the ".join(some), placeholders=Placeholders())
            passed = {piece.source for piece in done.pieces if piece.action == "pass"} - {" ", "the"}
            assert not passed, preset


@pytest.mark.parametrize("unit", ["a-", "a ", "b.", "b, ", "z y x", "-a", "a-b"])
def test_the_work_is_linear(unit: str) -> None:
    began_s = time.process_time()
    shown("entities", unit * (200_000 // len(unit)))
    assert time.process_time() - began_s < 20
