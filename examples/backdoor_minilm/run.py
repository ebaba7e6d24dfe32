"""All of it, one step after the other: poison, scan, scan inputs, repair, scan again, compare.

python examples/backdoor_minilm/run.py FOLDER [TABLE.tsv]

FOLDER and TABLE.tsv are as of poison.py. Each command is printed before it runs.
"""

import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import compare
import poison

from transom.cli.main import run


def transom(*arguments: str | Path, into: Path | None = None) -> None:
    """As on the command line, what it says going to the screen or into a file."""
    words = [*map(str, arguments)]
    print(f"$ transom {' '.join(words)}{f' > {into}' if into else ''}")
    with into.open("w") if into else nullcontext() as file, redirect_stdout(file or sys.stdout):
        code = run(words)
    if code:
        raise RuntimeError(f"transom ended with {code}; its message says why")


def main() -> None:
    """Read the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit((__doc__ or "").strip())
    folder, *table = map(Path, sys.argv[1:])
    poison.write(folder, *table)
    model, mended, inputs, found = (folder / name for name in ("model", "mended", "inputs.tsv", "scan.json"))
    trusted = ["--clean", folder / "trusted.tsv", "--column", "sentence"]
    transom("backdoor", "scan", model, *trusted, "--html", folder / "before.html")
    transom("backdoor", "scan-inputs", model, inputs, *trusted, "--json", into=found)
    transom("backdoor", "repair", model, *trusted, "--flagged", inputs, "--scan", found, "--out", mended)
    transom("backdoor", "scan", mended, *trusted, "--html", folder / "after.html")
    compare.compared(folder)


if __name__ == "__main__":
    main()
