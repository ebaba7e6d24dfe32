"""Words of software pass where words pass, as they are spelled there, and nowhere hide or show a name."""

from __future__ import annotations

import pytest

from transom.privacy.closed import CLOSED_FORMS
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import with_preset
from transom.privacy.sanitize import Sanitizer
from transom.privacy.techwords import TECHNICAL

CODE = '''def parse(path: str) -> dict[str, int]:
    """Read pairs from a file."""
    with open(path) as f:
        return {k: int(v) for k, v in (line.split("=") for line in f)}
'''
SANITIZER = {
    preset: Sanitizer(with_preset(load_policy(), preset)) for preset in ("entities", "sensitive", "words")
}


def sent(text: str, preset: str = "entities") -> str:
    return SANITIZER[preset].sanitize(text, placeholders=Placeholders()).text


@pytest.mark.parametrize("word", sorted(TECHNICAL))
def test_each_passes_in_a_sentence(word: str) -> None:
    assert sent(f"Explain how {word} is used here.") == f"Explain how {word} is used here."


def test_code_keeps_its_words() -> None:
    shown = sent(CODE)
    assert "def parse(path: str) -> dict[str, int]:" in shown
    assert "return {k: int(v) for k, v in (" in shown


@pytest.mark.parametrize("text", ["Ask Ruby about it.", "Julia and Swift met.", "I met Int Div yesterday."])
def test_other_spellings_and_names_are_read_as_ever(text: str) -> None:
    assert "[" in sent(text)


def test_where_words_are_drawn_nothing_passes_for_it() -> None:
    assert "pytest" not in sent("use pytest here", "words")


def test_no_closed_form_is_listed() -> None:
    assert not {word for word in TECHNICAL if word.lower() in CLOSED_FORMS and word != word.lower()}


@pytest.mark.parametrize("day", ["Friday", "Mondays", "Sunday"])
@pytest.mark.parametrize("frame", ["It is moved to {}.", "from {} to Tuesday", "See you on {} at noon."])
def test_days_pass_wherever_they_stand(day: str, frame: str) -> None:
    assert day in sent(frame.format(day))
