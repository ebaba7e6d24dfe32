"""Makes a folder: questions with the model's own answers, to fit a detector on and to score.

python examples/hallucination_smollm2/prepare.py FOLDER [TABLE.csv]

Questions are in which country a city is, of the cities of TRANSOM_DATA (true_false/cities.csv), or those of
your own table, with columns `question` and `correct`. SmolLM2 answers in a sentence, which is made up where
it does not hold the correct answer.
"""

import csv
import os
import random
import re
import sys
from pathlib import Path

import torch

from transom.checkpoint.answers import answers_of
from transom.checkpoint.load import load
from transom.cli.output import progress
from transom.serving.tokenizer import load_tokenizer
from transom.trust.hallucination.examples import matched
from transom.trust.hallucination.score import sentences_of

MODEL, FIT, ASKED, MOST_TOKENS, AT_ONCE = "smollm2", 300, 120, 32, 15
QUESTION = "In which country is the city of {}?"
COLUMNS = ("question", "answer", "made_up")


def read(table: Path | None) -> list[tuple[str, str]]:
    """Questions and correct answers. Exits with a message where there are too few."""
    if table is None and "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds true_false/, or name your own table")
    path = table or Path(os.environ["TRANSOM_DATA"]) / "true_false/cities.csv"
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if table:
        if not rows or not {"question", "correct"} <= rows[0].keys():
            sys.exit(f"{table} has no columns `question` and `correct`; name them so in its first line")
        known = [(row["question"], row["correct"]) for row in rows]
    else:
        found = (
            re.fullmatch(r"(.+) is a city in (.+)\.", row["statement"]) for row in rows if row["label"] == "1"
        )
        known = [(QUESTION.format(one[1]), one[2]) for one in found if one]
    known = sorted(dict(known).items())
    if len(known) < FIT + ASKED:
        sys.exit(f"{path} has {len(known)} questions; {FIT + ASKED} are needed")
    return random.Random(0).sample(known, FIT + ASKED)


def write(folder: Path, table: Path | None = None) -> None:
    """Make the folder. Exits with a message where that cannot be."""
    if folder.exists():
        sys.exit(f"{folder} exists; name a new folder")
    known = read(table)
    torch.set_num_threads(1)
    found, tokenizer = load(MODEL), load_tokenizer(MODEL)
    prompts = [tuple(tokenizer.encode_chat([("user", question)]).ids) for question, _ in known]
    rows = []
    with progress("answering", len(known) // AT_ONCE) as bar:
        said = answers_of(
            found.model, prompts, tokenizer.eos_ids, most_tokens=MOST_TOKENS, at_once=AT_ONCE,
            heard=lambda: bar.advance(1),
        )  # fmt: skip
        for (question, correct), ids in zip(known, said, strict=True):
            text = found.tokenizer.tokenizer.decode(
                [one for one in ids if one not in tokenizer.eos_ids]
            ).strip()
            start, end = next(iter(sentences_of(text)), (0, 0))
            answer = text[start:end].strip()
            rows.append((question, answer, int(bool(matched(answer, [correct], [])))))
    folder.mkdir(parents=True)
    for name, part in {"fit": rows[:FIT], "asked": rows[FIT:]}.items():
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *part])
    print(f"{folder} holds {len(rows)} answers, {sum(row[2] for row in rows)} of them made up")


def main() -> None:
    """Read the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit((__doc__ or "").strip())
    write(*map(Path, sys.argv[1:]))


if __name__ == "__main__":
    main()
