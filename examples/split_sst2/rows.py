"""Makes a folder with a small job of split tuning: 400 rows to train on, 100 to evaluate, and the job file.

python examples/split_sst2/rows.py FOLDER [TABLE.tsv]

The rows are of SST-2 in TRANSOM_DATA, or of your own table, with columns `sentence` and `label` (0 or 1).
"""

import os
import shutil
import sys
from pathlib import Path

TRAIN, EVALUATE = 400, 100


def write(folder: Path, table: Path | None = None) -> None:
    """Make the folder, of the table's first rows. Exits with a message where that cannot be."""
    if table is None and "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds sst2/, or name your own table")
    table = table or Path(os.environ["TRANSOM_DATA"]) / "sst2/train.tsv"
    head, *rows = table.read_text("utf-8").splitlines()
    if not {"sentence", "label"} <= set(head.split("\t")):
        sys.exit(f"{table} has no columns `sentence` and `label`; name them so in its first line")
    if len(rows) < TRAIN + EVALUATE:
        sys.exit(f"{table} has {len(rows)} rows; {TRAIN + EVALUATE} are needed")
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"train": rows[:TRAIN], "evaluate": rows[TRAIN : TRAIN + EVALUATE]}
    for name, part in parts.items():
        (folder / f"{name}.tsv").write_text("\n".join([head, *part, ""]), "utf-8")
    shutil.copy(Path(__file__).with_name("job.yaml"), folder)
    print(f"{folder} holds {TRAIN} rows to train on and {EVALUATE} to evaluate")


def main() -> None:
    """Read the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit((__doc__ or "").strip())
    folder, *table = map(Path, sys.argv[1:])
    write(folder, *table)
    print(f"now: transom split simulate {folder / 'job.yaml'}")


if __name__ == "__main__":
    main()
