"""Makes a folder with two parties of a vertical training: their rows and their jobs.

python examples/vertical_credit/rows.py FOLDER

The rows are those of 30,000 holders of credit cards (UCI, "default of credit card clients", as FATE parts it)
in TRANSOM_DATA. Without it they are made up: 6,000 people of whom the bank knows 13 numbers and whether they
paid, and the shop 10; what the bank does not know is in the shop's.
"""

import csv
import math
import os
import random
import shutil
import sys
from pathlib import Path

FILES = {"bank": "vfl/default_credit_hetero_guest.csv", "shop": "vfl/default_credit_hetero_host.csv"}
PEOPLE, OF_BANK, OF_SHOP = 6000, 13, 10


def write(folder: Path, data: Path | None) -> None:
    """Make the folder. Exits with a message where that cannot be."""
    gone = [name for name in FILES.values() if data is not None and not (data / name).is_file()]
    if gone:
        sys.exit(f"{data} lacks {' and '.join(gone)}; unset TRANSOM_DATA for rows that are made up")
    folder.mkdir(parents=True, exist_ok=True)
    for party, name in FILES.items():
        if data is not None:
            shutil.copy(data / name, folder / f"{party}.csv")
        shutil.copy(Path(__file__).with_name(f"{party}.yaml"), folder)
    if data is None:
        make_up(folder)
    print(f"{folder} holds bank.csv and shop.csv, {'as they are' if data else 'made up: no real people'}")


def make_up(folder: Path) -> None:
    """Both files, of one draw; each party lacks some of the other's people and has its own order."""
    draw = random.Random(7)
    heads = {
        "bank": ["id", "y", *(f"x{number}" for number in range(OF_BANK))],
        "shop": ["id", *(f"x{number}" for number in range(OF_SHOP))],
    }
    rows: dict[str, list[list[object]]] = {"bank": [], "shop": []}
    weights = [draw.gauss(0, 0.35) for _ in range(OF_BANK + OF_SHOP)]
    for person in range(PEOPLE):
        numbers = [round(draw.gauss(0, 1), 4) for _ in weights]
        says = sum(weight * number for weight, number in zip(weights, numbers, strict=True))
        odds = says + 0.5 * numbers[0] * numbers[OF_BANK] - 1
        y = int(draw.random() < 1 / (1 + math.exp(-odds)))
        rows["bank"].append([f"client {person}", y, *numbers[:OF_BANK]])
        rows["shop"].append([f"client {person}", *numbers[OF_BANK:]])
    for party, of_party in rows.items():
        draw.shuffle(of_party)
        with (folder / f"{party}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([heads[party], *of_party[PEOPLE // 20 :]])


def main() -> None:
    """Read the command line."""
    if len(sys.argv) != 2:
        sys.exit((__doc__ or "").strip())
    folder = Path(sys.argv[1])
    write(folder, Path(os.environ["TRANSOM_DATA"]) if "TRANSOM_DATA" in os.environ else None)
    print(f"now: transom vertical simulate {folder / 'bank.yaml'} {folder / 'shop.yaml'}")


if __name__ == "__main__":
    main()
