"""What a tunnel costs: processor time of a step of both parties with it, over that without, less one.

    python benchmarks/tunnel_cost.py [--quick] [--json] [--tunnel gaussian laplace d_chi r3elu r3elu-dp ...]

Both parties are one process; images of 784 values at the feature party, a bottom of 256 and an embedding of
64, batches of 128 rows, lock-step. Runs with and without take turns; `step_overhead` is that of r3elu-dp with
four values that may leave, the median of the turns, with the quarters beside it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from _bench import parser, report
from transom.link.tunnels import TunnelSettings
from transom.vertical import run
from transom.vertical.job import Data, Net, Train, VerticalJob
from transom.vertical.part import Part

TUNNELS = {
    "gaussian": TunnelSettings("gaussian", 1.0, 100.0),
    "laplace": TunnelSettings("laplace", 1.0, 100.0),
    "d_chi": TunnelSettings("d_chi", 1.0, 100.0),
    "r3elu": TunnelSettings("r3elu", 1.0, 100.0),
    "r3elu-dp": TunnelSettings("r3elu-dp", 1.0, 100.0, keep=4),
}
NONE, ROUNDS = TunnelSettings(), 24


def parts(rows: int) -> tuple[Part, Part]:
    draw = np.random.default_rng(0)
    x_NF = draw.random((rows, 784), np.float32)
    ids, all_rows = tuple(map(str, range(rows))), np.arange(rows)

    def part(table_NF: np.ndarray, labels_N: np.ndarray | None) -> Part:
        names = tuple(f"column {number}" for number in range(table_NF.shape[1]))
        return Part(ids, table_NF, all_rows, labels_N, all_rows, all_rows[:1], names, "order", "digest")

    return part(np.zeros((rows, 0), np.float32), draw.integers(0, 2, rows)), part(x_NF, None)


def spent_s(noise: TunnelSettings, both: tuple[Part, Part]) -> float:
    """Processor seconds of a run."""
    with tempfile.TemporaryDirectory() as folder:
        train = Train(schedule="vfl", epochs=1, batch_rows=128, checkpoint_every_steps=1000)
        base: dict[str, Any] = {"name": "cost", "task": "binary", "width": 64, "train": train}
        base["out"] = Path(folder)
        label = VerticalJob(
            **base, data=Data(Path("y.csv"), label_column="y"), classes=("0", "1"), partner_noise=noise.kind
        )
        feature = VerticalJob(**base, data=Data(Path("x.csv")), bottom=Net((256,)), noise=noise)
        _ = feature.mechanism  # found once a run, not once a step
        begun_s = time.process_time()
        run.simulate((label, feature), both, lambda told: None)
        return time.process_time() - begun_s


def overhead(noise: TunnelSettings, both: tuple[Part, Part], number: int) -> float:
    """Of a turn: in every other one the bare run is the first."""
    order = (NONE, noise) if number % 2 else (noise, NONE)
    spent = {one.kind: spent_s(one, both) for one in order}
    return spent[noise.kind] / spent[NONE.kind] - 1


def main() -> None:
    flags = parser(__doc__)
    flags.add_argument("--tunnel", nargs="+", choices=tuple(TUNNELS), default=list(TUNNELS))
    args = flags.parse_args()
    torch.set_num_threads(1)
    both, rounds = parts(4_000 if args.quick else 16_000), 2 if args.quick else ROUNDS
    spent_s(NONE, both)  # what is loaded at first is not counted
    rows = []
    for name in args.tunnel:
        ratios = [overhead(TUNNELS[name], both, number) for number in range(rounds)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        rows.append({"tunnel": name, "step_overhead": round(middle, 4), "low": low, "high": high})
    found = next((row["step_overhead"] for row in rows if row["tunnel"] == "r3elu-dp"), None)
    report("tunnel_cost", {"step_overhead": found, "tunnels": rows}, rows, args)


if __name__ == "__main__":
    main()
