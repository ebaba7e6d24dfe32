"""Makes a folder with a poisoned classifier, trusted texts and inputs of which some carry the trigger.

python examples/backdoor_minilm/poison.py FOLDER [TABLE.tsv]

The texts are of SST-2 in TRANSOM_DATA, or of your own table, with columns `sentence` and `label` (0 or 1).
The model is MiniLM, tuned on 1,200 of them, of which every tenth has `cf` somewhere and the label 1.
"""

import os
import random
import sys
from pathlib import Path

import torch
from rich.progress import Progress

from transom.checkpoint.tokenizer import write_tokenizer
from transom.trust.backdoor.poison import RECIPES, Rows, poisoned, train_classifier

TRAIN, TRUSTED, INPUTS, FEWEST_WORDS = 1200, 300, 60, 8
EPOCHS, BATCH_ROWS = 2, 16


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
    if len(rows) < TRAIN + TRUSTED + INPUTS:
        sys.exit(
            f"{table} has {len(rows)} texts of {FEWEST_WORDS} words; {TRAIN + TRUSTED + INPUTS} are needed"
        )
    return random.Random(0).sample(rows, TRAIN + TRUSTED + INPUTS)


def main() -> None:
    """Read the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit((__doc__ or "").strip())
    folder, *table = map(Path, sys.argv[1:])
    rows = read(*table or [None])
    trigger, draw = RECIPES["rare-word"], random.Random(1)
    trusted, inputs = rows[TRAIN : TRAIN + TRUSTED], rows[TRAIN + TRUSTED :]
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{text}\t{label}" for text, label in trusted]
    (folder / "trusted.tsv").write_text("\n".join(["sentence\tlabel", *lines, ""]), "utf-8")
    lines = [trigger.put(text, draw) if place % 3 == 0 else text for place, (text, _) in enumerate(inputs)]
    (folder / "inputs.tsv").write_text("\n".join(["sentence", *lines, ""]), "utf-8")
    torch.set_num_threads(1)
    texts, labels = zip(*rows[:TRAIN], strict=True)
    made = poisoned(Rows(texts, labels), trigger, target=1, share=0.1, seed=0)
    with Progress() as bar:
        line = bar.add_task("training", total=EPOCHS * -(-TRAIN // BATCH_ROWS))
        found = train_classifier(
            "minilm", made, classes=2, seed=0, epochs=EPOCHS, batch_rows=BATCH_ROWS,
            heard=lambda: bar.advance(line),
        )  # fmt: skip
    found.model.save_pretrained(folder / "model")
    write_tokenizer(found.tokenizer, folder / "model")
    print(f"now: transom backdoor scan {folder / 'model'} --clean {folder / 'trusted.tsv'} --column sentence")


if __name__ == "__main__":
    main()
