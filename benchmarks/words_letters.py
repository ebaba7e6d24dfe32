"""What the presets hide of 200 letters full of private values, and what they spoil; beside Presidio.

    python benchmarks/words_letters.py [--quick] [--json] [--presidio-python /path/to/venv/bin/python]

The letters are those of `_letters.py`: invented, hard, each value planted at a known place. A value is hidden
when none of its words can be read, worst of three draws, a harmless word is spoilt when it is changed
(`_letters_score.py`). `entities` and Presidio are held against the kinds that `entities` covers (names,
numbers, identifiers), `sensitive` and `words` against all values. `words_today` is the build of commit TODAY,
taken from git. `min_gain` is the smaller of what `entities` gains over Presidio in values hidden and in
harmless words kept. `held_out` repeats the figures over the odd letters, which nobody reads who works on the
detector, `development` over the even ones, whose misses `--misses` lists.

Presidio runs as it comes, with the medium English model, in an environment of its own (`make bench` makes
one). Money, organisations and most numbers of documents are nothing it looks for: `presidio.hidden_own`
counts only what it does look for. Does not show what a reader of the whole letter infers without any value.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _bench import TODAY, parser, report, today
from _letters import COVERED, LETTERS, SENSITIVE, Letter, letters
from _letters_score import PRESIDIO, Judged, Read, hidden, scores

HERE = Path(__file__).parent
DRAWS, SEED = 3, 14
CLAIMS: dict[str, Sequence[str] | None] = {  # the kinds that a system promises to hide, None for all
    "entities": COVERED, "sensitive": None, "words": None, "words_today": None, "presidio": COVERED,
}  # fmt: skip
Results = Mapping[str, list[Judged]]


def measured(command: Sequence[object], texts: Sequence[str], source: Path | None = None) -> list[Read]:
    """What the script of a system answers."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", **({"PYTHONPATH": str(source)} if source else {})}
    done = subprocess.run(
        [str(part) for part in command],
        input=json.dumps(texts),
        env=env,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return [Read(**one) for one in json.loads(done.stdout)]


def run(written: Sequence[Letter], presidio_python: str | None) -> Results:
    """Every system over the letters."""
    texts = [letter.text for letter in written]
    transom = (sys.executable, HERE / "_letters_transom.py")
    reads = {
        preset: measured((*transom, preset, DRAWS), texts) for preset in ("entities", "sensitive", "words")
    }
    with tempfile.TemporaryDirectory() as folder:
        if source := today(folder):
            reads["words_today"] = measured((*transom, "words", DRAWS), texts, source)
        else:
            print(f"no commit {TODAY} here: run in a checkout for its figures", file=sys.stderr)
    if presidio_python:
        reads["presidio"] = measured((presidio_python, HERE / "_letters_presidio.py"), texts)
    else:
        print("no --presidio-python: left out", file=sys.stderr)
    return {
        name: [Judged(letter, read) for letter, read in zip(written, answers, strict=True)]
        for name, answers in reads.items()
    }


def figures(results: Results) -> dict[str, Any]:
    """The scores of each system, and `min_gain`."""
    record: dict[str, Any] = {name: scores(judged, CLAIMS[name]) for name, judged in results.items()}
    record["min_gain"] = None
    if presidio := record.get("presidio"):
        presidio["hidden_own"] = hidden(results["presidio"], PRESIDIO)
        entities = record["entities"]
        record["min_gain"] = min(
            entities["hidden"] - presidio["hidden"],
            presidio["harmless_changed"] - entities["harmless_changed"],
        )
    return record


def half(results: Results, held_out: bool) -> Results:
    """The held-out letters, or the others."""
    return {
        name: [one for one in judged if one.letter.held_out is held_out] for name, judged in results.items()
    }


def by_kind(results: Results) -> list[dict[str, Any]]:
    """A row a kind of value: how many there are, and the share that each system hides."""
    counts = Counter(value.kind for one in results["entities"] for value in one.letter.values)
    return [
        {
            "kind": kind,
            "values": counts[kind],
            **{name: hidden(judged, (kind,)) for name, judged in results.items()},
        }
        for kind in (*COVERED, *SENSITIVE)
    ]


def by_letter(results: Results) -> list[dict[str, Any]]:
    """A row a kind of letter: what each system hides of what it claims, and spoils."""
    rows = []
    for kind in dict.fromkeys(one.letter.kind for one in results["entities"]):
        row: dict[str, Any] = {"letter": kind}
        for name, judged in results.items():
            found = scores([one for one in judged if one.letter.kind == kind], CLAIMS[name])
            row |= {name: found["hidden"], f"{name} spoils": found["harmless_changed"]}
        rows.append(row)
    return rows


def show_misses(results: Results, most: int) -> None:
    """The commonest misses of each system among the letters for development."""
    for name, judged in half(results, held_out=False).items():
        claims = CLAIMS[name]
        read: Counter[str] = Counter()
        examples: dict[str, str] = {}
        spoilt: Counter[str] = Counter()
        for one in judged:
            text = one.letter.text
            for value, gone in one.hidden:
                if not gone and (claims is None or value.kind in claims):
                    before = text[max(0, value.start - 25) : value.start].replace("\n", "|")
                    after = text[value.end : value.end + 15].replace("\n", "|")
                    words = f"{value.kind} {' '.join(one.visible(value)).lower()!r}"
                    read[words] += 1
                    examples.setdefault(words, f"{before}[{value.text}]{after}")
            spoilt.update(text[start:end] for start, end in one.spoilt(0))
        print(
            f"\n{name}: {sum(read.values())} values read, {sum(spoilt.values())} harmless words changed",
            file=sys.stderr,
        )
        for words, count in read.most_common(most):
            print(f"  {count} {words}, as in {examples[words]}", file=sys.stderr)
        print(
            "  spoilt: " + ", ".join(f"{word} {n}" for word, n in spoilt.most_common(2 * most)),
            file=sys.stderr,
        )


def rows_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The table: a row a system, with the held-out figures beside those of all."""
    return [
        {
            "system": name,
            "hidden": record[name]["hidden"],
            "spoilt": record[name]["harmless_changed"],
            "hidden, held out": record["held_out"][name]["hidden"],
            "spoilt, held out": record["held_out"][name]["harmless_changed"],
            "restored": record[name]["restored"],
            "ms": record[name]["ms_per_letter"],
        }
        for name in CLAIMS
        if name in record
    ]


def arguments() -> argparse.Namespace:
    flags = parser(__doc__)
    flags.add_argument(
        "--presidio-python", metavar="PYTHON", help="the Python of an environment with Presidio"
    )
    flags.add_argument(
        "--seed", type=int, default=SEED, help="other seeds give other letters (default: %(default)s)"
    )
    flags.add_argument(
        "--misses", type=int, default=0, metavar="N", help="list the misses of the even letters"
    )
    return flags.parse_args()


def main() -> None:
    args = arguments()
    written = letters(args.seed, 40 if args.quick else LETTERS)
    results = run(written, args.presidio_python)
    record = {
        **figures(results),
        "seed": args.seed,
        "letters": len(written),
        "values": sum(len(letter.values) for letter in written),
        "development": figures(half(results, held_out=False)),
        "held_out": figures(half(results, held_out=True)),
        "by_kind": by_kind(results),
        "by_letter": by_letter(results),
    }
    if args.misses:
        show_misses(results, args.misses)
    report("words_letters", record, rows_of(record), args)


if __name__ == "__main__":
    main()
