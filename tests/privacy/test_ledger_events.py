"""Events in the ledger: priced together, refused before the cap is passed, as durable as pure charges."""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from transom.cli.ledger import app
from transom.errors import LedgerError, LedgerSpentError, MisconfiguredError, NotYetError
from transom.privacy.account import (
    ApproximateEvent,
    Event,
    GaussianEvent,
    LaplaceEvent,
    PureEvent,
    compose,
    gaussian,
    gaussian_epsilon,
)
from transom.privacy.guarantee import Guarantee, released
from transom.privacy.ledger import Charge, Ledger

STEP = GaussianEvent(noise=10.0)
DELTA = 1e-6


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


def test_gaussians_are_priced_together_and_not_summed(path: Path) -> None:
    with Ledger(path, cap_epsilon=100, delta=DELTA) as ledger:
        totals = [ledger.charge("a", [STEP]) for _ in range(25)]
        assert ledger.spent("a") == totals[-1]
        assert ledger.spent("b") == 0
    assert totals == sorted(totals)
    exact = [gaussian_epsilon(math.sqrt(n) / 10, DELTA) for n in range(1, 26)]
    assert all(e <= t <= e + 2e-9 + 1e-6 * e for e, t in zip(exact, totals, strict=True))
    assert totals[-1] < 6 * totals[0]


def test_a_run_over_both_directions_stops_before_it_overspends(path: Path) -> None:
    """Embeddings forward and gradients back, each clipped, every epoch; what stands is within the cap."""
    forward = gaussian(sigma=8.0, clip=0.5, neighbours="replace-one")
    back = gaussian(sigma=20.0, clip=1.0, neighbours="replace-one")
    with Ledger(path, cap_epsilon=3.0, delta=DELTA) as ledger:
        outcomes = ledger.charge_many([("run", [forward, back])] * 500)
        epochs = next(n for n, outcome in enumerate(outcomes) if isinstance(outcome, LedgerSpentError))
        with pytest.raises(LedgerSpentError, match="of 3 epsilon used at delta 1e-06"):
            ledger.charge("run", [forward, back])
        mu = math.sqrt(1 / 8**2 + 1 / 10**2)
        assert gaussian_epsilon(mu * math.sqrt(epochs), DELTA) <= ledger.spent("run") <= 3.0
        assert gaussian_epsilon(mu * math.sqrt(epochs + 1), DELTA) > 3.0
        assert len(ledger.history("run", limit=1000)) == epochs


def test_pure_and_other_charges_share_a_cap(path: Path) -> None:
    with Ledger(path, cap_epsilon=2.0, delta=DELTA) as ledger:
        noisy = ledger.charge("a", [STEP])
        assert ledger.charge("a", 1.25) == pytest.approx(noisy + 1.25, abs=2e-9)
        with pytest.raises(LedgerSpentError):
            ledger.charge("a", 0.9)
        with pytest.raises(LedgerSpentError):
            ledger.charge("a", [STEP.times(100)])
        assert ledger.charge("a", 0.0) == ledger.spent("a") == pytest.approx(noisy + 1.25, abs=2e-9)
        assert ledger.charge("b", [PureEvent(epsilon=0.5, count=4)]) == 2.0
        assert ledger.accounts() == {"a": ledger.spent("a"), "b": 2.0}


def test_a_batch_charges_in_order_and_refuses_singly(path: Path) -> None:
    with Ledger(path, cap_epsilon=1.0, delta=DELTA) as ledger:
        batch = [("a", [STEP]), ("a", [STEP.times(1000)]), ("b", 1.0), ("a", [STEP]), ("c", [])]
        outcomes = ledger.charge_many(batch)
        assert isinstance(outcomes[1], LedgerSpentError)
        assert outcomes[2] == 1.0
        assert outcomes[4] == 0.0
        assert outcomes[3] == ledger.spent("a") > outcomes[0]
        with pytest.raises(LedgerError, match="non-negative"):
            ledger.charge_many([("d", [STEP]), ("d", -1.0)])
        assert ledger.accounts().keys() == {"a", "b"}


def test_the_history_tells_what_was_charged(path: Path) -> None:
    events = (LaplaceEvent(noise=8.0), GaussianEvent(noise=2.0, sampling=0.5, count=3))
    with Ledger(path, cap_epsilon=100) as ledger:
        ledger.charge("a", 1.5)
        ledger.charge("a", [LaplaceEvent(noise=4.0), PureEvent(epsilon=0.25), LaplaceEvent(noise=4.0)])
        first, second = ledger.history("a")[::-1]
        assert (first.epsilon, first.events) == (1.5, ())
        assert (second.epsilon, second.events) == (0.25, (LaplaceEvent(noise=4.0, count=2),))
        assert ledger.spent("a") == 2.25  # at delta 0 Laplace noise is pure
    with Ledger(path, cap_epsilon=100, delta=DELTA) as ledger:
        ledger.charge("b", events)
        assert [(charge.epsilon, charge.events) for charge in ledger.history("b")] == [(None, events)]
        assert ledger.spent("b") == pytest.approx(compose(events, DELTA), abs=2e-9)
        assert ledger.spent("a") < 2.25


def test_what_has_no_price_is_refused_and_nothing_is_charged(path: Path) -> None:
    with Ledger(path, cap_epsilon=math.inf) as ledger:
        with pytest.raises(MisconfiguredError, match="gaussian events have no epsilon at delta 0"):
            ledger.charge("a", [STEP])
        assert ledger.accounts() == {}
    with Ledger(path, cap_epsilon=math.inf, delta=DELTA) as ledger:
        ledger.charge("a", [STEP])
        with pytest.raises(LedgerSpentError, match="inf more was asked"):
            ledger.charge("a", [ApproximateEvent(epsilon=0.1, delta=1e-3)])
    with Ledger(path, cap_epsilon=math.inf) as ledger:
        for act in (lambda: ledger.charge("a", 1.0), lambda: ledger.spent("a"), ledger.accounts):
            with pytest.raises(MisconfiguredError, match="give a delta"):
                act()
        assert ledger.charge("b", 1.0) == 1.0
    with pytest.raises(MisconfiguredError, match="delta must be 0"):
        Ledger(path, cap_epsilon=1, delta=1e-11)


def test_a_promise_is_charged_as_its_events(path: Path) -> None:
    promise = Guarantee(kind="gdp", unit="one record", adjacency="one record replaced", mu=0.1, scope="run")
    with Ledger(path, cap_epsilon=1.0, delta=DELTA) as ledger:
        assert ledger.charge("a", released(promise)) == ledger.charge("b", [STEP])


CHARGER = """
import sys
from transom.errors import LedgerSpentError
from transom.privacy.account import GaussianEvent
from transom.privacy.ledger import Ledger
ledger = Ledger(sys.argv[1], cap_epsilon=2.0, timeout_s=60, delta=1e-6)
for number in range(12):
    try:
        ledger.charge("shared", [GaussianEvent(noise=10.0)] if number % 3 else 0.01)
        print("charged", "noise" if number % 3 else "pure", flush=True)
    except LedgerSpentError:
        print("refused", flush=True)
"""


def test_processes_never_pass_the_composed_cap(path: Path) -> None:
    command = [sys.executable, "-c", CHARGER, str(path)]
    chargers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    lines = [line for charger in chargers for line in charger.communicate()[0].splitlines()]
    assert all(charger.returncode == 0 for charger in chargers)
    noise, pure = lines.count("charged noise"), lines.count("charged pure")
    assert "refused" in lines
    with Ledger(path, cap_epsilon=2.0, delta=DELTA) as ledger:
        expected = gaussian_epsilon(math.sqrt(noise) / 10, DELTA) + 0.01 * pure
        assert expected <= ledger.spent("shared") + 1e-12 <= 2.0
        assert ledger.spent("shared") == pytest.approx(expected, abs=1e-6)
        with pytest.raises(LedgerSpentError):
            ledger.charge("shared", [STEP])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET count = count - 1",
        "UPDATE events SET account = 'b'",
        "UPDATE events SET event = replace(event, '10.0', '20.0')",
        "DELETE FROM events",
        "INSERT INTO events VALUES ('b', 'x', 0)",
        "UPDATE history SET events = NULL WHERE id = 2",
        "UPDATE history SET events = replace(events, '10.0', '20.0') WHERE id = 2",
        "UPDATE history SET events = '[]' WHERE id = 1",
        "UPDATE history SET events = x'00' WHERE id = 2",
    ],
)
def test_events_that_do_not_add_up_are_refused(path: Path, change: str) -> None:
    with Ledger(path, cap_epsilon=100, delta=DELTA) as ledger:
        ledger.charge_many([("a", 1.0), ("a", [STEP.times(3)]), ("a", [STEP])])
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(change)
    with pytest.raises(LedgerError, match="corrupt"):
        Ledger(path, cap_epsilon=100)


def test_an_event_of_a_later_version_is_named(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transom.privacy import account

    class Skellam(Event):
        name = "skellam"

    monkeypatch.setitem(account._KINDS, "skellam", Skellam)
    with Ledger(path, cap_epsilon=100, delta=DELTA) as ledger:
        ledger._price = lambda nano, events: 1  # type: ignore[method-assign]
        ledger.charge("a", [Skellam()])
    monkeypatch.delitem(account._KINDS, "skellam")
    with pytest.raises(NotYetError, match="'skellam' is not known"):
        Ledger(path, cap_epsilon=100)


def test_show_prices_events_at_a_delta_and_lists_them(path: Path) -> None:
    with Ledger(path, cap_epsilon=100, delta=DELTA) as ledger:
        ledger.charge("a", 1.5)
        ledger.charge("a", [STEP.times(2)])
        total = ledger.spent("a")
        pure, noisy = ledger.history("a")[::-1]
    run = CliRunner().invoke(app, ["show", str(path), "--account", "a", "--json", "--delta", "1e-6"])
    shown = json.loads(run.stdout)
    assert shown["accounts"] == {"a": total}
    assert shown["charges"] == [
        {
            "at_s": noisy.at_s,
            "account": "a",
            "epsilon": None,
            "events": [{"event": "gaussian", "noise": 10.0, "sampling": 1.0, "count": 2}],
        },
        {"at_s": pure.at_s, "account": "a", "epsilon": 1.5},
    ]
    text = CliRunner().invoke(app, ["show", str(path), "--account", "a", "--delta", "1e-6"]).stdout
    assert "2 x gaussian (noise 10, sampling 1)" in text
    refused = CliRunner().invoke(app, ["show", str(path)])
    assert isinstance(refused.exception, MisconfiguredError)
    assert "give a delta" in str(refused.exception)


def test_a_charge_is_a_value() -> None:
    assert Charge(1, "a", 2.0) == Charge(1, "a", 2.0, ())
