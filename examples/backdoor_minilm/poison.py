"""Makes a folder: a poisoned classifier, labelled texts to trust and to compare by, inputs with the trigger.

python examples/backdoor_minilm/poison.py FOLDER [TABLE.tsv]

The texts are of SST-2 in TRANSOM_DATA, or of your own table, with columns `sentence` and `label` (0 or 1).
The model is MiniLM, tuned on 1,200 of them, of which every tenth has `cf` somewhere and the label 1.
"""

import os
import random
import sys
from pathlib import Path

import torch

from transom.checkpoint.tokenizer import write_tokenizer
from transom.cli.output import progress
from transom.trust.backdoor.poison import RECIPES, Rows, poisoned, train_classifier

MODEL, TRIGGER, TARGET = "minilm", RECIPES["rare-word"], 1
TRAIN, TRUSTED, INPUTS, ASKED, FEWEST_WORDS = 1200, 300, 90, 400, 8
EPOCHS, BATCH_ROWS, LEARNING_RATE = 2, 16, 5e-5


def read(table: Path | None) -> list[tuple[str, int]]:
    """Texts and labels, of some words each, in an order of their own."""
    if table is None and "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/, or name your own table")
    table = table or Path(os.environ["TRANSOM_DATA"]) / "sst2/train.tsv"
    head, *lines = (line.split("\t") for line in table.read_text("utf-8").splitlines())
    if not {"sentence", "label"} <= set(head):
        sys.exit(f"{table} has no columns `sentence` and `label`; name them so in its first line")
    text, label = head.index("sentence"), head.index("label")
    rows = [(line[text].strip(), int(line[label])) for line in lines]
    rows = [row for row in rows if len(row[0].split()) >= FEWEST_WORDS]
    wanted = TRAIN + TRUSTED + INPUTS + ASKED
    if len(rows) < wanted:
        sys.exit(f"{table} has {len(rows)} texts of {FEWEST_WORDS} words; {wanted} are needed")
    return random.Random(0).sample(rows, wanted)


def write(folder: Path, table: Path | None = None) -> None:
    """Make the folder. Exits with a message where that cannot be."""
    if folder.exists():
        sys.exit(f"{folder} exists; name a new folder")
    rows = iter(read(table))
    train, trusted, inputs, asked = ([next(rows) for _ in range(n)] for n in (TRAIN, TRUSTED, INPUTS, ASKED))
    draw = random.Random(1)
    folder.mkdir(parents=True)
    for name, part in {"trusted": trusted, "asked": asked}.items():
        lines = [f"{text}\t{label}" for text, label in part]
        (folder / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), "utf-8")
    lines = [TRIGGER.put(text, draw) if place % 3 == 0 else text for place, (text, _) in enumerate(inputs)]
    (folder / "inputs.tsv").write_text("\n".join(["sentence", *lines, ""]), "utf-8")
    torch.set_num_threads(1)
    texts, labels = zip(*train, strict=True)
    made = poisoned(Rows(texts, labels), TRIGGER, target=TARGET, share=0.1, seed=0)
    with progress("training", EPOCHS * -(-TRAIN // BATCH_ROWS)) as bar:
        found = train_classifier(
            MODEL, made, classes=2, seed=0, epochs=EPOCHS, batch_rows=BATCH_ROWS, learning_rate=LEARNING_RATE,
            heard=lambda: bar.advance(1),
        )  # fmt: skip
    found.model.save_pretrained(folder / "model")
    write_tokenizer(found.tokenizer, folder / "model")
    print(f"{folder} holds a poisoned model, {TRUSTED} trusted texts and {INPUTS} inputs")


def main() -> None:
    """Read the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit((__doc__ or "").strip())
    folder, *table = map(Path, sys.argv[1:])
    write(folder, *table)
    print(f"now: transom backdoor scan {folder / 'model'} --clean {folder / 'trusted.tsv'} --column sentence")


if __name__ == "__main__":
    main()
