"""Whatever stands where a number belongs: a number in range, or EngineGarbageError."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.errors import EngineGarbageError
from transom.serving.engines import checks
from transom.serving.engines.base import EngineCard
from transom.serving.engines.client import check_vllm_version, read_card
from transom.serving.gateway.metrics import Metrics

HUGE = "9" * 5000
NUMBERS = (
    st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats()
    | st.sampled_from(
        [10**400, -(10**400), 2**31, 2**63, True, False, math.nan, math.inf, -math.inf, -0.0, 1e-9]
    )
)
ANYTHING = NUMBERS | st.none() | st.text(max_size=8) | st.lists(st.integers(), max_size=2) | st.just({})


def checked(check: Callable[[Any], Any], value: Any) -> Any:
    """What `check` makes of it; None for garbage."""
    try:
        return check(value)
    except EngineGarbageError:
        return None


@given(ANYTHING)
def test_counts_are_small_whole_numbers(value: Any) -> None:
    fits = type(value) is int and 0 <= value < 2**31
    assert checked(checks.count, value) == (value if fits else None)


@given(ANYTHING)
def test_log_probabilities_are_finite_and_not_above_zero(value: Any) -> None:
    found = checked(checks.logprob, value)
    assert found is None or (type(found) is float and -math.inf < found <= 0)
    if type(value) is float and math.isfinite(value) and value <= 0:
        assert found == value


@given(ANYTHING | st.sampled_from([HUGE, "token_id:7", "7", " 7", "-7", "7_0", "\u0667", "token_id:" + HUGE]))
def test_named_ids(value: Any) -> None:
    found = checked(checks.named_id, value)
    digits = value.removeprefix("token_id:") if isinstance(value, str) else ""
    fits = digits.isascii() and digits.isdigit() and len(digits) <= 10 and int(digits) < 2**31
    assert found == (int(digits) if fits else None)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "-Infinity", HUGE, "[" * 5000, "\ufeff{", "{'a': 1}", ""]
)
def test_json_that_is_none(text: str) -> None:
    with pytest.raises(EngineGarbageError):
        checks.loads(text.encode())
    with pytest.raises(EngineGarbageError):
        checks.loads(b"\xff" + text.encode())


@given(ANYTHING)
def test_finish_reasons(value: Any) -> None:
    reason = checked(checks.finish_reason, value)
    if value is None or value == "":
        assert reason is None
    else:
        assert reason in (("stop", "length", "content_filter") if isinstance(value, str) else (None,))


@given(ANYTHING, ANYTHING, ANYTHING)
def test_cards_tell_a_size_or_nothing(context: Any, width: Any, name: Any) -> None:
    models = {"data": [{"id": name, "max_model_len": context, "hidden_size": width}]}
    card = checked(lambda value: read_card(value, None), models)
    if card is not None:
        assert isinstance(card, EngineCard)
        assert isinstance(card.model, str)
        for size in (card.context_tokens, card.width):
            assert size is None or 1 <= size < 2**31


@pytest.mark.parametrize("models", [None, [], {}, {"data": 5}, {"data": [5]}, {"data": [{"id": "m" * 600}]},
                                    {"data": [{"id": "m", "owned_by": 5}]}, {"data": []}])  # fmt: skip
def test_cards_that_are_none(models: Any) -> None:
    with pytest.raises(EngineGarbageError):
        read_card(models, None)


@pytest.mark.parametrize("version", [f"{HUGE}.1", f"0.{HUGE}", "\u0661.\u0662", "v", 5, None])
def test_versions_that_are_none(version: Any) -> None:
    if isinstance(version, str) and version.startswith("0."):
        check_vllm_version({"version": version})  # its first digits are new enough
        return
    with pytest.raises(EngineGarbageError):
        check_vllm_version({"version": version})


@given(st.lists(NUMBERS, max_size=8), st.lists(NUMBERS, max_size=8))
def test_no_number_spoils_a_counter(tokens: list[Any], epsilons: list[Any]) -> None:
    metrics = Metrics()
    for count in [5, *tokens]:
        metrics.tokens("prompt", count)
    for epsilon in epsilons:
        metrics.epsilon(epsilon)
    values = [float(line.split()[-1]) for line in metrics.render().splitlines() if line[0] != "#"]
    assert all(math.isfinite(value) and value >= 0 for value in values)
    assert max(values) >= 5


def test_a_number_of_thousands_of_digits_is_no_json_of_ours() -> None:
    with pytest.raises(ValueError, match="4300"):
        json.loads(HUGE)
