"""What an attack on an obfuscated checkpoint is given: the target's weights, the public ones, and a sample.

Weights are read in the row-vector convention (y = x W), so Hugging Face's matrices are transposed, and the
weight of the norm before a matrix is folded into it: diag(w) W. A norm weight that is one constant, as an
obfuscated checkpoint's is, only scales the matrix and is left out. Experts lie side by side as more columns.

Threat model: the attacker is the host. It holds the obfuscated checkpoint and the public base model, knows
the method and every setting, and wants tau: which plain id each obfuscated id stands for.
Does not protect anything. `Sample.plain_S` is the truth; attacks hand it to the scoring and nowhere else.
Source: Lin et al., arXiv 2603.01499 (the setting).

Shapes: V vocabulary, D width, N neurons (all experts together), H query heads, G key-value heads, K head
width, S sampled ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from transom.checkpoint import find, load
from transom.checkpoint.resolve import resolved_config
from transom.checkpoint.source import check
from transom.errors import CheckpointError, MisconfiguredError
from transom.obfuscation.shards import locate, read_tensor
from transom.report.finding import Finding, not_run, share
from transom.report.statistics import Ints

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float32]

METRIC = "ttrsr"  # share of sampled obfuscated ids whose plain id is named rightly
_MLP = r"(mlp|block_sparse_moe)\."
_PARTS = {  # what the matrices of a layer are called, and the norm before them
    "query": (r"self_attn\.q_proj", "input_layernorm"),
    "key": (r"self_attn\.k_proj", "input_layernorm"),
    "gate": (_MLP + r"(\w+\.)*(gate_proj|w1)", "post_attention_layernorm"),
    "up": (_MLP + r"(\w+\.)*(up_proj|w3)", "post_attention_layernorm"),
    "down": (_MLP + r"(\w+\.)*(down_proj|w2)", None),
    "router": (_MLP + "gate", "post_attention_layernorm"),
}


@dataclass(frozen=True)
class Layer:
    """One layer: query [D, H*K], key [D, G*K], gate and up [D, N], down [N, D], router [D, experts].

    None where the architecture has no such matrix (latent attention has no plain query and key).
    """

    query: Floats | None
    key: Floats | None
    gate: Floats | None
    up: Floats | None
    down: Floats | None
    router: Floats | None


@dataclass(frozen=True)
class Weights:
    """A causal language model's matrices as attacks read them: embedding [V, D], head [D, V], layers."""

    embedding_VD: Floats
    head_DV: Floats
    layers: tuple[Layer, ...]
    query_heads: int
    key_value_heads: int

    @property
    def vocabulary(self) -> int:
        """V."""
        return len(self.embedding_VD)


@dataclass(frozen=True)
class Target:
    """The obfuscated checkpoint: its weights, and a model to run (transformers, causal) if there is one."""

    weights: Weights
    model: Any = None


@dataclass(frozen=True)
class Knowledge:
    """What the host knows: the public base, a model of it to run, and pairs {obfuscated id: plain id}."""

    base: Weights
    model: Any = None
    known: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """The obfuscated ids [S] to name, and the plain ids [S] they stand for (read by the scoring alone)."""

    obfuscated_S: Ints
    plain_S: Ints


def sample(tau_V: Ints, count: int, *, seed: int = 0) -> Sample:
    """`count` plain ids drawn without replacement from the vocabulary, with their images under tau [V]."""
    plain_S = np.random.default_rng(seed).choice(len(tau_V), size=min(count, len(tau_V)), replace=False)
    return Sample(np.asarray(tau_V, dtype=np.int64)[plain_S], plain_S.astype(np.int64))


def part(weights: Weights, layer: int, name: str) -> Floats:
    """A matrix of a layer; `misfit` has shown that there is one."""
    found: Floats = getattr(weights.layers[layer], name)
    return found


def scored(name: str, guess_S: Ints, data: Sample, *, candidates: int, note: str = "") -> Finding:
    """The share of right names, against guessing one of `candidates`."""
    hits = int((guess_S == data.plain_S).sum())
    return share(name, METRIC, hits=hits, n=len(data.plain_S), baseline=1 / candidates, note=note)


def misfit(name: str, target: Target, knowledge: Knowledge, *parts: str) -> Finding | None:
    """A not-run finding unless the two vocabularies agree and layer 0 has all `parts`, equally wide."""
    a, b = target.weights, knowledge.base
    if a.vocabulary != b.vocabulary:
        return not_run(name, METRIC, f"the vocabularies differ: {a.vocabulary} and {b.vocabulary} ids")
    if parts and not (a.layers and b.layers):
        return not_run(name, METRIC, "no layers were read")
    if "query" in parts and a.query_heads != b.query_heads:
        return not_run(name, METRIC, f"the numbers of heads differ: {a.query_heads} and {b.query_heads}")
    for part in parts:
        left, right = getattr(a.layers[0], part), getattr(b.layers[0], part)
        if left is None or right is None:
            return not_run(name, METRIC, f"the architecture has no plain {part} matrix")
        if left.shape[part != "down"] != right.shape[part != "down"]:
            return not_run(name, METRIC, f"the {part} matrices differ in width")
    return None


def read(source: str | Path, *, layers: int | None = None) -> Weights:
    """The weights of a checkpoint (path, "smollm2", hub name), of its first `layers` layers if given.

    A directory is read tensor by tensor; a GGUF is loaded whole. Raises CheckpointError, MissingExtraError.
    """
    found = find(source)
    check(found)
    if found.kind == "gguf":
        model = load(found.path).model
        return from_state(model.state_dict(), model.config.to_dict(), layers=layers)
    return from_state(dict(_tensors(found.path, layers)), resolved_config(found), layers=layers)


def from_state(
    state: Mapping[str, torch.Tensor], config: Mapping[str, Any], *, layers: int | None = None
) -> Weights:
    """The weights of a state dict under the hub's names, matrices [out, in], and its own `config`.

    Raises CheckpointError, MisconfiguredError.
    """
    if layers is not None and layers < 1:
        raise MisconfiguredError(f"layers must be at least 1, got {layers}")
    count = int(config["num_hidden_layers"]) if layers is None else min(layers, config["num_hidden_layers"])
    if "model.embed_tokens.weight" not in state:
        raise CheckpointError("no model.embed_tokens.weight among the tensors; give a causal language model")
    embedding_VD = _plain(state["model.embed_tokens.weight"])
    head = state.get("lm_head.weight")
    norm = state.get("model.norm.weight")
    return Weights(
        embedding_VD=embedding_VD,
        head_DV=_fold(norm, embedding_VD.T if head is None else _plain(head).T),
        layers=tuple(_layer(state, f"model.layers.{index}.") for index in range(count)),
        query_heads=int(config["num_attention_heads"]),
        key_value_heads=int(config.get("num_key_value_heads") or config["num_attention_heads"]),
    )


def _layer(state: Mapping[str, torch.Tensor], prefix: str) -> Layer:
    names = sorted(name.removeprefix(prefix) for name in state if name.startswith(prefix))
    parts: dict[str, Floats | None] = {}
    for part, (pattern, norm) in _PARTS.items():
        own = [name for name in names if re.fullmatch(pattern + r"\.weight", name)]
        found = [_plain(state[prefix + name]).T for name in own]
        matrix = np.concatenate(found, axis=int(part != "down")) if found else None
        parts[part] = matrix if matrix is None else _fold(state.get(f"{prefix}{norm}.weight"), matrix)
    return Layer(**parts)


def _fold(norm: torch.Tensor | None, matrix_DX: Floats) -> Floats:
    if norm is None:
        return matrix_DX
    weight_D = _plain(norm)
    return matrix_DX if np.ptp(weight_D) == 0 else weight_D[:, None] * matrix_DX


def _plain(tensor: torch.Tensor) -> Floats:
    found: Floats = tensor.detach().float().cpu().numpy()
    return found


def _tensors(folder: Path, layers: int | None) -> Iterator[tuple[str, torch.Tensor]]:
    for name, entry in locate(folder).items():
        place = re.match(r"model\.layers\.(\d+)\.", name)
        if layers is None or place is None or int(place[1]) < layers:
            yield name, read_tensor(entry)
