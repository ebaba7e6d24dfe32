"""How fast words are drawn and texts sanitised, on one core.

    python benchmarks/words_speed.py [--quick] [--json]

- draws_per_s: `PartitionedMechanism.sample` (rnm, epsilon 3) over 20,000 words in groups of 20, words of all
  groups mixed, tables made beforehand; every draw is an independent 64-bit word of the system's generator.
- opendp_draws_per_s: opendp's `make_noisy_max` on one group's 20 scores at the same nominal epsilon, in the
  same run; it makes its noise anew for every draw, and so needs no tables.
- words_per_s: whole texts through `Sanitizer.sanitize_batch` under the shipped English policy: lexing, kinds,
  placeholders, draws, joining. Words are what white space separates.
- single_words_per_s: the same texts one by one through `Sanitizer.sanitize`, as a chat request goes.

Each figure is the median of several rounds. The text is made up, in everyday English with names and numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np

from _bench import parser, report
from transom.privacy.mechanisms import partitioned
from transom.privacy.partition import Partition
from transom.privacy.placeholders import Placeholders
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer

VOCABULARY, GROUP, EPSILON = 20_000, 20, 3.0

TEXT = """My landlord, Harriet Blom, wants $1,450 by 3 March although the boiler has been broken for 17 days.
Could you write a polite but firm letter that says I will pay half now and the rest once it works again? She
can reach me at hb.tenant@example.org. I also slipped on the wet stairs last week; the doctor says the wrist
is sprained, not broken, and gave me ibuprofen 400mg. Is there anything about the injury that I should
mention, or would that make her angry? My sister thinks we ought to talk to a lawyer first, but lawyers are
expensive and the flat is otherwise lovely: quiet street, big kitchen, friendly neighbours, ten minutes from
the tram.
"""


def rate(work: Callable[[], object], amount: int, rounds: int) -> float:
    """Units a second: `amount` over the median wall time of `rounds` runs, after one run to warm up."""
    work()
    times_s = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times_s.append(time.perf_counter() - start)
    return amount / statistics.median(times_s)


def made_up_partition() -> Partition:
    """20,000 words in groups of 20 with the similarities of random directions around one centre a group."""
    rng, groups = np.random.default_rng(0), VOCABULARY // GROUP
    vectors = rng.normal(size=(groups, GROUP, 50)) / 2 + rng.normal(size=(groups, 1, 50))
    vectors /= np.linalg.norm(vectors, axis=2, keepdims=True)
    scores = (1 + vectors @ vectors.transpose(0, 2, 1)) / 2
    starts = np.arange(0, VOCABULARY + 1, GROUP, dtype=np.int32)
    return Partition(starts, np.clip(np.round(255 * scores), 0, 255).astype(np.uint8).ravel())


def our_draws(partition: Partition, draws: int, rounds: int) -> tuple[float, float]:
    """(draws a second, seconds to calibrate all groups)."""
    mechanism = partitioned("rnm", partition, EPSILON)
    start = time.perf_counter()
    mechanism.sample(np.arange(VOCABULARY))
    calibrated_s = time.perf_counter() - start
    words = np.random.default_rng(1).integers(0, VOCABULARY, draws)
    return rate(lambda: mechanism.sample(words), draws, rounds), calibrated_s


def opendp_draws(partition: Partition, draws: int, rounds: int) -> float:
    """opendp's sampler on the first word's 20 scores."""
    import opendp.prelude as dp

    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T=float, nan=False)), dp.linf_distance(T=float)
    theirs = dp.m.make_noisy_max(*space, dp.max_divergence(), scale=2 / EPSILON)
    scores = partition.scores(0)[0].tolist()
    return rate(lambda: [theirs(scores) for _ in range(draws)], draws, rounds)


def one_by_one(sanitizer: Sanitizer, texts: Sequence[str]) -> None:
    """Each text as a message of its own conversation."""
    for text in texts:
        sanitizer.sanitize(text, placeholders=Placeholders())


def main() -> None:
    """Measure, print, store."""
    args = parser(__doc__).parse_args()
    rounds, draws, copies = (3, 500_000, 50) if args.quick else (15, 2_000_000, 400)
    partition = made_up_partition()
    draws_per_s, calibrated_s = our_draws(partition, draws, rounds)
    opendp_per_s = opendp_draws(partition, 500, rounds)
    sanitizer, texts = Sanitizer(load_policy(), "rnm", EPSILON), [TEXT] * copies
    words = copies * len(TEXT.split())
    batch_per_s = rate(lambda: sanitizer.sanitize_batch(texts), words, rounds)
    single_per_s = rate(lambda: one_by_one(sanitizer, texts), words, rounds)
    record = {
        "draws_per_s": draws_per_s,
        "opendp_draws_per_s": opendp_per_s,
        "draws_ratio": draws_per_s / opendp_per_s,
        "words_per_s": batch_per_s,
        "single_words_per_s": single_per_s,
        "calibration_s": calibrated_s,
    }
    rows = [
        {"what": "transom rnm, 20,000 words in groups of 20", "per second": draws_per_s, "unit": "draws"},
        {"what": "opendp noisy max, 20 candidates", "per second": opendp_per_s, "unit": "draws"},
        {"what": "whole texts, batched", "per second": batch_per_s, "unit": "words"},
        {"what": "whole texts, one by one", "per second": single_per_s, "unit": "words"},
        {"what": "calibrating a group", "per second": VOCABULARY / GROUP / calibrated_s, "unit": "groups"},
    ]
    report("words_speed", record, rows, args)


if __name__ == "__main__":
    main()
