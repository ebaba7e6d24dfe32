"""Figures for Prometheus: requests, tokens, seconds a step, epsilon spent, public text, rows embedded.

Threat model: whoever may read `/metrics`. Labels come from fixed sets, so no content can reach it.
Whatever number comes, a counter grows by a finite amount that is not below zero, so none is ever spoilt.
Does not protect: volumes and timing, which are what it reports.
Source: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

_MOST = 2**40  # no single request comes near it
_HELP = {
    "transom_requests_total": "Requests by endpoint and HTTP status.",
    "transom_tokens_total": "Tokens of prompts and answers.",
    "transom_step_seconds_total": "Seconds spent in each step of a request.",
    "transom_step_runs_total": "How often each step ran.",
    "transom_epsilon_spent_total": "Finite epsilon spent by this process, also where no ledger records it.",
    "transom_public_characters_total": "Characters that passed because the caller says they are public.",
    "transom_embedded_rows": "Distinct embedding rows used in the running day (mode enclave).",
}


class Metrics:
    """Counters of one gateway; used from its event loop only."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], float] = defaultdict(int)

    def _add(self, name: str, labels: str, amount: float) -> None:
        if 0 <= amount <= _MOST:  # false for NaN too
            self._values[name, labels] += amount

    def request(self, endpoint: str, status: int) -> None:
        """Count one answered request."""
        self._add("transom_requests_total", f'{{endpoint="{endpoint}",status="{status}"}}', 1)

    def tokens(self, kind: str, count: int) -> None:
        """Count tokens of `kind` prompt or completion."""
        self._add("transom_tokens_total", f'{{kind="{kind}"}}', count)

    def epsilon(self, amount: float) -> None:
        """Count charged epsilon."""
        self._add("transom_epsilon_spent_total", "", amount)

    def public(self, characters: int) -> None:
        """Count what passed as public text."""
        self._add("transom_public_characters_total", "", characters)

    def embedded_rows(self, distinct: int) -> None:
        """Set the extraction meter's reading."""
        self._values["transom_embedded_rows", ""] = distinct

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time a step: text, tokenize, embed, ledger, engine."""
        start_s = time.perf_counter()
        try:
            yield
        finally:
            self._add("transom_step_seconds_total", f'{{step="{name}"}}', time.perf_counter() - start_s)
            self._add("transom_step_runs_total", f'{{step="{name}"}}', 1)

    def render(self) -> str:
        """The exposition text."""
        lines = []
        for name, text in _HELP.items():
            kind = "counter" if name.endswith("_total") else "gauge"
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [
                f"{key}{labels} {value}" for (key, labels), value in self._values.items() if key == name
            ]
        return "\n".join(lines) + "\n"
