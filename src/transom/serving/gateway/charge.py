"""Charges before anything is sent, many requests to one disk flush.

Threat model: a crash, a full disk or a concurrent gateway must not let words leave that were not charged. A
request waits here until the ledger says that its charge is durable.
Does not protect: what the charge buys is the sanitiser's promise.
Source: group commit.
"""

from __future__ import annotations

import asyncio

from transom.errors import LedgerError, LedgerSpentError
from transom.privacy.ledger import Ledger

_BATCH = 512


class Charger:
    """Collects the charges that arrive while one transaction runs, and commits them in the next."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: list[tuple[str, float, asyncio.Future[float]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def charge(self, account: str, epsilon: float) -> float:
        """The account's new total, once durable. Raises LedgerError; then nothing may be sent.

        A caller that is cancelled may still have been charged: a charge is never refunded.
        """
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((account, epsilon, future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:_BATCH], self._waiting[_BATCH:]
            charges = [(account, epsilon) for account, epsilon, _ in batch]
            outcomes: list[float | LedgerSpentError] | list[LedgerError]
            try:
                outcomes = await asyncio.to_thread(self._ledger.charge_many, charges)
            except Exception as error:  # whatever it was, nobody may send on it
                failed = f"the privacy ledger failed ({type(error).__name__}); nothing was sent"
                outcomes = [error if isinstance(error, LedgerError) else LedgerError(failed)] * len(batch)
            for (_, _, future), outcome in zip(batch, outcomes, strict=True):
                if future.done():
                    continue
                if isinstance(outcome, LedgerError):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)
