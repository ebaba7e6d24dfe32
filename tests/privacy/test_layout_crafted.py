"""Characters that cannot be seen, beside what is claimed: nothing is lost or shown, the work is linear."""

from __future__ import annotations

import sys
import time

import pytest

from transom.privacy.characters import normalise
from transom.privacy.kinds import Span
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.presets import PRESETS, with_preset
from transom.privacy.sanitize import Sanitizer

SANITIZERS = {preset: Sanitizer(with_preset(load_policy(), preset)) for preset in PRESETS}
UNSEEN = [chr(code) for code in range(sys.maxunicode + 1) if not normalise(chr(code))]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("around", ["{}", "{}{}", "the {}{}", "{}\u2026{}", "\u2026{}", "{} ", "\u2764{}"])
def test_every_character_that_is_dropped_may_stand_before_a_span(preset: str, around: str) -> None:
    for unseen in [*UNSEEN[::29], "\u200b", "\u2066", "\ufe0f", "\ud800", "\U000e0067\U000e007f"]:
        before = around.replace("{}", unseen)
        text = f"{before}Xyzzyq the"
        span = Span(len(before), len(before) + 6, "person")
        placeholders = Placeholders()
        done = SANITIZERS[preset].sanitize(text, placeholders=placeholders, spans=[span])
        assert done.counts["person"] == 1
        assert "[PERSON_1]" in done.text
        if preset == "entities":
            assert not set(done.text) & set(UNSEEN)
            assert placeholders.restore(done.text) == text


@pytest.mark.parametrize(
    "unit", ["\u200b", "\ufeff", "\u2066", "\ud800", "\u200b ", " \u200b\u0301", "a\u200b"]
)
def test_the_work_is_linear(unit: str) -> None:
    began_s = time.process_time()
    SANITIZERS["entities"].sanitize(unit * (200_000 // len(unit)), placeholders=Placeholders())
    assert time.process_time() - began_s < 20
