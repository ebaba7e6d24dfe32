"""The epsilon distinguisher over many seeds: how often it accuses sound mechanisms, and catches broken ones.

    python benchmarks/audit_distinguisher.py [--quick] [--json] [--seeds 200] [--samples 20000]

Sound mechanisms are judged at a claim that is just true: their exact epsilon, between the two inputs where it
is attained, which is where a false rejection is likeliest. Each must be rejected in a share of seeds that
does not exceed the stated rate `alpha`: `excess` says whether the exact lower end of that share does.
Broken ones claim epsilon 1: half the noise, sensitivity 1 where it is 2, candidates that depend on the input,
a fixed seed and a memo keyed by the word (both on two-word outputs); for vectors half the noise and forgotten
clipping. `minutes` is the time of all of it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

import _bench
from transom.audit.attacks.epsilon import judge
from transom.audit.draws import Draws, Samples
from transom.privacy import laws
from transom.privacy.channel import Channel, exact_epsilon, sample
from transom.privacy.mechanisms import em, krr, random_in_group, rnm
from transom.report.statistics import interval

SIZE, WIDTH, EPSILON, DELTA, ALPHA = 20, 4, 1.0, 1e-5, 0.05
SIGMA = 3.731  # the least Gaussian noise for (1, 1e-5) at sensitivity 1 (Balle and Wang 2018)
SCORES = np.random.default_rng(0).random((SIZE, SIZE))
COSINES = np.where(np.arange(SIZE) == 0, [[1.0], [-1.0]], [[-1.0], [1.0]])
ZERO_D, ONE_D = np.zeros(WIDTH), np.eye(WIDTH)[0]
Generator = np.random.Generator
Case = tuple[str, Callable[[Generator, int], Draws], float, float, int]


def table(channel: Channel) -> Callable[[Generator, int], Draws]:
    """Draws from a finite mechanism on the two inputs between which its epsilon is attained."""
    log_p = np.log(np.maximum(channel.p_XY, 1e-300))
    ratio = (log_p[:, None] - log_p[None]).max(axis=2)
    a, b = np.unravel_index(int(ratio.argmax()), ratio.shape)
    return lambda _, n: Draws(*(sample(channel, np.full(n, x)) for x in (a, b)))


def pairs(channel: Channel, shared: str) -> Callable[[Generator, int], Draws]:
    """Draws on two words, (0, 0) and (0, 1), where draws share their seed, a memo by word, or nothing."""
    bounds_XY = np.cumsum(channel.p_XY, axis=1)

    def one(uniform_N: NDArray[np.float64], word: int) -> NDArray[np.int64]:
        return np.minimum(np.searchsorted(bounds_XY[word], uniform_N, side="right"), SIZE - 1)

    def draw(rng: Generator, n: int) -> Draws:
        found: list[Samples] = []
        for words in ((0, 0), (0, 1)):
            first, second = rng.random((2, n))
            if shared == "seed" or (shared == "memo" and words[0] == words[1]):
                second = first
            found.append(one(first, words[0]) * SIZE + one(second, words[1]))
        return Draws(*found)

    return draw


def noise(kind: str, scale: float, far: float = 1.0) -> Callable[[Generator, int], Draws]:
    """Draws of a vector and of another at distance `far`, under noise of that scale."""

    def add(rng: Generator, centre_D: NDArray[np.float64], n: int) -> NDArray[np.float64]:
        if kind == "gaussian":
            return centre_D + rng.normal(0, scale, (n, WIDTH))
        if kind == "laplace":
            return centre_D + rng.laplace(0, scale, (n, WIDTH))
        way_ND = rng.normal(size=(n, WIDTH))
        way_ND /= np.linalg.norm(way_ND, axis=1, keepdims=True)
        return centre_D + rng.gamma(WIDTH, scale, (n, 1)) * way_ND

    return lambda rng, n: Draws(add(rng, ZERO_D, n), add(rng, far * ONE_D, n))


def sound(samples: int) -> list[Case]:
    """(name, draws, claimed epsilon, delta, samples) of mechanisms whose claim is just true."""
    cases: list[Case] = []
    for make in (rnm, em, krr, random_in_group):
        channel = make(SCORES, EPSILON)
        cases.append((make.__name__, table(channel), exact_epsilon(channel), 0.0, samples))
    channel = rnm(SCORES, EPSILON)
    cases.append(("rnm, two words", pairs(channel, "nothing"), row_epsilon(channel, 0, 1), 0.0, samples))
    for kind in ("laplace", "metric laplace"):
        cases.append((f"{kind} vectors", noise(kind, 1.0), EPSILON, 0.0, samples))
    delta = float(norm.cdf(0.5 / SIGMA - SIGMA) - math.e * norm.cdf(-0.5 / SIGMA - SIGMA))
    cases.append(("gaussian vectors", noise("gaussian", SIGMA), EPSILON, delta, samples))
    return cases


def row_epsilon(channel: Channel, a: int, b: int) -> float:
    """The largest absolute log ratio between two rows."""
    return float(np.abs(np.log(channel.p_XY[a]) - np.log(channel.p_XY[b])).max())


def broken(samples: int) -> list[Case]:
    """The same of mechanisms that claim EPSILON and break it."""
    nearest = np.argsort(-SCORES, axis=1)[:, :5]
    dependent = np.zeros((SIZE, SIZE))
    np.put_along_axis(dependent, nearest, 0.2, axis=1)
    wide = Channel.from_probabilities(laws.permute_and_flip(COSINES, EPSILON))
    word = rnm(SCORES, EPSILON)
    return [
        ("half the noise (rnm)", table(rnm(SCORES, 2 * EPSILON)), EPSILON, 0.0, samples),
        ("half the noise (em)", table(em(SCORES, 2 * EPSILON)), EPSILON, 0.0, samples),
        ("sensitivity 1 where it is 2", table(wide), EPSILON, 0.0, samples),
        ("candidates by input", table(Channel.from_probabilities(dependent)), EPSILON, 0.0, samples),
        ("fixed seed, two words", pairs(word, "seed"), EPSILON, 0.0, samples),
        ("memo by word, two words", pairs(word, "memo"), EPSILON, 0.0, samples),
        ("half the noise (laplace vectors)", noise("laplace", 0.5), EPSILON, 0.0, samples),
        ("half the noise (metric laplace vectors)", noise("metric laplace", 0.5), EPSILON, 0.0, samples),
        ("half the noise (gaussian vectors)", noise("gaussian", SIGMA / 2), EPSILON, DELTA, 6 * samples),
        ("forgotten clipping (norm 3)", noise("gaussian", SIGMA, 3.0), EPSILON, DELTA, 3 * samples),
    ]


def tried(case: Case, seeds: int) -> dict[str, Any]:
    """How many of `seeds` runs reject, and how long they take."""
    name, draws, epsilon, delta, samples = case
    started, rejections, lower = time.monotonic(), 0, []
    for seed in range(seeds):
        found = judge(draws(np.random.default_rng(seed), samples), epsilon=epsilon, delta=delta, alpha=ALPHA)
        rejections += found.rejected
        lower.append(found.epsilon_lower)
    low, high = interval(rejections, seeds)
    return {
        "mechanism": name,
        "claimed": epsilon,
        "delta": delta,
        "samples": samples,
        "seeds": seeds,
        "rejections": rejections,
        "rate": rejections / seeds,
        "rate_low": low,
        "rate_high": high,
        "epsilon_lower_median": float(np.median(lower)),
        "minutes": (time.monotonic() - started) / 60,
    }


def main() -> None:
    """Judge all mechanisms over all seeds; exit with 1 when one is accused too often or not caught."""
    flags = _bench.parser(__doc__)
    flags.add_argument("--seeds", type=int, default=200)
    flags.add_argument("--samples", type=int, default=20_000)
    args = flags.parse_args()
    seeds = 8 if args.quick else args.seeds
    started = time.monotonic()
    rows = [tried(case, seeds) | {"sound": True} for case in sound(args.samples)]
    rows += [tried(case, seeds) | {"sound": False} for case in broken(args.samples)]
    accused = [row["rate"] for row in rows if row["sound"]]
    caught = [row["rate"] for row in rows if not row["sound"]]
    record = {
        "alpha": ALPHA,
        "seeds": seeds,
        "false_rejections_worst": max(accused),
        "false_rejections": float(np.mean(accused)),
        "excess": any(row["rate_low"] > ALPHA for row in rows if row["sound"]),
        "caught_worst": min(caught),
        "minutes": (time.monotonic() - started) / 60,
        "rows": rows,
    }
    shown = ("mechanism", "samples", "rejections", "claimed", "epsilon_lower_median", "minutes")
    _bench.report("audit_distinguisher", record, [{key: row[key] for key in shown} for row in rows], args)
    if record["excess"] or record["caught_worst"] < 0.99:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
