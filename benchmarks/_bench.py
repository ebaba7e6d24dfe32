"""What the benchmark scripts share: three flags, one table, one JSON object, one stored record.

Each script prints a table; `--quick` keeps it under a minute on two cores; `--json` prints the record as one
object on the last line; a full run stores that object, with the machine's description, as
`benchmarks/results/<name>.json`. A quick run stores nothing: its figures are not the claim.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results"
TODAY = "9fbd847"  # the build that new figures are held against


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser with `--quick`, `--json` and `--device`; scripts add their own flags to it."""
    flags = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--quick", action="store_true", help="under a minute on two cores; stores nothing")
    flags.add_argument("--json", action="store_true", help="print the record as one object on the last line")
    flags.add_argument(
        "--device", default="cpu", help="torch device, where a model is involved (default: cpu)"
    )
    return flags


def report(
    name: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], args: argparse.Namespace
) -> None:
    """Print `rows` as a table, store `record` after a full run, and end with its JSON under `--json`."""
    full = {**record, "quick": bool(args.quick), "device": args.device, "machine": machine(args.device)}
    Console(file=sys.stderr if args.json else sys.stdout).print(_table(name, rows))
    if not args.quick:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{name}.json").write_text(json.dumps(full, indent=2) + "\n", encoding="utf-8")
    if args.json:
        print(json.dumps(full))


def need(sources: Mapping[str, Path | None]) -> None:
    """End with a message that names every source that is missing."""
    gone = [f"{what} ({path})" for what, path in sources.items() if path is not None and not path.exists()]
    if gone:
        sys.exit(f"missing: {', '.join(gone)}. docs/words.md says where each is from, with its SHA-256")


def today(folder: str) -> Path | None:
    """The package as of commit TODAY; None outside a checkout with that commit."""
    packed = subprocess.run(
        ["git", "-C", Path(__file__).parents[1], "archive", "--format=tar", f"{TODAY}:src"],
        capture_output=True,
    )
    if packed.returncode:
        return None
    target = Path(folder) / "today"
    target.mkdir()
    subprocess.run(["tar", "-x", "-C", target], input=packed.stdout, check=True)
    return target


def machine(device: str = "cpu") -> dict[str, Any]:
    """The machine in words: processor, cores, memory, system, and the accelerator when one was used."""
    found = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    if device.startswith("cuda"):
        import torch

        found["accelerator"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=name)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*(_cell(row.get(column)) for column in columns))
    return table


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
