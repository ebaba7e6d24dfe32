"""Whether what is charged covers what the host sees, where requests are refused, edited and repeated.

    python benchmarks/words_seams.py [--quick] [--draws N] [--json]

The distinguisher over the whole way of a request (sanitise, charge, tokenise with SmolLM2's tokenizer, call),
for two requests that differ in one word of a group:

1. refusals: the prompt limit lets short words pass, and the client asks until a draw does, up to 20 times;
   what it gets at last is seen;
2. a returning word: a place of a session holds a word, then a pass word, then that word again or another one;
   whether the first and the last draw agree, and the last draw, are seen;
3. retries: three identical requests; all three texts are seen, the pattern of repeats being held fixed.

Each is charged one epsilon at the word in question, and nothing above it may be certified. `certified` is
what the distinguisher is 99 % sure of; `charged` what the account paid a run. Words and limit are those for
which a draw conditioned on its length would pass the claim by most. The last row shows that this would be
seen: with the retry window at 0 every try is a draw, which is charged, but held against the price of one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from _bench import parser, report
from transom.audit.attacks.epsilon import judge
from transom.audit.draws import Draws
from transom.errors import RefusedError
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
from transom.serving.engines.base import Call, Delta, EngineCard
from transom.serving.gateway.charge import Charger
from transom.serving.gateway.config import GatewayConfig
from transom.serving.gateway.deliver import Caller, Gateway
from transom.serving.gateway.exchange import prepare
from transom.serving.gateway.metrics import Metrics
from transom.serving.gateway.requests import ChatRequest, parse
from transom.serving.gateway.words import Veil
from transom.serving.tokenizer import load_tokenizer

ALPHA, CLIENTS = 0.01, 64
LEAST_PASSING, LEAST_SEEN = 0.05, 0.0005  # so that 100,000 draws show something


class Nowhere:
    """An engine whose calls are never made."""

    takes, takes_embeds = "ids", False

    async def probe(self) -> EngineCard:
        return EngineCard("echo", "transom")

    async def generate(self, call: Call) -> AsyncGenerator[Delta, None]:
        raise NotImplementedError
        yield Delta(0)

    async def close(self) -> None:
        pass


class Total:
    """A ledger that only adds up."""

    spent = 0.0

    def charge_many(self, charges: Sequence[tuple[str, float]]) -> list[float]:
        self.spent += sum(epsilon for _, epsilon in charges)
        return [0.0] * len(charges)


class Bench:
    """A gateway without a network."""

    sanitizer, tokenizer = Sanitizer(load_policy()), load_tokenizer("smollm2")

    def __init__(self, **changes: Any) -> None:
        config = GatewayConfig(mode="words", **changes)
        self.veil, self.ledger = Veil(self.sanitizer, retry_s=60 * config.retry_minutes), Total()
        charger = Charger(self.ledger)
        self.gateway = Gateway(config, Nowhere(), self.tokenizer, self.veil, charger, Metrics())

    async def ask(self, text: str, account: str, session: str | None = None) -> str:
        body = json.dumps({"model": "echo", "messages": [{"role": "user", "content": text}]}).encode()
        repeat = None if session else self.veil.repeatable(account, "chat", body)
        name = session and f"{account}:{session}"
        exchange = await prepare(self.gateway, parse(ChatRequest, body), Caller(account, name, repeat=repeat))
        return "\n".join(exchange.host_saw)


def worst() -> tuple[str, str, int]:
    """Two words of a group, and up to how many tokens a draw passes, with the largest epsilon there."""
    policy, mechanism = Bench.sanitizer.policy, Bench.sanitizer.mechanism
    length_V = np.array([len(Bench.tokenizer.encode_text(" " + word).ids) for word in policy.words])
    found: tuple[float, str, str, int] = (0.0, "", "", 0)
    for group in range(policy.partition.groups):
        start, end = policy.partition.starts_G1[group : group + 2]
        p_XY, length_Y = mechanism.channel(group).p_XY, length_V[start:end]
        for limit in np.unique(length_Y)[:-1]:
            passed_XY = p_XY[:, length_Y <= limit]
            passes_X = passed_XY.sum(axis=1)
            log_XY = np.log(passed_XY / passes_X[:, None])
            y = int(np.ptp(log_XY, axis=0).argmax())
            high, low = (int(end_of(log_XY[:, y])) for end_of in (np.argmax, np.argmin))
            epsilon = float(log_XY[high, y] - log_XY[low, y])
            if epsilon > found[0] and passes_X.min() > LEAST_PASSING and passed_XY[:, y].min() > LEAST_SEEN:
                found = epsilon, policy.words[start + high], policy.words[start + low], int(limit)
    return found[1], found[2], found[3]


async def refused(bench: Bench, word: str, account: str) -> object:
    for _ in range(20):
        with suppress(RefusedError):
            return await bench.ask(f"of the {word}", account)
    return None


async def returning(bench: Bench, word: str, account: str) -> object:
    first, _, last = [
        await bench.ask(text, account, "s") for text in (f"{ONE} the and", "of the and", f"{word} the and")
    ]
    return first == last, last


async def retried(bench: Bench, word: str, account: str) -> object:
    return tuple([await bench.ask(f"{word} the and", account) for _ in range(3)])


ONE, OTHER, PASSING_TOKENS = worst()
Scenario = Callable[[Bench, str, str], Awaitable[object]]


async def run(scenario: Scenario, bench: Bench, word: str, draws: int) -> list[object]:
    """What the host sees of `draws` independent runs, CLIENTS of them at a time."""
    accounts, seen = iter(range(draws)), []

    async def client() -> None:
        for account in accounts:
            seen.append(await scenario(bench, word, str(account)))

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return seen


def row(name: str, scenario: Scenario, draws: int, extra: float, **changes: Any) -> dict[str, Any]:
    """The distinguisher's verdict; `extra` is what a run charges besides the word in question, in draws."""
    identities: dict[object, int] = {}
    epsilon, seen, charged = Bench.sanitizer.word_epsilon, [], []
    for word in (ONE, OTHER):
        bench = Bench(**changes)
        texts = asyncio.run(run(scenario, bench, word, draws))
        seen.append(np.array([identities.setdefault(text, len(identities)) for text in texts]))
        charged.append(bench.ledger.spent / draws - extra * epsilon)
    found = judge(Draws(*seen), epsilon=epsilon, alpha=ALPHA)
    return {
        "scenario": name, "draws": draws, "epsilon": epsilon, "charged": max(charged),
        "certified": found.epsilon_lower, "above": found.rejected,
    }  # fmt: skip


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--draws", type=int, default=100_000, help="runs on each of the two requests")
    args = flags.parse_args()
    draws = 3_000 if args.quick else args.draws
    limit = len(Bench.tokenizer.encode_chat([("user", "of the")]).ids) + PASSING_TOKENS
    print(f"words {ONE!r} and {OTHER!r}, prompt limit {limit} tokens", file=sys.stderr)
    rows = [
        row("refusals", refused, draws, 0, max_prompt_tokens=limit),
        row("returning word", returning, draws, 1),
        row("retries", retried, draws, 0),
        row("every try held against one", refused, draws, 0, max_prompt_tokens=limit, retry_minutes=0),
    ]
    sound = rows[:-1]
    record = {
        "certified_worst": max(one["certified"] for one in sound),
        "above": sum(one["above"] for one in sound),
        "charged_exactly": all(abs(one["charged"] - one["epsilon"]) < 1e-6 for one in sound),
        "rows": rows,
    }
    report("words_seams", record, rows, args)


if __name__ == "__main__":
    main()
