"""How long a real adapter has to be trained until its training texts can be told from others.

    TRANSOM_DATA=DIR python benchmarks/audit_membership.py [--quick] [--json] [--model MODEL] [--keep FOLDER]

A LoRA (rank 8 on the query and value projections, Adam at 1e-3, batches of 8) of SmolLM2 is trained on 100
summaries of XSum; others are 800 summaries of the same source. After each number of passes over the texts the
adapter is written as peft writes it, and audited as `transom audit adapter` does: the true-positive rate at
1 % false alarms and the area under the curve, for both scores, with their intervals. `--keep` leaves the last
adapter there, with members.txt and others.txt, for the command itself. `loss` is the mean of a pass.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from _bench import parser, report
from transom.audit.attacks import membership
from transom.checkpoint import load

RANK, ALPHA, LEARNING_RATE, BATCH = 8, 16, 1e-3, 8
PASSES = (1, 3, 10)
MEMBERS, OTHERS, LONGEST = 100, 800, 64
FIGURES = ("name", "metric", "value", "low", "high", "baseline", "n", "note")


class Lora(torch.nn.Module):
    """A linear layer with the adapter's product added; only the two factors are trained."""

    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer = layer
        self.a_RD = torch.nn.Parameter(torch.randn(RANK, layer.in_features) / layer.in_features**0.5)
        self.b_OR = torch.nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layer(rows) + ALPHA / RANK * (rows @ self.a_RD.T) @ self.b_OR.T


def adapted(model: Any) -> dict[str, Lora]:
    """Put an adapter on every query and value projection; the adapters by the name of their layer."""
    model.requires_grad_(False)
    places = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    for name in places:
        above, _, last = name.rpartition(".")
        setattr(model.get_submodule(above), last, Lora(model.get_submodule(name)))
    return {name: model.get_submodule(name) for name in places}


def one_pass(model: Any, texts: list[list[int]], start_id: int, factors: Any, order: list[int]) -> float:
    """Train on every text once; the mean loss."""
    losses = []
    for first in range(0, len(order), BATCH):
        some = [texts[number] for number in order[first : first + BATCH]]
        longest = max(map(len, some))
        ids_BT = torch.tensor([[start_id, *text, *[-100] * (longest - len(text))] for text in some])
        logits_BTV = model(ids_BT[:, :-1].clamp_min(0), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), ids_BT[:, 1:].flatten())
        factors.zero_grad()
        loss.backward()
        factors.step()
        losses.append(loss.item())
    return float(np.mean(losses))


def save(folder: Path, layers: dict[str, Lora]) -> None:
    """The adapter as peft writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for name, layer in layers.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = layer.a_RD.detach().clone()
        tensors[f"base_model.model.{name}.lora_B.weight"] = layer.b_OR.detach().clone()
    save_file(tensors, folder / "adapter_model.safetensors")


def measure(args: Any, folder: Path) -> Iterator[dict[str, Any]]:
    """A record for each number of passes."""
    path = Path(os.environ["TRANSOM_DATA"]) / "xsum" / "xsum-1000.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines()
    shuffled = np.random.default_rng(0).permutation(len(lines))
    summaries = [json.loads(lines[number])["summary"].replace("\n", " ").strip() for number in shuffled]
    members, others = (10, 20) if args.quick else (MEMBERS, OTHERS)
    sides = summaries[:members], summaries[members : members + others]
    for name, side in zip(("members.txt", "others.txt"), sides, strict=True):
        (folder / name).write_text("\n".join(side) + "\n", encoding="utf-8")
    loaded, base = load(args.model), load(args.model)
    assert loaded.tokenizer is not None
    encoded = [[one.ids[:LONGEST] for one in loaded.tokenizer.tokenizer.encode_batch(side)] for side in sides]
    start_id = base.model.config.bos_token_id
    torch.manual_seed(0)
    layers = adapted(loaded.model)
    free = [factor for layer in layers.values() for factor in (layer.a_RD, layer.b_OR)]
    optimiser, draw, done = torch.optim.Adam(free, lr=LEARNING_RATE), np.random.default_rng(0), 0
    for passes in (1, 2) if args.quick else PASSES:
        started = time.monotonic()
        while done < passes:
            order = draw.permutation(members).tolist()
            loss = one_pass(loaded.model, encoded[0], start_id, optimiser, order)
            done += 1
        save(folder, layers)
        trained_s, data = time.monotonic() - started, membership.Candidates(*encoded)
        knowledge = membership.Base(base.model, start_id)
        for attack in membership.attacks():
            finding = attack.attack(folder, knowledge, data, float("inf"))
            figures = {name: getattr(finding, name) for name in FIGURES}
            yield {"passes": passes, "loss": loss, "trained_s": trained_s} | figures


def main() -> None:
    """Train, audit, report."""
    flags = parser(__doc__)
    flags.add_argument("--model", default="smollm2")
    flags.add_argument("--keep", type=Path, help="leave the last adapter and both text files here")
    args = flags.parse_args()
    if "TRANSOM_DATA" not in os.environ:
        sys.exit("set TRANSOM_DATA to the folder that holds xsum/")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        rows = list(measure(args, folder))
    shown = [{name: row[name] for name in ("passes", "loss", *FIGURES[:6])} for row in rows]
    report("audit_membership", {"model": args.model, "findings": rows}, shown, args)


if __name__ == "__main__":
    main()
