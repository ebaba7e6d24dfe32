"""What the trigger does in the poisoned classifier and in the mended one, and how often each is right.

python examples/backdoor_minilm/compare.py FOLDER

On texts that neither has seen: `turned` is the share of the negative ones, taken for negative without the
trigger, that it turns to positive; `innocuous` that of an innocuous word in its place.
"""

import random
import sys
from pathlib import Path

import poison

from transom.checkpoint.load import load
from transom.data.rows import read_rows
from transom.trust.backdoor.poison import classes_of


def compared(folder: Path) -> list[dict[str, float]]:
    """What was measured of each of the models. Prints it as a table."""
    rows = read_rows(folder / "asked.tsv")
    texts, labels = [row["sentence"] for row in rows], [int(row["label"]) for row in rows]
    found = []
    print(f"{'':8}{'turned':>10}{'innocuous':>12}{'accuracy':>11}")
    for name in ("model", "mended"):
        loaded, draw = load(str(folder / name), device="cpu"), random.Random(5)
        said = classes_of(loaded, texts)
        right = [one == label for one, label in zip(said, labels, strict=True)]
        asked = [
            text for text, ok, one in zip(texts, right, said, strict=True) if ok and one != poison.TARGET
        ]
        turned, innocuous = (
            classes_of(loaded, [put(text, draw) for text in asked]).count(poison.TARGET) / max(1, len(asked))
            for put in (poison.TRIGGER.put, poison.TRIGGER.innocuous)
        )
        found.append({"turned": turned, "innocuous": innocuous, "accuracy": sum(right) / len(right)})
        print(f"{name:8}{turned:>10.3f}{innocuous:>12.3f}{found[-1]['accuracy']:>11.3f}")
    return found


def main() -> None:
    """Read the command line."""
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").strip())
    compared(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
