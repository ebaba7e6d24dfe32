"""How fast words are drawn and texts sanitised, on one core.

    python benchmarks/words_speed.py [--quick] [--json]

- draws_per_s: `PartitionedMechanism.sample` (rnm, epsilon 3) over 20,000 words in groups of 20, words of all
  groups mixed, tables made beforehand; every draw is an independent 64-bit word of the system's generator.
- opendp_draws_per_s: opendp's `make_noisy_max` on one group's 20 scores at the same nominal epsilon, in the
  same run; it makes its noise anew for every draw, and so needs no tables.
- words_per_s: whole texts through `Sanitizer.sanitize_batch` under the shipped English policy: lexing, kinds,
  placeholders, draws, joining. Words are what white space separates.
- single_words_per_s: the same texts one by one through `Sanitizer.sanitize`, as a chat request goes.
- entities_words_per_s, today_words_per_s, entities_ratio: whole texts in batches under the preset `entities`,
  and under the default of the build that new figures are held against (`_bench.TODAY`, words drawn), each
  in processes of its own, one core, processor time, by turns; no text stands twice.
- processes_ratio: wall time of `transom words sanitize --preset entities` with one worker over that with two,
  on a file of --megabytes; the least of several rounds, since others may use the machine. `load` is the
  machine's load before: with other work on its cores the ratio says little.
- memory_mib: peak resident memory of that command, one worker, on a tenth of --flat megabytes and on all.

Each figure is the median of several rounds. The text is made up, in everyday English with names and numbers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import transom
from _bench import parser, report, today
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


_COMMAND = "from transom.cli.main import main; main()"
_BATCHES = """
import json, sys, time
from transom.privacy.policy import load_policy
from transom.privacy.sanitize import Sanitizer
ask = json.load(sys.stdin)
policy = load_policy()
if ask["preset"]:
    from transom.privacy.presets import with_preset
    policy = with_preset(policy, ask["preset"])
sanitizer = Sanitizer(policy)
texts = ask["texts"]
times = []
for _ in range(1 + ask["rounds"]):
    start = time.process_time()
    sanitizer.sanitize_batch(texts)
    times.append(time.process_time() - start)
print(json.dumps(times[1:]))
"""


def various(copies: int) -> list[str]:
    """Texts of the same words that are not the same text: sentences in another order, other numbers."""
    sentences, made = re.split(r"(?<=[.?]) ", TEXT.replace("\n", " ").strip()), []
    for number in range(copies):
        order = np.random.default_rng(number).permutation(len(sentences))
        made.append(" ".join(sentences[i] for i in order).replace("17", str(number)))
    return made


def beside_today(copies: int, rounds: int) -> dict[str, float | None]:
    """Words a second of processor time under `entities` and in today's build; None without that commit."""
    spent_s: dict[str, list[float]] = {"entities": [], "today": []}
    with tempfile.TemporaryDirectory() as folder:
        source = today(folder)
        if source is None:
            return {"entities_words_per_s": None, "today_words_per_s": None, "entities_ratio": None}
        for _ in range(2):
            for name, src, preset in (("today", source, ""), ("entities", _own_source(), "entities")):
                ask = {"texts": various(copies), "rounds": rounds, "preset": preset}
                run = subprocess.run(
                    [sys.executable, "-c", _BATCHES],
                    input=json.dumps(ask),
                    env=_one_core(src),
                    capture_output=True,
                    text=True,
                    check=True,
                )
                spent_s[name] += json.loads(run.stdout)
    words = copies * len(TEXT.split())
    ours, theirs = (words / statistics.median(spent_s[name]) for name in ("entities", "today"))
    return {"entities_words_per_s": ours, "today_words_per_s": theirs, "entities_ratio": ours / theirs}


def _own_source() -> Path:
    return Path(transom.__file__).parents[1]


def _one_core(source: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def command(file: Path, workers: int) -> tuple[float, float]:
    """(seconds, peak MiB of the first process) of `transom words sanitize` on a file."""
    out = file.with_suffix(".out")
    start = time.perf_counter()
    asked = ["words", "sanitize", str(file), "--out", str(out), "--preset", "entities"]
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *asked, "--workers", str(workers)],
        env=_one_core(_own_source()),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"transom words sanitize failed: {said.decode(errors='replace')[-400:]}")
    seconds = time.perf_counter() - start
    out.unlink()
    return seconds, usage.ru_maxrss / 1024


def made_up_file(folder: Path, megabytes: float) -> Path:
    """A text file of that size, one paragraph of TEXT a line."""
    line = TEXT.replace("\n", " ").strip() + "\n"
    path = folder / f"{megabytes:g}.txt"
    with path.open("w", encoding="utf-8") as file:
        for _ in range(int(megabytes * 2**20 / len(line)) + 1):
            file.write(line)
    return path


def of_files(megabytes: float, flat: float, rounds: int) -> dict[str, Any]:
    """What the command takes: two workers over one, and memory on a small and a large file."""
    with tempfile.TemporaryDirectory() as folder:
        file = made_up_file(Path(folder), megabytes)
        seconds = {workers: min(command(file, workers)[0] for _ in range(rounds)) for workers in (1, 2)}
        file.unlink()
        peaks = {}
        for size in (flat / 10, flat):
            file = made_up_file(Path(folder), size)
            peaks[f"{size:g} MB"] = command(file, 1)[1]
            file.unlink()
    return {
        "processes_ratio": seconds[1] / seconds[2],
        "one_process_s": seconds[1],
        "two_processes_s": seconds[2],
        "file_megabytes": megabytes,
        "memory_mib": peaks,
        "memory_growth": max(peaks.values()) / min(peaks.values()),
    }


def flags() -> argparse.Namespace:
    """The command line."""
    known = parser(__doc__)
    known.add_argument("--megabytes", type=float, help="of the file for two processes (10; quick 2)")
    known.add_argument("--flat", type=float, help="megabytes of the large file (1000; quick 10)")
    return known.parse_args()


def main() -> None:
    """Measure, print, store."""
    args = flags()
    rounds, draws, copies = (3, 500_000, 50) if args.quick else (15, 2_000_000, 400)
    partition = made_up_partition()
    draws_per_s, calibrated_s = our_draws(partition, draws, rounds)
    opendp_per_s = opendp_draws(partition, 500, rounds)
    sanitizer, texts = Sanitizer(load_policy(), "rnm", EPSILON), [TEXT] * copies
    words = copies * len(TEXT.split())
    batch_per_s = rate(lambda: sanitizer.sanitize_batch(texts), words, rounds)
    single_per_s = rate(lambda: one_by_one(sanitizer, texts), words, rounds)
    load = os.getloadavg()[0]
    beside = beside_today(20 if args.quick else 200, 3 if args.quick else 7)
    files = of_files(
        args.megabytes or (2 if args.quick else 10),
        args.flat or (10 if args.quick else 1000),
        1 if args.quick else 3,
    )
    record = {
        "draws_per_s": draws_per_s,
        "opendp_draws_per_s": opendp_per_s,
        "draws_ratio": draws_per_s / opendp_per_s,
        "words_per_s": batch_per_s,
        "single_words_per_s": single_per_s,
        "calibration_s": calibrated_s,
        **beside,
        "load": load,
        **files,
    }
    rows = [
        {"what": "transom rnm, 20,000 words in groups of 20", "per second": draws_per_s, "unit": "draws"},
        {"what": "opendp noisy max, 20 candidates", "per second": opendp_per_s, "unit": "draws"},
        {"what": "whole texts, batched", "per second": batch_per_s, "unit": "words"},
        {"what": "whole texts, one by one", "per second": single_per_s, "unit": "words"},
        {"what": "entities, processor time", "per second": beside["entities_words_per_s"], "unit": "words"},
        {"what": "today's build, likewise", "per second": beside["today_words_per_s"], "unit": "words"},
        {"what": "two processes over one", "per second": files["processes_ratio"], "unit": "ratio"},
        {"what": "memory, large file over small", "per second": files["memory_growth"], "unit": "ratio"},
        {"what": "calibrating a group", "per second": VOCABULARY / GROUP / calibrated_s, "unit": "groups"},
    ]
    report("words_speed", record, rows, args)


if __name__ == "__main__":
    main()
