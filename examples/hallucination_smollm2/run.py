"""All of it, one step after the other: fit, score, report, and answers that are marked as they come.

python examples/hallucination_smollm2/run.py FOLDER [TABLE.csv]

FOLDER and TABLE.csv are as of prepare.py. Each command is printed before it runs.
"""

import json
import sys
from contextlib import nullcontext, redirect_stdout
from pathlib import Path

import live
import prepare
from prepare import MODEL

from transom.cli.main import run
from transom.data.rows import read_rows
from transom.report.statistics import auc, auc_interval


def transom(*arguments: str | Path, into: Path | None = None) -> None:
    """As on the command line, what it says going to the screen or into a file."""
    words = [*map(str, arguments)]
    print(f"$ transom {' '.join(words)}{f' > {into}' if into else ''}")
    with into.open("w") if into else nullcontext() as file, redirect_stdout(file or sys.stdout):
        code = run(words)
    if code:
        raise RuntimeError(f"transom ended with {code}; its message says why")


def compared(folder: Path) -> dict[str, float]:
    """What was flagged of the answers that were scored, beside what is so. Prints it."""
    import numpy as np

    labels_N = np.array([int(row["made_up"]) for row in read_rows(folder / "asked.csv")])
    scored = json.loads((folder / "scores.json").read_text())["rows"]
    known = [place for place, one in enumerate(scored) if one["risk"] is not None]
    risk_N = np.array([scored[place]["risk"] for place in known])
    flagged_N = np.array([scored[place]["flagged"] for place in known])
    labels_N = labels_N[known]
    low, high = auc_interval(risk_N, labels_N) or (0.0, 1.0)
    found = {
        "auroc": auc(risk_N, labels_N),
        "flagged_made_up": float(flagged_N[labels_N == 1].mean()),
        "flagged_true": float(flagged_N[labels_N == 0].mean()),
    }
    print(f"AUROC {found['auroc']:.2f} ({low:.2f} to {high:.2f}) of {len(known)} answers")
    print(
        f"flagged: {found['flagged_made_up']:.0%} of what is made up, {found['flagged_true']:.0%} of the rest"
    )
    return found


def main() -> None:
    """Read the command line."""
    if len(sys.argv) not in (2, 3):
        sys.exit((__doc__ or "").strip())
    folder, *table = map(Path, sys.argv[1:])
    prepare.write(folder, *table)
    fit, asked, detector = (folder / name for name in ("fit.csv", "asked.csv", "detector.safetensors"))
    transom("hallucination", "fit", MODEL, fit, "--label", "made_up", "--chat", "--out", detector)
    transom(
        "hallucination", "score", MODEL, asked, "--detector", detector, "--chat", "--json",
        into=folder / "scores.json",
    )  # fmt: skip
    compared(folder)
    transom(
        "hallucination",
        "report",
        MODEL,
        fit,
        "--label",
        "made_up",
        "--chat",
        "--html",
        folder / "report.html",
    )
    live.watched(detector)


if __name__ == "__main__":
    main()
