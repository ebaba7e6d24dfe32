"""The runner: every attack has a finding, whatever it does, and the budget is shared."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transom.audit.attack import choose
from transom.audit.attacks import epsilon
from transom.errors import MisconfiguredError, NotYetError
from transom.report import runner
from transom.report.finding import (
    INTERRUPTED,
    Attack,
    Bound,
    Example,
    Finding,
    interrupted,
    not_run,
    share,
    unreached,
)
from transom.report.runner import SMALLEST_SHARE_S, run

FOUND = share("guess", "token recovery", hits=3, n=10, baseline=0.1, cost_s=0.5)


def attack(name: str, result: Any = FOUND) -> Attack:
    def mount(target: object, knowledge: object, data: object, budget_s: float) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result

    return Bound(name, "token recovery", mount)


def ran(*attacks: Attack, budget_s: float = 60.0) -> tuple[Finding, ...]:
    return run(attacks, None, None, None, budget_s=budget_s, progress=False)


def test_findings_come_in_order_and_unchanged() -> None:
    other = not_run("other", "token recovery", "no words")
    found = ran(attack("a"), attack("b", other))
    assert found[0] == FOUND
    assert (found[1].name, found[1].reason) == ("other", "no words")


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        (NotYetError("the target has no router"), "the target has no router"),
        (ValueError("the audited text"), "it raised ValueError"),
        (MemoryError(), "it raised MemoryError"),
        (SystemExit(3), "it raised SystemExit"),
        (0.3, "it returned a float, not a Finding"),
        (None, "it returned a NoneType, not a Finding"),
        (Finding(name="x", metric="m"), "it returned no value or no interval"),
        (Finding(name="x", metric="m", value=0.1), "it returned no value or no interval"),
        (Finding(name="x", metric="m", value=0.1, low=0.0), "it returned no value or no interval"),
        (replace(FOUND, value=0.9), "its value lies outside its interval"),
        (replace(FOUND, low=0.5, high=0.2), "its value lies outside its interval"),
        (replace(FOUND, value=50.0, high=60.0), "its figures are no shares between 0 and 1"),
        (replace(FOUND, low=-0.1), "its figures are no shares between 0 and 1"),
        (replace(FOUND, status="not run"), 'it says "not run" and returns figures'),
        (replace(FOUND, status="odd"), 'its status is neither "run" nor "not run"'),
        (replace(FOUND, value="0.3"), "its value is of type str, not a number"),
        (replace(FOUND, value=True), "its value is of type bool, not a number"),
        (replace(FOUND, n="many"), "its n is of type str, not int"),
        (replace(FOUND, note=5), "its note is of type int, not str"),
        (replace(FOUND, name=7), "its name is of type int, not str"),
        (replace(FOUND, examples=("a", "b")), "its examples are not a tuple of Example"),
        (replace(FOUND, examples=3), "its examples are not a tuple of Example"),
        (replace(FOUND, examples=(Example("a", "b", None),)), "its examples do not hold three texts each"),
        (asyncio.CancelledError("the audited text"), "it raised CancelledError"),
        (GeneratorExit("the audited text"), "it raised GeneratorExit"),
        (Finding(name="x", metric="m", value=math.nan), "its figures are not finite"),
        (Finding(name="x", metric="m", value=0.1, high=math.inf), "its figures are not finite"),
    ],
)
def test_whatever_goes_wrong_is_a_finding_with_its_reason(result: Any, reason: str) -> None:
    found = ran(attack("bad", result), attack("good"))
    assert (found[0].name, found[0].metric) == ("bad", "token recovery")
    assert (found[0].status, found[0].reason) == ("not run", reason)
    assert found[1] == FOUND


def test_numbers_of_numpy_become_plain_ones() -> None:
    figures = {name: np.float32(0.25) for name in ("value", "low", "high", "baseline")}
    (found,) = ran(attack("numpy", replace(FOUND, **figures, n=np.int64(4))))
    assert json.loads(json.dumps(found.to_dict()))["value"] == 0.25
    assert (type(found.value), type(found.n)) == (float, int)


def test_an_epsilon_needs_no_upper_end_and_is_no_share() -> None:
    certified = Finding(name="x", metric="epsilon lower bound", value=2.5, low=2.5, baseline=1.0, n=9)
    (found,) = ran(attack("x", certified))
    assert (found.status, found.value, found.high) == ("run", 2.5, None)


def test_what_an_attack_prints_leaves_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def prints(*_: object) -> Finding:
        print("found it")
        return FOUND

    ran(Bound("loud", "token recovery", prints))
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "found it\n")


def test_an_interruption_leaves_what_there_is() -> None:
    found = ran(attack("a"), attack("b", KeyboardInterrupt()), attack("c"))
    assert [finding.reason for finding in found] == ["", INTERRUPTED, INTERRUPTED]
    assert [finding.name for finding in found] == ["guess", "b", "c"]
    assert interrupted(found)
    assert not interrupted(found[:1])


def test_what_is_left_goes_to_those_after() -> None:
    shares: list[float] = []

    def note(target: object, knowledge: object, data: object, budget_s: float) -> Finding:
        shares.append(budget_s)
        return FOUND

    ran(*[Bound(f"{i}", "token recovery", note) for i in range(4)], budget_s=40)
    assert shares == pytest.approx([10, 40 / 3, 20, 40], rel=0.05)


def test_a_budget_too_small_is_said() -> None:
    found = ran(attack("a"), attack("b"), budget_s=SMALLEST_SHARE_S)
    assert all("raise --budget" in finding.reason for finding in found)


def test_one_that_never_comes_back_is_stopped() -> None:
    def forever(*_: object) -> Finding:
        while True:
            time.sleep(0.01)

    found = run((Bound("slow", "m", forever), attack("b")), 0, 0, 0, budget_s=0.5, progress=False)
    assert found[0].reason.startswith("it was stopped after")
    assert found[1].reason == "" or "raise --budget" in found[1].reason


@given(
    budget_s=st.floats(0.2, 1000),
    takes=st.lists(st.floats(0, 50), min_size=1, max_size=12),
)
def test_budgets_hold_whatever_attacks_take(budget_s: float, takes: list[float]) -> None:
    """`takes` is what each would take, in shares; the clock and the alarm are played."""
    now_s, limit_s, shares = 0.0, 0.0, []

    def stopped_after(seconds: float) -> AbstractContextManager[None]:
        nonlocal limit_s
        limit_s = seconds
        return nullcontext()

    def made(wanted: float) -> Attack:
        def mount(target: object, knowledge: object, data: object, share_s: float) -> Finding:
            nonlocal now_s
            shares.append(share_s)
            now_s += min(wanted * share_s, limit_s)
            return FOUND

        return Bound("x", "token recovery", mount)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transom.report.runner.time.monotonic", lambda: now_s)
        patch.setattr("transom.report.runner._stopped_after", stopped_after)
        found = ran(*map(made, takes), budget_s=budget_s)
    assert now_s <= budget_s + 1 + 1e-9  # sums of floats
    assert len(found) == len(takes)
    assert unreached(found) == len(takes) - len(shares)
    fair = budget_s / len(takes)
    kept = next((i for i, wanted in enumerate(takes) if wanted > 1), len(takes))
    assert all(share_s >= fair * 0.999 for share_s in shares[: kept + 1])  # overruns cost only those after


def test_the_alarm_of_another_is_put_back() -> None:
    rang: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: rang.append(1))
    left = signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        ran(Bound("sleeps", "m", lambda *_: time.sleep(0.2)))
        assert not rang
        time.sleep(0.1)
        assert rang
    finally:
        signal.setitimer(signal.ITIMER_REAL, *left)
        signal.signal(signal.SIGALRM, before)


def test_modules_and_objects_are_attacks() -> None:
    class Own:
        NAME, METRIC = "own", "token recovery"

        def attack(self, target: object, knowledge: object, data: object, budget_s: float, /) -> Finding:
            return FOUND

    own, broken = ran(Own(), epsilon)
    assert own == FOUND
    assert replace(broken, cost_s=0.0) == not_run(epsilon.NAME, epsilon.METRIC, "it raised AttributeError")


def test_names_choose_and_objects_add(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_attacks.py").write_text(
        "from transom.report.finding import Bound\n"
        "guess = Bound('guess', 'token recovery', lambda *_: None)\n"
        "nameless = object()\n"
    )
    both = (attack("NN"), attack("Gate-IA"))
    assert choose(both, ()) == both
    assert [chosen.NAME for chosen in choose(both, ["gate-ia"])] == ["Gate-IA"]
    assert [chosen.NAME for chosen in choose(both, ["own_attacks:guess"])] == ["NN", "Gate-IA", "guess"]
    assert [chosen.NAME for chosen in choose(both, ["nn", "own_attacks:guess"])] == ["NN", "guess"]
    twice = (attack("nn"), attack("vma"), attack("nn"))  # one name, two figures
    assert choose(twice, ["nn"]) == (twice[0], twice[2])
    with pytest.raises(MisconfiguredError, match="unknown attack 'vma'; known: NN, Gate-IA"):
        choose(both, ["vma"])
    with pytest.raises(MisconfiguredError, match="needs all three"):
        choose((), ["own_attacks:nameless"])
    with pytest.raises(MisconfiguredError, match="is a class"):
        choose((), ["transom.report.finding:Bound"])
    with pytest.raises(MisconfiguredError, match="not module:object"):
        choose((), ["own_attacks:"])


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    run((attack("a"),), None, None, None, budget_s=60)
    assert capsys.readouterr().out == ""


def test_an_attack_that_catches_everything_is_stopped_all_the_same():
    def stubborn():
        try:
            while True:
                pass
        except BaseException:  # noqa: S110  as such attacks do
            pass
        while True:
            pass

    with pytest.raises(runner._OverrunError), runner._stopped_after(0.05):
        stubborn()
