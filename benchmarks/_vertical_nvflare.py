"""The same split model by NVFlare's collab API: the peer of `vertical_speed.py`, in its own environment.

    python -m venv nvflare && nvflare/bin/pip install nvflare==2.9.0 torch==2.13.0
    nvflare/bin/python benchmarks/_vertical_nvflare.py FOLDER

FOLDER holds what `vertical_speed.py` left: each party's columns, labels, initial weights and the order of the
rows. The label party is NVFlare's server, the feature party its one client, a process each; a batch is two
calls, `forward` and `backward`, one after the other, as in NVFlare's own example of split learning. A line of
JSON in FOLDER/nvflare.jsonl follows the first step and each evaluation.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvflare.collab import CollabRecipe, collab
from nvflare.recipe import SimEnv
from torch import nn

CHUNK_ROWS = 4096
_own: dict[str, Any] = {}


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def party(role: str) -> dict[str, Any]:
    """What a party has, made at its first call."""
    if not _own:
        torch.set_num_threads(1)
        folder = Path(collab.get_app_prop("folder"))
        plan = json.loads((folder / "plan.json").read_text())
        kept = np.load(folder / f"{role}.npz")
        nets = {name: mlp(widths) for name, widths in plan["nets"][role].items()}
        for name, net in nets.items():
            net.load_state_dict({key: torch.from_numpy(kept[f"{name}/{key}"]) for key in net.state_dict()})
        weights = itertools.chain(*(net.parameters() for net in nets.values()))
        _own.update(
            plan=plan, folder=folder, nets=nets, kept=kept, x_NF=torch.from_numpy(kept["x"]),
            optimiser=torch.optim.AdamW(weights, plan["learning_rate"], weight_decay=0.0, foreach=True),
            order=np.load(folder / "order.npz"),
        )  # fmt: skip
        if role == "label":
            _own["y_N"] = torch.from_numpy(kept["y"]).float()
    return _own


def rows_of(own: dict[str, Any], epoch: int, batch: int) -> torch.Tensor:
    """Numbers of a batch's rows."""
    size = own["plan"]["batch_rows"]
    return torch.from_numpy(own["order"][f"epoch{epoch}"][batch * size : (batch + 1) * size])


@collab.publish
def forward(epoch: int, batch: int) -> torch.Tensor:
    """The embedding of a batch."""
    own = party("feature")
    own["embedding"] = own["nets"]["bottom"](own["x_NF"][rows_of(own, epoch, batch)])
    return own["embedding"].detach()


@collab.publish
def backward(gradient: torch.Tensor) -> None:
    """Learn from the gradient of the last embedding."""
    own = party("feature")
    own["optimiser"].zero_grad()
    own["embedding"].backward(gradient)
    own["optimiser"].step()


@collab.publish
def embed(start: int) -> torch.Tensor:
    """Embeddings of rows of test."""
    own = party("feature")
    test = torch.from_numpy(own["order"]["test"])[start : start + CHUNK_ROWS]
    with torch.no_grad():
        return own["nets"]["bottom"](own["x_NF"][test])


@collab.main
def train() -> None:
    """The label party, to the last epoch or the target."""
    own = party("label")
    plan, client = own["plan"], collab.clients[0]
    nets, count = own["nets"], len(own["order"]["epoch0"])
    with (own["folder"] / "nvflare.jsonl").open("w") as file:

        def tell(**found: Any) -> None:
            file.write(json.dumps({"at_s": time.monotonic(), **found}) + "\n")
            file.flush()

        for epoch in range(plan["epochs"]):
            for batch in range(-(-count // plan["batch_rows"])):
                rows = rows_of(own, epoch, batch)
                embedding = client(timeout=60.0).forward(epoch, batch).requires_grad_()
                outputs = nets["top"](torch.cat([nets["bottom"](own["x_NF"][rows]), embedding], 1))[:, 0]
                loss = nn.functional.binary_cross_entropy_with_logits(outputs, own["y_N"][rows])
                own["optimiser"].zero_grad()
                loss.backward()
                own["optimiser"].step()
                client(timeout=60.0).backward(embedding.grad)
                if (epoch, batch) == (0, 0):
                    tell(kind="step", steps=1)
            auc = evaluated(own, client)
            tell(kind="evaluated", steps=epoch * -(-count // plan["batch_rows"]) + batch + 1, auc=auc)
            if auc >= plan["target"]:
                return


def evaluated(own: dict[str, Any], client: Any) -> float:
    """The AUC on the rows of test, by ranks."""
    test = torch.from_numpy(own["order"]["test"])
    outputs = []
    for start in range(0, len(test), CHUNK_ROWS):
        rows = test[start : start + CHUNK_ROWS]
        with torch.no_grad():
            bottoms = [own["nets"]["bottom"](own["x_NF"][rows]), client(timeout=60.0).embed(start)]
            outputs.append(own["nets"]["top"](torch.cat(bottoms, 1))[:, 0])
    ranks = np.empty(len(test))
    ranks[np.argsort(torch.cat(outputs).numpy(), kind="stable")] = np.arange(1, len(test) + 1)
    is_one = own["y_N"][test].numpy() == 1
    ones, zeros = is_one.sum(), (~is_one).sum()
    return float((ranks[is_one].sum() - ones * (ones + 1) / 2) / (ones * zeros))


def main(folder: str) -> None:
    recipe = CollabRecipe(job_name="vertical_speed", min_clients=1)
    recipe.set_server_prop("folder", folder)
    recipe.set_client_prop("folder", folder)
    recipe.run(SimEnv(num_clients=1, workspace_root=f"{folder}/work"))


if __name__ == "__main__":
    main(sys.argv[1])
