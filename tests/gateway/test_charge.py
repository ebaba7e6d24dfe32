"""Group commit: many requests, few transactions, no charge lost, refusals to those alone who earned them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from transom.errors import LedgerError, LedgerSpentError
from transom.privacy.ledger import Ledger
from transom.serving.gateway.charge import Charger


class CountingLedger(Ledger):
    """Counts transactions."""

    transactions = 0

    def charge_many(self, charges: Sequence[tuple[str, float]]) -> list[float | LedgerSpentError]:
        self.transactions += 1
        return super().charge_many(charges)


async def test_concurrent_charges_share_transactions_and_all_count(tmp_path: Path) -> None:
    with CountingLedger(tmp_path / "ledger", 1000.0) as ledger:
        charger = Charger(ledger)
        totals = await asyncio.gather(*(charger.charge("a", 0.5) for _ in range(200)))
        assert sorted(totals) == [0.5 * i for i in range(1, 201)]
        assert ledger.spent("a") == 100.0
        assert ledger.transactions < 20
        assert await charger.charge("a", 1.0) == 101.0  # and the worker starts anew


async def test_only_the_spent_account_is_refused(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", 2.0) as ledger:
        charger = Charger(ledger)
        outcomes = await asyncio.gather(
            *(charger.charge(account, 1.5) for account in "aabb"), return_exceptions=True
        )
        assert [type(outcome) for outcome in outcomes] == [float, LedgerSpentError, float, LedgerSpentError]


async def test_any_failure_refuses_everyone_waiting() -> None:
    class Broken:
        def charge_many(self, charges: Sequence[tuple[str, float]]) -> list[float]:
            raise RuntimeError("secret")

    charger = Charger(Broken())  # type: ignore[arg-type]
    outcomes = await asyncio.gather(charger.charge("a", 1), charger.charge("b", 1), return_exceptions=True)
    assert all(isinstance(outcome, LedgerError) for outcome in outcomes)
    assert not any("secret" in str(outcome) for outcome in outcomes)


async def test_a_cancelled_caller_does_not_stop_the_others(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", 10.0) as ledger:
        charger = Charger(ledger)
        first = asyncio.create_task(charger.charge("a", 1.0))
        second = asyncio.create_task(charger.charge("a", 1.0))
        await asyncio.sleep(0)
        first.cancel()
        assert await second >= 1.0
        with pytest.raises(asyncio.CancelledError):
            await first
